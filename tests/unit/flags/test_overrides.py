"""Who is overridden by the document gets the variant, and enters no experiment."""

from __future__ import annotations

import json

import pytest

from fairlead.errors import BrokenDocument
from fairlead.flags import EvaluationContext, ExposureLog, FlagSet, Reason
from fairlead.flags.explain import explain
from fairlead.telemetry import Exposure, MemorySink

BUCKET = {"by": "targetingKey", "salt": "feed", "algo": "xxh32/10000@1", "slots": [["off", 0, 10_000]]}
STAFF = {
    "if": [
        {"in": [{"var": "targetingKey"}, ["ann", "bob"]]}, "on",
        {"ends_with": [{"var": "email"}, "@example.com"]}, "on",
        {"in": ["beta", {"var": "groups"}]}, "off",
    ]
}  # fmt: skip


def flag_set(staff: object = STAFF, name: object = "staff", sink: MemorySink | None = None) -> FlagSet:
    flag = {
        "state": "ENABLED",
        "variants": {"on": True, "off": False},
        "defaultVariant": "off",
        "targeting": {"bucket": BUCKET},
        "metadata": {"fairlead_overrides": name},
    }
    document = {"$evaluators": {"staff": staff}, "flags": {"feed": flag}}
    exposures = None if sink is None else ExposureLog(sink)
    return FlagSet.parse(json.dumps(document).encode(), source="f", exposures=exposures)


@pytest.mark.parametrize(
    ("context", "variant", "reason"),
    [
        (EvaluationContext(targeting_key="ann"), "on", Reason.TARGETING_MATCH),
        (
            EvaluationContext(targeting_key="u", attributes={"email": "u@example.com"}),
            "on",
            Reason.TARGETING_MATCH,
        ),
        (
            EvaluationContext(targeting_key="u", attributes={"groups": ["beta"]}),
            "off",
            Reason.TARGETING_MATCH,
        ),
        (EvaluationContext(targeting_key="u"), "off", Reason.SPLIT),
        (EvaluationContext(), "off", Reason.DEFAULT),
    ],
    ids=["key", "domain", "group", "nobody", "no-key"],
)
def test_an_override_goes_before_the_targeting(
    context: EvaluationContext, variant: str, reason: Reason
) -> None:
    found = flag_set().evaluate("feed", context, False)
    assert (found.variant, found.reason) == (variant, reason)


def test_an_overridden_unit_is_exposed_as_matched_and_never_as_drawn() -> None:
    sink = MemorySink()
    flags = flag_set(sink=sink)
    for key in ("ann", "user-1"):
        flags.boolean("feed", EvaluationContext(targeting_key=key), False)
    reasons = {event.targeting_key: event.reason for event in sink.events if isinstance(event, Exposure)}
    # Analyses count SPLIT alone (decision 0189), so ann is in none of them.
    assert reasons == {"ann": "TARGETING_MATCH", "user-1": "SPLIT"}


def test_an_explanation_shows_the_override_before_the_targeting() -> None:
    asked = [step.rule for step in explain(flag_set(), "feed", EvaluationContext(targeting_key="ann")).steps]
    assert asked[0] == "fairlead_overrides staff"
    assert asked[-1] == '"on"'
    others = explain(flag_set(), "feed", EvaluationContext(targeting_key="u")).steps
    assert "nobody is overridden: on to the targeting" in [step.said for step in others]
    assert "has slot" in others[-1].said


def test_an_override_that_fails_answers_with_the_callers_default() -> None:
    found = flag_set({"var": "wish"}).evaluate("feed", EvaluationContext(attributes={"wish": "onn"}), True)
    assert (found.value, found.reason) == (True, Reason.ERROR)
    assert flag_set({"var": "wish"}).evaluate("feed", EvaluationContext(attributes={"wish": "on"})).value


@pytest.mark.parametrize(
    ("staff", "name", "message"),
    [
        (STAFF, "stuff", "'stuff' is none of $evaluators; did you mean 'staff'?"),
        (STAFF, True, "'true' is none of $evaluators"),
        ({"if": [True, "onn"]}, "staff", "'onn' is not a variant; did you mean 'on'?"),
        ({"bucket": BUCKET}, "staff", "an override draws nobody; put the bucket into the targeting"),
        ({"if": [{"bucket": BUCKET}, "on"]}, "staff", "an override draws nobody"),
        ({"$ref": "staff"}, "staff", "'staff' refers to itself"),
    ],
    ids=["unknown", "no-name", "no-variant", "bucket", "bucket-inside", "circle"],
)
def test_an_override_that_cannot_be_meant_is_refused(staff: object, name: object, message: str) -> None:
    with pytest.raises(BrokenDocument) as refused:
        flag_set(staff, name)
    assert str(refused.value).startswith("f: flag 'feed', metadata.fairlead_overrides")
    assert message in str(refused.value)


def test_overrides_of_a_whole_document_are_refused() -> None:
    document = {"flags": {}, "metadata": {"fairlead_overrides": "staff"}}
    with pytest.raises(BrokenDocument, match="belongs to a flag"):
        FlagSet.parse(json.dumps(document).encode())
