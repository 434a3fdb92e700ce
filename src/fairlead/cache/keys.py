"""Which keys are refused, and how a key is written where other processes read it.

A key is any hashable value. But an object that hashes by its identity equals only itself: a new one arrives
with each request, so the cache fills with entries nobody can ask for again. The check runs where a load
starts or a value is set, never on a hit.

A key that leaves the process is text. Two keys have one text only if they are equal in value and in type, in
every process, whatever its hash seed: `1`, `True`, `1.0` and `"1"` are four keys there, though a dict takes
three of them for one. So the types that can be written are named below; any other is refused.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import re
from collections.abc import Callable, Hashable, Iterable
from hashlib import blake2b
from typing import Any

import msgspec

from fairlead.errors import InvalidInput

__all__ = ["check_key", "check_tags", "is_plain", "key_text", "shown", "tagged", "unhashable"]

_NO_TAGS: frozenset[str] = frozenset()
_MOST_TAGS = 100
_LONGEST_TAG = 200
_PLAIN = frozenset({str, bytes, int, bool, type(None)})
_LONGEST_TEXT = 200
_READABLE = 120  # of a longer one, before its hash
_DEEPEST = 32
_is_plain = re.compile(r"[A-Za-z0-9_.~/:@+-]*").fullmatch
_INSTEAD: dict[type, str] = {
    list: "a tuple",
    set: "a frozenset",
    dict: "tuple(sorted(it.items()))",
    bytearray: "bytes",
}


def check_key(key: Hashable) -> None:
    """Raises InvalidInput for a key that a later, equal request could not find again."""
    if type(key) in _PLAIN:
        return
    try:
        hash(key)
    except TypeError as error:
        raise unhashable(key) from error
    _check_part(key, key)


def check_tags(tags: Iterable[str]) -> frozenset[str]:
    """`tags` as a set. Raises InvalidInput for a lone string, more than 100, or one that is empty or longer
    than 200 characters."""
    if not tags:
        return _NO_TAGS
    if isinstance(tags, str):
        raise InvalidInput(f"tags: {shown(tags)} is one string; pass a tuple of tags, ({shown(tags)},)")
    found = frozenset(tags)
    if len(found) > _MOST_TAGS:
        raise InvalidInput(f"tags: {len(found)} on one entry; at most {_MOST_TAGS}")
    for tag in found:
        if not isinstance(tag, str) or not 0 < len(tag) <= _LONGEST_TAG:
            raise InvalidInput(f"tags: {shown(tag)} is not a string of 1 to {_LONGEST_TAG} characters")
    return found


def is_plain(key: Hashable) -> bool:
    """Whether `key` is made of None, bool, int, float, str, bytes and tuples of these, and nothing else."""
    if type(key) is tuple:
        return all(is_plain(part) for part in key)
    return key is None or type(key) in (bool, int, float, str, bytes)


def unhashable(key: object) -> InvalidInput:
    return InvalidInput(
        f"cache key {shown(key)} cannot be hashed: "
        "use str, bytes, numbers, or tuples and frozen dataclasses of them"
    )


def _check_part(part: object, key: object) -> None:
    kind = type(part)
    if kind in _PLAIN:
        return
    if isinstance(part, tuple | frozenset):
        for inner in part:
            _check_part(inner, key)
    elif part != part:
        raise InvalidInput(
            f"cache key {shown(key)} holds {part!r}, which does not equal itself: it would never hit"
        )
    elif kind.__hash__ is object.__hash__ and not isinstance(part, type):
        raise InvalidInput(
            f"cache key {shown(key)} holds a {kind.__qualname__}, which hashes by identity: "
            "an equal request would never find it; use the fields that identify it"
        )


def shown(key: object) -> str:
    """`key` as a message prints it, cut to 80 characters."""
    try:
        text = repr(key)
    except Exception:  # a load must be given up, and its callers told, whatever its key does
        text = f"<{type(key).__qualname__}>"
    return text if len(text) <= 80 else text[:77] + "..."


def key_text(key: object) -> str:
    """`key` as printable ASCII without spaces or braces, at most 200 characters, the same in every process.

    A longer one keeps its beginning and ends in a hash (BLAKE2b, 160 bits: who chooses a key cannot choose
    it to meet another's). Raises InvalidInput for a type whose equality does not reach beyond the process.

    >>> key_text(("profile", 7, True, "a b"))
    "('profile',7,true,'a%20b')"
    """
    text = _text(key, 0)
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[:_READABLE]}#{blake2b(text.encode(), digest_size=20).hexdigest()}"


def _quoted(data: bytes) -> str:
    from urllib.parse import quote  # here: with what it imports it takes longer than the rest of this module

    return quote(data, safe="/:@+")


def _str_text(part: str) -> str:
    # A key is mostly plain words, and quoting one costs ten times the look.
    if part.isascii() and (part.isidentifier() or _is_plain(part)):
        return f"'{part}'"
    return f"'{_quoted(part.encode('utf-8', 'surrogatepass'))}'"


def _int_text(part: int) -> str:
    # Decimal digits of a hostile length take quadratic time, and are refused above 4,300.
    return str(part) if part.bit_length() <= 1024 else hex(part)


_WRITERS: dict[type, Callable[[Any], str]] = {
    str: _str_text,
    int: _int_text,
    bool: lambda part: "true" if part else "false",
    type(None): lambda _: "none",
    bytes: lambda part: f"b'{_quoted(part)}'",
}


def _text(part: object, depth: int) -> str:
    write = _WRITERS.get(type(part))
    if write is not None:
        return write(part)
    if depth >= _DEEPEST:
        raise InvalidInput(f"cache key nests deeper than {_DEEPEST}")
    if isinstance(part, tuple) and type(part) is tuple:
        return f"({','.join([_text(each, depth + 1) for each in part])})"
    tag, parts = tagged(part)
    if tag == "float":
        return repr(parts[0])
    inner = [_text(each, depth + 1) for each in parts]
    if tag == "frozenset":
        inner.sort()
    return f"{tag}({','.join(inner)})"


def tagged(part: object) -> tuple[str, tuple[Any, ...]]:
    """What kind of value this is and what it is made of; raises InvalidInput unless both outlive the process.

    For values that are not exactly of type str, bytes, int or None.
    """
    kind: type = type(part)
    if isinstance(part, bool):
        return "bool", (part,)
    if isinstance(part, enum.Enum):
        if part.name is None:  # a combination of flags that has none
            raise InvalidInput(f"{part!r} has no name: use its value")
        return "enum", (_path(kind), part.name)
    if isinstance(part, tuple | frozenset) and kind in (tuple, frozenset):
        return kind.__name__, tuple(part)
    if isinstance(part, float | decimal.Decimal) and kind in (float, decimal.Decimal):
        if part != part:
            raise InvalidInput("NaN does not equal itself, so it would never hit: leave it out")
        # -0.0 equals 0.0, and must have its text.
        return ("float", (part + 0.0,)) if isinstance(part, float) else ("decimal", (str(part),))
    if isinstance(part, datetime.datetime) and kind is datetime.datetime:
        if part.tzinfo is None:
            raise InvalidInput(
                f"{part} has no time zone, so it is another moment on another machine: use an aware datetime"
            )
        return "datetime", (part.isoformat(),)
    if isinstance(part, datetime.date | datetime.time) and kind in (datetime.date, datetime.time):
        return kind.__name__, (part.isoformat(),)
    if isinstance(part, datetime.timedelta) and kind is datetime.timedelta:
        return "timedelta", (part.days, part.seconds, part.microseconds)
    if (kind.__module__, kind.__qualname__) == (
        "uuid",
        "UUID",
    ):  # its import costs more than all of this room's
        return "uuid", (str(part),)
    return "record", (_path(kind), *_fields(part))


def _fields(part: object) -> tuple[Any, ...]:
    """The values that identify a frozen Struct, a frozen dataclass or a named tuple."""
    kind = type(part)
    if isinstance(part, msgspec.Struct) and part.__struct_config__.frozen:
        return tuple(getattr(part, name) for name in part.__struct_fields__)
    parameters = getattr(kind, "__dataclass_params__", None)
    if parameters is not None and parameters.frozen and parameters.eq:
        return tuple(getattr(part, each.name) for each in dataclasses.fields(part) if each.compare)  # type: ignore[arg-type]  # it is one
    if isinstance(part, tuple) and hasattr(kind, "_fields"):
        return tuple(part)
    if (instead := _INSTEAD.get(kind)) is not None:
        raise InvalidInput(f"a {kind.__name__} can change under its key: use {instead}")
    if parameters is not None or isinstance(part, msgspec.Struct):
        raise InvalidInput(f"a {kind.__qualname__} can change under its key: make it frozen")
    if callable(part):
        raise InvalidInput(
            f"a {kind.__qualname__} is another one in each process: use a name for what it does"
        )
    raise InvalidInput(
        f"a {kind.__qualname__} has no form that holds in every process: use str, bytes, int, float, bool, None, "
        "aware datetimes, dates, UUIDs, decimals, enums, or tuples, frozensets, frozen structs and frozen "
        "dataclasses of them"
    )


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
