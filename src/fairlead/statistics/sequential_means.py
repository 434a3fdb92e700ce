"""Looking at a mean every minute, and stopping when one likes, at an honest error rate.

A test at 5 % that is looked at after every unit raises a false alarm sooner or later: with certainty, in the end. A
confidence sequence holds at all looks together: the chance that it *ever* leaves the truth out is alpha. It
costs width: half as much again as the fixed interval where it is tightest, and slowly more away from there.

Behind it stands an e-value: a bet against the hypothesis whose expected value is at most 1 while the hypothesis
holds, whenever one stops. 1 / e is a p-value at any time, and e-values of stages multiply.

"Asymptotic" is the word to remember: it holds as the normal approximation does. Before some hundred units in each
arm there is none, and it is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fairlead.errors import InvalidInput, NotEstimable, TooFewUnits
from fairlead.statistics.effect import ArmFigure, Effect, compare
from fairlead.statistics.hypothesis import Hypothesis
from fairlead.statistics.mixtures import normal_log_e
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
    fixed before the first look; the size of the plan, or of the first look that counts. From a tenth to ten times as
    many it loses little. The shares of the arms must not change between looks: start a new stage, and add log
    e-values. Raises TooFewUnits below 50 units an arm, NotEstimable, InvalidInput.

    Source: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic
    confidence sequences", Annals of Statistics 52, 2024 (arXiv:2103.06476): Robbins' normal mixture with the estimated
    variance, half-width σ̂·√((tρ² + 1)/(t²ρ²) · log((tρ² + 1)/α²)), and ρ chosen for a time t*. One-sided: the mixture
    over the half-normal, inverted exactly.

    >>> from fairlead.statistics import Moments, mean_effect
    >>> c = Moments(columns=("y",), n=500, means=(10.0,), products=((499.0,),))
    >>> t = Moments(columns=("y",), n=500, means=(10.1,), products=((499.0,),))
    >>> found = sequential_effect(mean_effect(c, t, "y"), tuned_for=1000)
    >>> round((found.effect.high - found.effect.low) / 2 / found.effect.standard_error, 3)   # 1.96 for one look
    3.035
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
    figures = (
        ArmFigure(effect.control, effect.arm_errors[0], effect.arm_errors[0], effect.n_control),
        ArmFigure(effect.treatment, effect.arm_errors[1], effect.arm_errors[1], effect.n_treatment),
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
    log_e = float(normal_log_e(_statistic(effect, hypothesis), information, hypothesis.alternative))
    return SequentialEffect(
        effect=replace(always, p_value=min(1.0, max(LEAST, math.exp(-max(0.0, min(_LARGEST, log_e)))))),
        log_e_value=log_e,
    )


def tuned_information(alpha: float) -> float:
    """n·ρ² at which the two-sided boundary is tightest for that alpha: −2 log α + log(1 − 2 log α)."""
    wanted = -2 * math.log(alpha)
    return wanted + math.log1p(wanted)


def _tuning(alpha: float, one_sided: bool) -> float:
    return tuned_information(min(0.999, 2 * alpha) if one_sided else alpha)


def _statistic(effect: Effect, hypothesis: Hypothesis) -> float:
    assert effect.arm_errors is not None  # noqa: S101 - refused before; for the type checker
    distance = effect.treatment - hypothesis.ratio * effect.control - hypothesis.difference
    return distance / math.hypot(effect.arm_errors[1], hypothesis.ratio * effect.arm_errors[0])


def _critical(alpha: float, information: float, one_sided: bool) -> float:
    """Standard errors at which the e-value reaches 1/alpha."""
    if not one_sided:
        return math.sqrt((1 + information) / information * (math.log1p(information) - 2 * math.log(alpha)))
    low, high = 0.0, 1.0
    while float(normal_log_e(high, information, "greater")) < -math.log(alpha):
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if float(normal_log_e(middle, information, "greater")) < -math.log(alpha):
            low = middle
        else:
            high = middle
    return high
