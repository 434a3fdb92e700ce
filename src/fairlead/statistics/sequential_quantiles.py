"""A p99 watched all the time.

The number of requests at or below the true quantile is binomial whatever the latencies look like, so a bet against a
coin with probability q is a bet against "this is the p99". The order statistics that no such bet has
refuted are a confidence sequence for the quantile: exact, without a density, at every look.

Requests must be independent: one a user, or far apart. Requests that share a queue are not; compare users then,
or wait for the end and use the clustered interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fairlead.errors import InvalidInput, TooFewUnits
from fairlead.statistics.estimate import Estimate, checked_confidence
from fairlead.statistics.sequential_counts import log_e_value, tuned_strength, watched_log_e
from fairlead.statistics.tails import is_number

__all__ = ["quantile_ratio_bounds", "sequential_quantile_interval"]


def sequential_quantile_interval(
    quantile: Callable[[float], float], n: int, q: float, *, tuned_for: int, confidence: float = 0.95
) -> Estimate:
    """The q-quantile of n independent values so far, with an interval that holds at every look.

    quantile: the smallest value with at least a share p of the values at or below it, 0 < p <= 1, of a sorted column or
    a histogram; called three times. tuned_for: the number of values at which it shall be tightest. Too few values give
    no interval, and a caveat. Raises InvalidInput.

    Source: Howard and Ramdas, "Sequential estimation of quantiles with applications to A/B testing and best-arm
    identification", Bernoulli 28, 2022 (arXiv:1906.09712), the beta-binomial bound for a fixed quantile; here as one
    one-sided mixture on each side at alpha/2, which needs no continuous distribution.

    >>> e = sequential_quantile_interval(lambda p: math.ceil(1000 * p), 1000, 0.5, tuned_for=1000)
    >>> e.value, e.low, e.high    # 469 to 532 for a single look
    (500, 451, 550)
    """
    level = checked_confidence(confidence)
    if not is_number(q) or not 0 < q < 1:
        raise InvalidInput(f"q {q!r} is not a number between 0 and 1, both excluded")
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise InvalidInput(f"n {n!r} is not a number of values")
    method = "order statistics, beta-binomial confidence sequence"

    def result(value: float | None, low: float | None, high: float | None, caveat: str) -> Estimate:
        return Estimate(
            value=value,
            low=low,
            high=high,
            n=n,
            clusters=None,
            confidence=level,
            method=method,
            caveat=caveat,
        )

    strength = tuned_strength(tuned_for)
    if n == 0:
        return result(None, None, None, "no data")
    value = quantile(q)
    low_rank, high_rank = _ranks(n, q, (1 - level) / 2, strength)
    if low_rank < 1 or high_rank > n:
        return result(value, None, None, "too few data for this confidence at every look")
    # Half a rank lower: 453 / 1000 · 1000 may come out as 453.0000000000001, and its ceiling one too high.
    low, high = quantile((low_rank - 0.5) / n), quantile((high_rank - 0.5) / n)
    caveat = "" if math.isfinite(high) else "the upper end lies among requests that never came back"
    return result(value, low, high, caveat)


def quantile_ratio_bounds(control: Estimate, treatment: Estimate) -> tuple[float, float]:
    """Bounds of treatment's quantile over control's, at every look of both; each estimate spends half of alpha.

    control, treatment: from `sequential_quantile_interval` with a confidence of 1 − alpha/2 each, of positive
    values. A guardrail of +10 % is broken where the lower bound passes 1.1. Raises TooFewUnits, InvalidInput.

    >>> def arm(low, high):
    ...     return Estimate(value=low, low=low, high=high, n=9, clusters=None, confidence=0.975, method="m")
    >>> quantile_ratio_bounds(arm(0.2, 0.25), arm(0.3, 0.4))
    (1.2, 2.0)
    """
    for name, arm in (("control", control), ("treatment", treatment)):
        if arm.low is None or arm.high is None:
            raise TooFewUnits(f"{name} has no interval: {arm.caveat or 'too few data'}; wait for data")
        if arm.low <= 0:
            raise InvalidInput(f"{name}: a quantile of {arm.low:g} has no ratio; it needs values above 0")
    assert control.low and control.high and treatment.low and treatment.high  # noqa: S101,PT018 - for the type checker
    low = 0.0 if math.isinf(control.high) else treatment.low / control.high
    return low, treatment.high / control.low


def _ranks(n: int, q: float, alpha: float, strength: float) -> tuple[int, int]:
    """Ranks, from 1, of the order statistics that bracket the quantile at every look."""
    wanted = -math.log(alpha)

    def last(side: str, start: int, end: int) -> int:
        """The rejected count nearest to `end`, from `start` on, where all before it are; one before `start` if none."""
        if log_e_value(start, n, q, strength, side) < wanted:
            return start - (1 if end > start else -1)
        while abs(end - start) > 1:
            counts = np.unique(np.linspace(start, end, min(8, abs(end - start) + 1)).round())
            inner = counts[1:-1] if end > start else counts[-2:0:-1]
            rejected = watched_log_e(inner, n, q, strength, side) >= wanted
            count = len(inner) if rejected.all() else int(np.argmin(rejected))
            start = int(inner[count - 1]) if count else start
            end = int(inner[count]) if count < len(inner) else end
        return start

    centre = min(n, max(0, round(n * q)))
    # x is kept while more than `too_few` values are at or below it, and fewer than `too_many` below it.
    return last("less", 0, centre) + 1, last("greater", n, centre)
