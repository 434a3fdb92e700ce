from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import BrokenDocument
from fairlead.flags import EvaluationContext, FlagSet
from fairlead.flags.semantic_version import parse_version

# Semantic Versioning 2.0.0, section 11.
ASCENDING = (
    "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1",
    "1.0.0", "1.9.0", "1.10.0", "1.11.0", "2.0.0", "2.1.0", "2.1.1",
)  # fmt: skip


def asked(version: object, operator: str, other: str) -> bool:
    rule = {"if": [{"sem_ver": [{"var": "app"}, operator, other]}, "yes", "no"]}
    flag = {
        "state": "ENABLED",
        "variants": {"yes": True, "no": False},
        "defaultVariant": "no",
        "targeting": rule,
    }
    flags = FlagSet.parse(json.dumps({"flags": {"f": flag}}).encode())
    return flags.boolean("f", EvaluationContext(attributes={"app": version}), False)


def test_versions_are_ordered_as_the_specification_orders_them() -> None:
    parsed = [parse_version(text) for text in ASCENDING]
    assert None not in parsed
    assert sorted(parsed) == parsed
    assert len(set(parsed)) == len(parsed)


@pytest.mark.parametrize(
    ("version", "operator", "other", "holds"),
    [
        ("1.10.0", ">", "1.9.0", True), ("v1.2", "=", "1.2.0", True), ("1.2.3", "^", "1.9.9", True),
        ("2.0.0", "^", "1.9.9", False), ("1.2.9", "~", "1.2.0", True), ("1.3.0", "~", "1.2.0", False),
        ("1.0.0+a", "=", "1.0.0+b", True), ("1.0.0-rc.1", "<", "1.0.0", True), ("1.0.0", "!=", "1.0.1", True),
    ],
)  # fmt: skip
def test_each_operator_compares_versions(version: str, operator: str, other: str, holds: bool) -> None:
    assert asked(version, operator, other) is holds


@pytest.mark.parametrize("version", ["", "latest", "1.2.3.4", "01.0.0", 1.2, None, "1" * 500, "1.0.0-"])
@pytest.mark.parametrize("operator", ["=", "!=", "<", ">=", "^"])
def test_what_is_no_version_satisfies_nothing(version: object, operator: str) -> None:
    assert asked(version, operator, "1.0.0") is False


@given(st.text(max_size=30))
def test_any_text_is_none_or_begins_as_a_version_does(text: str) -> None:
    found = parse_version(text)
    assert found is None or (text.lstrip("v")[:1].isdigit() and min(found[:3]) >= 0)


@given(st.tuples(*[st.integers(0, 10**9)] * 3), st.tuples(*[st.integers(0, 10**9)] * 3))
def test_releases_are_ordered_as_their_numbers(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    one, other = (parse_version(".".join(map(str, numbers))) for numbers in (first, second))
    assert one is not None
    assert other is not None
    assert (one < other) is (first < second)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ([{"var": "app"}, "==", "1.0.0"], "'==' compares no versions; write one of = !="),
        ([{"var": "app"}, ">", "newest"], "'newest' is no version; write one such as 1.2.3"),
        ([{"var": "app"}, ">"], "takes 3 arguments, not 2"),
        ([1.2, ">", "1.0.0"], "'1.2' is no version"),
    ],
)
def test_a_comparison_that_can_never_hold_is_refused(rule: object, said: str) -> None:
    flag = {
        "state": "ENABLED",
        "variants": {"a": 1},
        "defaultVariant": "a",
        "targeting": {"if": [{"sem_ver": rule}, "a"]},
    }
    with pytest.raises(BrokenDocument, match=r"flag 'f', targeting\.if\[0\]\.sem_ver") as refused:
        FlagSet.parse(json.dumps({"flags": {"f": flag}}).encode())
    assert said in str(refused.value)
