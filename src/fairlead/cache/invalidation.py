"""Invalidation between processes: the port of a backplane, and what its messages say.

A value that one process removed lies on in the memory of the others. After the shared tier has been told, a
message tells them. Messages may be lost (a cut connection, a process that slept), and a lost one is noticed
only when the listener connects again. So a message is a courtesy: what bounds staleness is the age at which a
process asks the shared tier again (`SecondTier.memory_ttl`), and after a gap everything in memory is asked anew.

A message is a MessagePack array: version, sender, kind, and the key or tag. Keys travel as they are when they
are made of None, bool, int, float, str, bytes and tuples of these. A message about any other key, and one that
cannot be read, means that everything may have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from fairlead.cache.keys import is_plain
from fairlead.cache.store import InvalidationKind

__all__ = ["Backplane", "Message", "pack_message", "unpack_message"]

_VERSION = 1
_KINDS = frozenset({"expire", "remove", "remove_tag", "clear"})
_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.decode


class Message(NamedTuple):
    """What another process has invalidated."""

    kind: InvalidationKind
    subject: Hashable
    """The key; the tag; None for clear."""


class Backplane(Protocol):
    """Carries messages to every process that listens, its sender included."""

    async def publish(self, messages: Sequence[bytes]) -> None:
        """Sends them; raises StoreUnavailable when it cannot. Whether anybody heard is unknown."""
        ...

    async def listen(self, on_message: Callable[[bytes], object], on_connected: Callable[[], object]) -> None:
        """Calls `on_message` for each message, until cancelled or until the connection is lost; then raises
        StoreUnavailable. `on_connected` is called when listening has begun: what was sent before is lost."""
        ...


def pack_message(sender: str, message: Message) -> bytes:
    """The bytes that tell it."""
    kind, subject = message
    try:
        if kind in ("expire", "remove") and not is_plain(subject):
            raise TypeError
        return _encode((_VERSION, sender, kind, subject))
    except (TypeError, OverflowError, UnicodeEncodeError):
        return _encode((_VERSION, sender, "clear", None))


def unpack_message(data: bytes, own: str) -> Message | None:
    """What it says; None for one's own."""
    try:
        version, sender, kind, subject = _decode(data)
        if version != _VERSION or kind not in _KINDS:
            raise ValueError(kind)
        if sender == own:
            return None
        subject = _as_key(subject)
        hash(subject)
    except (msgspec.DecodeError, ValueError, TypeError):
        return Message("clear", None)
    return Message(kind, subject)


def _as_key(part: Any) -> Any:
    return tuple(_as_key(each) for each in part) if isinstance(part, list) else part
