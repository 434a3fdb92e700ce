"""A histogram that need not know its range beforehand.

Fixed buckets are chosen before the incident they must measure: a p99 that falls between 1 s and 2.5 s can
then be any value between. Averages of percentiles are wrong outright. Here bucket i counts the values in
(base^(i−1), base^i], with base = 2^(1/32), about 1.022: every quantile is known within 1.1 % of itself
whatever its size, and two histograms, of two processes or two minutes, add up bucket by bucket without loss.

Source: schema 5 of Prometheus native histograms (prometheus.io/docs/specs/native_histograms: base =
2^(2^−schema), upper bounds inclusive). OpenTelemetry's exponential histogram at scale 5 (data model,
"Exponential Scale") has the same bounds and numbers each bucket one lower. As that text permits, the index
comes from the logarithm: a value within a few parts in 10^16 of a bound may be counted on its other side.
Powers of two are exact.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from math import ceil, inf, ldexp, log2
from typing import Annotated

import msgspec

from fairlead.errors import InvalidInput

__all__ = ["SCHEMA", "Histogram", "HistogramSnapshot", "check_histogram", "upper_bound"]

SCHEMA = 5
_PER_OCTAVE = 2**SCHEMA
_BASE = 2.0 ** (1 / _PER_OCTAVE)
_BOUNDS = tuple(2.0 ** (step / _PER_OCTAVE) for step in range(_PER_OCTAVE))

# The estimate 2·u/(1 + base) is as far, in ratio, from the bucket's lower bound as from its upper bound u,
# which makes the largest relative error (base − 1)/(base + 1) = 1.083 %: the smallest that any single answer
# can guarantee.
_ESTIMATES = tuple(bound * 2.0 / (1.0 + _BASE) for bound in _BOUNDS)

_LOWEST = ceil(log2(5e-324) * _PER_OCTAVE)
_HIGHEST = 1024 * _PER_OCTAVE
_LARGEST = sys.float_info.max


def upper_bound(index: int) -> float:
    """The largest value that bucket `index` counts; infinite beyond the largest float.

    >>> upper_bound(0), upper_bound(32), upper_bound(-64)
    (1.0, 2.0, 0.25)
    """
    octave, step = divmod(index, _PER_OCTAVE)
    return ldexp(_BOUNDS[step], octave) if index < _HIGHEST else inf


_Count = Annotated[int, msgspec.Meta(ge=0)]


class HistogramSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A histogram at one moment, as plain data: what is stored, sent and merged."""

    schema: int = SCHEMA
    zero_count: _Count = 0
    rejected: _Count = 0
    sum: float = 0.0
    buckets: dict[int, _Count] = {}
    """Count by bucket index; bucket i holds the values in (base^(i−1), base^i]."""


