"""What changed between control and treatment, and how sure that is.

One shape for every comparison: the two figures, their difference with its interval, the same relative to
control, and the p-value of the hypothesis that was asked about. Intervals and p-value are computed from the
same standard errors, so a 95 % interval leaves zero out exactly when p < 0.05, and the relative interval
leaves zero out exactly when the absolute one does (Fieller's theorem gives it, not the delta method).

Invariant: no field is NaN. What the data cannot carry is refused by `NotEstimable`; what has no value of its
own (a relative effect where control is not above zero) is None, and `caveat` says why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fairlead.errors import TooFewUnits, ZeroVariance
from fairlead.statistics.estimate import checked_confidence
from fairlead.statistics.hypothesis import Hypothesis
from fairlead.statistics.moments import Moments
from fairlead.statistics.tails import critical_value, two_tails, upper_tail

__all__ = ["Effect"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """Treatment compared with control."""

    control: float
    """The figure of control, in the metric's unit."""
    treatment: float
    """The figure of treatment, in the metric's unit."""
    effect: float
    """treatment − control, in the metric's unit."""
    low: float | None
    """Lower end of the effect's interval; None: unbounded, as in a one-sided interval."""
    high: float | None
    """Upper end of the effect's interval; None: unbounded."""
    relative_effect: float | None
    """effect / control, a ratio: 0.02 is 2 % more. None where control is not above zero."""
    relative_low: float | None
    """Lower end of the relative effect's interval; None: unbounded, or no relative effect."""
    relative_high: float | None
    """Upper end of the relative effect's interval; None: unbounded, or no relative effect."""
    p_value: float
    """Of `hypothesis`; above 0, at most 1."""
    hypothesis: Hypothesis
    """What the p-value argues against. Its side is the interval's side too."""
    standard_error: float | None
    """Of the effect; None where the method has none (exact and score methods, quantiles)."""
    arm_errors: tuple[float, float] | None = None
    """Standard errors of control's and of treatment's figure; None where `standard_error` is."""
    degrees_of_freedom: float | None
    """Of Student's t; None for the normal distribution and exact methods."""
    n_control: int
    """Units of analysis in control."""
    n_treatment: int
    """Units of analysis in treatment."""
    confidence: float
    """Coverage that the intervals aim at, 0–1."""
    method: str
    """How it was computed, as a report prints it."""
    caveat: str = ""
    """What a reader must know before relying on it; empty when nothing."""


@dataclass(frozen=True, slots=True)
class ArmFigure:
    """One arm's estimate, with its standard error below and above it (they differ where it is skewed)."""

    value: float
    below: float
    above: float
    n: int


def linear_figure(arm: Moments, value: float, weights: Mapping[str, float]) -> ArmFigure:
    """An estimate that is, or by the delta method is close to, a weighted sum of means; weights: its gradient."""
    name = ", ".join(weights)
    error = math.sqrt(arm.combine(weights, name).variance(name) / arm.n)
    return ArmFigure(value, error, error, arm.n)


