"""Looking at a mean every minute, and stopping when one likes, at an honest error rate.

A test at 5 % that is looked at after every unit raises a false alarm sooner or later: with certainty, in the end. A
confidence sequence holds at all looks together: the chance that it *ever* leaves the truth out is alpha. It
costs width: 1.6 times the fixed interval where it is tightest, and slowly more away from there.

Behind it stands an e-value: a bet against the hypothesis whose expected value is at most 1 while the hypothesis
holds, whenever one stops. 1 / e is a p-value at any time, and e-values of stages multiply.

"Asymptotic" is the word to remember: it holds as the normal approximation does. Before some fifty units in each
arm there is none, and it is refused. And its weak spot is the variance of a small arm: fifty treated users
without an error have none, so the first errors of control look like proof. No arm is therefore believed to vary
less than both do together.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from fairlead.errors import InvalidInput, NotEstimable, TooFewUnits
from fairlead.statistics.clusters import FloatArray
from fairlead.statistics.effect import ArmFigure, Effect, compare
from fairlead.statistics.hypothesis import Hypothesis
from fairlead.statistics.mixtures import border, normal_log_e, spread
from fairlead.statistics.tails import LEAST

__all__ = ["SequentialEffect", "sequential_effect"]

FEWEST = 50
"""Units an arm, before which the normal approximation does not carry a look."""
_LARGEST = 700.0
"""Largest log e-value that is still given as an e-value; beyond it floats end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SequentialEffect:
    """An effect that may be looked at as often as one likes."""

    effect: Effect
    """Its intervals hold at all looks together; its p-value, 1 / e, at any of them."""
    log_e_value: float
    """Natural logarithm of the e-value against the effect's hypothesis. Those of independent stages are added."""

    @property
    def e_value(self) -> float:
        """The e-value: 20 rejects at 5 %."""
        return math.exp(min(_LARGEST, self.log_e_value))


def sequential_effect(effect: Effect, *, tuned_for: int) -> SequentialEffect:
    """The same effect with intervals and a p-value that hold at every look.

    effect: of any method with a standard error: `mean_effect`, `ratio_effect`, `smooth_effect`, `cuped_effect`. Its
    side, margin and confidence are kept. tuned_for: units in both arms together at which it shall be tightest,
    fixed before the first look; the size of the plan, or of the first look that counts. With a tenth or ten times as
    many it is a tenth wider. The shares of the arms must not change between looks: start a new stage, and add
    log e-values. Raises TooFewUnits below 50 units an arm, NotEstimable, InvalidInput.

    Source: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic
    confidence sequences", Annals of Statistics 52, 2024 (arXiv:2103.06476): Robbins' normal mixture with the estimated
    variance (here never the smaller one, `cautious_errors`), half-width σ̂·√((tρ² + 1)/(t²ρ²) · log((tρ² + 1)/α²)), and
    ρ chosen for a time t* (read: the abstract, and both formulas in the authors' R code, `std_conjmix_margin` and
    `best_rho2_approx`). One-sided: the mixture over the half-normal. Of three
    widths (`mixtures.SPREAD`), inverted numerically.

    >>> from fairlead.statistics import Moments, mean_effect
    >>> c = Moments(columns=("y",), n=500, means=(10.0,), products=((499.0,),))
    >>> t = Moments(columns=("y",), n=500, means=(10.1,), products=((499.0,),))
    >>> found = sequential_effect(mean_effect(c, t, "y"), tuned_for=1000)
    >>> round((found.effect.high - found.effect.low) / 2 / found.effect.standard_error, 3)   # 1.96 for one look
    3.127
    """
    if isinstance(tuned_for, bool) or not isinstance(tuned_for, int) or tuned_for < 2:
        raise InvalidInput(f"tuned_for {tuned_for!r} is not a number of units of 2 or more")
    if effect.arm_errors is None:
        raise NotEstimable(
            f"{effect.method} has no standard error; use sequential_counts or sequential quantiles"
        )
    fewest = min(effect.n_control, effect.n_treatment)
    if fewest < FEWEST:
        raise TooFewUnits(
            f"{fewest} units in the smaller arm, {FEWEST} needed before a first look; wait for data"
        )
    hypothesis = effect.hypothesis
    one_sided = hypothesis.alternative != "two_sided"
    alpha = 1 - effect.confidence
    information = (effect.n_control + effect.n_treatment) / tuned_for * _tuning(alpha, one_sided)
    sizes = effect.n_control, effect.n_treatment
    errors = [float(error) for error in cautious_errors(effect.arm_errors, sizes)]
    figures = (
        ArmFigure(effect.control, errors[0], errors[0], sizes[0]),
        ArmFigure(effect.treatment, errors[1], errors[1], sizes[1]),
    )
    always = compare(
        *figures,
        hypothesis=hypothesis,
        confidence=effect.confidence,
        degrees=None,
        method=f"asymptotic confidence sequence, {effect.method}",
        caveats=(effect.caveat,),
        critical=_critical(alpha, information, one_sided),
    )
    log_e = float(watched_log_e(_statistic(*figures, hypothesis), information, hypothesis.alternative))
    return SequentialEffect(
        effect=replace(always, p_value=min(1.0, max(LEAST, math.exp(-max(0.0, min(_LARGEST, log_e)))))),
        log_e_value=log_e,
    )


