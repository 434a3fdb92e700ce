"""An explanation gives the answer that a request gets, and the rules that led to it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.flags import EvaluationContext, ExposureLog, FlagSet, Reason
from fairlead.flags.explain import explain
from fairlead.telemetry import MemorySink

BUCKET = {
    "bucket": {
        "by": "targetingKey",
        "salt": "feed",
        "algo": "xxh32/10000@1",
        "slots": [["on", 0, 5000], ["off", 5000, 9000]],
    }
}
TARGETING = {
    "if": [
        {"and": [{"==": [{"var": "country"}, "DE"]}, {"<": [{"var": "age"}, 18]}]}, "off",
        {"!": {"var": "known"}}, None,
        BUCKET,
    ]
}  # fmt: skip


def flag_set(targeting: object = TARGETING, state: str = "ENABLED", **more: object) -> FlagSet:
    flag = {
        "state": state,
        "variants": {"on": True, "off": False},
        "defaultVariant": "off",
        "targeting": targeting,
    }
    return FlagSet.parse(json.dumps({"flags": {"f": flag}}).encode(), **more)  # type: ignore[arg-type]


contexts = st.builds(
    EvaluationContext,
    targeting_key=st.sampled_from(["", "user-1", "user-2", "ü"]),
    attributes=st.dictionaries(
        st.sampled_from(["country", "age", "known"]),
        st.one_of(st.none(), st.booleans(), st.integers(0, 40), st.sampled_from(["DE", "FR", "12"])),
    ),
)


@given(contexts)
def test_the_answer_is_that_of_the_flag_set(context: EvaluationContext) -> None:
    flags = flag_set()
    found = explain(flags, "f", context, False)
    assert found.evaluation == flags.evaluate("f", context, False)
    assert found.steps


def test_the_slot_and_its_owner_are_named() -> None:
    (step,) = explain(flag_set(BUCKET), "f", EvaluationContext(targeting_key="user-1")).steps
    assert step.said == "targetingKey \"user-1\" has slot 7214 of 10000, in [5000, 9000) of 'off'"
    (step,) = explain(flag_set(BUCKET), "f", EvaluationContext()).steps
    assert "no bucket was drawn" in step.said


def test_what_was_not_asked_is_not_listed() -> None:
    context = EvaluationContext(attributes={"country": "FR", "known": True})
    said = [(step.depth, step.said) for step in explain(flag_set(), "f", context).steps]
    assert said[0] == (0, "does not hold")
    assert said[1] == (1, 'does not hold: "FR", "DE"')  # and the age was not asked for
    assert not [step for step in said if "18" in step[1]]


def test_each_reason_outside_the_targeting_is_said() -> None:
    context = EvaluationContext(targeting_key="user-1")
    assert "no such flag" in explain(flag_set(), "g", context).steps[0].said
    assert "switched off" in explain(flag_set(state="DISABLED"), "f", context).steps[0].said
    assert "forces 'on'" in explain(flag_set(overrides={"f": "on"}), "f", context).steps[0].said
    assert explain(flag_set(None), "f", context).evaluation.reason is Reason.STATIC


def test_an_explanation_exposes_nobody() -> None:
    sink = MemorySink()
    flags = flag_set(BUCKET, exposures=ExposureLog(sink))
    explain(flags, "f", EvaluationContext(targeting_key="user-1"))
    assert sink.events == []
    flags.boolean("f", EvaluationContext(targeting_key="user-1"), False)
    assert len(sink.events) == 1


def test_a_context_that_raises_when_it_is_compared_is_explained() -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("odd")

        __hash__ = None  # type: ignore[assignment]

    found = explain(
        flag_set({"if": [{"in": ["a", {"var": "country"}]}, "on"]}),
        "f",
        EvaluationContext(attributes={"country": [Odd()]}),
    )
    assert found.evaluation.reason in (Reason.ERROR, Reason.DEFAULT)
    assert found.steps


@pytest.mark.parametrize(
    "value",
    [10**5000, {(1, 2): 3}, b"x", float("nan"), {"x": {1, 2}}],
    ids=["huge", "keys", "bytes", "nan", "set"],
)
@pytest.mark.parametrize(
    "targeting",
    [
        {"bucket": BUCKET["bucket"] | {"by": "odd"}},
        {"if": [{"==": [{"var": "odd"}, 3]}, "on"]},
        {"if": [{"bucket": BUCKET["bucket"] | {"by": "odd"}}, "on"]},
        {"var": "odd"},
    ],
    ids=["bucket", "if", "condition", "var"],
)
def test_no_value_of_a_context_makes_an_explanation_raise(targeting: object, value: object) -> None:
    found = explain(flag_set(targeting), "f", EvaluationContext(attributes={"odd": value}), False)
    assert found.steps
    assert found.evaluation.reason in (Reason.ERROR, Reason.DEFAULT)
