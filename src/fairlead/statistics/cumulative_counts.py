"""How many observations lie at or below each value: all that a quantile needs.

Either every value is known, or only how many fell into each bucket of a histogram. In the second case a count
between two edges is only bounded, and whoever asks gets the bound on the safe side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairlead.errors import InvalidInput
from fairlead.statistics.clusters import FloatArray
from fairlead.telemetry.histogram import HistogramSnapshot, upper_bound

__all__ = ["CumulativeCounts"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CumulativeCounts:
    """Counts at or below ascending values.

    >>> seen = CumulativeCounts.from_values([0.2, 0.1, 0.2, 0.9])
    >>> seen.edges.tolist(), seen.at_or_below.tolist(), seen.quantile(0.5)
    ([0.1, 0.2, 0.9], [1, 3, 4], 0.2)
    """

    edges: FloatArray
    """Values, each once, ascending; +inf last, where some never came back. Of buckets: their upper bounds."""
    at_or_below: NDArray[np.int64]
    """Observations at or below each edge; the last is all of them."""
    exact: bool
    """Whether nothing lies between edges: values, not buckets."""

    def __post_init__(self) -> None:
        if self.edges.ndim != 1 or self.edges.shape != self.at_or_below.shape:
            raise InvalidInput(f"{self.edges.shape} edges need as many counts, not {self.at_or_below.shape}")
        if np.isnan(self.edges).any() or np.isneginf(self.edges).any():
            raise InvalidInput(
                "edges hold NaN or -inf; pass +inf for what never came back, and drop what was not measured"
            )
        if (np.diff(self.edges) <= 0).any() or (np.diff(self.at_or_below, prepend=0) < 0).any():
            raise InvalidInput("edges must ascend, and counts never fall")

    @classmethod
    def from_values(cls, values: ArrayLike) -> CumulativeCounts:
        """From single observations in any order; +inf allowed, NaN and -inf refused. Raises InvalidInput."""
        try:
            data = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidInput("values are not numbers; pass an array of float64") from error
        if data.ndim != 1:
            raise InvalidInput(f"values have shape {data.shape}; pass one dimension")
        edges, counts = np.unique(data, return_counts=True)
        return cls(edges=edges, at_or_below=np.cumsum(counts), exact=True)

    @classmethod
    def from_buckets(cls, upper_bounds: Sequence[float], counts: Sequence[int]) -> CumulativeCounts:
        """From a histogram: ascending upper bounds (inclusive) and the count of each bucket. Raises InvalidInput.

        List empty buckets too, at least between full ones: a bucket reaches down to the next lower bound listed. The
        first is taken to hold its bound only (zero, in a histogram of latencies).
        """
        sizes = np.asarray(counts)
        if sizes.size and sizes.dtype.kind not in "iu":
            raise InvalidInput(f"counts of type {sizes.dtype} are not whole numbers")
        return cls(
            edges=np.asarray(upper_bounds, dtype=np.float64),
            at_or_below=np.cumsum(sizes.astype(np.int64)),
            exact=False,
        )

    @classmethod
    def from_histogram(cls, snapshot: HistogramSnapshot) -> CumulativeCounts:
        """From a histogram of `telemetry`, whose rejected values are in no bucket.

        >>> from fairlead.telemetry import Histogram
        >>> histogram = Histogram()
        >>> histogram.observe_many([0.0, 0.5, 0.5, 1.0])
        >>> seen = CumulativeCounts.from_histogram(histogram.snapshot())
        >>> seen.n, seen.quantile(0.5), seen.quantile(1.0), len(seen.edges)   # 32 buckets an octave
        (4, 0.5, 1.0, 35)
        """
        filled = snapshot.buckets
        indices = range(min(filled) - 1, max(filled) + 1) if filled else range(0)
        bounds, counts = [upper_bound(i) for i in indices], [filled.get(i, 0) for i in indices]
        return cls.from_buckets([0.0, *bounds], [snapshot.zero_count, *counts])

    @property
    def n(self) -> int:
        """All observations."""
        return int(self.at_or_below[-1]) if len(self.at_or_below) else 0

    @property
    def least(self) -> float:
        """The lowest edge."""
        return float(self.edges[0])

    @property
    def largest(self) -> float:
        """The largest finite distance from zero."""
        finite = self.edges[np.isfinite(self.edges)]
        return float(np.abs(finite).max()) if len(finite) else 0.0

    def value(self, rank: int) -> float:
        """The observation of a rank, from 1; of buckets, the bucket's upper bound."""
        return float(self.edges[int(np.searchsorted(self.at_or_below, rank))])

    def quantile(self, q: float) -> float:
        """The smallest value with at least a share q at or below it; of buckets, the bucket's upper bound."""
        # 0.99 * 1000 is 990.0000000000001 in floating point, and its ceiling 991.
        return self.value(min(self.n, max(1, math.ceil(self.n * q * (1 - 1e-15)))))

    def most_at_or_below(self, values: FloatArray) -> NDArray[np.int64]:
        """For each value, how many of `at_or_below` are reached at most: an index into counts that begin with 0."""
        if self.exact:
            return np.searchsorted(self.edges, values, side="right")
        return np.minimum(np.searchsorted(self.edges, values, side="left") + 1, len(self.edges))
