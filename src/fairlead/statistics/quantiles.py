"""Percentiles with intervals that assume nothing about the shape of the data.

Latencies are skewed, have several humps, and end in timeouts; a normal interval around a p99 is fiction.
The number of observations below the true quantile, however, is binomial whatever the shape, so two order
statistics bracket it. Clustered observations get the same bracket for the number of independent
observations they are worth.

A request that never came back is +inf: worse than all others, and counted.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairlead.errors import InvalidInput
from fairlead.statistics.clusters import EffectiveSize, FloatArray, effective_size
from fairlead.statistics.estimate import Estimate, checked_confidence

__all__ = ["quantile_interval"]

IntArray = NDArray[np.int64]

_FEWEST_BEYOND = 5
"""Effective observations expected on the thin side of a quantile. With fewer, its upper end is the worst
one or two requests, and says more about them than about the service."""

_EXACT = "order statistics, exact binomial"
_CLUSTERED = "order statistics, binomial with effective n"


def quantile_interval(
    values: ArrayLike, q: float, *, clusters: ArrayLike | None = None, confidence: float = 0.95
) -> Estimate:
    """The q-quantile (the smallest value with at least a share q at or below it) with a two-sided interval.

    values: shape (n,), any order, +inf allowed (timed out), NaN and -inf refused.
    q: 0 < q < 1.
    clusters: shape (n,), whole numbers; observations with one number vary together (one-second slices of the
        schedule, numbered in time order). None: each observation is independent.
    Raises InvalidInput. Too few data for the quantile give no interval, and a caveat.

    Independent: the count of values at or below the true quantile is Binomial(n, q), so the interval
    between the order statistics of ranks l and u covers it with probability at least P(l <= count < u),
    with equality for continuous data (David and Nagaraja, Order Statistics, 3rd ed. 2003, chapter 7). Equal
    tails, conservative. Clustered: the variance of the share at or below the estimate is taken between
    clusters and turned into an effective n; the binomial ranks for that n are carried over to the n order
    statistics (test inversion after Woodruff, JASA 1952).

    >>> e = quantile_interval(range(1, 101), 0.5)
    >>> e.value, e.low, e.high
    (50.0, 40.0, 61.0)
    """
    level = checked_confidence(confidence)
    if isinstance(q, bool) or not isinstance(q, int | float) or not 0 < q < 1:
        raise InvalidInput(f"q {q!r} is not a number between 0 and 1, both excluded")
    data = _checked_values(values)
    groups = None if clusters is None else _checked_clusters(clusters, len(data))
    n = len(data)
    method = _EXACT if groups is None else _CLUSTERED
    count = None if groups is None else len(np.unique(groups))
    if n == 0:
        return _without_interval(None, 0, count, level, method, "no data")
    ordered = np.sort(data)
    value = float(ordered[_rank(n, q) - 1])
    size = EffectiveSize(float(n), 1.0, "")
    if groups is not None:
        if count == 1:
            return _without_interval(value, n, count, level, method, "one cluster has no spread to measure")
        size = _effective_size(data, value, groups, q, level)
    beyond = size.n * min(q, 1 - q)
    if beyond < _FEWEST_BEYOND:
        kind = "values" if groups is None else "effective values"
        why = f"too few data: {beyond:.1f} {kind} expected beyond the quantile, {_FEWEST_BEYOND} needed"
        return _without_interval(value, n, count, level, method, "; ".join(filter(None, [why, size.caveat])))
    worth = max(1, int(size.n))
    low_rank, high_rank = binomial_ranks(worth, q, level)
    if low_rank < 1 or high_rank > worth:
        return _without_interval(value, n, count, level, method, "too few data for this confidence")
    low = float(ordered[max(1, low_rank * n // worth) - 1])
    high = float(ordered[min(n, -(-high_rank * n // worth)) - 1])
    caveats = [
        size.caveat,
        "" if math.isfinite(high) else "the upper end lies among requests that never came back",
    ]
    return Estimate(
        value=value,
        low=low,
        high=high,
        n=n,
        clusters=count,
        confidence=level,
        method=method,
        caveat="; ".join(filter(None, caveats)),
    )


def binomial_ranks(n: int, q: float, confidence: float) -> tuple[int, int]:
    """Ranks (l, u), from 1, of the order statistics around the q-quantile of n independent values.

    l is the largest with P(B < l) <= α/2, u the smallest with P(B >= u) <= α/2, for B ~ Binomial(n, q). l
    of 0 or u of n + 1 means that no order statistic is far enough out.
    """
    tail = (1 - confidence) / 2
    mode = int((n + 1) * q)
    # Beyond 12 standard deviations lies less than 1e-30 of a binomial's mass.
    reach = int(12 * math.sqrt(n * q * (1 - q))) + 60
    first, last = max(0, mode - reach), min(n, mode + reach)
    k = np.arange(first, last + 1, dtype=np.float64)
    steps = np.log(n - k[:-1]) - np.log(k[1:]) + math.log(q) - math.log1p(-q)
    logs = np.concatenate(([0.0], np.cumsum(steps)))
    mass = np.exp(logs - logs.max())
    mass /= mass.sum()
    below = np.concatenate(([0.0], np.cumsum(mass)))  # below[i] = P(B < first + i)
    above = np.concatenate((np.cumsum(mass[::-1])[::-1], [0.0]))  # above[i] = P(B >= first + i)
    low = first + int(np.searchsorted(below, tail, side="right")) - 1
    high = first + int(np.argmax(above <= tail))
    return low, high


def _rank(n: int, q: float) -> int:
    # 0.99 * 1000 is 990.0000000000001 in floating point, and its ceiling 991.
    return min(n, max(1, math.ceil(n * q - 1e-9 * n)))


def _checked_values(values: ArrayLike) -> FloatArray:
    try:
        data = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInput("values are not numbers; pass an array of float64") from error
    if data.ndim != 1:
        raise InvalidInput(f"values have shape {data.shape}; pass one dimension")
    if np.isnan(data).any() or np.isneginf(data).any():
        raise InvalidInput(
            "values hold NaN or -inf; pass +inf for what never came back, and drop what was not measured"
        )
    return data


def _checked_clusters(clusters: ArrayLike, n: int) -> IntArray:
    groups = np.asarray(clusters)
    if groups.shape != (n,) or (n and groups.dtype.kind not in "iu"):
        raise InvalidInput(
            f"clusters have shape {groups.shape}, {groups.dtype}; pass {n} whole numbers, one per value"
        )
    return groups.astype(np.int64)


def _effective_size(
    data: FloatArray,
    value: float,
    groups: IntArray,
    q: float,
    confidence: float,
) -> EffectiveSize:
    _, index = np.unique(groups, return_inverse=True)
    trials = np.bincount(index).astype(np.float64)
    sizes = [
        effective_size(np.bincount(index, weights=beyond).astype(np.float64), trials, q, confidence)
        # Among ties (all timeouts are +inf) one of the two counts may not vary at all.
        for beyond in (data > value, data >= value)
    ]
    return min(sizes, key=lambda size: size.n)


def _without_interval(
    value: float | None, n: int, clusters: int | None, confidence: float, method: str, caveat: str
) -> Estimate:
    return Estimate(
        value=value,
        low=None,
        high=None,
        n=n,
        clusters=clusters,
        confidence=confidence,
        method=method,
        caveat=caveat,
    )
