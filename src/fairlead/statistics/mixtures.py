"""Bets whose winnings have a closed form: the mixtures behind every sequential test here.

A bet on one alternative wins little when another is true. Averaged over many alternatives, with weights that
are fixed before the data, it wins against all of them, and remains a fair bet while the hypothesis holds
(Robbins, Annals of Mathematical Statistics 41, 1970).

The weights decide where the bet is sharpest. Of a single width it is so at one size; at a hundredth of it, where a
rollout meets its large regressions, it takes 8.9 standard errors to reject. So the stake is divided among three
widths, `SPREAD`: 3 % wider at the size it is tuned for, 3.6 standard errors at a hundredth (ADR 0161).

All functions give logarithms. Two traps are kept out: sums of counts near 10^12 lose all digits in differences
of gamma functions, so the large terms are taken off by hand; and a one-sided bet that is far on the wrong side is a
tail too small for a float times a ratio too large for one, so both are never formed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from fairlead.statistics.clusters import FloatArray

__all__: list[str] = []

SPREAD = ((1.0, 0.7), (5.0, 0.2), (25.0, 0.1))
"""Widths of the weights, in multiples of the tuned one, and the part of the stake that is bet with each."""


def spread(bet: Callable[[float], FloatArray]) -> FloatArray:
    """Log e-value of a stake divided by `SPREAD`, from the bet with weights of each width.

    >>> def bet(width):
    ...     return normal_log_e(3.0, 8.0 * width**2, "two_sided")
    >>> [round(math.exp(float(bet(width))), 2) for width in (1, 5, 25)]
    [18.2, 6.21, 1.27]
    >>> round(math.exp(float(spread(bet))), 2)   # 0.7 · 18.2 + 0.2 · 6.21 + 0.1 · 1.27
    14.11
    """
    return together([bet(width) for width, _ in SPREAD])


def together(bets: Sequence[FloatArray] | FloatArray) -> FloatArray:
    """The same of bets that were made already, one for each width along the first axis."""
    parts = [bet + math.log(stake) for bet, (_, stake) in zip(bets, SPREAD, strict=True)]
    return np.asarray(np.logaddexp(np.logaddexp(parts[0], parts[1]), parts[2]), dtype=np.float64)


def normal_log_e(z: ArrayLike, information: ArrayLike, alternative: str) -> FloatArray:
    """Log e-value of a normal score; z: estimate over standard error, information: n·ρ².

    Two-sided: e = exp(z²·w/2) / √(1 + n·ρ²), w = n·ρ²/(1 + n·ρ²). One-sided: weights on one side only, twice as much
    times Φ(z·√w); it stays a fair bet for all effects on the other side.

    Source: Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon, Annals of Statistics 49, 2021 (normal mixture, two-
    and one-sided; formulas read in the authors' C++ code, `uniform_boundaries.h`).

    >>> round(float(normal_log_e(3.0, 8.0, "two_sided")), 4)    # 9 · (8/9) / 2 − log(9)/2 = 4 − 1.0986
    2.9014
    """
    # Beyond 1e150 the square of a score is no float; the matter is settled long before.
    score = np.clip(np.asarray(z, dtype=np.float64), -1e150, 1e150)
    u = np.asarray(information, dtype=np.float64)
    x = score * np.sqrt(u / (1 + u))
    if alternative == "two_sided":
        return np.asarray(0.5 * (x * x - np.log1p(u)), dtype=np.float64)
    side = x if alternative == "greater" else -x
    # exp(x²/2)·2·Φ(x) is erfcx(−x/√2), which has no cancellation where x is far below 0.
    wrong = np.log(special.erfcx(np.maximum(0.0, -side) / math.sqrt(2)))
    right = 0.5 * side * side + math.log(2) + special.log_ndtr(side)
    return np.asarray(np.where(side < 0, wrong, right) - 0.5 * np.log1p(u), dtype=np.float64)


def dirichlet_log_e(counts: ArrayLike, shares: ArrayLike, strength: ArrayLike) -> FloatArray:
    """Log e-value against a multinomial with `shares`, by Dirichlet(strength · shares) weights.

    counts: shape (…, k), 0 or more; shares: shape (…, k), above 0, of sum 1; strength: shape (…). Two categories: the
    beta-binomial.

    Source: Lindon and Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022 (the ratio of
    the Dirichlet-multinomial to the multinomial likelihood; read: the abstract).

    >>> e = dirichlet_log_e([2, 0], [0.5, 0.5], 2.0)   # uniform weights: (1/3) / (1/4)
    >>> round(math.exp(float(e)), 9)
    1.333333333
    """
    x, p = np.asarray(counts, dtype=np.float64), np.asarray(shares, dtype=np.float64)
    weight = np.asarray(strength, dtype=np.float64)
    prior = weight[..., None] * p
    n = x.sum(axis=-1)
    total = weight + n
    after = prior + x
    # log Γ(y) = (y − ½)·log y − y + ½·log 2π + rest(y): what is of the size of n is gathered in one sum that
    # is zero where the counts are as expected.
    expected = total[..., None] * p
    lead = (expected * _excess((x - n[..., None] * p) / expected)).sum(axis=-1)
    halves = 0.5 * (np.log(total) - np.log(after).sum(axis=-1) + (p.shape[-1] - 1) * math.log(2 * math.pi))
    rests = _stirling_rest(after).sum(axis=-1) - _stirling_rest(total)
    constant = (prior * np.log(p) - special.gammaln(prior)).sum(axis=-1) + special.gammaln(weight)
    return np.asarray(lead + halves + rests + constant, dtype=np.float64)


def beta_log_e(
    successes: ArrayLike, n: ArrayLike, p: ArrayLike, strength: ArrayLike, alternative: str
) -> FloatArray:
    """Log e-value against successes of probability p (at most p: greater; at least p: less).

    Weights Beta(strength·p, strength·(1 − p)); one-sided, cut off at p.

    Source: Howard and Ramdas, Bernoulli 28, 2022 (beta-binomial mixture, two- and one-sided; formula read in the
    authors' C++ code, `uniform_boundaries.h`). Where the tail of the beta distribution underflows, its
    integral is taken by a Mills ratio; there e is far below 1, and right to a thousandth.

    >>> e = beta_log_e(1, 1, 0.5, 2.0, "greater")   # uniform above ½: average 3/4, over 1/2
    >>> round(math.exp(float(e)), 9)
    1.5
    """
    k, total, chance = np.broadcast_arrays(
        *(np.asarray(value, dtype=np.float64) for value in (successes, n, p))
    )
    if alternative == "less":
        return beta_log_e(total - k, total, 1 - chance, strength, "greater")
    both = dirichlet_log_e(
        np.stack([k, total - k], axis=-1), np.stack([chance, 1 - chance], axis=-1), strength
    )
    if alternative == "two_sided":
        return both
    weight = np.asarray(strength, dtype=np.float64)
    a, b = weight * chance, weight * (1 - chance)
    whole = np.log(np.maximum(5e-324, _upper(a, b, chance)))
    after_a, after_b = a + k, b + (total - k)
    upper = _upper(after_a, after_b, chance)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        near = both + np.log(upper) - whole
        # The integrand's slope and curvature at p: ∫ ≈ f(p) · 2 / (s + √(s² + 4c)); f(p) over the likelihood at p
        # is the weight's own density there, so nothing large is formed.
        slope = (after_b - 1) / (1 - chance) - (after_a - 1) / chance
        bend = np.maximum(0.0, (after_a - 1) / (chance * chance) + (after_b - 1) / (1 - chance) ** 2)
        density = (a - 1) * np.log(chance) + (b - 1) * np.log1p(-chance) - special.betaln(a, b) - whole
        far = density + np.log(2 / (slope + np.sqrt(slope * slope + 4 * bend)))
    return np.asarray(np.where(upper > 1e-250, near, far), dtype=np.float64)


def border(rejected: Callable[[FloatArray], NDArray[np.bool_]], outside: float, inside: float) -> float:
    """The point nearest to `inside` that is still rejected; `outside` is, and the rest up to the border.

    Six points are judged at once, at hardly more than the cost of one; to eleven digits.

    >>> round(border(lambda x: x * x >= 2, 10.0, 0.0), 9)
    1.414213562
    """
    steps = np.linspace(0.0, 1.0, 8)[1:-1]
    while True:
        points = outside + (inside - outside) * steps
        answers = rejected(points)
        last = len(points) if answers.all() else int(np.argmin(answers))
        ends = np.concatenate(([outside], points, [inside]))
        if abs(ends[last + 1] - ends[last]) <= 1e-11 * max(abs(outside), abs(inside)) or (
            ends[last] == outside and ends[last + 1] == inside
        ):
            return float(ends[last])
        outside, inside = float(ends[last]), float(ends[last + 1])


def _upper(a: FloatArray, b: FloatArray, p: FloatArray) -> FloatArray:
    """P(Beta(a, b) > p)."""
    mirrored = special.betainc(b, a, 1 - p)
    tiny = p < 1e-6
    if not tiny.any():  # the complement costs nine times as much, and is needed only where 1 − p has lost p
        return np.asarray(mirrored, dtype=np.float64)
    return np.asarray(np.where(tiny, special.betaincc(a, b, p), mirrored), dtype=np.float64)


def _excess(d: FloatArray) -> FloatArray:
    """(1 + d)·log(1 + d) − d without its cancellation; d >= −1."""
    small = np.abs(d) < 1e-2
    series = (
        d * d * (1 / 2 - d * (1 / 6 - d * (1 / 12 - d * (1 / 20 - d * (1 / 30 - d * (1 / 42 - d / 56))))))
    )
    return np.where(small, series, special.xlogy(1 + d, np.maximum(1 + d, 0.0)) - d)


def _stirling_rest(y: FloatArray) -> FloatArray:
    """log Γ(y) − ((y − ½)·log y − y + ½·log 2π); y > 0."""
    inverse = 1 / np.maximum(y, 20.0)
    square = inverse * inverse
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680)))
    few = np.minimum(y, 20.0)
    direct = special.gammaln(few) - ((few - 0.5) * np.log(few) - few + 0.5 * math.log(2 * math.pi))
    return np.where(y > 20, series, direct)
