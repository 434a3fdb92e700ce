"""Where entries lie: the port that a tier behind the process's own memory fulfils.

Every verb is a coroutine because a shared tier waits. The tier in front (`MemoryStore`) fulfils the port too,
without ever suspending, but `Cache` reads it directly: a hit through a port costs more than the hit
(docs/decisions/0041).

Entries carry monotonic moments of this machine. A driver whose entries leave it translates them to UTC on the
way out and back on the way in; the clock is the driver's, the moments are the caller's.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Protocol

from fairlead.cache.entry import Entry

__all__ = ["Store"]


class Store(Protocol):
    """A tier of the cache."""

    async def get(self, key: Hashable) -> Entry[Any] | None:
        """The entry under `key`, dead or alive; None when there is none."""
        ...

    async def set(self, key: Hashable, entry: Entry[Any]) -> None:
        """Puts `entry` in the place of what was there."""
        ...

    async def expire(self, key: Hashable, now: float) -> None:
        """Ends the fresh life of `key` at `now`; its stale windows start there. Nothing happens without an
        entry."""
        ...

    async def remove(self, key: Hashable) -> None:
        """Forgets `key`: no reader sees its value again, stale windows or not."""
        ...

    async def clear(self) -> None:
        """Forgets every key."""
        ...
