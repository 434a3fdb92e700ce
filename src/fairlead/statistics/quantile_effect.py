"""Quantiles of two arms, compared; and a quantile's interval from counts, where users have many requests.

A difference of two p99s has no textbook standard error: it depends on how dense the data are just there. Each
arm's interval already knows that, so the comparison is made from the intervals, and stays lopsided where
they are.

For one arm whose users have several requests each, the order statistics that bracket the quantile are
found from the users' counts: if a user's requests are alike, they lie further out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fairlead.errors import InvalidInput, NotEstimable, TooFewUnits
from fairlead.statistics.effect import ArmFigure, Effect, compare, linear_figure
from fairlead.statistics.estimate import Estimate, checked_confidence, normal_quantile
from fairlead.statistics.hypothesis import NO_DIFFERENCE, Hypothesis
from fairlead.statistics.moments import Moments
from fairlead.statistics.ratios import linearised_ratio
from fairlead.statistics.tails import critical_value, is_number

__all__ = ["clustered_quantile_interval", "quantile_effect"]

_FEWEST_BEYOND = 5


def quantile_effect(
    control: Estimate,
    treatment: Estimate,
    *,
    hypothesis: Hypothesis = NO_DIFFERENCE,
    confidence: float = 0.95,
) -> Effect:
    """The difference of two quantiles, from each arm's estimate and interval.

    control, treatment: of one quantile and one confidence, from `quantile_interval` or
    `clustered_quantile_interval`; independent arms. Raises TooFewUnits where one has no interval, NotEstimable
    where one lies among what never came back (+inf); InvalidInput.

    Source: the standard error on each side is the distance from the estimate to that end of its interval, over
    the normal quantile: MOVER (Zou and Donner, Statistics in Medicine 27, 2008). That the difference of two
    sample quantiles is close to normal needs a smooth density there; timeouts are a spike, and belong into a
    proportion of their own.

    >>> from fairlead.statistics import quantile_interval
    >>> c, t = quantile_interval(range(1, 1001), 0.5), quantile_interval(range(101, 1101), 0.5)
    >>> e = quantile_effect(c, t)     # each arm 500 from 469 to 532: ± √(31² + 32²) = 44.55
    >>> e.effect, round(e.low, 1), round(e.high, 1)
    (100.0, 55.4, 144.6)
    """
    for name, arm in (("control", control), ("treatment", treatment)):
        if arm.value is None or arm.low is None or arm.high is None:
            raise TooFewUnits(f"{name} has no interval: {arm.caveat or 'too few data'}; wait for data")
        if not math.isfinite(arm.value):
            raise NotEstimable(
                f"{name}: the quantile lies among the requests that never came back; compare the share of those"
            )
    figures = tuple(_figure(arm) for arm in (control, treatment))
    caveats = tuple(
        f"{name}: {arm.caveat}"
        for name, arm in (("control", control), ("treatment", treatment))
        if arm.caveat
    )
    return compare(
        *figures,
        hypothesis=hypothesis,
        confidence=confidence,
        degrees=None,
        method=f"quantiles by {treatment.method}, joined by MOVER",
        caveats=caveats,
    )


def clustered_quantile_interval(
    quantile: Callable[[float], float],
    q: float,
    units: Moments,
    *,
    events: str,
    at_or_below: str,
    confidence: float = 0.95,
) -> Estimate:
    """The q-quantile of all events, with an interval that knows that a unit's events are alike.

    quantile: gives the value below which a share of the events lies, of a sorted column or a histogram; called
    three times. units: one row per unit, with its number of `events` and how many of them were at or below
    quantile(q). Raises InvalidInput, UndefinedRatio; too few units give no interval, and a caveat.

    Source: Deng, Knoblich and Lu, KDD 2018 (arXiv:1803.06336), on quantile metrics: the
    share at or below is a ratio of sums over units, its variance by the delta method; the ends of its interval
    are quantile levels, and the values there are the ends wanted. No density is estimated.

    >>> rows = [[10.0, 10.0 * (unit < 50)] for unit in range(100)]    # a hundred users, ten equal requests each
    >>> units = Moments.from_rows(("events", "below"), rows)
    >>> e = clustered_quantile_interval(lambda p: 1000 * p, 0.5, units, events="events", at_or_below="below")
    >>> e.value, round(e.low), round(e.high)   # 0.5 ± 1.984 · √(0.25/99): worth a hundred requests
    (500.0, 400, 600)
    """
    level = checked_confidence(confidence)
    if not is_number(q) or not 0 < q < 1:
        raise InvalidInput(f"q {q!r} is not a number between 0 and 1, both excluded")
    method = "order statistics, delta method over units"
    n = round(units.mean(events) * units.n) if units.n else 0

    def result(value: float | None, low: float | None, high: float | None, caveat: str) -> Estimate:
        return Estimate(
            value=value,
            low=low,
            high=high,
            n=n,
            clusters=units.n,
            confidence=level,
            method=method,
            caveat=caveat,
        )

    if n == 0:
        return result(None, None, None, "no data")
    value = quantile(q)
    if units.n < 2:
        return result(value, None, None, "one unit has no spread to measure")
    share = linear_figure(units, *linearised_ratio(units, at_or_below, events))
    worth = min(n, q * (1 - q) / share.below**2) if share.below else n
    if worth * min(q, 1 - q) < _FEWEST_BEYOND:
        beyond = worth * min(q, 1 - q)
        why = f"too few data: {beyond:.1f} effective values expected beyond the quantile, {_FEWEST_BEYOND} needed"
        return result(value, None, None, why)
    # No unit may be told apart from another (all events below): then chance alone spreads them.
    error = max(share.below, math.sqrt(q * (1 - q) / n))
    half = critical_value((1 - level) / 2, units.n - 1) * error
    low, high = q - half, q + half
    if not (low > 0 and high < 1):
        return result(value, None, None, "too few data for this confidence")
    ends = quantile(low), quantile(high)
    caveat = "" if math.isfinite(ends[1]) else "the upper end lies among requests that never came back"
    return result(value, *ends, caveat)


def _figure(arm: Estimate) -> ArmFigure:
    assert arm.value is not None and arm.low is not None and arm.high is not None  # noqa: S101,PT018 - the caller refused them; for the type checker
    z = normal_quantile(arm.confidence)
    return ArmFigure(arm.value, (arm.value - arm.low) / z, (arm.high - arm.value) / z, arm.clusters or arm.n)
