"""Values as bytes, and what is refused on the way there and back."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, Generic, TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.cache import Codec
from fairlead.errors import BrokenDocument, InvalidInput

_T = TypeVar("_T")


class Profile(msgspec.Struct, frozen=True):
    name: str
    langs: tuple[str, ...] = ()
    friend: Profile | None = None


@dataclasses.dataclass(frozen=True)
class Price:
    cents: int
    tags: list[str] = dataclasses.field(default_factory=list)


class Page(msgspec.Struct, Generic[_T], frozen=True):
    items: tuple[_T, ...]


@dataclasses.dataclass(frozen=True)
class Box(Generic[_T]):
    inside: _T


class Profiles(Profile, frozen=True):
    """A struct of a subclass."""


class Loose(msgspec.Struct):
    a: int


def struct_named_profile(docstring: str = "", **fields: Any) -> type[msgspec.Struct]:
    return msgspec.defstruct("Profile", list(fields.items()), frozen=True, namespace={"__doc__": docstring})


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Profile, Profile("Ada", ("en", "fr"), Profile("Bob"))),
        (bytes, b"\x00\xff" * 9),
        (Page[int], Page((1, 2))),
        (Page[Page[str]] | None, Page((Page(("a",)),))),
        (Box[int], Box(1)),
        (Profile | None, None),
        (tuple[int, float, bool], (1, 1.0, True)),
        (frozenset[int], frozenset({1, 2})),
    ],
)
def test_a_value_comes_back_as_it_was(kind: Any, value: object) -> None:
    codec: Codec[Any] = Codec(kind)
    back = codec.decode(codec.encode(value))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "changed",
    [
        struct_named_profile(name=str, age=int),
        struct_named_profile(name=bytes),
        struct_named_profile(full_name=str),
    ],
    ids=["a field more", "another type", "another name"],
)
def test_a_changed_struct_does_not_read_what_the_old_one_wrote(changed: type[msgspec.Struct]) -> None:
    old = struct_named_profile(name=str)
    written = Codec(old).encode(old(name="Ada"))
    with pytest.raises(BrokenDocument, match="another schema"):
        Codec(changed).decode(written)


def test_a_corrected_docstring_is_no_change_of_schema() -> None:
    old, new = struct_named_profile("Teh user.", name=str), struct_named_profile("The user.", name=str)
    assert Codec(new).decode(Codec(old).encode(old(name="Ada"))) == new(name="Ada")


def test_a_told_version_replaces_the_derived_one() -> None:
    old, new = (
        struct_named_profile(name=str),
        msgspec.defstruct("P", [("name", str), ("x", int, 0)], frozen=True),
    )
    assert Codec(new, version=1).decode(Codec(old, version=1).encode(old(name="Ada"))).x == 0
    with pytest.raises(BrokenDocument):
        Codec(old, version=2).decode(Codec(old, version=1).encode(old(name="Ada")))
    with pytest.raises(BrokenDocument):
        Codec(old, version="1").decode(Codec(old, version=1).encode(old(name="Ada")))


def test_every_truncation_and_every_flipped_byte_is_a_broken_document_or_a_value_of_the_type() -> None:
    codec = Codec(Profile)
    good = codec.encode(Profile("Ada", ("en",), Profile("Bob")))
    for end in range(len(good)):
        with pytest.raises(BrokenDocument):
            codec.decode(good[:end])
    with pytest.raises(BrokenDocument):
        codec.decode(good + b"\x00")
    for at in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[at] ^= 1 << bit
            try:
                assert type(codec.decode(bytes(bad))) is Profile
            except BrokenDocument:
                continue


@given(st.binary(max_size=200))
def test_hostile_bytes_are_a_broken_document_or_a_value_of_the_type(tail: bytes) -> None:
    codec = Codec(Profile | int)
    head = codec.encode(1)[:9]
    with contextlib.suppress(BrokenDocument):
        assert type(codec.decode(head + tail)) in (Profile, int)
    with pytest.raises(BrokenDocument):
        codec.decode(tail)


def test_nesting_without_end_is_a_broken_document() -> None:
    codec: Codec[Any] = Codec(Any, mutable_ok=True)
    head = codec.encode(None)[:9]
    with pytest.raises(BrokenDocument, match="recursion"):
        codec.decode(head + b"\x91" * 100_000 + b"\xc0")


def test_a_type_that_raises_anything_while_it_is_built_is_a_broken_document() -> None:
    class Odd(msgspec.Struct, frozen=True):
        a: int

        def __post_init__(self) -> None:
            if self.a == 2:
                raise KeyError("two")

    codec = Codec(Odd)
    with pytest.raises(BrokenDocument, match="two"):
        codec.decode(codec.encode(Odd(1))[:-1] + b"\x02")


def test_both_ways_are_bounded_in_size() -> None:
    codec = Codec(bytes, max_bytes=100)
    fits = codec.encode(b"x" * 89)
    assert len(fits) == 100
    assert codec.decode(fits) == b"x" * 89
    with pytest.raises(InvalidInput, match="101 bytes are more than max_bytes, 100"):
        codec.encode(b"x" * 90)
    with pytest.raises(BrokenDocument, match="more than max_bytes, 100"):
        codec.decode(Codec(bytes).encode(b"x" * 90))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Profile, {"name": "Ada"}),
        (Profile | None, 3),
        (Profile, Profiles("Ada")),
        (int, True),
        (int, 2**70),
        (str, "\ud800"),
        (tuple[Any, ...], (object(),)),
    ],
)
def test_a_value_that_cannot_be_read_back_is_not_written(kind: Any, value: Any) -> None:
    codec: Codec[Any] = Codec(kind, mutable_ok=True)
    with pytest.raises(InvalidInput):
        codec.encode(value)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (list[int], "list"),
        (dict[str, int], "dict"),
        (tuple[set[int], ...], "set"),
        (Loose, "Loose is not frozen"),
        (Price, "Price.tags is a list"),
        (Price | None, "Price.tags is a list"),
        (Any, "of any type"),
        (Page[list[int]], "Page.items is a list"),
        (Box[Loose], "Loose is not frozen"),
    ],
)
def test_a_type_that_callers_could_change_is_refused_unless_told(kind: Any, named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        Codec(kind)
    Codec(kind, mutable_ok=True)


@pytest.mark.parametrize(
    "wrong",
    [{"max_bytes": 9}, {"max_bytes": True}, {"max_bytes": 2**31}, {"version": 1.5}, {"version": True}],
)
def test_settings_out_of_bounds_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Codec(bytes, **wrong)


def test_a_type_that_messagepack_cannot_carry_is_refused() -> None:
    with pytest.raises(InvalidInput):
        Codec(int | Profile | Loose, mutable_ok=True)


def test_the_bytes_are_the_same_in_every_process() -> None:
    # Written down: a change here empties every shared cache, and belongs in the changelog.
    assert Codec(tuple[int, str]).encode((1, "a")).hex() == "01783f75609465b8709201a161"
