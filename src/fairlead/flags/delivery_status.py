"""What a delivery says of itself: to whoever asks, and to whoever listens."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["DeliveryNotice", "DeliveryStatus", "NoticeKind", "SourceKind"]

SourceKind = Literal["initial", "memory", "file", "http", "last_known_good"]
"""Where the document that answers came from. `initial` is what the FlagSet was made of, `memory` a call."""

NoticeKind = Literal["changed", "ready", "stale", "error"]


class DeliveryStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the document that answers came, and how far it can be trusted to be the present one."""

    source: SourceKind
    place: str
    """Path or address it came from."""
    epoch: int
    version: int
    """As in the document's metadata; 0 when it has none."""
    digest: str
    """SHA-256 of the document."""
    age_seconds: float
    """Since its source last said that this is the present document. On a start from the last known good: since that
    was received, by the wall clock."""
    stale: bool
    """Whether the age is above `stale_after`."""
    error: str
    """Why the latest attempt did not confirm it; empty when it did."""
    refused: int
    """Documents refused since the start."""


class DeliveryNotice(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a listener may want to pass on."""

    kind: NoticeKind
    flags: tuple[str, ...] = ()
    """Of `changed`: names of the flags that are new, gone or different, sorted."""
    message: str = ""
    """Of `stale` and `error`: why."""
