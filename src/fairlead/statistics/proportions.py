"""Shares (timeouts, degraded answers, errors) with intervals that hold when there are few or none.

The textbook interval p ± 1.96·√(p(1−p)/n) has no width at 0 of 1,000 and leaves the range from 0 to 1.
Wilson's does neither.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from fairlead.errors import InvalidInput
from fairlead.statistics.clusters import FloatArray, effective_size
from fairlead.statistics.estimate import Estimate, checked_confidence, normal_quantile

__all__ = ["proportion_interval"]

_WILSON = "Wilson score"
_CLUSTERED = "Wilson score with effective n"


def proportion_interval(successes: ArrayLike, n: ArrayLike, *, confidence: float = 0.95) -> Estimate:
    """The share successes/n, 0–1, with a two-sided interval.

    successes, n: two whole numbers, when observations are independent; or two arrays of shape (G,), one
    entry per cluster in time order, when those of one cluster vary together. 0 <= successes <= n. Raises
    InvalidInput. No observations, or one cluster, give no interval, and a caveat.

    Source: Wilson, JASA 1927; as recommended by Brown, Cai and DasGupta, Statistical Science 2001.
    Clustered: the same with the effective n of `clusters.effective_size`.

    >>> e = proportion_interval(0, 100)
    >>> e.value, round(e.low, 4), round(e.high, 4)
    (0.0, 0.0, 0.037)
    """
    level = checked_confidence(confidence)
    hits, trials = _checked_counts(successes, n)
    clustered = hits.ndim == 1
    total = int(trials.sum())
    method = _CLUSTERED if clustered else _WILSON

    def result(
        value: float | None, low: float | None, high: float | None, count: int | None, caveat: str
    ) -> Estimate:
        return Estimate(
            value=value,
            low=low,
            high=high,
            n=total,
            clusters=count,
            confidence=level,
            method=method,
            caveat=caveat,
        )

    if clustered:
        used = trials > 0
        hits, trials = hits[used], trials[used]
    count = len(trials) if clustered else None
    if total == 0:
        return result(None, None, None, count, "no data")
    p = float(hits.sum()) / total
    if not clustered:
        return result(p, *wilson(p, total, level), None, "")
    if count == 1:
        return result(p, None, None, count, "one cluster has no spread to measure")
    if p in (0.0, 1.0):
        # Without one event nothing is known about how events cluster.
        return result(
            p, *wilson(p, total, level), count, "no variation: the effect of clusters could not be measured"
        )
    size = effective_size(hits, trials, p, level)
    return result(p, *wilson(p, size.n, level), count, size.caveat)


def wilson(p: float, n: float, confidence: float) -> tuple[float, float]:
    """Wilson's score interval for a share p of n observations; n need not be whole."""
    z = normal_quantile(confidence)
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    # Exactly 0 and 1 at the edges, where rounding would leave 1e-18.
    low = 0.0 if p == 0 else max(0.0, centre - half)
    high = 1.0 if p == 1 else min(1.0, centre + half)
    return low, high


def _checked_counts(successes: ArrayLike, n: ArrayLike) -> tuple[FloatArray, FloatArray]:
    hits, trials = np.asarray(successes), np.asarray(n)
    for name, array in (("successes", hits), ("n", trials)):
        if array.dtype.kind not in "iu" and array.size:
            raise InvalidInput(f"{name} of type {array.dtype} are not whole numbers; pass counts")
    if hits.shape != trials.shape or hits.ndim > 1:
        raise InvalidInput(
            f"successes {hits.shape} and n {trials.shape} differ in shape; pass two numbers or two rows"
        )
    if (hits < 0).any() or (hits > trials).any():
        raise InvalidInput("successes lie outside 0 to n; count each observation once")
    return hits.astype(np.float64), trials.astype(np.float64)
