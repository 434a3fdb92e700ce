"""Is treatment's p99 worse than control's, asked all the time?

If control's quantile were v, treatment's would have to lie at v too (at 1.1·v, for a margin of 10 %). Whether a value
lies at or below v is a coin in either arm, with a chance of q; both coins are bet on, for every v, and the
evidence is what the least favourable v leaves over. Exact, whatever the latencies look like; no density, no
normal approximation, timeouts included.

Two separate intervals, laid beside each other, need 1.7 times the observations for the same decision (ADR 0162).
Observations are independent; each stage of a rollout anew, and log e-values are added.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fairlead.errors import InvalidInput, NotEstimable, TooFewUnits
from fairlead.statistics.cumulative_counts import CumulativeCounts
from fairlead.statistics.effect import Effect
from fairlead.statistics.estimate import checked_confidence
from fairlead.statistics.hypothesis import NO_DIFFERENCE, Hypothesis
from fairlead.statistics.sequential_counts import tuned_strength, watched_log_e
from fairlead.statistics.sequential_means import SequentialEffect
from fairlead.statistics.tails import LEAST, is_number

__all__ = ["sequential_quantile_effect"]

_REACH = 12.0
"""Standard deviations around the quantile's rank within which two arms are compared rank by rank. What lies further
out counts as if it lay there: evidence is capped at some 10^25, and a million values cost as little as a thousand."""
_LARGEST = 700.0


def sequential_quantile_effect(
    control: CumulativeCounts,
    treatment: CumulativeCounts,
    q: float,
    *,
    tuned_for: int,
    hypothesis: Hypothesis = NO_DIFFERENCE,
    confidence: float = 0.95,
) -> SequentialEffect:
    """The difference and the ratio of two arms' q-quantiles, valid at every look; exact.

    tuned_for: observations of one arm at which it shall be most sensitive, fixed before. From buckets it errs by a
    bucket, to the safe side. Relative figures need values of 0 and above. Raises TooFewUnits without data,
    NotEstimable where a quantile lies among what never came back (+inf), InvalidInput.

    Source: Howard and Ramdas, "Sequential estimation of quantiles with applications to A/B testing and best-arm
    identification", Bernoulli 28, 2022: the sum of both arms' log mixtures, least over the common quantile (read:
    the abstract, and `QuantileABTest` in the authors' C++ code); here with one-sided mixtures, the interval by test
    inversion, two-sided as half of the better side.

    >>> c = CumulativeCounts.from_values(range(1, 10_001))
    >>> t = CumulativeCounts.from_values(range(1501, 11_501))
    >>> worse = Hypothesis(alternative="greater", ratio=1.1)      # a guardrail: the median more than 10 % up
    >>> found = sequential_quantile_effect(c, t, 0.5, tuned_for=10_000, hypothesis=worse)
    >>> found.effect.effect, round(found.effect.relative_effect, 4), found.e_value > 20
    (1500.0, 0.3, True)
    >>> 0.2 < found.effect.relative_low < 0.3, found.effect.relative_high
    (True, None)
    """
    level = checked_confidence(confidence)
    if not is_number(q) or not 0 < q < 1:
        raise InvalidInput(f"q {q!r} is not a number between 0 and 1, both excluded")
    strength = tuned_strength(tuned_for)
    for name, arm in (("control", control), ("treatment", treatment)):
        if arm.n == 0:
            raise TooFewUnits(f"{name} has no data; wait for some")
        if math.isinf(arm.quantile(q)):
            raise NotEstimable(
                f"{name}: the quantile lies among the requests that never came back; compare the share of those"
            )
    figures = control.quantile(q), treatment.quantile(q)
    side = hypothesis.alternative
    stake = math.log(2) if side == "two_sided" else 0.0
    higher, lower = (
        EvidenceAbove(control, treatment, q, strength),
        EvidenceAbove(treatment, control, q, strength),
    )

    def up(
        ratio: float, difference: float
    ) -> float:  # against: treatment is at most ratio · control + difference
        return higher.log_e(ratio, difference) - stake

    def down(ratio: float, difference: float) -> float:  # against: treatment is at least that
        return lower.log_e(1 / ratio, -difference / ratio) - stake

    goal = -math.log(1 - level)
    effect = figures[1] - figures[0]
    far = 4 * max(control.largest, treatment.largest, 1e-300)
    positive = figures[0] > 0 and min(control.least, treatment.least) >= 0
    ratio = figures[1] / figures[0] if positive else None
    low = high = relative_low = relative_high = None
    if side != "less":
        low = _end(lambda d: up(1.0, d), effect, effect - far, goal)
        relative_low = _relative_end(lambda r: up(r, 0.0), ratio, 1e-300, goal)
    if side != "greater":
        high = _end(lambda d: down(1.0, d), effect, effect + far, goal)
        relative_high = _relative_end(lambda r: down(r, 0.0), ratio, 1e300, goal)
    tests = [test for test, other in ((up, "less"), (down, "greater")) if side != other]
    log_e = max(test(hypothesis.ratio, hypothesis.difference) for test in tests)
    return SequentialEffect(
        effect=Effect(
            control=figures[0],
            treatment=figures[1],
            effect=effect,
            low=low,
            high=high,
            relative_effect=None if ratio is None else ratio - 1,
            relative_low=relative_low,
            relative_high=relative_high,
            p_value=min(1.0, max(LEAST, math.exp(-max(0.0, min(_LARGEST, log_e))))),
            hypothesis=hypothesis,
            standard_error=None,
            degrees_of_freedom=None,
            n_control=control.n,
            n_treatment=treatment.n,
            confidence=level,
            method="beta-binomial mixtures of both arms",
            caveat="" if positive else "no relative effect: control is not above zero",
        ),
        log_e_value=log_e,
    )


class EvidenceAbove:
    """Evidence that one arm's quantile lies above ratio · (the other's) + difference."""

    def __init__(self, base: CumulativeCounts, arm: CumulativeCounts, q: float, strength: float) -> None:
        # Strictly below each edge (of buckets: in the buckets below it), and the edges near the quantile.
        below = np.concatenate(([0], base.at_or_below[:-1]))
        first, last = _window(below, base.n, q)
        self._edges = base.edges[first:last]
        next_below = below[last] if last < len(below) else base.n
        of_base = watched_log_e(
            np.concatenate(([0], below[first:last], [next_below])), base.n, q, strength, "greater"
        )
        self._of_base = of_base[1:-1]
        # What lies outside counts as the least that it can be there: never too much evidence.
        self._before = float(of_base[0]) if first else math.inf
        self._after = float(of_base[-1])
        counts = np.concatenate(([0], arm.at_or_below))
        first, last = _window(counts, arm.n, q)
        self._arm, self._first, self._last = arm, first, last
        self._of_arm = watched_log_e(np.append(counts[first:last], arm.n), arm.n, q, strength, "less")

    def log_e(self, ratio: float, difference: float) -> float:
        with np.errstate(over="ignore"):
            at = ratio * self._edges + difference
        index = np.clip(self._arm.most_at_or_below(at), self._first, self._last) - self._first
        of_arm = self._of_arm[index]
        inside = float((self._of_base + of_arm).min())
        return min(inside, self._before + float(of_arm[0]), self._after + float(self._of_arm[-1]))


def _window(counts: NDArray[np.int64], n: int, q: float) -> tuple[int, int]:
    """From and to which of the ascending counts lie near the quantile's rank; one at least."""
    reach = _REACH * math.sqrt(n * q * (1 - q)) + 20
    first = max(0, int(np.searchsorted(counts, n * q - reach)) - 1)
    return first, min(len(counts), int(np.searchsorted(counts, n * q + reach)) + 1)


def _relative_end(
    log_e: Callable[[float], float], ratio: float | None, far: float, goal: float
) -> float | None:
    if not ratio:
        return None
    end = _end(lambda log: log_e(math.exp(log)), math.log(ratio), math.log(far), goal)
    return None if end is None else math.exp(end) - 1


def _end(log_e: Callable[[float], float], inside: float, outside: float, goal: float) -> float | None:
    """The rejected value nearest to `inside`, to ten digits; None where none is rejected."""
    if log_e(outside) < goal:
        return None
    while abs(outside - inside) > 1e-10 * max(abs(inside), abs(outside), 1e-300):
        middle = (inside + outside) / 2
        if middle in (inside, outside):
            break
        if log_e(middle) < goal:
            inside = middle
        else:
            outside = middle
    return outside
