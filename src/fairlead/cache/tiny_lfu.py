"""Which entry leaves, by how often keys are asked for and not only by how lately (W-TinyLFU).

LRU lets one scan, a crawler or a nightly job, push out what everyone asks for. Here a newcomer must have been
asked for more often than the entry it would push out (Einziger, Friedman, Manes 2017, "TinyLFU: A Highly
Efficient Cache Admission Policy"):

    new -> window (1 %, LRU) -> probation (LRU) -> asked for again: protected (at most 80 % of the rest, LRU)
                                    ^-- of its newest and its oldest, the one asked for less leaves --'

The oldest of a segment leaves before either once it has expired, however often it was asked for.

How often is counted in four rows of small counters, smallest of the four, halved every ten requests per entry, so
that the heat of yesterday fades. A hit only notes its key in a ring of 256: the ring is read when something is put.
So a hit costs less than LRU's, and of more than 256 hits between two puts the oldest are not counted.

Invariant: each key of the store is in exactly one of the three segments.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable

__all__ = ["TinyLfu"]

_RING = 256
_WINDOW = 100  # of this many entries, one is in the window
_PROTECTED = 0.8
_HIGHEST = 15
_REQUESTS_PER_ENTRY = 10
_COLUMNS = 4  # per entry: one is shared so much that a Zipf stream loses two points of its hits
_WIDEST = 2**22
_HALF = bytes(count >> 1 for count in range(256))
_ODD = 0x9E3779B97F4A7C15F39CC0605CEDC835
_WORD = 2**64 - 1


class Frequencies:
    """About how often each key was asked for of late: a count-min sketch of counters from 0 to 15.

    Never too low, before ageing; too high where keys share a counter in all four rows. 16 to 32 bytes per entry of
    the bound, at most 16 MiB: above a million entries counters are shared more.
    """

    __slots__ = ("_age_after", "_mask", "_rows", "_since")

    def __init__(self, entries: int) -> None:
        width = 1 << max(6, (min(_COLUMNS * entries, _WIDEST) - 1).bit_length())
        self._mask = width - 1
        self._rows = [bytearray(width) for _ in range(4)]
        self._since = 0
        self._age_after = _REQUESTS_PER_ENTRY * max(entries, 64)

    def add(self, key: Hashable) -> None:
        mixed = (hash(key) & _WORD) * _ODD
        mask = self._mask
        first, second, third, fourth = self._rows
        at = mixed >> 40 & mask
        if first[at] < _HIGHEST:
            first[at] += 1
        at = mixed >> 64 & mask
        if second[at] < _HIGHEST:
            second[at] += 1
        at = mixed >> 88 & mask
        if third[at] < _HIGHEST:
            third[at] += 1
        at = mixed >> 112 & mask
        if fourth[at] < _HIGHEST:
            fourth[at] += 1
        self._since += 1
        if self._since >= self._age_after:
            self._since >>= 1
            self._rows = [row.translate(_HALF) for row in self._rows]

    def of(self, key: Hashable) -> int:
        mixed = (hash(key) & _WORD) * _ODD
        mask = self._mask
        return min(
            row[mixed >> shift & mask] for row, shift in zip(self._rows, (40, 64, 88, 112), strict=True)
        )


class TinyLfu:
    """The order of eviction of one store's keys. The store tells what comes and goes; it asks who must go."""

    __slots__ = ("_frequencies", "_probation", "_protected", "_window", "asked")

    def __init__(self, max_entries: int) -> None:
        self.asked: deque[Hashable] = deque(maxlen=_RING)
        """Keys that hits found, to be counted at the next put."""
        self._frequencies = Frequencies(max_entries)
        self._window: OrderedDict[Hashable, None] = OrderedDict()
        self._probation: OrderedDict[Hashable, None] = OrderedDict()
        self._protected: OrderedDict[Hashable, None] = OrderedDict()

    def put(self, key: Hashable) -> None:
        """`key` was stored, for the first time or again."""
        asked = self.asked
        while asked:
            self._touch(asked.popleft())
        if not self._touch(key):
            self._window[key] = None
        while len(self._window) > 1 + self._count() // _WINDOW:
            self._probation[self._window.popitem(last=False)[0]] = None

    def victim(self, is_dead: Callable[[Hashable], bool]) -> tuple[Hashable, bool]:
        """The key that leaves now, and whether it is the newcomer that was not admitted.

        The store holds one at least, and drops it. is_dead: whether a key's value is past all its bounds. What was
        asked for often and has expired would else hold its place against newcomers that can be read.
        """
        probation = self._probation
        for segment in (probation, self._protected):
            if segment and is_dead(oldest := next(iter(segment))):
                return oldest, False
        if not probation:
            return next(iter(self._protected or self._window)), False
        newest = next(reversed(probation))
        oldest = next(iter(probation)) if len(probation) > 1 else next(iter(self._protected), newest)
        if oldest is not newest and self._frequencies.of(newest) > self._frequencies.of(oldest):
            return oldest, False
        return newest, True

    def drop(self, key: Hashable) -> None:
        for segment in (self._window, self._probation, self._protected):
            segment.pop(key, None)

    def clear(self) -> None:
        """Forgets the keys, and not how often they were asked for: they will be again."""
        for segment in (self._window, self._probation, self._protected):
            segment.clear()
        self.asked.clear()

    def _count(self) -> int:
        return len(self._window) + len(self._probation) + len(self._protected)

    def _touch(self, key: Hashable) -> bool:
        """Counts a request; whether the key is here."""
        self._frequencies.add(key)
        if key in self._protected:
            self._protected.move_to_end(key)
        elif key in self._probation:
            del self._probation[key]
            self._protected[key] = None
            if len(self._protected) > _PROTECTED * (len(self._protected) + len(self._probation)):
                self._probation[self._protected.popitem(last=False)[0]] = None
        elif key in self._window:
            self._window.move_to_end(key)
        else:
            return False
        return True
