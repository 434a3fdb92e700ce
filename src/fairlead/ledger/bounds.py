"""What may stand in a field of the ledger: bounded, readable, the same on both engines.

An entry is for ever, so it is checked before it is written. PostgreSQL refuses a NUL and half a surrogate pair where
SQLite takes both; here both are refused everywhere, with all other control characters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from numbers import Integral, Real

from fairlead.errors import InvalidInput

__all__ = ["checked_finite", "checked_hash", "checked_many", "checked_name", "checked_prose", "checked_whole"]

MOST_CAVEATS = 100
LONGEST_NAME = 200
LONGEST_PROSE = 4_000
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_WHOLE = 2**63 - 1
# Unicode's categories Cc, Cs, Zl and Zp; prose may have lines and tabs.
_IN_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
_IN_PROSE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")


def checked_name(name: str, value: object) -> str:
    """One line of up to 200 characters, with no space around it."""
    text = _text(name, value, LONGEST_NAME, _IN_NAME)
    if text != text.strip():
        raise InvalidInput(f"{name}: {text[:80]!r} has space around it; take it off")
    return text


def checked_prose(name: str, value: object) -> str:
    """Sentences of up to 4,000 characters, in lines."""
    return _text(name, value, LONGEST_PROSE, _IN_PROSE)


def checked_hash(name: str, value: object) -> str:
    """SHA-256 in 64 hexadecimal digits, lower case."""
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise InvalidInput(
            f"{name}: expected a SHA-256 in 64 hexadecimal digits, lower case, got {_short(value)}"
        )
    return str.__str__(value)


def checked_finite(name: str, value: object) -> float:
    """A finite number as a float; −0 is 0."""
    try:
        number = float(value) if not isinstance(value, bool) and isinstance(value, Real) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidInput(
            f"{name}: {_short(value)} is not a finite number; leave it None and say why in a caveat"
        )
    return number + 0.0


def checked_whole(name: str, value: object) -> int:
    """A whole number from 0 to 2⁶³ − 1, as an int."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) <= _WHOLE:
        raise InvalidInput(f"{name}: {_short(value)} is not a whole number from 0 to 2**63 - 1")
    return int(value)


def checked_many(name: str, values: object, most: int) -> tuple[object, ...]:
    """A tuple or list of at most so many."""
    if not isinstance(values, Sequence) or isinstance(values, str | bytes | bytearray) or len(values) > most:
        raise InvalidInput(f"{name}: expected a tuple of at most {most:,}, got {_short(values)}")
    return tuple(values)


def _text(name: str, value: object, longest: int, refused: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidInput(
            f"{name}: it is missing: expected 1 to {longest:,} characters, got {_short(value)}"
        )
    if len(value) > longest:
        raise InvalidInput(f"{name}: {len(value):,} characters are more than {longest:,}; shorten it")
    if found := refused.search(value):
        raise InvalidInput(f"{name}: it holds the control character U+{ord(found[0]):04X}; take it out")
    # Of a member of an enum, or of numpy's str, the text alone: it is what can be encoded.
    return str.__str__(value)


def _short(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"an integer of {value.bit_length():,} bits"
    return f"{value!r:.80}"
