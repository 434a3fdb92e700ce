"""Counts watched event by event: errors of a canary, units of a split.

Each new event falls to an arm with a probability that the hypothesis fixes: equal error rates at a share of 5 % mean
that one error in twenty is treatment's, whatever the rate does over the day. So time of day, traffic and bursts in
*rate* do not matter, only whose event it is. An e-value bets against that probability, and is exact from the first
event on: no approximation, no smallest n.

What must hold: events are independent (count a user's first), and the shares stay while a stage lasts. A new share is
a new stage with counts of its own; the stages' log e-values are added, counts are never pooled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fairlead.errors import InvalidInput
from fairlead.statistics.clusters import FloatArray
from fairlead.statistics.estimate import checked_confidence
from fairlead.statistics.hypothesis import NO_DIFFERENCE, Hypothesis
from fairlead.statistics.mixtures import SPREAD, beta_log_e, border, dirichlet_log_e, spread, together
from fairlead.statistics.sequential_means import tuned_information
from fairlead.statistics.tails import LEAST, is_number

__all__ = ["SequentialCounts", "multinomial_log_e_value", "sequential_counts"]

_LARGEST = 700.0
_WIDTHS = np.array([width for width, _ in SPREAD])
_IMPOSSIBLE = 1e-200
"""A probability that counts as none."""
_ALPHA = 0.05
"""The level that the mixture is tuned for; it holds at every level."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SequentialCounts:
    """The ratio of two rates, as far as the events so far tell, at any look."""

    ratio: float | None
    """Treatment's rate over control's; None while control has no event."""
    low: float | None
    """Lower end of the ratio's confidence sequence; None: unbounded, as the hypothesis is one-sided."""
    high: float | None
    """Upper end of the ratio's confidence sequence; None: unbounded."""
    log_e_value: float
    """Natural logarithm of the e-value against the hypothesis; those of stages are added."""
    p_value: float
    """1 / e, at most 1: valid at any look."""
    hypothesis: Hypothesis
    count_control: int
    count_treatment: int
    confidence: float
    method: str


