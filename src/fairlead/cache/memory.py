"""The tier in this process: a dict in order of use, bounded by the number of entries and by their bytes.

A cache without a bound is a leak with a hit ratio. The bound here is exact LRU: every hit moves its entry to
the end of an OrderedDict, and an insertion beyond the bound drops the first. A second-chance bit would be a
little cheaper per hit and needs a sweep, whose pause grows with the bound (docs/decisions/0042). Where scans pass
through, `admission="tiny_lfu"` keeps what is asked for often (tiny_lfu.py, docs/decisions/0047).

Per process, and for one event loop at a time; not safe between threads. Dead entries stay until the bound
pushes them out. Values are handed out as they are, not copied: store frozen types or bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Literal

from fairlead.cache.entry import Entry
from fairlead.cache.footprint import footprint
from fairlead.cache.tiny_lfu import TinyLfu
from fairlead.calls.bounds import check_whole
from fairlead.errors import InvalidInput

__all__ = ["MemoryStore"]

_MOST_ENTRIES = 2**31
_MOST_BYTES = 2**50
_PER_ENTRY = 300  # the entry, its moments and its place in the dict, by tracemalloc on CPython 3.11


class MemoryStore:
    """At most `max_entries` entries and `max_bytes` bytes in this process; the least recently used leaves first."""

    __slots__ = (
        "_by_frequency",
        "_size_of",
        "_sizes",
        "_tagged",
        "bytes",
        "entries",
        "evicted",
        "max_bytes",
        "max_entries",
        "rejected",
        "touch",
    )

    def __init__(
        self,
        max_entries: int = 10_000,
        *,
        max_bytes: int | None = None,
        size_of: Callable[[Any], int] | None = None,
        admission: Literal["always", "tiny_lfu"] = "always",
    ) -> None:
        """max_bytes: bound of the sum of the entries' sizes. None: sizes are not taken.

        size_of: the size of a value; one that it cannot size is not kept. None: 300 bytes an entry, and what key
        and value hold by `sys.getsizeof`, each object once and at most 10,000 of them. That is a floor, and takes
        time per object: tell a size for large values. admission: "always" is LRU; "tiny_lfu" turns away newcomers
        that were asked for less than what they would push out.
        """
        check_whole("MemoryStore.max_entries", max_entries, low=1, high=_MOST_ENTRIES)
        if max_bytes is not None:
            check_whole("MemoryStore.max_bytes", max_bytes, low=1, high=_MOST_BYTES)
        elif size_of is not None:
            raise InvalidInput("MemoryStore.size_of: without max_bytes nothing is sized; give both")
        if admission not in ("always", "tiny_lfu"):
            raise InvalidInput(f"MemoryStore.admission: {admission!r} is neither 'always' nor 'tiny_lfu'")
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.bytes = 0
        """Of the entries now, as `size_of` or the estimate counts them; 0 without `max_bytes`."""
        self.evicted = 0
        """Entries dropped to keep a bound."""
        self.rejected = 0
        """Entries not kept: larger than `max_bytes`, without a size, or not asked for often enough."""
        self.entries: OrderedDict[Hashable, Entry[Any]] = OrderedDict()
        """Least recently used first; in no order with "tiny_lfu". `Cache` reads it directly; it is never
        rebound."""
        self.touch: Callable[[Hashable], object] = self.entries.move_to_end
        """Notes that a key which has an entry was used."""
        self._tagged: dict[str, set[Hashable]] = {}  # of the keys in `entries`, and no others
        self._size_of = size_of
        self._sizes: dict[Hashable, int] = {}  # empty without `max_bytes`
        self._by_frequency: TinyLfu | None = None
        if admission == "tiny_lfu":
            self._by_frequency = TinyLfu(max_entries)
            self.touch = self._by_frequency.asked.append

    def __len__(self) -> int:
        return len(self.entries)

    def put(self, key: Hashable, entry: Entry[Any]) -> int:
        """Stores `entry` as the most recently used; the number of others evicted for it.

        An entry that cannot be kept takes the one that it would replace with it.
        """
        if self.max_bytes is not None and not self._weigh(key, entry.value, self.max_bytes):
            self.rejected += 1
            self.drop(key)
            return 0
        entries = self.entries
        self._replace(key, entry)
        if self._by_frequency is None:
            entries.move_to_end(key)
        else:
            self._by_frequency.put(key)
        evicted = 0
        while len(entries) > self.max_entries or (self.max_bytes is not None and self.bytes > self.max_bytes):
            leaving, refused = next(iter(entries)), False
            if self._by_frequency is not None:
                leaving, refused = self._by_frequency.victim(
                    lambda key: entries[key].is_dead(entry.stored_at)
                )
            self.drop(leaving)
            self.rejected += refused
            evicted += not refused
        self.evicted += evicted
        return evicted

    def expire(self, key: Hashable, now: float) -> None:
        """Ends the fresh life of `key` at `now`; its stale windows start there."""
        entry = self.entries.get(key)
        if entry is not None:
            self.entries[key] = entry.expired(now)

    def drop(self, key: Hashable) -> None:
        """Forgets `key`."""
        entry = self.entries.pop(key, None)
        if entry is None:
            return
        if entry.tags:
            self._untag(key, entry.tags)
        if self.max_bytes is not None:
            self.bytes -= self._sizes.pop(key)
        if self._by_frequency is not None:
            self._by_frequency.drop(key)

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
        self._sizes.clear()
        self.bytes = 0
        if self._by_frequency is not None:
            self._by_frequency.clear()

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

    def _weigh(self, key: Hashable, value: object, most: int) -> bool:
        """Books the size of what is about to be stored; whether it can be kept at all."""
        try:
            size = self._size_of(value) if self._size_of else _PER_ENTRY + footprint(key) + footprint(value)
        except Exception:  # the value is good, and its callers wait for it: it is handed out and not kept
            return False
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= most:
            return False
        self.bytes += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        return True
