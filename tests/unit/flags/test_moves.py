"""Whom a new document moves, counted slot by slot."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from fairlead.flags import EvaluationContext, FlagDocument, FlagSet
from fairlead.flags.moves import compare_documents

Slots = list[list[object]]


def split(
    slots: Slots, *, salt: str = "feed", default: str = "control", state: str = "ENABLED"
) -> dict[str, object]:
    bucket = {"by": "targetingKey", "salt": salt, "algo": "xxh32/10000@1", "slots": slots}
    variants = {"control": "c", "a": "a", "b": "b"}
    return {"state": state, "variants": variants, "defaultVariant": default, "targeting": {"bucket": bucket}}


def document(flag: dict[str, object]) -> FlagDocument:
    return FlagSet.parse(json.dumps({"flags": {"f": flag}}).encode()).document


def test_growing_one_arm_moves_only_those_who_join_it() -> None:
    old, new = (
        document(split([["a", 0, 500], ["b", 5000, 6000]])),
        document(split([["a", 0, 2500], ["b", 5000, 6000]])),
    )
    (change,) = compare_documents(old, new)
    assert change.moves == {"control → a": 0.2}
    assert not change.between_arms


def test_units_that_change_arms_are_called_out() -> None:
    (change,) = compare_documents(document(split([["a", 0, 5000]])), document(split([["b", 0, 5000]])))
    assert change.moves == {"a → b": 0.5}
    assert change.between_arms


def test_another_salt_draws_everybody_anew() -> None:
    (change,) = compare_documents(
        document(split([["a", 0, 5000]])), document(split([["a", 0, 5000]], salt="new"))
    )
    assert change.moves == {"a → control": 0.25, "control → a": 0.25}
    assert change.between_arms


def test_switching_off_moves_everybody_to_the_callers_default() -> None:
    (change,) = compare_documents(
        document(split([["a", 0, 1000]])), document(split([["a", 0, 1000]], state="DISABLED"))
    )
    assert change.what == ("switched off",)
    assert change.moves == {"a → default of the caller": 0.1, "control → default of the caller": 0.9}


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
    said = sum(sum((change.moves or {}).values()) for change in changes)
    assert abs(said - abs(first - second) / 10_000) < 1e-12
    for key in ("user-1", "user-2", "user-3"):
        context = EvaluationContext(targeting_key=key)
        moved = before.string("f", context, "") != after.string("f", context, "")
        assert not (moved and said == 0)
