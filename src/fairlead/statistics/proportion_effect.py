"""Two proportions compared by the score method, which holds where errors are rare and arms are unequal.

The textbook comparison has no width when neither arm had an error, and claims too much when one had three.
The score method takes the variance not at what was seen but at what the hypothesis says, with the nuisance
proportion at its most likely value under it. Interval and p-value are one test, read two ways.

Units are independent. Where one user has many requests, either count the user's first failure, or use
`ratio_effect`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fairlead.errors import InvalidInput, TooFewUnits
from fairlead.statistics.effect import Effect
from fairlead.statistics.estimate import checked_confidence
from fairlead.statistics.hypothesis import NO_DIFFERENCE, Hypothesis
from fairlead.statistics.tails import critical_value, two_tails, upper_tail

__all__ = ["proportion_effect"]

_STEPS = 80
"""Halvings of an interval: enough to exhaust a float."""
_FAR = 1e12
"""A ratio of proportions beyond which an end counts as unbounded."""


def proportion_effect(
    successes_control: int,
    n_control: int,
    successes_treatment: int,
    n_treatment: int,
    *,
    hypothesis: Hypothesis = NO_DIFFERENCE,
    confidence: float = 0.95,
) -> Effect:
    """The difference of two proportions, each successes/n, 0–1.

    Raises InvalidInput for what is no count, or more successes than n; TooFewUnits for an empty arm.

    Source: Miettinen and Nurminen, Statistics in Medicine 4, 1985: the score statistic with the constrained
    maximum-likelihood estimate and the factor N/(N − 1), inverted for both intervals.

    >>> e = proportion_effect(0, 100, 0, 100)
    >>> e.effect, e.p_value, round(e.low, 4), round(e.high, 4)  # no error seen is not no error
    (0.0, 1.0, -0.0372, 0.0372)
    >>> e = proportion_effect(50, 1000, 80, 1000)  # pooled 0.065: z² = 0.03² / (0.060775 · 2/1000) · 1999/2000
    >>> round(e.p_value, 5)
    0.00652
    """
    level = checked_confidence(confidence)
    c = _counts("control", successes_control, n_control)
    t = _counts("treatment", successes_treatment, n_treatment)
    side = hypothesis.alternative
    critical = critical_value((1 - level) / (2 if side == "two_sided" else 1), None)
    p_c, p_t = c[0] / c[1], t[0] / t[1]

    def by_difference(difference: float) -> float:
        return _score(c, t, 1.0, difference)

    def by_ratio(ratio: float) -> float:
        return _score(c, t, ratio, 0.0)

    low = _crossing(by_difference, -1.0, p_t - p_c, critical)
    high = _crossing(by_difference, p_t - p_c, 1.0, -critical)
    relative_low = relative_high = None
    caveat = "no relative effect: no success in control" if p_c == 0 else ""
    if p_c > 0:
        relative_low = _crossing(by_ratio, 0.0, p_t / p_c, critical) - 1
        top = max(2.0, 2 * p_t / p_c)
        while by_ratio(top) > -critical and top < _FAR:
            top *= 4
        relative_high = None if top >= _FAR else _crossing(by_ratio, p_t / p_c, top, -critical) - 1
    score = _score(c, t, hypothesis.ratio, hypothesis.difference)
    return Effect(
        control=p_c,
        treatment=p_t,
        effect=p_t - p_c,
        low=None if side == "less" else low,
        high=None if side == "greater" else high,
        relative_effect=p_t / p_c - 1 if p_c > 0 else None,
        relative_low=None if side == "less" else relative_low,
        relative_high=None if side == "greater" else relative_high,
        p_value={
            "two_sided": two_tails(score, None),
            "greater": upper_tail(score, None),
            "less": upper_tail(-score, None),
        }[side],
        hypothesis=hypothesis,
        standard_error=None,
        degrees_of_freedom=None,
        n_control=c[1],
        n_treatment=t[1],
        confidence=level,
        method="score (Miettinen–Nurminen)",
        caveat=caveat,
    )


def _score(c: tuple[int, int], t: tuple[int, int], ratio: float, difference: float) -> float:
    """Standard errors between the data and treatment = ratio · control + difference."""
    distance = t[0] / t[1] - ratio * c[0] / c[1] - difference
    base = _constrained(c, t, ratio, difference)
    other = min(1.0, max(0.0, ratio * base + difference))
    n = c[1] + t[1]
    variance = (ratio**2 * base * (1 - base) / c[1] + other * (1 - other) / t[1]) * n / (n - 1)
    if variance <= 0:
        return math.copysign(math.inf, distance) if abs(distance) > 1e-15 else 0.0
    return distance / math.sqrt(variance)


def _constrained(c: tuple[int, int], t: tuple[int, int], ratio: float, difference: float) -> float:
    """The most likely proportion p of control, given that treatment's is ratio·p + difference."""
    (x_c, n_c), (x_t, n_t) = c, t
    if difference == 0:
        # r·N·p² − (n_c + x_t + r·(n_t + x_c))·p + x_c + x_t = 0, its smaller root, without cancellation.
        linear = n_c + x_t + ratio * (n_t + x_c)
        root = math.sqrt(max(0.0, linear**2 - 4 * ratio * (n_c + n_t) * (x_c + x_t)))
        return min(1.0, 1.0 / ratio if ratio else 1.0, 2 * (x_c + x_t) / (linear + root))
    low, high = max(0.0, -difference / ratio), min(1.0, (1 - difference) / ratio)
    if low >= high:  # no proportion fits, or a single one: at the very edge of the range
        return min(1.0, max(0.0, low))

    def slope(p: float) -> float:  # of the log likelihood, which is concave
        q = ratio * p + difference
        return _over(x_c, p) - _over(n_c - x_c, 1 - p) + ratio * (_over(x_t, q) - _over(n_t - x_t, 1 - q))

    for _ in range(_STEPS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if slope(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _over(count: int, probability: float) -> float:
    if count == 0:
        return 0.0
    return count / probability if probability > 0 else math.inf


def _crossing(score: Callable[[float], float], low: float, high: float, level: float) -> float:
    """Where a score that falls from `low` to `high` passes `level`; an end where it does not."""
    if score(low) <= level:
        return low
    if score(high) >= level:
        return high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if score(middle) > level:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _counts(arm: str, successes: int, n: int) -> tuple[int, int]:
    for name, value in (("successes", successes), ("n", n)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InvalidInput(f"{arm}: {name} {value!r} is not a count; pass a whole number of 0 or more")
    if successes > n:
        raise InvalidInput(f"{arm}: {successes} successes of {n}; count each unit once")
    if n == 0:
        raise TooFewUnits(f"{arm} has no units, so no proportion; wait for data")
    return successes, n