class Histogram:
    """Counts of values by size, with every quantile known within 1.1 %.

    Zero has a bucket of its own. A negative value, NaN or infinity is no latency: it is counted in `rejected`
    and nowhere else, because one NaN would make the sum NaN for ever. Buckets appear as values do: a service
    whose latencies span 1 µs to 1 min fills at most 830, and no input can make more than 67,137.

    Safe to share between the threads of one process: `observe` never leaves a count half done between two
    bytecodes at which CPython, with its global lock, may switch threads. Each process has its own; add them
    up with `merge`.

    >>> histogram = Histogram()
    >>> histogram.observe_many([0.010, 0.020, 0.030])
    >>> histogram.count, round(histogram.quantile(0.5), 3)
    (3, 0.02)
    """

    __slots__ = ("_buckets", "_rejected", "_sum", "_zero_count")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self._sum = 0.0
        self._zero_count = 0
        self._rejected = 0

    def observe(self, value: float) -> None:
        """Counts one value, in the unit of the metric (seconds for latencies). Costs about 0.1 µs."""
        try:
            index = ceil(log2(value) * 32)
            self._sum += value
            self._buckets[index] += 1
        except KeyError:
            # setdefault first: a plain store would undo the count of a thread that met the same new bucket.
            self._buckets.setdefault(index, 0)
            self._buckets[index] += 1
        except (ValueError, OverflowError):  # zero, negative, NaN, infinite, or an int that no float can hold
            if value == 0:
                self._zero_count += 1
            else:
                self._rejected += 1

    def observe_many(self, values: Iterable[float]) -> None:
        """Counts each of `values`."""
        observe = self.observe
        for value in values:
            observe(value)

    @property
    def count(self) -> int:
        """How many values were counted, without the rejected."""
        return sum(self._buckets.values()) + self._zero_count

    @property
    def sum(self) -> float:
        """Of the values that were counted; stops at the largest float, where it would be infinite."""
        return min(self._sum, _LARGEST)

    @property
    def mean(self) -> float:
        """The exact mean; NaN when nothing was counted."""
        count = self.count
        return self.sum / count if count else float("nan")

    @property
    def rejected(self) -> int:
        """Values that were negative, NaN or infinite."""
        return self._rejected

    def quantile(self, q: float) -> float:
        """The smallest counted value that at least a share `q` (0–1) of the values does not exceed, within
        1.1 %.

        That is the order statistic of rank ceil(q·n), at least 1. NaN when nothing was counted. Raises
        InvalidInput for q outside 0–1. The bound holds for normal floats, from 2.3e-308 up.
        """
        if not 0.0 <= q <= 1.0:
            raise InvalidInput(f"quantile {q!r}: pass a share between 0 and 1, such as 0.99")
        buckets = self._buckets.copy()
        zero_count = self._zero_count
        count = sum(buckets.values()) + zero_count
        if not count:
            return float("nan")
        rank = max(1, ceil(q * count))
        seen = zero_count
        if rank <= seen:
            return 0.0
        index = 0
        for index in sorted(buckets):
            seen += buckets[index]
            if rank <= seen:
                break
        octave, step = divmod(index, _PER_OCTAVE)
        return ldexp(_ESTIMATES[step], octave)

    def merge(self, other: Histogram | HistogramSnapshot) -> None:
        """Adds everything that `other` counted. Exact: the result is one histogram that saw all values."""
        self.add_checked(other.snapshot() if isinstance(other, Histogram) else check_histogram(other))

    def add_checked(self, snapshot: HistogramSnapshot) -> None:
        """As `merge`, for a snapshot that was checked when it was decoded: a third of the time."""
        buckets = self._buckets
        for index, count in snapshot.buckets.items():
            buckets.setdefault(index, 0)
            buckets[index] += count
        self._zero_count += snapshot.zero_count
        self._rejected += snapshot.rejected
        self._sum += snapshot.sum

    def snapshot(self) -> HistogramSnapshot:
        """A copy as plain data, which msgspec encodes to JSON or MessagePack."""
        return HistogramSnapshot(
            buckets=self._buckets.copy(),
            zero_count=self._zero_count,
            rejected=self._rejected,
            sum=float(self.sum),
        )

    @classmethod
    def from_snapshot(cls, snapshot: HistogramSnapshot) -> Histogram:
        """The histogram that `snapshot` describes. Raises InvalidInput for another schema or impossible
        counts.
        """
        histogram = cls()
        histogram.merge(snapshot)
        return histogram


def check_histogram(snapshot: HistogramSnapshot) -> HistogramSnapshot:
    """The snapshot; raises InvalidInput for another schema, impossible counts or buckets that do not exist."""
    if snapshot.schema != SCHEMA:
        raise InvalidInput(f"histogram schema {snapshot.schema}: only schema {SCHEMA} adds up with this one")
    if not 0 <= snapshot.sum < inf:
        raise InvalidInput(f"histogram sum {snapshot.sum}: expected a finite number, 0 or more")
    if snapshot.zero_count < 0 or snapshot.rejected < 0:
        raise InvalidInput("histogram counts: expected 0 or more")
    for index, count in snapshot.buckets.items():
        if count < 0 or not _LOWEST <= index <= _HIGHEST:
            raise InvalidInput(
                f"histogram bucket {index} with count {count}: "
                f"indexes run from {_LOWEST} to {_HIGHEST}, counts from 0"
            )
    return snapshot
