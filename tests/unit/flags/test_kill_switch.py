"""A kill switch outranks targeting, the document's overrides and the process's own."""

from __future__ import annotations

import json

import pytest

from fairlead.errors import BrokenDocument
from fairlead.flags import EvaluationContext, ExposureLog, FlagSet, Reason
from fairlead.flags.explain import explain
from fairlead.telemetry import MemorySink

FLAG = {
    "state": "ENABLED",
    "variants": {"on": True, "off": False},
    "defaultVariant": "off",
    "targeting": {"if": [True, "on"]},
}
STAFF = {"if": [{"==": [{"var": "targetingKey"}, "ann"]}, "on"]}


def flag_set(
    metadata: object, *, of_document: object = None, overrides: dict[str, str] | None = None, sink: MemorySink
) -> FlagSet:
    document = {
        "$evaluators": {"staff": STAFF},
        "flags": {"feed": {**FLAG, "metadata": metadata}, "other": FLAG},
        "metadata": of_document or {},
    }
    return FlagSet.parse(
        json.dumps(document).encode(), source="f", overrides=overrides, exposures=ExposureLog(sink)
    )


@pytest.mark.parametrize("overrides", [None, {"feed": "on"}])
@pytest.mark.parametrize("of_document", [True, False])
def test_a_killed_flag_answers_with_the_callers_default_whatever_else_it_says(
    of_document: bool, overrides: dict[str, str] | None
) -> None:
    sink = MemorySink()
    killed: dict[str, object] = {"fairlead_killed": True}
    staff: dict[str, object] = {"fairlead_overrides": "staff"}
    flags = flag_set(
        staff if of_document else killed | staff,
        of_document=killed if of_document else None,
        overrides=overrides,
        sink=sink,
    )
    context = EvaluationContext(targeting_key="ann")
    found = flags.evaluate("feed", context, False)
    assert (found.value, found.variant, found.reason) == (False, None, Reason.DISABLED)
    assert found.detail == "killed: fairlead_killed is true"
    assert "kill switch is thrown" in explain(flags, "feed", context).steps[0].said
    assert sink.events == []
    assert flags.evaluate("other", context, False).variant == (None if of_document else "on")
    assert not flags.document.flags["feed"].enabled


def test_a_kill_switch_that_is_not_thrown_does_nothing() -> None:
    flags = flag_set({"fairlead_killed": False}, of_document={"fairlead_killed": False}, sink=MemorySink())
    assert flags.evaluate("feed", EvaluationContext(), False).variant == "on"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"fairlead_kiled": True}, "unknown key 'fairlead_kiled'; did you mean 'fairlead_killed'?"),
        ({"fairlead_killed": "yes"}, "'yes'; write true or false"),
        ({"fairlead_killed": 1}, "'1'; write true or false"),
    ],
)
@pytest.mark.parametrize("of_document", [True, False])
def test_a_kill_switch_that_would_not_kill_is_refused(
    of_document: bool, metadata: object, message: str
) -> None:
    with pytest.raises(BrokenDocument) as refused:
        flag_set(
            {} if of_document else metadata, of_document=metadata if of_document else None, sink=MemorySink()
        )
    assert message in str(refused.value)
    assert "metadata" in str(refused.value)
