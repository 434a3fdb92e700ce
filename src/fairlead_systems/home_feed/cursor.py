"""Where the next page begins: what the reader has been shown, not how far down he is.

An offset shifts when something is inserted above it, and one item comes twice or never. A score does the same when
scores are computed afresh. The cursor names the items that were shown; the next page is the best of what is not
among them, whatever has come or gone meanwhile.

The text is opaque, versioned, bounded (MOST_SHOWN items), and bound to its user by a checksum. The checksum is no
signature: whoever forges a cursor hides items from himself, and nothing else.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Sequence

import xxhash

from fairlead.errors import InvalidInput
from fairlead_systems.home_feed.world import ITEMS

__all__ = ["MOST_SHOWN", "decode_cursor", "encode_cursor"]

MOST_SHOWN = 120
"""Items after which a feed ends: ten pages. A cursor is at most 332 characters."""
_VERSION = 1
_HEAD = struct.Struct(">BQ")
_LONGEST = 4 * ((_HEAD.size + 2 * MOST_SHOWN + 2) // 3)


def encode_cursor(user: str, shown: Sequence[int]) -> str | None:
    """The cursor behind `shown`, oldest first; None where the feed ends."""
    if not shown or len(shown) >= MOST_SHOWN:
        return None
    body = struct.pack(f">{len(shown)}H", *shown)
    raw = _HEAD.pack(_VERSION, _checksum(user, body)) + body
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode_cursor(user: str, text: str) -> tuple[int, ...]:
    """What the user was shown, oldest first. Raises InvalidInput for anything that `encode_cursor` did not make for
    this user.
    """
    refused = InvalidInput(
        "cursor: it is not one that this feed gave this user; ask for the first page without one"
    )
    if not text or len(text) > _LONGEST or not text.isascii():
        raise refused
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        version, checksum = _HEAD.unpack_from(raw)
    except (binascii.Error, struct.error) as error:
        raise refused from error
    body = raw[_HEAD.size :]
    if version != _VERSION or len(body) % 2 or not 2 <= len(body) < 2 * MOST_SHOWN:
        raise refused
    if checksum != _checksum(user, body):
        raise refused
    shown = struct.unpack(f">{len(body) // 2}H", body)
    if len(set(shown)) != len(shown) or max(shown) >= ITEMS:
        raise refused
    return shown


def _checksum(user: str, body: bytes) -> int:
    named = user.encode("utf-8", "surrogatepass")
    return xxhash.xxh3_64_intdigest(struct.pack(">H", len(named)) + named + body, _VERSION)
