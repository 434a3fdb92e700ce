"""How a unit becomes a slot: the layouts that a document may pin.

`xxh32/10000@1` is ours. The others keep everybody where flagd put them, in the three ways in which its `fractional`
has drawn; the name says the hash, how many slots there are, and which of flagd's ways it is:

    murmur3-abs/2147483649@flagd-v1     |signed murmur3(salt + key)|
    murmur3/10000@flagd-v2              murmur3(salt + key) * slots >> 32
    murmur3-cbor/10000@flagd-v3         the same of CBOR text(salt + key), or of a number or boolean as such
    murmur3-cbor-pair/10000@flagd-v3    the same of CBOR [salt, key]

With v2 and v3 a multiple of the slots is the same division, finer: [0, 25) of 100 holds whom [0, 2500) of 10,000 holds.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any, Final

import msgspec
import xxhash

from fairlead.errors import InvalidInput
from fairlead.flags.bucketing import ALGORITHM, SLOTS, salt_prefix
from fairlead.flags.flag import Place, quoted
from fairlead.flags.murmur3 import Murmur3

__all__ = ["MOST_SLOTS", "Layout", "layout_of"]

MOST_SLOTS: Final = 2**31 - 1
"""flagd's own limit for the sum of weights."""

ABSOLUTE: Final = f"murmur3-abs/{2**31 + 1}@flagd-v1"
_FLAGD = re.compile(r"(murmur3|murmur3-cbor|murmur3-cbor-pair)/([1-9]\d{0,9})@flagd-v([23])", re.ASCII)
_VERSION = {"murmur3": "2", "murmur3-cbor": "3", "murmur3-cbor-pair": "3"}

SlotOf = Callable[[object], int]


class Layout(msgspec.Struct, frozen=True):
    """A pinned way to draw."""

    draw: tuple[str, str]
    """Hash and salt. Two layouts that agree in it draw the same, however many slots they divide it into."""
    slots: int
    slot_of: SlotOf
    """The slot of what was read from the context; -1 for what cannot be drawn for. Never raises for what JSON holds."""


def layout_of(algorithm: object, salt: object, place: Place) -> Layout:
    """The layout of that name and salt. Refuses unknown names and salts outside the layout."""
    if algorithm == ALGORITHM:
        try:
            prefix = salt_prefix(salt)  # type: ignore[arg-type]  # it refuses what is no text
        except InvalidInput as error:
            place.at("salt").refuse(f"{error}; choose another salt", cause=error)
        return Layout((ALGORITHM, str(salt)), SLOTS, _xxh32(prefix))
    if not isinstance(salt, str):
        place.at("salt").refuse(f"{quoted(salt)} is no text; flagd's salts are, and may be empty")
    if algorithm == ABSOLUTE:
        return Layout((ABSOLUTE, salt), 2**31 + 1, _absolute(salt))
    match = _FLAGD.fullmatch(algorithm) if isinstance(algorithm, str) else None
    if match is None or _VERSION[match[1]] != match[3] or int(match[2]) > MOST_SLOTS:
        place.at("algo").refuse(f"unknown algorithm {quoted(algorithm)}; write {quoted(ALGORITHM)}")
    slots = int(match[2])
    hashed = {"murmur3": _joined, "murmur3-cbor": _cbor, "murmur3-cbor-pair": _cbor_pair}[match[1]](salt)
    return Layout((match[1], salt), slots, _scaled(hashed, slots))


def _xxh32(prefix: bytes) -> SlotOf:
    digest = xxhash.xxh32_intdigest

    def slot_of(unit: Any) -> int:
        if unit.__class__ is not str:
            if type(unit) is not int:
                return -1
            unit = str(unit)
        # surrogatepass: a lone surrogate in a header must not turn an evaluation into an exception.
        return digest(prefix + unit.encode("utf-8", "surrogatepass")) % SLOTS if unit else -1

    return slot_of


Hashed = Callable[[object], int]


def _scaled(hashed: Hashed, slots: int) -> SlotOf:
    def slot_of(unit: object) -> int:
        found = hashed(unit)
        return found * slots >> 32 if found >= 0 else -1

    return slot_of


def _joined(salt: str) -> Hashed:
    murmur3 = Murmur3(_utf8(salt))
    return lambda unit: murmur3(_utf8(unit)) if isinstance(unit, str) and unit else -1


def _absolute(salt: str) -> SlotOf:
    hashed = _joined(salt)

    def slot_of(unit: object) -> int:
        found = hashed(unit)
        return found if found < 2**31 else 2**32 - found

    return slot_of


def _cbor(salt: str) -> Hashed:
    murmur3 = Murmur3()

    def hashed(unit: object) -> int:
        if isinstance(unit, str):
            return murmur3(_text(_utf8(salt + unit))) if unit else -1
        # With a salt the key was joined as text, and nothing else can be.
        encoded = None if salt else _scalar(unit)
        return murmur3(encoded) if encoded is not None else -1

    return hashed


def _cbor_pair(salt: str) -> Hashed:
    murmur3 = Murmur3(b"\x82" + _text(_utf8(salt)))
    return lambda unit: murmur3(_text(_utf8(unit))) if isinstance(unit, str) and unit else -1


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(utf8: bytes) -> bytes:
    return _head(3, len(utf8)) + utf8


def _head(major: int, number: int) -> bytes:
    """The shortest head of a CBOR item (RFC 8949, section 3)."""
    if number < 24:
        return bytes([major << 5 | number])
    size = 1 if number < 2**8 else 2 if number < 2**16 else 4 if number < 2**32 else 8
    return bytes([major << 5 | {1: 24, 2: 25, 4: 26, 8: 27}[size]]) + number.to_bytes(size, "big")


def _scalar(value: object) -> bytes | None:
    """A number or boolean in canonical CBOR; None for anything else, and for integers beyond 64 bits."""
    if isinstance(value, bool):
        return b"\xf5" if value else b"\xf4"
    if isinstance(value, float):
        if not value.is_integer() or not -(2**63) <= value <= 2**64 - 1:
            return _float(value)
        value = int(value)  # flagd: 1.0 is drawn as 1
    if isinstance(value, int) and -(2**64) <= value < 2**64:
        return _head(0, value) if value >= 0 else _head(1, -1 - value)
    return None


def _float(value: float) -> bytes | None:
    """The shortest of the three sizes that holds it exactly; None for NaN and the infinities."""
    for head, form in ((b"\xf9", ">e"), (b"\xfa", ">f"), (b"\xfb", ">d")):
        try:
            packed = struct.pack(form, value)
        except OverflowError:
            continue
        if struct.unpack(form, packed)[0] == value:
            return None if value in (float("inf"), float("-inf")) else head + packed
    return None