def tuned_information(alpha: float) -> float:
    """n·ρ² at which the two-sided boundary is tightest for that alpha: −2 log α + log(1 − 2 log α)."""
    wanted = -2 * math.log(alpha)
    return wanted + math.log1p(wanted)


def watched_alpha(alpha: float, *, one_sided: bool = False) -> float:
    """The error rate of one look that is as wide as the watched interval at its tightest: what a plan reckons with.

    >>> round(watched_alpha(0.05), 4)   # 3.127 standard errors in place of 1.96
    0.0018
    >>> round(watched_alpha(0.05, one_sided=True), 4)   # 2.867 in place of 1.645
    0.0021
    """
    critical = _critical(alpha, _tuning(alpha, one_sided), one_sided)
    return max(LEAST, (1 if one_sided else 2) * float(special.ndtr(-critical)))


def _tuning(alpha: float, one_sided: bool) -> float:
    return tuned_information(min(0.999, 2 * alpha) if one_sided else alpha)


def cautious_errors(errors: Sequence[ArrayLike], sizes: Sequence[ArrayLike]) -> tuple[FloatArray, FloatArray]:
    """Both arms' standard errors, neither from a smaller variance of units than that of both arms together.

    Where arms vary alike this costs nothing in the long run. Without it, a watched A/A at 1 % of the traffic
    raises false alarms in 90 of 100 runs when one unit in a thousand has an event, and in 11 for lognormal values.
    """
    n = [np.asarray(size, dtype=np.float64) for size in sizes]
    # Scaled first: the square of a small error underflows to 0.
    scale = np.maximum(np.maximum(errors[0], errors[1]), sys.float_info.min)
    variances = [(np.asarray(error) / scale) ** 2 * size for error, size in zip(errors, n, strict=True)]
    pooled = sum(v * (size - 1) for v, size in zip(variances, n, strict=True)) / (n[0] + n[1] - 2)
    control, treatment = (
        scale * np.sqrt(np.maximum(v, pooled) / size) for v, size in zip(variances, n, strict=True)
    )
    return control, treatment


def _statistic(control: ArmFigure, treatment: ArmFigure, hypothesis: Hypothesis) -> float:
    distance = treatment.value - hypothesis.ratio * control.value - hypothesis.difference
    return distance / math.hypot(treatment.below, hypothesis.ratio * control.below)


def watched_log_e(z: ArrayLike, information: ArrayLike, alternative: str) -> FloatArray:
    """Log e-value at z standard errors; information is n·ρ² of the narrowest weights."""
    return spread(lambda width: normal_log_e(z, np.multiply(information, width * width), alternative))


def _critical(alpha: float, information: float, one_sided: bool) -> float:
    """Standard errors at which the e-value reaches 1/alpha."""
    side = "greater" if one_sided else "two_sided"
    goal = -math.log(alpha)
    high = 4.0
    while float(watched_log_e(high, information, side)) < goal:
        high *= 2
    return border(lambda z: watched_log_e(z, information, side) >= goal, high, 0.0)
