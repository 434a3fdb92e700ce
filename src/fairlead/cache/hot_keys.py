"""Which keys take most of the traffic, in memory that does not grow with the number of keys.

One key in a million may take a tenth of all requests, and then one shard does the work of many. Counting all keys
to find it costs what the cache was to save. A space-saving sketch (Metwally, Agrawal, El Abbadi 2005, "Efficient
Computation of Frequent and Top-k Elements in Data Streams", the Space-Saving algorithm and its Stream-Summary)
keeps `capacity` counters: a key without one takes over the smallest, and its count as its possible error.

Invariants, of N keys counted with m counters: the counts sum to N. count - error <= true count <= count. A key
that came more than N / m times has a counter. Counters of one count lie in one bucket, so that an addition is two
moves between buckets, however many counters there are.

Per process. Counts are halved each `half_life`: yesterday's heat fades.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

import msgspec

from fairlead.cache.keys import shown
from fairlead.calls.bounds import check_number, check_whole
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.telemetry.metrics import MetricRegistry

__all__ = ["HotKey", "HotKeys"]


class HotKey(msgspec.Struct, frozen=True):
    """A key that came often of late."""

    key: Hashable
    count: int
    """How often at most, of the additions that have not faded."""
    error: int
    """By how much `count` may be too high; the key came at least `count - error` times."""
    share: float
    """Of all additions at least, 0-1: (count - error) / total."""


class HotKeys:
    """The keys that come most, by `capacity` counters.

    >>> hot = HotKeys(capacity=2)
    >>> for key in "aaabacad":
    ...     hot.add(key)
    >>> hot.top(1)
    [HotKey(key='a', count=5, error=0, share=0.625)]
    """

    __slots__ = (
        "_buckets",
        "_capacity",
        "_counts",
        "_errors",
        "_fade_at",
        "_half_life",
        "_least",
        "_now",
        "total",
    )

    def __init__(self, *, capacity: int = 256, half_life: float = 60.0, clock: Clock = SYSTEM_CLOCK) -> None:
        """capacity: counters. 256: any key with more than 0.4 % of the traffic has one. half_life: seconds in
        which a count loses half; math.inf: never. 60: a key is no longer hot minutes after its peak."""
        check_whole("HotKeys.capacity", capacity, low=1, high=1_000_000)
        if half_life != math.inf:
            check_number("HotKeys.half_life", half_life, above=0.0)
        self.total = 0
        """Additions that have not faded: the sum of the counts."""
        self._capacity = capacity
        self._half_life = half_life
        self._now = clock.now
        self._counts: dict[Hashable, int] = {}
        self._errors: dict[Hashable, int] = {}
        self._buckets: dict[int, dict[Hashable, None]] = {}  # by count, in order of arrival
        self._least = 0
        self._fade_at = clock.now() + half_life

    def __len__(self) -> int:
        return len(self._counts)

    def __repr__(self) -> str:
        top = self.top(1)
        return (
            f"HotKeys({len(self)} keys{f', hottest {shown(top[0].key)} {top[0].share:.1%}' if top else ''})"
        )

    def add(self, key: Hashable) -> None:
        """Counts one request. To count one in n requests, add one in n: shares stay what they are."""
        if self._now() >= self._fade_at:
            self._fade()
        self.total += 1
        counts, buckets = self._counts, self._buckets
        count = counts.get(key, 0)
        if count:
            bucket = buckets[count]
            del bucket[key]
        elif len(counts) < self._capacity:
            bucket = None
            self._errors[key] = 0
            self._least = 1
        else:
            count = self._least
            bucket = buckets[count]
            gone, _ = bucket.popitem()  # the last: finding the first walks over all that left before it
            del counts[gone], self._errors[gone]
            self._errors[key] = count
        if bucket is not None and not bucket:
            del buckets[count]
            if count == self._least:  # the next bucket is the one that the key moves to
                self._least = count + 1
        count += 1
        counts[key] = count
        following = buckets.get(count)
        if following is None:
            buckets[count] = {key: None}
        else:
            following[key] = None

    def top(self, n: int = 10) -> list[HotKey]:
        """The `n` keys of the highest counts, highest first; not a ranking where counts differ by less than
        their errors."""
        check_whole("HotKeys.top", n, low=0, high=1_000_000)
        self._fade()
        found: list[HotKey] = []
        for count in sorted(self._buckets, reverse=True):
            for key in self._buckets[count]:
                if len(found) == n:
                    return found
                error = self._errors[key]
                found.append(HotKey(key, count, error, (count - error) / self.total))
        return found

    def share(self, key: Hashable) -> float:
        """Which part of the traffic `key` takes at least, 0-1; 0 for one that is not hot or not known."""
        self._fade()
        count = self._counts.get(key, 0)
        return (count - self._errors[key]) / self.total if count else 0.0

    def export(self, registry: MetricRegistry, *, name: str = "default") -> None:
        """Shows in `registry`, under the label `keys`, how far the traffic is from even; read at each scrape.

        Amplification is how often the hottest key comes for each time that an average key does: 1 when all come
        alike. With more distinct keys than counters it is a lower bound.
        """
        # A scrape reads from its own thread: each of these is one look at a dict, which no addition can tear.
        gauges: tuple[tuple[str, str, Callable[[], float]], ...] = (
            ("calls", "Calls that have not faded.", lambda: self.total),
            ("distinct", "Distinct keys among them, as far as they are counted.", lambda: len(self._counts)),
            ("hottest_share", "Share of the hottest key at most, 0-1.", self._hottest_share),
            (
                "amplification",
                "Calls of the hottest key for each call of an average one.",
                lambda: self._hottest_share() * len(self._counts),
            ),
        )
        for gauge, meaning, read in gauges:
            family = registry.gauge(
                f"fairlead_hot_keys_{gauge}",
                meaning,
                labels=("keys",),
                merge="sum" if gauge == "calls" else "max",
            )
            family.labels(keys=name).track(read)

    def _hottest_share(self) -> float:
        total = self.total
        return min(1.0, max(self._counts.values(), default=0) / total) if total else 0.0

    def clear(self) -> None:
        self._counts.clear()
        self._errors.clear()
        self._buckets.clear()
        self.total = self._least = 0

    def _fade(self) -> None:
        """Halves the counts once for each half-life that has ended. Counters stay: a key that has none came
        no oftener than the least of them."""
        now = self._now()
        if now < self._fade_at:
            return
        times = 1 + int((now - self._fade_at) // self._half_life)
        self._fade_at += times * self._half_life
        if times > 64:
            self.clear()
            return
        # Rounded so that the bounds hold: a count up, and what is sure of it down.
        counts = {key: -(-count >> times) for key, count in self._counts.items()}
        sure = {key: self._counts[key] - self._errors[key] >> times for key in counts}
        self.clear()
        for key, count in counts.items():
            self._counts[key] = count
            self._errors[key] = count - sure[key]
            self._buckets.setdefault(count, {})[key] = None
            self.total += count
        self._least = min(self._buckets, default=0)
