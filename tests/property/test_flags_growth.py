"""Letting more users in moves nobody who has a variant, whichever layout draws; and no context makes a draw raise."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fairlead.flags import Evaluation, EvaluationContext, FlagSet, Reason
from fairlead.flags.explain import explain
from fairlead.flags.moves import compare_documents

LAYOUTS = {
    "xxh32/10000@1": 10_000,
    "murmur3/10000@flagd-v2": 10_000,
    "murmur3/7@flagd-v2": 7,
    "murmur3-cbor/10000@flagd-v3": 10_000,
    "murmur3-cbor-pair/2147483647@flagd-v3": 2**31 - 1,
    "murmur3-abs/2147483649@flagd-v1": 2**31 + 1,
}

layouts = st.sampled_from(sorted(LAYOUTS))
keys = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), min_size=1, max_size=30)


def draw(algorithm: str, salt: str, slots: list[list[object]], by: str = "targetingKey") -> dict[str, object]:
    return {"bucket": {"by": by, "salt": salt, "algo": algorithm, "slots": slots}}


def flag_set(targeting: object) -> FlagSet:
    flag = {
        "state": "ENABLED",
        "variants": {name: name for name in ("a", "b", "none")},
        "defaultVariant": "none",
        "targeting": targeting,
    }
    return FlagSet.parse(json.dumps({"flags": {"f": flag}}).encode())


def ask(flags: FlagSet, key: str) -> Evaluation:
    return flags.evaluate("f", EvaluationContext(targeting_key=key), "")


@given(layouts, st.data(), keys)
def test_growing_an_arm_moves_nobody_of_another_and_nobody_out(
    algorithm: str, data: st.DataObject, units: list[str]
) -> None:
    count = LAYOUTS[algorithm]
    cuts = sorted(data.draw(st.lists(st.integers(1, count - 1), min_size=4, max_size=4, unique=True)))
    small, large, start, end = cuts
    other: list[object] = ["b", start, end] if start < end else ["b", start, count]
    before = flag_set(draw(algorithm, "s", [["a", 0, small], other]))
    after = flag_set(draw(algorithm, "s", [["a", 0, large], other]))
    for unit in units:
        was, becomes = ask(before, unit).variant, ask(after, unit).variant
        assert was == becomes or (was, becomes) == ("none", "a")
    (change,) = compare_documents(before.document, after.document)
    assert [(move.was, move.becomes) for move in change.moves or ()] == [("none", "a")]
    assert not change.between_arms


@given(layouts, layouts, st.data(), keys)
def test_letting_more_in_by_a_salt_of_its_own_moves_nobody_between_arms(
    outer: str, inner: str, data: st.DataObject, units: list[str]
) -> None:
    count, cut = LAYOUTS[outer], LAYOUTS[inner] // 2
    small, large = sorted(data.draw(st.lists(st.integers(1, count), min_size=2, max_size=2, unique=True)))
    arms = draw(inner, "arms", [["a", 0, cut], ["b", cut, LAYOUTS[inner]]])
    before, after = (flag_set(draw(outer, "who", [[arms, 0, edge]])) for edge in (small, large))
    for unit in units:
        was, becomes = ask(before, unit), ask(after, unit)
        assert was.variant == becomes.variant or was.variant == "none"
        if becomes.variant != "none":
            assert becomes.reason is Reason.SPLIT
    (change,) = compare_documents(before.document, after.document)
    assert not change.between_arms


odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.just("\ud800"),
    st.binary(max_size=3),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.just(10**5000),
)


@given(layouts, odd, odd)
def test_whatever_stands_for_a_unit_is_drawn_or_served_the_default(
    algorithm: str, unit: Any, key: Any
) -> None:
    inner = draw(algorithm, "arms", [["a", 0, LAYOUTS[algorithm]]], by="shop")
    flags = flag_set(draw(algorithm, "", [[inner, 0, LAYOUTS[algorithm]]]) if algorithm[0] == "m" else inner)
    context = EvaluationContext(targeting_key=key, attributes={"shop": unit})
    found = flags.evaluate("f", context, "mine")
    assert (found.value, found.reason) in {
        ("a", Reason.SPLIT),
        ("none", Reason.DEFAULT),
        ("mine", Reason.ERROR),  # an integer of thousands of digits
    }
    assert explain(flags, "f", context).evaluation.variant == found.variant
