"""Keys made from a function's own arguments."""

from __future__ import annotations

import datetime as dt
import enum
import inspect
import itertools
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.cache import Cache, Freshness, KeyBuilder
from fairlead.cache.keys import key_text, shown
from fairlead.clock import ManualClock
from fairlead.errors import InvalidInput


async def profile(user_id: int, locale: str = "en", *, full: bool = False) -> str:
    return f"{user_id} {locale} {full}"


async def anything(value: Any) -> Any:
    return value


async def mail(user_id: int, email: str) -> str:
    return email


class Level(enum.IntEnum):
    LOW = 1


class Point(msgspec.Struct, frozen=True):
    x: Any


KEY = KeyBuilder(profile, name="profile", version=3)
ANY = KeyBuilder(anything, name="anything")


def test_defaults_are_filled_in_and_the_order_of_keywords_does_not_matter() -> None:
    assert KEY(7) == KEY(7, "en") == KEY(full=False, user_id=7) == ("profile", 3, 7, "en", ("bool", False))
    assert len({KEY(7), KEY(7, "fr"), KEY(8), KEY(7, full=True)}) == 4


def test_values_of_different_types_are_different_keys() -> None:
    values = [
        1,
        True,
        1.0,
        "1",
        b"1",
        None,
        Level.LOW,
        Point(1),
        Point(True),
        (1,),
        (True,),
        ("bool", True),
        frozenset({1}),
    ]
    keys = [ANY(each) for each in values]
    assert len(set(keys)) == len(values)
    assert len({key_text(each) for each in keys}) == len(values)


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ([1], "a tuple"),
        ({"a": 1}, "tuple"),
        ({1}, "a frozenset"),
        (float("nan"), "NaN"),
        (object(), "no form"),
        (lambda: 1, "a name for what it does"),
        (dt.datetime(2026, 1, 1), "aware"),  # noqa: DTZ001 - that is the point
        ((1, [2]), "a tuple"),
        (Point([1]), "a tuple"),
    ],
)
def test_an_unstable_argument_is_refused_by_name_and_with_advice(value: Any, advice: str) -> None:
    with pytest.raises(InvalidInput, match=f"(?s)'value' cannot be part of a key.*{advice}"):
        ANY(value)


def test_nesting_without_end_is_refused() -> None:
    value: Any = 1
    for _ in range(5_000):
        value = (value,)
    with pytest.raises(InvalidInput, match="deeper"):
        ANY(value)


def test_a_wrong_call_raises_what_the_function_would() -> None:
    with pytest.raises(TypeError, match="user_id"):
        KEY()  # type: ignore[call-arg]


def test_name_and_version_are_part_of_the_key() -> None:
    made = [KeyBuilder(anything, name=name, version=version) for name in "ab" for version in (1, 2)]
    assert len({each(1) for each in made}) == 4


def test_variadic_arguments_are_part_of_the_key() -> None:
    async def many(*ids: int, **filters: str) -> None: ...

    key = KeyBuilder(many, name="many")
    assert key(1, 2, a="x", b="y") == key(1, 2, b="y", a="x")
    assert len({key(), key(1), key(1, 2), key(a="1"), key(b="1")}) == 5


def test_what_is_ignored_is_not_part_of_the_key() -> None:
    async def load(session: object, user_id: int) -> None: ...

    key = KeyBuilder(load, name="user", ignore=("session",))
    assert key(object(), 7) == key(object(), 7) == ("user", 1, 7)


def test_the_scope_is_named_in_the_key_and_never_none() -> None:
    key = KeyBuilder(profile, name="profile", scope="user_id")
    assert key(7)[:3] == ("profile", 1, ("user_id", 7))
    with pytest.raises(InvalidInput, match="scope 'user_id' is None"):
        key(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"classified": ("email",)},
        {"classified": ("email",), "max_ttl": 60.0},
        {"classified": ("email",), "scope": "user_id"},
        {"classified": "email", "scope": "user_id", "max_ttl": 60.0},
        {"scope": "nobody"},
        {"ignore": ("nobody",)},
        {"ignore": ("user_id",), "scope": "user_id"},
        {"max_ttl": 0.0},
        {"max_ttl": float("nan")},
        {"version": True},
        {"version": "1"},
        {"name": ""},
    ],
)
def test_personal_data_without_scope_or_cap_and_other_mistakes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        KeyBuilder(mail, **{"name": "mail", **wrong})


def test_a_classified_argument_is_shown_nowhere() -> None:
    key = KeyBuilder(mail, name="mail", scope="user_id", classified=("email",), max_ttl=60.0)
    ada, bob = key(7, "ada@example.org"), key(7, "bob@example.org")
    assert ada != bob
    for text in (repr(ada), key_text(ada), shown(ada)):
        assert "ada" not in text
    with pytest.raises(InvalidInput) as refused:
        key(7, ["ada@example.org"])  # type: ignore[arg-type]
    assert "ada" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_the_cap_bounds_every_window() -> None:
    key = KeyBuilder(mail, name="mail", scope="user_id", classified=("email",), max_ttl=60.0)
    capped = key.cap(Freshness(ttl=300.0, stale_if_error=3600.0, stale_while_revalidate=5.0))
    assert (capped.ttl, capped.max_ttl, capped.stale_if_error) == (60.0, 60.0, 3600.0)
    tighter = Freshness(ttl=10.0, max_ttl=20.0)
    assert key.cap(tighter) == tighter
    assert KEY.cap(tighter) is tighter


async def test_a_decorated_function_keeps_its_signature_and_its_values_obey_the_cap() -> None:
    clock = ManualClock()
    cache = Cache(clock=clock)
    key = KeyBuilder(mail, name="mail", scope="user_id", classified=("email",), max_ttl=60.0)
    cached = cache.cached(key=key, freshness=Freshness(ttl=3600.0, stale_if_error=86_400.0))(mail)
    assert inspect.signature(cached) == inspect.signature(mail)
    assert await cached(7, "ada@example.org") == await cached(email="ada@example.org", user_id=7)
    assert cache.stats.loads == 1
    clock.advance(60.0)
    assert await cache.get(key(7, "ada@example.org"), "gone") == "gone"


async def test_a_built_key_finds_what_the_decorated_function_stored() -> None:
    cache = Cache()
    cached = cache.cached(key=KEY, freshness=Freshness(ttl=60.0))(profile)
    await cached(7, full=True)
    assert await cache.get(KEY(7, "en", full=True)) == "7 en True"
    await cache.remove(KEY(full=True, user_id=7))
    assert await cache.get(KEY(7, full=True)) is None


def test_keys_are_the_same_in_every_process() -> None:
    code = (
        "from fairlead.cache import KeyBuilder\n"
        "from fairlead.cache.keys import key_text\n"
        "async def f(a, email): ...\n"
        "key = KeyBuilder(f, name='f', scope='a', classified=('email',), max_ttl=1)\n"
        "print(key_text(key(1, frozenset('abcdef'))))"
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


SCALARS = st.sampled_from(
    [0, 1, True, False, 0.0, 1.0, "1", "", b"1", None, "bool", "tuple", "float", Level.LOW]
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2).map(tuple) | inner.map(Point), max_leaves=4
)


@given(st.lists(VALUES, min_size=2, max_size=4))
def test_two_calls_have_one_key_only_if_their_arguments_are_equal_in_value_and_type(
    values: list[Any],
) -> None:
    for one, other in itertools.combinations(values, 2):
        same = key_text(one) == key_text(other)
        assert (ANY(one) == ANY(other)) == same
        assert (key_text(ANY(one)) == key_text(ANY(other))) == same
