"""`$ref`: one rule for many flags, without circles and without documents that grow when they are read."""

from __future__ import annotations

import json

import pytest

from fairlead.errors import BrokenDocument
from fairlead.flags import EvaluationContext, FlagSet


def document(evaluators: dict[str, object], targeting: object) -> bytes:
    flag = {
        "state": "ENABLED",
        "variants": {"on": True, "off": False},
        "defaultVariant": "off",
        "targeting": targeting,
    }
    return json.dumps({"$evaluators": evaluators, "flags": {"f": flag}}).encode()


STAFF = {"ends_with": [{"var": "email"}, "@example.com"]}


def test_a_shared_rule_answers_as_if_it_stood_there() -> None:
    flags = FlagSet.parse(
        document({"staff": STAFF}, {"if": [{"or": [{"$ref": "staff"}, {"var": "beta"}]}, "on"]})
    )
    assert flags.boolean("f", EvaluationContext(attributes={"email": "a@example.com"}), False) is True
    assert flags.boolean("f", EvaluationContext(attributes={"email": "a@example.org"}), True) is False


def test_a_shared_rule_may_use_another_and_be_the_whole_targeting() -> None:
    rules = {"staff": STAFF, "whole": {"if": [{"$ref": "staff"}, "on", "off"]}}
    flags = FlagSet.parse(document(rules, {"$ref": "whole"}))
    assert flags.boolean("f", EvaluationContext(attributes={"email": "a@example.com"}), False) is True


@pytest.mark.parametrize(
    ("rules", "targeting", "said"),
    [
        ({}, {"$ref": "staff"}, "'staff' is none of $evaluators"),
        ({"staff": STAFF}, {"if": [{"$ref": "staf"}, "on"]}, "did you mean 'staff'?"),
        (
            {"a": {"$ref": "b"}, "b": {"!": {"$ref": "a"}}},
            {"$ref": "a"},
            "'a' refers to itself, by way of a and b",
        ),
        ({"a": STAFF}, {"$ref": "a", "if": []}, "stands alone"),
        ({"a": STAFF}, {"$ref": ["a"]}, "stands alone"),
    ],
)
def test_a_reference_that_leads_nowhere_is_refused(
    rules: dict[str, object], targeting: object, said: str
) -> None:
    with pytest.raises(BrokenDocument, match="flag 'f', targeting") as refused:
        FlagSet.parse(document(rules, targeting))
    assert said in str(refused.value)


def test_references_that_multiply_at_every_step_are_refused_soon() -> None:
    rules: dict[str, object] = {"r0": STAFF}
    for step in range(1, 8):
        rules[f"r{step}"] = {"or": [{"$ref": f"r{step - 1}"}] * 6}
    with pytest.raises(BrokenDocument, match="put in more than 100000 nodes"):
        FlagSet.parse(document(rules, {"if": [{"$ref": "r7"}, "on"]}))


def test_references_that_lead_deeper_than_a_document_may_be_are_refused() -> None:
    chain: dict[str, object] = {f"r{step}": {"$ref": f"r{step + 1}"} for step in range(3000)} | {
        "r3000": STAFF
    }
    with pytest.raises(BrokenDocument, match=r"deeper than 32 levels with its \$refs put in"):
        FlagSet.parse(document(chain, {"if": [{"$ref": "r0"}, "on"]}))


def test_a_large_rule_that_is_referred_to_often_is_refused_soon() -> None:
    rules: dict[str, object] = {"long": {"or": [{"var": "x"}] * 20_000}}
    with pytest.raises(BrokenDocument, match="put in more than 100000 nodes"):
        FlagSet.parse(document(rules, {"if": [{"or": [{"$ref": "long"}] * 1000}, "on"]}))