def sequential_counts(
    count_control: int,
    count_treatment: int,
    *,
    treatment_share: float,
    tuned_for: int,
    hypothesis: Hypothesis = NO_DIFFERENCE,
    confidence: float = 0.95,
) -> SequentialCounts:
    """Compares two counts of independent events while they come in.

    treatment_share: treatment's part of the exposure (traffic, users, hours), 0–1, the same since the stage began.
    tuned_for: events in both arms together at which it shall be most sensitive, fixed before. The hypothesis is one
    of the ratio of rates; ``not_worse(by=0.1, better="lower", relative=True)`` turned round, ``Hypothesis(
    alternative="greater", ratio=1.1)``, is a guardrail against 10 % more errors. Raises InvalidInput.

    Source: Lindon and Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022 (arXiv:2011.03567): the
    next event of two Poisson processes is treatment's with probability r·s/(r·s + 1 − s), and the mixture over a beta
    distribution centred there is a martingale. One-sided: the beta distribution cut off at the hypothesis, which
    bets on one side only and holds for all ratios on the other.

    >>> found = sequential_counts(1, 9, treatment_share=0.5, tuned_for=10)
    >>> found.ratio, round(found.p_value, 3), found.low < 1 < found.high   # 9 of 10 fair coins, after many looks
    (9.0, 0.142, True)
    """
    level = checked_confidence(confidence)
    for name, count in (("count_control", count_control), ("count_treatment", count_treatment)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise InvalidInput(f"{name} {count!r} is not a count; pass a whole number of 0 or more")
    if not is_number(treatment_share) or not 0 < treatment_share < 1:
        raise InvalidInput(
            f"treatment_share {treatment_share!r} is not a number between 0 and 1, both excluded"
        )
    if hypothesis.difference:
        raise InvalidInput(
            "counts are compared by their ratio: give the hypothesis a ratio, not a difference"
        )
    strength = tuned_strength(tuned_for)
    odds = treatment_share / (1 - treatment_share)
    null = hypothesis.ratio * odds / (1 + hypothesis.ratio * odds)
    side = hypothesis.alternative
    # Two-sided: half of the stake on each side, of which the better one counts. Then this and the interval, whose
    # ends are one-sided at alpha/2, are one test.
    sides = ("greater", "less") if side == "two_sided" else (side,)
    log_e = max(
        log_e_value(count_treatment, count_control + count_treatment, null, strength, each) for each in sides
    ) - math.log(len(sides))

    def end(which: str, alpha: float) -> float:
        share = _share_end(count_treatment, count_control + count_treatment, strength, which, alpha)
        return math.inf if share >= 1 else share / (1 - share) / odds

    alpha = (1 - level) / (2 if side == "two_sided" else 1)
    low = None if side == "less" else end("greater", alpha)
    high = None if side == "greater" else end("less", alpha)
    return SequentialCounts(
        ratio=count_treatment / count_control / odds if count_control else None,
        low=low,
        high=None if high is None or math.isinf(high) else high,
        log_e_value=log_e,
        p_value=min(1.0, max(LEAST, math.exp(-max(0.0, min(_LARGEST, log_e))))),
        hypothesis=hypothesis,
        count_control=count_control,
        count_treatment=count_treatment,
        confidence=level,
        method="beta-binomial e-process",
    )


def multinomial_log_e_value(counts: Sequence[int], shares: Sequence[float], *, tuned_for: int) -> float:
    """log of the e-value against counts falling into cells with these probabilities; sums of shares are 1.

    Source: Lindon and Malek 2022: the Dirichlet-multinomial mixture over the multinomial likelihood.

    >>> round(multinomial_log_e_value([1], [1.0], tuned_for=10), 12)
    0.0
    """
    used = [(count, share) for count, share in zip(counts, shares, strict=True) if share >= _IMPOSSIBLE]
    if sum(count for count, _ in used) < sum(counts):  # a cell that nothing may fall into settles the matter
        return _LARGEST
    if len(used) < 2:
        return 0.0
    cells, parts = zip(*used, strict=True)
    strength = tuned_strength(tuned_for)
    return float(spread(lambda width: dirichlet_log_e(cells, parts, strength / width**2)))


def log_e_value(successes: int, n: int, p: float, strength: float, alternative: str) -> float:
    """log of the beta-binomial e-value against a success probability of p (at most p: greater; at least: less)."""
    if min(p, 1 - p) < _IMPOSSIBLE:  # nothing to bet on: it is settled, one way or the other
        impossible = successes if p < 0.5 else n - successes
        return _LARGEST if impossible and alternative != ("less" if p < 0.5 else "greater") else 0.0
    return max(-_LARGEST, float(watched_log_e(successes, n, p, strength, alternative)))


def watched_log_e(
    successes: ArrayLike, n: ArrayLike, p: ArrayLike, strength: float, alternative: str
) -> FloatArray:
    """The same for arrays of counts, and of p that are neither 0 nor 1."""
    shape = np.broadcast_shapes(*(np.shape(each) for each in (successes, n, p)))
    # All widths at once: for a few values it is numpy's calls that cost, and not their work.
    strengths = (strength / _WIDTHS**2).reshape(-1, *(1 for _ in shape))
    return together(beta_log_e(successes, n, p, strengths, alternative))


def _share_end(successes: int, n: int, strength: float, side: str, alpha: float) -> float:
    """Where the one-sided e-value against a share reaches 1/alpha: the lower end by `greater`, the upper by `less`.

    The mixture is centred on each share that is tried, so the e-value is one against that share.
    """
    wanted = -math.log(alpha)
    seen = successes / n if n else 0.5
    outside = 0.0 if side == "greater" else 1.0
    far = outside + 1e-12 * (seen - outside)
    if not min(far, 1 - far) >= _IMPOSSIBLE or log_e_value(successes, n, far, strength, side) < wanted:
        return outside
    return border(lambda p: watched_log_e(successes, n, p, strength, side) >= wanted, far, seen)


def tuned_strength(tuned_for: int) -> float:
    """Pseudo-counts of the narrowest weights: as wide as an estimate from tuned_for events, times the tuning."""
    if isinstance(tuned_for, bool) or not isinstance(tuned_for, int) or tuned_for < 1:
        raise InvalidInput(f"tuned_for {tuned_for!r} is not a number of events of 1 or more")
    return max(1e-3, tuned_for / tuned_information(_ALPHA))
