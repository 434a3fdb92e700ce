"""How an entry lies in a shared tier: its moments, its tags, then the value as its codec wrote it.

The moments stand first and at fixed places, big-endian doubles of the server's UTC, because scripts on the
server read and rewrite them: byte 0 the version, 1–8 the start of the load, 9–16 when it was stored, 17–24,
25–32 and 33–40 the ends of its fresh, stale and error life, 41–48 the end of its quiet life and 49–56 the start
of the first load that brought the same value. Then the number of tags in two bytes, each tag as
a two-byte length and UTF-8.

Anything that does not read as this is a miss. A value whose load began later than the server's own time was
stored before the server's clock was set back, and its ends mean nothing: a miss too.
"""

from __future__ import annotations

import struct
from math import isnan
from typing import Any

from fairlead.cache.entry import Entry
from fairlead.cache.redis_time import ServerTime
from fairlead.errors import BrokenDocument, InvalidInput

__all__ = ["BEGAN_AT", "HEADER", "pack", "unpack"]

HEADER = struct.Struct(">B7dH")
BEGAN_AT = 1  # offset of the first moment
_LENGTH = struct.Struct(">H")
_MOST = 0xFFFF
_VERSION = 1
_NO_TAGS: frozenset[str] = frozenset()
_AHEAD = 1.0  # seconds; rounding and a slewed clock are less, a clock that was set back is usually more


def pack(entry: Entry[Any], value: bytes, time: ServerTime) -> tuple[bytes, float, float]:
    """The bytes of `entry`; on the server's clock, when its load began and when nobody may read it any more, each
    early rather than late. Raises InvalidInput for more tags, or longer ones, than fit."""
    earliest = time.earliest
    began, fresh = earliest(entry.began_at), earliest(entry.fresh_until)
    stale, error = earliest(entry.stale_until), earliest(entry.error_until)
    quiet, unchanged = earliest(entry.quiet_until), earliest(entry.unchanged_since)
    moments = (began, earliest(entry.stored_at), fresh, stale, error, quiet, unchanged)
    if len(entry.tags) > _MOST:
        raise InvalidInput(f"{len(entry.tags)} tags are more than the {_MOST} that an entry can carry")
    head = HEADER.pack(_VERSION, *moments, len(entry.tags))
    parts = [head]
    for tag in entry.tags:
        text = tag.encode("utf-8", "surrogatepass")
        if len(text) > _MOST:
            raise InvalidInput(f"a tag of {len(text)} bytes is longer than {_MOST}")
        parts += (_LENGTH.pack(len(text)), text)
    parts.append(value)
    return b"".join(parts), began, max(fresh, stale, error)


def unpack(blob: bytes, shift: float, server_now: float) -> tuple[Entry[Any], int]:
    """The entry with its moments moved by `shift` and without its value, and where the value begins.

    Raises BrokenDocument for what is not an envelope of this version or lies in the future.
    """
    if len(blob) < HEADER.size or blob[0] != _VERSION:
        raise BrokenDocument("the entry was written by another version, or is no entry")
    _, began, stored, fresh, stale, error, quiet, unchanged, count = HEADER.unpack_from(blob)
    if not began <= server_now + _AHEAD:  # NaN fails here
        raise BrokenDocument("the entry is from the future: the server's clock was set back")
    if isnan(stored + fresh + stale + error + quiet + unchanged):  # past no bound, so it would never end
        raise BrokenDocument("a moment of the entry is not a number")
    at = HEADER.size
    tags = _NO_TAGS
    if count:
        found = []
        for _ in range(count):
            if at + 2 > len(blob):
                raise BrokenDocument("the entry ends within its tags")
            length = _LENGTH.unpack_from(blob, at)[0]
            try:
                found.append(blob[at + 2 : at + 2 + length].decode("utf-8", "surrogatepass"))
            except UnicodeDecodeError as broken:
                raise BrokenDocument("a tag of the entry is no text") from broken
            at += 2 + length
        if at > len(blob):
            raise BrokenDocument("the entry ends within its tags")
        tags = frozenset(found)
    entry: Entry[Any] = Entry(
        None,
        began_at=began + shift,
        stored_at=stored + shift,
        fresh_until=fresh + shift,
        stale_until=stale + shift,
        error_until=error + shift,
        quiet_until=quiet + shift,
        unchanged_since=unchanged + shift,
        tags=tags,
    )
    return entry, at
