"""Which of 10,000 slots a unit falls into, for ever.

A user who meets one variant on Monday and another on Tuesday spoils the experiment and the product. So the
slot is a pure function of a salt and a key, and arms own fixed ranges of slots: growing one arm moves
nobody who already has one.

The layout is part of the document format, pinned there as `xxh32/10000@1`, because a proxy or a service in
another language must agree with it bit for bit:

    slot = xxh32(utf8(salt) + ":" + utf8(key), seed 0) mod 10,000

A salt holds only letters, digits, `_`, `.`, `-`, so the first ":" always ends it and ("ab", "c") never
meets ("a", "bc"). 10,000 does not divide 2**32; the excess of the first slots is below 3 in a million of
their share.
"""

from __future__ import annotations

import re

import xxhash

from fairlead.errors import InvalidInput

__all__ = ["ALGORITHM", "SLOTS", "bucket"]

ALGORITHM = "xxh32/10000@1"
"""The name of this layout in a flag document; a different layout gets a different name."""

SLOTS = 10_000
"""One slot is one basis point of the units."""

_SALT = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


def salt_prefix(salt: str) -> bytes:
    """The bytes that precede the key. Raises InvalidInput for a salt outside the layout."""
    if not isinstance(salt, str) or not _SALT.fullmatch(salt):
        raise InvalidInput(f"salt {str(salt)[:80]!r} is not 1 to 64 letters, digits, '_', '.' or '-'")
    return salt.encode("ascii") + b":"


def bucket(salt: str, key: str) -> int:
    """The slot of `key`, 0 to 9999.

    >>> bucket("feed", "user-1"), bucket("feed", "user-2")
    (7214, 7886)
    """
    # surrogatepass, as in an evaluation: a lone surrogate in a key has a slot too.
    return xxhash.xxh32_intdigest(salt_prefix(salt) + key.encode("utf-8", "surrogatepass")) % SLOTS
