"""A key as text: the same in every process, and never the same for two keys."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import subprocess
import sys
import uuid
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.cache.keys import key_text
from fairlead.errors import InvalidInput


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Place(NamedTuple):
    x: int


class Point(msgspec.Struct, frozen=True):
    x: int


@dataclasses.dataclass(frozen=True)
class Spot:
    x: int


@dataclasses.dataclass
class Soft:
    x: int


ALIKE = [
    1,
    True,
    1.0,
    "1",
    b"1",
    (1,),
    ((1,),),
    frozenset({1}),
    Level.LOW,
    Colour.RED,
    Point(1),
    Spot(1),
    Place(1),
]


def test_keys_of_different_types_have_different_texts() -> None:
    texts = [key_text(each) for each in ALIKE]
    assert len(set(texts)) == len(ALIKE)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (("profile", 7, None, True), "('profile',7,none,true)"),
        ("a b'{}#,é", "'a%20b%27%7B%7D%23%2C%C3%A9'"),
        (b"\x00a", "b'%00a'"),
        (-0.0, "0.0"),
        (dt.datetime(2026, 1, 2, tzinfo=dt.UTC), "datetime('2026-01-02T00:00:00+00:00')"),
        (dt.date(2026, 1, 2), "date('2026-01-02')"),
        (decimal.Decimal("1.50"), "decimal('1.50')"),
        (uuid.UUID(int=1), "uuid('00000000-0000-0000-0000-000000000001')"),
        (frozenset({"b", "a", "c"}), "frozenset('a','b','c')"),
    ],
)
def test_the_text_is_readable(key: object, text: str) -> None:
    assert key_text(key) == text


def test_the_text_does_not_depend_on_the_hash_seed() -> None:
    code = (
        "from fairlead.cache.keys import key_text;"
        "print(key_text(('k', frozenset('abcdefgh'), 'x' * 300)), key_text(frozenset('abcdefgh')))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1


def test_a_long_key_is_cut_and_still_told_from_its_like() -> None:
    one, other = key_text("x" * 10_000 + "a"), key_text("x" * 10_000 + "b")
    assert one != other
    assert len(one) <= 200
    assert one.startswith("'xxxx")
    assert len(key_text(2**100_000)) <= 200


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        (float("nan"), "NaN"),
        (decimal.Decimal("nan"), "NaN"),
        ([1], "a tuple"),
        ({"a": 1}, "tuple\\(sorted"),
        (("k", {1}), "a frozenset"),
        (Soft(1), "frozen"),
        (lambda: 1, "another one in each process"),
        (object(), "no form that holds"),
        (dt.datetime(2026, 1, 2), "time zone"),  # noqa: DTZ001 - that is the point
        (type("Text", (str,), {})("a"), "no form that holds"),
    ],
)
def test_what_does_not_outlive_the_process_is_refused_with_advice(key: Any, advice: str) -> None:
    with pytest.raises(InvalidInput, match=advice):
        key_text(key)


def test_nesting_without_end_is_refused() -> None:
    key: Any = 1
    for _ in range(5_000):
        key = (key,)
    with pytest.raises(InvalidInput, match="deeper"):
        key_text(key)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.dates()
    | st.decimals(allow_nan=False)
)
KEYS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=6,
)


def typed(key: object) -> object:
    """`key` so that dict equality sees the types."""
    if isinstance(key, tuple):
        return tuple, tuple(typed(each) for each in key)
    if isinstance(key, frozenset):
        return frozenset, frozenset(typed(each) for each in key)
    return type(key), str(key) if isinstance(key, decimal.Decimal) else key


@given(KEYS, KEYS)
def test_two_keys_have_one_text_only_if_they_are_equal_in_value_and_type(one: object, other: object) -> None:
    assert (key_text(one) == key_text(other)) == (typed(one) == typed(other))
    text = key_text(one)
    assert text.isascii()
    assert text.isprintable()
    assert not set(" {}") & set(text)
