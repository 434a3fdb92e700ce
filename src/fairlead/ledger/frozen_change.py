"""A change file as it was when it was frozen: its bytes, and their hash.

Who writes the hypothesis after the data can prove anything. Frozen before, the file's hash is the pre-registration:
other bytes under the same name are a new version that says which one it follows, and the first one stays.
"""

from __future__ import annotations

import hashlib

import msgspec
from msgspec.structs import force_setattr

from fairlead.calls.bounds import check_whole
from fairlead.errors import InvalidInput
from fairlead.ledger.bounds import checked_finite, checked_hash, checked_name

__all__ = ["MOST_BYTES", "FrozenChange", "checked_content"]

MOST_BYTES = 256 * 1024
"""Of one frozen file. A change file has a few thousand; data are named by their hash, not put here."""


class FrozenChange(msgspec.Struct, frozen=True, kw_only=True, tag="frozen_change", tag_field="kind"):
    """One version of a change file; made by `Ledger.freeze`."""

    name: str
    """Of the change."""
    version: int
    """1 for the first, and up by one."""
    sha256: str
    """Of `content`."""
    follows: str | None
    """SHA-256 of the version before this one; None for the first."""
    frozen_at_utc_seconds: float
    """When it was frozen, by the clock of who did it; seconds since 1970, UTC."""
    content: bytes
    """The file, byte by byte; at most 256 KiB."""

    def __post_init__(self) -> None:
        force_setattr(self, "name", checked_name("name", self.name))
        check_whole("version", self.version, low=1, high=2**53)
        at = checked_finite("frozen_at_utc_seconds", self.frozen_at_utc_seconds)
        force_setattr(self, "frozen_at_utc_seconds", at)
        if self.follows is not None:
            checked_hash("follows", self.follows)
        if hashlib.sha256(checked_content(self.content)).hexdigest() != self.sha256:
            raise InvalidInput(f"sha256: {self.sha256!r:.80} is not the hash of the content")


def checked_content(content: object) -> bytes:
    """Bytes that may be frozen. Raises InvalidInput."""
    if not isinstance(content, bytes):
        raise InvalidInput(f"content: expected bytes, got {type(content).__name__}; encode the text as UTF-8")
    if not 0 < len(content) <= MOST_BYTES:
        raise InvalidInput(
            f"content: {len(content):,} bytes; 1 to {MOST_BYTES:,} can be frozen. Name data by their SHA-256 instead"
        )
    return content
