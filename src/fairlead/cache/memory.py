"""The tier in this process: a dict in order of use, bounded by the number of entries.

A cache without a bound is a leak with a hit ratio. The bound here is exact LRU: every hit moves its entry to
the end of an OrderedDict, and an insertion beyond the bound drops the first. A second-chance bit would be a
little cheaper per hit and needs a sweep, whose pause grows with the bound (docs/decisions/0042).

Per process, and for one event loop at a time; not safe between threads. Dead entries stay until the bound
pushes them out. Values are handed out as they are, not copied: store frozen types or bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

from fairlead.cache.entry import Entry
from fairlead.errors import InvalidInput

__all__ = ["MemoryStore"]

_MOST_ENTRIES = 2**31


class MemoryStore:
    """At most `max_entries` entries in this process; the least recently used leaves first."""

    __slots__ = ("entries", "max_entries")

    def __init__(self, max_entries: int = 10_000) -> None:
        if (
            isinstance(max_entries, bool)
            or not isinstance(max_entries, int)
            or not 1 <= max_entries <= _MOST_ENTRIES
        ):
            raise InvalidInput(
                f"MemoryStore.max_entries: {max_entries!r} is not a whole number from 1 to {_MOST_ENTRIES}"
            )
        self.max_entries = max_entries
        self.entries: OrderedDict[Hashable, Entry[Any]] = OrderedDict()
        """Least recently used first. `Cache` reads it directly; it is never rebound."""

    def __len__(self) -> int:
        return len(self.entries)

    def put(self, key: Hashable, entry: Entry[Any]) -> int:
        """Stores `entry` as the most recently used; the number of others evicted for it."""
        entries = self.entries
        entries[key] = entry
        entries.move_to_end(key)
        if len(entries) <= self.max_entries:
            return 0
        entries.popitem(last=False)
        return 1

    async def get(self, key: Hashable) -> Entry[Any] | None:
        entry = self.entries.get(key)
        if entry is not None:
            self.entries.move_to_end(key)
        return entry

    async def set(self, key: Hashable, entry: Entry[Any]) -> None:
        self.put(key, entry)

    async def expire(self, key: Hashable, now: float) -> None:
        entry = self.entries.get(key)
        if entry is not None:
            self.entries[key] = entry.expired(now)

    async def remove(self, key: Hashable) -> None:
        self.entries.pop(key, None)

    async def clear(self) -> None:
        self.entries.clear()
