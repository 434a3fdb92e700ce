"""Counts of independent events over an exposure: crashes over hours, pages over weeks.

Two such counts are compared exactly: given how many events there were in all, the number that fell to
treatment is binomial, with a probability that the ratio of the rates decides. No normal approximation, so
3 against 9 is judged as well as 30,000 against 31,000.

Independent is the word to doubt. One user who crashes forty times is not forty users; where events come in
bursts, compare the mean count of each user (`mean_effect`), whose variance shows the bursts.
"""

from __future__ import annotations

import math

from scipy import special

from fairlead.errors import InvalidInput
from fairlead.statistics.effect import Effect
from fairlead.statistics.estimate import checked_confidence
from fairlead.statistics.hypothesis import NO_DIFFERENCE, Hypothesis
from fairlead.statistics.tails import LEAST, is_number

__all__ = ["count_effect"]


def count_effect(
    count_control: int,
    exposure_control: float,
    count_treatment: int,
    exposure_treatment: float,
    *,
    hypothesis: Hypothesis = NO_DIFFERENCE,
    confidence: float = 0.95,
) -> Effect:
    """The difference of two rates, count / exposure; the hypothesis is one of their ratio.

    exposure: above 0, any unit (requests, hours, users). Two-sided p-values are twice the smaller tail. Both
    intervals are conservative: they cover at least as often as they say. n are the counts. Raises InvalidInput,
    also for a hypothesis with a difference.

    Source: the conditional test of Przyborowski and Wilenski, Biometrika 31, 1940; its interval after Clopper
    and Pearson, Biometrika 26, 1934. The interval of the difference: Garwood's exact limits of each rate
    (Biometrika 28, 1936), joined by MOVER (Zou and Donner 2008).

    >>> e = count_effect(1, 100.0, 9, 100.0)   # 9 or more of 10 fair coins: 11/1024 on each side
    >>> round(e.p_value, 6), round(e.relative_effect, 6)
    (0.021484, 8.0)
    """
    level = checked_confidence(confidence)
    for name, value in (("count_control", count_control), ("count_treatment", count_treatment)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InvalidInput(f"{name} {value!r} is not a count; pass a whole number of 0 or more")
    for name, size in (("exposure_control", exposure_control), ("exposure_treatment", exposure_treatment)):
        if not is_number(size) or size <= 0:
            raise InvalidInput(f"{name} {size!r} is not a number above 0")
    if hypothesis.difference:
        raise InvalidInput(
            "counts are compared by their ratio: give the hypothesis a ratio, not a difference"
        )
    side = hypothesis.alternative
    tail = (1 - level) / (2 if side == "two_sided" else 1)
    rates = count_control / exposure_control, count_treatment / exposure_treatment
    limits = [
        _garwood(count, exposure, tail)
        for count, exposure in ((count_control, exposure_control), (count_treatment, exposure_treatment))
    ]
    effect = rates[1] - rates[0]
    low = effect - math.hypot(rates[1] - limits[1][0], limits[0][1] - rates[0])
    high = effect + math.hypot(limits[1][1] - rates[1], rates[0] - limits[0][0])
    odds = exposure_control / exposure_treatment
    share_low, share_high = _clopper_pearson(count_treatment, count_control + count_treatment, tail)
    # MOVER may leave zero out where the exact test does not yet tell the rates apart; the test decides.
    if share_low * odds <= 1 - share_low:
        low = min(low, 0.0)
    if share_high * odds >= 1 - share_high:
        high = max(high, 0.0)
    return Effect(
        control=rates[0],
        treatment=rates[1],
        effect=effect,
        low=None if side == "less" else low,
        high=None if side == "greater" else high,
        relative_effect=rates[1] / rates[0] - 1 if count_control else None,
        relative_low=None if side == "less" or not count_control else odds * share_low / (1 - share_low) - 1,
        relative_high=None
        if side == "greater" or not count_control or share_high >= 1
        else odds * share_high / (1 - share_high) - 1,
        p_value=_p_value(count_control, count_treatment, hypothesis, odds),
        hypothesis=hypothesis,
        standard_error=None,
        degrees_of_freedom=None,
        n_control=count_control,
        n_treatment=count_treatment,
        confidence=level,
        method="exact conditional test of two Poisson rates",
        caveat="" if count_control else "no relative effect: no event in control",
    )


def _p_value(control: int, treatment: int, hypothesis: Hypothesis, odds: float) -> float:
    total = control + treatment
    share = hypothesis.ratio / (
        hypothesis.ratio + odds
    )  # of treatment among all events, under the hypothesis
    # P(B >= k) = I_p(k, n − k + 1) and P(B <= k) = I_{1−p}(n − k, k + 1): tails, never 1 − tail.
    above = 1.0 if treatment == 0 else float(special.betainc(treatment, total - treatment + 1, share))
    below = 1.0 if control == 0 else float(special.betainc(control, treatment + 1, 1 - share))
    p = {"greater": above, "less": below, "two_sided": 2 * min(above, below)}[hypothesis.alternative]
    return min(1.0, max(LEAST, p))


def _garwood(count: int, exposure: float, tail: float) -> tuple[float, float]:
    low = float(special.gammaincinv(count, tail)) if count else 0.0
    return low / exposure, float(special.gammainccinv(count + 1, tail)) / exposure


def _clopper_pearson(successes: int, n: int, tail: float) -> tuple[float, float]:
    low = float(special.betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(special.betainccinv(successes + 1, n - successes, tail)) if successes < n else 1.0
    return low, high
