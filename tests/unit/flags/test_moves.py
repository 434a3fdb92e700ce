"""Whom a new document moves, counted slot by slot."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.flags import EvaluationContext, FlagDocument, FlagSet
from fairlead.flags.moves import FlagChange, compare_documents

Slots = list[list[object]]


BUCKET: dict[str, object] = {
    "by": "targetingKey",
    "salt": "feed",
    "algo": "xxh32/10000@1",
    "slots": [["a", 0, 1]],
}


def split(
    slots: Slots, *, salt: str = "feed", default: str = "control", state: str = "ENABLED"
) -> dict[str, object]:
    bucket = {**BUCKET, "salt": salt, "slots": slots}
    variants = {"control": "c", "a": "a", "b": "b"}
    return {"state": state, "variants": variants, "defaultVariant": default, "targeting": {"bucket": bucket}}


def document(flag: dict[str, object]) -> FlagDocument:
    return FlagSet.parse(json.dumps({"flags": {"f": flag}}).encode()).document


def shares(change: FlagChange) -> dict[str, float]:
    return {f"{move.was} → {move.becomes}": move.share for move in change.moves or ()}


def test_growing_one_arm_moves_only_those_who_join_it() -> None:
    old, new = (
        document(split([["a", 0, 500], ["b", 5000, 6000]])),
        document(split([["a", 0, 2500], ["b", 5000, 6000]])),
    )
    (change,) = compare_documents(old, new)
    assert shares(change) == {"control → a": 0.2}
    assert not change.between_arms


def test_units_that_change_arms_are_called_out() -> None:
    (change,) = compare_documents(document(split([["a", 0, 5000]])), document(split([["b", 0, 5000]])))
    assert shares(change) == {"a → b": 0.5}
    assert change.between_arms


def test_another_salt_draws_everybody_anew() -> None:
    (change,) = compare_documents(
        document(split([["a", 0, 5000]])), document(split([["a", 0, 5000]], salt="new"))
    )
    assert shares(change) == {"a → control": 0.25, "control → a": 0.25}
    assert change.between_arms


def test_switching_off_moves_everybody_to_the_callers_default() -> None:
    (change,) = compare_documents(
        document(split([["a", 0, 1000]])), document(split([["a", 0, 1000]], state="DISABLED"))
    )
    assert change.what == ("switched off",)
    assert shares(change) == {"a → None": 0.1, "control → None": 0.9}


def test_equal_documents_differ_in_nothing_and_new_flags_are_named() -> None:
    one = document(split([["a", 0, 10]]))
    assert compare_documents(one, document(split([["a", 0, 10]]))) == ()
    both = FlagSet.parse(
        json.dumps({"flags": {"f": split([["a", 0, 10]]), "g": split([["a", 0, 10]])}}).encode()
    ).document
    assert [(change.flag, change.what) for change in compare_documents(one, both)] == [("g", ("added",))]


@given(st.integers(1, 9_999), st.integers(1, 9_999))
def test_the_shares_are_those_that_units_see(first: int, second: int) -> None:
    old, new = split([["a", 0, first]]), split([["a", 0, second]])
    before, after = (FlagSet.parse(json.dumps({"flags": {"f": flag}}).encode()) for flag in (old, new))
    changes = compare_documents(before.document, after.document)
    said = sum(move.share for change in changes for move in change.moves or ())
    assert abs(said - abs(first - second) / 10_000) < 1e-12
    for key in ("user-1", "user-2", "user-3"):
        context = EvaluationContext(targeting_key=key)
        moved = before.string("f", context, "") != after.string("f", context, "")
        assert not (moved and said == 0)


def nested(inside: int, *, outer: str = "who", arms: str = "arms") -> dict[str, object]:
    """A flag that lets `inside` of 10,000 slots in, half of them to each arm."""
    inner = {**BUCKET, "salt": arms, "slots": [["a", 0, 5000], ["b", 5000, 10_000]]}
    slots = [[{"bucket": inner}, 0, inside]]
    return split([]) | {"targeting": {"bucket": {**BUCKET, "salt": outer, "slots": slots}}}


def test_letting_more_in_moves_nobody_from_one_arm_to_the_other() -> None:
    (change,) = compare_documents(document(nested(1000)), document(nested(3000)))
    assert shares(change) == {"control → a": 0.1, "control → b": 0.1}
    assert not change.between_arms


def test_who_is_in_and_is_drawn_for_an_arm_anew_is_counted_as_a_product() -> None:
    (change,) = compare_documents(document(nested(1000)), document(nested(1000, arms="again")))
    assert shares(change) == {"a → b": 0.025, "b → a": 0.025}
    assert change.between_arms


def test_a_draw_around_another_is_known_inside_it() -> None:
    # The units in slots 0 to 1000 of "arms" are in and in arm a already, so that the outer draw moves half of the arms.
    outer = {**BUCKET, "salt": "arms", "slots": [["a", 0, 1000]]}
    flat = split([]) | {"targeting": {"bucket": outer}}
    (change,) = compare_documents(document(flat), document(nested(5000)))
    assert shares(change) == {"a → control": 0.05, "control → a": 0.2, "control → b": 0.25}


def test_each_branch_is_counted_by_itself_where_both_ask_the_same() -> None:
    def targeted(slots: Slots) -> dict[str, object]:
        rule = {
            "if": [{"==": [{"var": "audience"}, "internal"]}, "a", {"bucket": {**BUCKET, "slots": slots}}]
        }
        return split([]) | {"targeting": rule}

    (change,) = compare_documents(document(targeted([["a", 0, 100]])), document(targeted([["a", 0, 500]])))
    (move,) = change.moves or ()
    assert move.among == 'not {"==": [{"var": "audience"}, "internal"]}'
    assert (move.was, move.becomes, move.share) == ("control", "a", 0.04)


def test_who_moves_is_not_said_where_the_documents_ask_different_things() -> None:
    def asking(country: str) -> dict[str, object]:
        return split([]) | {"targeting": {"if": [{"==": [{"var": "country"}, country]}, "a"]}}

    (change,) = compare_documents(document(asking("DE")), document(asking("FR")))
    assert change.moves is None


def test_a_kill_switch_is_said_and_moves_everybody() -> None:
    killed = split([["a", 0, 1000]]) | {"metadata": {"fairlead_killed": True}}
    (change,) = compare_documents(document(split([["a", 0, 1000]])), document(killed))
    assert change.what == ("killed", "metadata")
    assert shares(change) == {"a → None": 0.1, "control → None": 0.9}


def test_a_finer_division_of_the_same_draw_moves_nobody() -> None:
    flagd = {"by": "targetingKey", "salt": "f"}
    hundred = {**flagd, "algo": "murmur3/100@flagd-v2", "slots": [["a", 0, 25], ["b", 25, 100]]}
    finer = {**flagd, "algo": "murmur3/10000@flagd-v2", "slots": [["a", 0, 2500], ["b", 2500, 10_000]]}
    old, new = (split([]) | {"targeting": {"bucket": bucket}} for bucket in (hundred, finer))
    (change,) = compare_documents(document(old), document(new))
    assert change.moves == ()


@given(
    st.sampled_from(["who", "arms", "third"]),
    st.sampled_from(["who", "arms", "fourth"]),
    st.sampled_from([0, 1, 2]),
    st.integers(1, 9_999),
    st.integers(1, 9_999),
)
@settings(max_examples=20)
def test_the_shares_are_those_of_ten_thousand_units(
    outer: str, arms: str, kind: int, first: int, second: int
) -> None:
    old = nested(first)
    new = split([["a", 0, second]], salt=arms) if kind == 0 else nested(second)
    if kind == 2 and outer != arms:
        new = nested(second, outer=outer, arms=arms)
    before, after = (FlagSet.parse(json.dumps({"flags": {"f": flag}}).encode()) for flag in (old, new))
    seen: dict[str, int] = {}
    for number in range(10_000):
        context = EvaluationContext(targeting_key=f"user-{number}")
        was, becomes = (flags.evaluate("f", context).variant for flags in (before, after))
        if was != becomes:
            seen[f"{was} → {becomes}"] = seen.get(f"{was} → {becomes}", 0) + 1
    said: dict[str, float] = {}
    for change in compare_documents(before.document, after.document):
        said |= shares(change)
    for pair in {*seen, *said}:  # five standard errors of a share of 10,000 units
        assert abs(seen.get(pair, 0) / 10_000 - said.get(pair, 0.0)) < 0.025, pair


def test_arms_that_are_swapped_are_called_out_and_a_rollout_that_grows_or_ends_is_not() -> None:
    def rollout(slots: Slots) -> FlagDocument:
        return document(split(slots))

    five = rollout([["a", 0, 500], ["control", 500, 10_000]])
    half = rollout([["a", 0, 5000], ["control", 5000, 10_000]])
    swapped = rollout([["control", 0, 5000], ["a", 5000, 10_000]])
    none = rollout([["control", 0, 10_000]])
    for old, new, between in ((five, half, False), (half, none, False), (half, swapped, True)):
        (change,) = compare_documents(old, new)
        assert change.between_arms is between
