"""Ratios of sums, and other smooth functions of means, where the unit is the user and the events are many.

Click-through rate is clicks over views, both sums over users. Taken as a proportion of independent views it
gets an interval several times too short, as the views of one user are alike. The delta method looks at the
users: each contributes (clicks − R · views) / mean views, and those are independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from fairlead.errors import UndefinedRatio
from fairlead.statistics.effect import Effect, compare, linear_figure, welch_degrees
from fairlead.statistics.hypothesis import NO_DIFFERENCE, Hypothesis
from fairlead.statistics.moments import Moments

__all__ = ["ratio_effect", "smooth_effect"]

_CLEAR = 3.0
"""Standard errors that a denominator's mean must be away from zero; nearer, the linearisation is fiction."""

Linearised = tuple[float, Mapping[str, float]]
"""A function's value at the means, and its gradient there."""


def ratio_effect(
    control: Moments,
    treatment: Moments,
    numerator: str,
    denominator: str,
    *,
    hypothesis: Hypothesis = NO_DIFFERENCE,
    confidence: float = 0.95,
) -> Effect:
    """The difference of two ratios, sum of `numerator` over sum of `denominator`, by the delta method.

    The columns hold one sum per unit. Raises UndefinedRatio where a denominator's mean is zero or within three
    standard errors of it, TooFewUnits, ZeroVariance.

    Source: Deng, Knoblich and Lu, KDD 2018 (arXiv:1803.06336), on cluster randomisation: the variance of a ratio of
    sums over randomisation units.

    >>> clicks_views = [[1.0, 2.0], [1.0, 4.0], [2.0, 4.0], [0.0, 2.0]]
    >>> c = Moments.from_rows(("clicks", "views"), clicks_views)
    >>> e = ratio_effect(c, c, "clicks", "views")
    >>> round(e.control, 4), e.effect, round(e.p_value, 6)
    (0.3333, 0.0, 1.0)
    >>> round(e.standard_error, 4)  # each arm: residuals 1/3, −1/3, 2/3, −2/3 over 3: √(10/27 / 9 / 4) = 0.1014
    0.1434
    """
    return smooth_effect(
        control,
        treatment,
        lambda arm: linearised_ratio(arm, numerator, denominator),
        hypothesis=hypothesis,
        confidence=confidence,
        method="delta method for a ratio of sums",
    )


def smooth_effect(
    control: Moments,
    treatment: Moments,
    function: Callable[[Moments], Linearised],
    *,
    hypothesis: Hypothesis = NO_DIFFERENCE,
    confidence: float = 0.95,
    method: str = "delta method",
) -> Effect:
    """The difference of a smooth function of means, such as published / (attempts − cancelled).

    function: gives for one arm the value and its gradient by column, both at the arm's means.
    Raises what `function` raises, TooFewUnits, ZeroVariance.

    Source: the first-order expansion f(x̄) ≈ f(μ) + ∇f·(x̄ − μ).

    >>> c = Moments.from_rows(("y",), [[1.0], [2.0], [3.0]])
    >>> e = smooth_effect(c, c, lambda arm: (arm.mean("y") ** 2, {"y": 2 * arm.mean("y")}))
    >>> e.control, round(e.standard_error, 4)  # each arm 2 · 2 · 1/√3
    (4.0, 3.266)
    """
    arms = tuple(linear_figure(arm, *function(arm)) for arm in (control, treatment))
    return compare(
        *arms,
        hypothesis=hypothesis,
        confidence=confidence,
        degrees=welch_degrees(*arms),
        method=method,
    )


def linearised_ratio(arm: Moments, numerator: str, denominator: str) -> Linearised:
    """The ratio of two means and its gradient. Raises UndefinedRatio."""
    above, below = arm.mean(numerator), arm.mean(denominator)
    error = math.sqrt(arm.variance(denominator) / arm.n)
    if abs(below) <= _CLEAR * error or below == 0:
        raise UndefinedRatio(
            f"{numerator}/{denominator}: the mean of {denominator} is {below:g} ± {error:g}, not told apart from "
            f"zero by {_CLEAR:g} standard errors; wait for data, or compare the sums"
        )
    value = above / below
    gradient = {numerator: 1 / below, denominator: -value / below}
    if not all(map(math.isfinite, (value, *gradient.values()))):
        raise UndefinedRatio(
            f"{numerator}/{denominator}: {above:g} over {below:g} is beyond what a float holds"
        )
    return value, gradient
