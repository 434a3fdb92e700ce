"""Two draws with two salts: who is in, and which variant they get."""

from __future__ import annotations

import json

import pytest

from fairlead.errors import BrokenDocument
from fairlead.flags import Evaluation, EvaluationContext, FlagSet, Reason, bucket
from fairlead.flags.explain import explain


def draw(salt: str, slots: list[list[object]], by: str = "targetingKey") -> dict[str, object]:
    return {"bucket": {"by": by, "salt": salt, "algo": "xxh32/10000@1", "slots": slots}}


ARMS = draw("arms", [["a", 0, 5000], ["b", 5000, 10_000]])


def flag_set(targeting: object) -> FlagSet:
    flag = {
        "state": "ENABLED",
        "variants": {"a": 1, "b": 2, "none": 0},
        "defaultVariant": "none",
        "targeting": targeting,
    }
    return FlagSet.parse(json.dumps({"flags": {"f": flag}}).encode(), source="f.json")


def ask(flags: FlagSet, key: str) -> Evaluation:
    return flags.evaluate("f", EvaluationContext(targeting_key=key), -1)


def test_one_draw_says_who_is_in_and_the_other_which_variant() -> None:
    flags = flag_set(draw("who", [[ARMS, 0, 2000]]))
    for number in range(500):
        key = f"user-{number}"
        inside = bucket("who", key) < 2000
        wanted = ("a" if bucket("arms", key) < 5000 else "b") if inside else "none"
        found = ask(flags, key)
        assert (found.variant, found.reason) == (wanted, Reason.SPLIT if inside else Reason.DEFAULT)


def test_without_a_key_neither_draw_is_made_and_the_reason_says_so() -> None:
    found = ask(flag_set(draw("who", [[ARMS, 0, 10_000]])), "")
    assert (found.variant, found.reason) == ("none", Reason.DEFAULT)
    assert found.detail == "the context has no targetingKey, so no bucket was drawn"
    by_shop = draw("who", [[draw("arms", [["a", 0, 10_000]], by="shop"), 0, 10_000]])
    assert ask(flag_set(by_shop), "u").detail == "the context has no shop, so no bucket was drawn"


def test_a_plain_label_may_stand_beside_a_second_draw() -> None:
    flags = flag_set(draw("who", [[ARMS, 0, 5000], ["none", 5000, 10_000]]))
    assert {ask(flags, f"user-{number}").reason for number in range(100)} == {Reason.SPLIT}


def test_both_draws_are_explained() -> None:
    first, second = explain(
        flag_set(draw("who", [[ARMS, 0, 10_000]])), "f", EvaluationContext(targeting_key="u")
    ).steps
    assert "in [0, 10000) of another draw" in first.said
    assert (second.depth, second.rule) == (1, "bucket by targetingKey with salt 'arms'")
    assert "has slot" in second.said


def test_a_second_draw_in_a_condition_yields_its_label() -> None:
    flags = flag_set({"if": [{"==": [draw("who", [[ARMS, 0, 10_000]]), "a"]}, "a", "b"]})
    assert {ask(flags, f"user-{number}").variant for number in range(50)} == {"a", "b"}


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ([[draw("who", [["a", 0, 1]]), 0, 10]], "'who' is also the salt of the draw around it"),
        (
            [[draw("x", [[draw("who", [["a", 0, 1]]), 0, 1]]), 0, 10]],
            "'who' is also the salt of the draw around",
        ),
        ([[ARMS, 0, 10], ["a", 5, 20]], "'a' overlaps the draw by 'arms' of slots[0]"),
        ([[{"if": [True, "a"]}, 0, 10]], "is no label; write one, or another"),
        ([[draw("x", [["c", 0, 1]]), 0, 10]], "'c' is not a variant"),
        ([["", 0, 10]], "'' is no label"),
    ],
    ids=["same", "same-deeper", "overlap", "rule", "no-variant", "empty"],
)
def test_draws_that_cannot_be_meant_are_refused(slots: list[list[object]], message: str) -> None:
    with pytest.raises(BrokenDocument) as refused:
        flag_set(draw("who", slots))
    assert message in str(refused.value)


def test_the_same_salt_by_another_unit_is_another_draw() -> None:
    flags = flag_set(draw("who", [[draw("who", [["a", 0, 5000]], by="shop"), 0, 10_000]]))
    for shop in (f"shop-{number}" for number in range(50)):
        found = flags.evaluate("f", EvaluationContext(targeting_key="u", attributes={"shop": shop}), -1)
        assert found.variant == ("a" if bucket("who", shop) < 5000 else "none")