def compare(
    control: ArmFigure,
    treatment: ArmFigure,
    *,
    hypothesis: Hypothesis,
    confidence: float,
    degrees: float | None,
    method: str,
    caveats: tuple[str, ...] = (),
    critical: float | None = None,
) -> Effect:
    """The effect between two independent estimates. Raises ZeroVariance.

    Differences: Zou and Donner, Statistics in Medicine 27, 2008 (MOVER: each limit is made from the variances
    on its own side), which for equal sides is the textbook interval. Relative: Fieller, JRSS B 16, 1954; with
    unequal sides MOVER-R (Newcombe, Statistical Methods in Medical Research 25, 2016): the ratios r for which
    treatment − r · control is not told apart from zero.

    critical: half-width of the intervals in standard errors, where it is not that of t or normal.
    """
    level = checked_confidence(confidence)
    one_sided = hypothesis.alternative != "two_sided"
    if critical is None:
        critical = critical_value(1 - level if one_sided else (1 - level) / 2, degrees)
    down = math.hypot(treatment.below, control.above)
    up = math.hypot(treatment.above, control.below)
    if down == 0 and up == 0:
        raise ZeroVariance(
            f"all {control.n + treatment.n} units are alike within their arm, so a difference of "
            f"{treatment.value - control.value:g} has no scale to be judged by; check the column"
        )
    for name, arm in (("control", control), ("treatment", treatment)):
        if arm.below == 0 and arm.above == 0:
            caveats = (*caveats, f"{name} does not vary: its {arm.n} units may only not have shown it yet")
    effect = treatment.value - control.value
    with_low, with_high = hypothesis.alternative != "less", hypothesis.alternative != "greater"
    relative_low, relative_high, why_not = _relative_interval(control, treatment, critical)
    if why_not:
        caveats = (*caveats, why_not)
    relative = effect / control.value if control.value > 0 else None
    return Effect(
        control=control.value,
        treatment=treatment.value,
        effect=effect,
        low=_bounded(effect - critical * down) if with_low else None,
        high=_bounded(effect + critical * up) if with_high else None,
        relative_effect=_bounded(relative) if relative is not None else None,
        relative_low=relative_low if with_low else None,
        relative_high=relative_high if with_high else None,
        p_value=_p_value(control, treatment, hypothesis, degrees),
        hypothesis=hypothesis,
        standard_error=down if down == up else None,
        arm_errors=(control.below, treatment.below) if down == up else None,
        degrees_of_freedom=degrees,
        n_control=control.n,
        n_treatment=treatment.n,
        confidence=level,
        method=method,
        caveat="; ".join(filter(None, caveats)),
    )


def welch_degrees(control: ArmFigure, treatment: ArmFigure) -> float:
    """Degrees of freedom of a difference of means with unequal variances (Welch, Biometrika 34, 1947)."""
    for name, arm in (("control", control), ("treatment", treatment)):
        if arm.n < 2:
            raise TooFewUnits(f"{name} has {arm.n} unit(s), and a spread needs 2; wait for data")
    # Divided first: the fourth power of a small standard error underflows to 0.
    scale = max(control.below, treatment.below)
    if scale == 0:
        return float(control.n + treatment.n - 2)
    a, b = (control.below / scale) ** 2, (treatment.below / scale) ** 2
    return (a + b) ** 2 / (a * a / (control.n - 1) + b * b / (treatment.n - 1))


def _p_value(
    control: ArmFigure, treatment: ArmFigure, hypothesis: Hypothesis, degrees: float | None
) -> float:
    ratio = hypothesis.ratio
    distance = treatment.value - ratio * control.value - hypothesis.difference
    if distance >= 0:
        spread = math.hypot(treatment.below, ratio * control.above)
    else:
        spread = math.hypot(treatment.above, ratio * control.below)
    statistic = distance / spread if spread else _without_spread(distance)
    if hypothesis.alternative == "greater":
        return upper_tail(statistic, degrees)
    if hypothesis.alternative == "less":
        return upper_tail(-statistic, degrees)
    return two_tails(statistic, degrees)


def _without_spread(distance: float) -> float:
    # A side without spread: the estimate cannot lie on that side of the truth.
    return math.copysign(math.inf, distance) if distance else 0.0


def _relative_interval(
    control: ArmFigure, treatment: ArmFigure, critical: float
) -> tuple[float | None, float | None, str]:
    if control.value <= 0:
        return None, None, "no relative effect: control is not above zero"
    if control.value <= critical * control.below:
        return None, None, "no relative interval: control is not told apart from zero"
    low = _fieller(control.value, treatment.value, critical * control.above, critical * treatment.below, -1)
    high = _fieller(control.value, treatment.value, critical * control.below, critical * treatment.above, 1)
    return (None if low is None else low - 1), (None if high is None else high - 1), ""


def _fieller(control: float, treatment: float, half_c: float, half_t: float, sign: int) -> float | None:
    """The root of (treatment − r·control)² = half_t² + r²·half_c² below or above treatment / control."""
    if math.isinf(half_t) or half_c >= control:
        return None
    g = half_c / control
    spread = half_t / control
    centre = treatment / control
    root = math.sqrt(max(0.0, spread * spread * (1 - g * g) + centre * centre * g * g))
    return _bounded((centre + sign * root) / (1 - g * g))


def _bounded(value: float) -> float | None:
    return value if math.isfinite(value) else None
