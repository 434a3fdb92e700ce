"""Means, compared without assuming that both arms vary alike.

A treatment that moves a mean usually moves the variance too, and the arms of a rollout are 1 % and 99 %: the
test that pools their variances is then wrong in either direction. Welch's is not.
"""

from __future__ import annotations

import math
from typing import Literal

from fairlead.errors import InvalidInput
from fairlead.statistics.effect import Effect, compare, linear_figure, welch_degrees
from fairlead.statistics.estimate import Estimate, checked_confidence
from fairlead.statistics.hypothesis import NO_DIFFERENCE, Hypothesis
from fairlead.statistics.moments import Moments
from fairlead.statistics.tails import critical_value

__all__ = ["mean_effect", "mean_interval"]


def mean_effect(
    control: Moments,
    treatment: Moments,
    column: str,
    *,
    hypothesis: Hypothesis = NO_DIFFERENCE,
    confidence: float = 0.95,
    distribution: Literal["t", "normal"] = "t",
) -> Effect:
    """The difference of two means, by Welch's t, or by z where `distribution` is normal.

    Units are independent; where events of one user are counted singly, use `ratio_effect`. Skewed data need
    many units: some 355 · skewness² in each arm for a 95 % interval (Kohavi, Deng, Longbotham and Xu, KDD
    2014, "Seven rules of thumb for web site experimenters", rule 7). Raises TooFewUnits, ZeroVariance.

    Source: Welch, Biometrika 34, 1947.

    >>> c = Moments.from_rows(("y",), [[1.0], [2.0], [3.0]])
    >>> t = Moments.from_rows(("y",), [[3.0], [4.0], [5.0]])
    >>> e = mean_effect(c, t, "y")   # variances of 1: standard error √(1/3 + 1/3), t = 2 / 0.8165 = 2.449
    >>> e.effect, round(e.standard_error, 4), e.degrees_of_freedom, round(e.p_value, 4)
    (2.0, 0.8165, 4.0, 0.0705)
    """
    if distribution not in ("t", "normal"):
        raise InvalidInput(f"distribution {str(distribution)[:40]!r}: t or normal")
    arms = tuple(linear_figure(arm, arm.mean(column), {column: 1.0}) for arm in (control, treatment))
    degrees = welch_degrees(*arms)
    exact = distribution == "t"
    return compare(
        *arms,
        hypothesis=hypothesis,
        confidence=confidence,
        degrees=degrees if exact else None,
        method="Welch's t" if exact else "z",
    )


def mean_interval(arm: Moments, column: str, *, confidence: float = 0.95) -> Estimate:
    """The mean of one arm with Student's interval.

    >>> e = mean_interval(Moments.from_rows(("y",), [[1.0], [2.0], [3.0]]), "y")
    >>> e.value, round(e.low, 3), round(e.high, 3)   # 2 ± 4.303 · 1/√3
    (2.0, -0.484, 4.484)
    """
    level = checked_confidence(confidence)
    value, variance = arm.mean(column), arm.variance(column)
    half = critical_value((1 - level) / 2, arm.n - 1) * math.sqrt(variance / arm.n)
    return Estimate(
        value=value,
        low=value - half,
        high=value + half,
        n=arm.n,
        clusters=None,
        confidence=level,
        method="Student's t",
        caveat="" if variance else "no variation: every unit is alike",
    )
