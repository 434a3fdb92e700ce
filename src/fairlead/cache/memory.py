"""The tier in this process: a dict in order of use, bounded by the number of entries.

A cache without a bound is a leak with a hit ratio. The bound here is exact LRU: every hit moves its entry to
the end of an OrderedDict, and an insertion beyond the bound drops the first. A second-chance bit would be a
little cheaper per hit and needs a sweep, whose pause grows with the bound (docs/decisions/0042).

Per process, and for one event loop at a time; not safe between threads. Dead entries stay until the bound
pushes them out. Values are handed out as they are, not copied: store frozen types or bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from fairlead.cache.entry import Entry
from fairlead.errors import InvalidInput

__all__ = ["MemoryStore"]

_MOST_ENTRIES = 2**31


class MemoryStore:
    """At most `max_entries` entries in this process; the least recently used leaves first."""

    __slots__ = ("_tagged", "entries", "max_entries", "touch")

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
        self.touch: Callable[[Hashable], object] = self.entries.move_to_end
        """Notes that a key which has an entry was used."""
        self._tagged: dict[str, set[Hashable]] = {}  # of the keys in `entries`, and no others

    def __len__(self) -> int:
        return len(self.entries)

    def put(self, key: Hashable, entry: Entry[Any]) -> int:
        """Stores `entry` as the most recently used; the number of others evicted for it."""
        entries = self.entries
        self._replace(key, entry)
        entries.move_to_end(key)
        if len(entries) <= self.max_entries:
            return 0
        self.drop(next(iter(entries)))
        return 1

    def expire(self, key: Hashable, now: float) -> None:
        """Ends the fresh life of `key` at `now`; its stale windows start there."""
        entry = self.entries.get(key)
        if entry is not None:
            self.entries[key] = entry.expired(now)

    def drop(self, key: Hashable) -> None:
        """Forgets `key`."""
        entry = self.entries.pop(key, None)
        if entry is not None and entry.tags:
            self._untag(key, entry.tags)

    def drop_tag(self, tag: str) -> int:
        """Forgets every key whose entry bears `tag`; how many."""
        keys = list(self._tagged.get(tag, ()))
        for key in keys:
            self.drop(key)
        return len(keys)

    def clear(self) -> None:
        """Forgets every key."""
        self.entries.clear()
        self._tagged.clear()

    def _replace(self, key: Hashable, entry: Entry[Any]) -> None:
        before = self.entries.get(key)
        self.entries[key] = entry
        before_tags = before.tags if before is not None else entry.tags
        if before_tags is not entry.tags and before_tags:
            self._untag(key, before_tags)
        for tag in entry.tags:
            self._tagged.setdefault(tag, set()).add(key)

    def _untag(self, key: Hashable, tags: frozenset[str]) -> None:
        for tag in tags:
            keys = self._tagged[tag]
            keys.discard(key)
            if not keys:
                del self._tagged[tag]
