"""Bets whose winnings have a closed form: the mixtures behind every sequential test here.

A bet on one alternative wins little when another is true. Averaged over many alternatives, with weights that
are fixed before the data, it wins against all of them, and remains a fair bet while the hypothesis holds
(Robbins, Annals of Mathematical Statistics 41, 1970).

All functions give logarithms. Two traps are kept out: sums of counts near 10^12 lose all digits in differences
of gamma functions, so the large terms are taken off by hand; and a one-sided bet that is far on the wrong side is a
tail too small for a float times a ratio too large for one, so both are never formed.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from fairlead.statistics.clusters import FloatArray

__all__: list[str] = []


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


def dirichlet_log_e(counts: ArrayLike, shares: ArrayLike, strength: float) -> FloatArray:
    """Log e-value against a multinomial with `shares`, by Dirichlet(strength · shares) weights.

    counts: shape (…, k), 0 or more; shares: shape (k,), above 0, of sum 1. Two categories: the beta-binomial.

    Source: Lindon and Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022 (the ratio of
    the Dirichlet-multinomial to the multinomial likelihood; read: the abstract).

    >>> e = dirichlet_log_e([2, 0], [0.5, 0.5], 2.0)   # uniform weights: (1/3) / (1/4)
    >>> round(math.exp(float(e)), 9)
    1.333333333
    """
    x, p = np.asarray(counts, dtype=np.float64), np.asarray(shares, dtype=np.float64)
    prior = strength * p
    n = x.sum(axis=-1)
    total = strength + n
    after = prior + x
    # log Γ(y) = (y − ½)·log y − y + ½·log 2π + rest(y): what is of the size of n is gathered in one sum that
    # is zero where the counts are as expected.
    expected = total[..., None] * p
    lead = (expected * _excess((x - n[..., None] * p) / expected)).sum(axis=-1)
    halves = 0.5 * (np.log(total) - np.log(after).sum(axis=-1) + (p.size - 1) * math.log(2 * math.pi))
    rests = _stirling_rest(after).sum(axis=-1) - _stirling_rest(total)
    constant = (prior * np.log(p)).sum() + special.gammaln(strength) - special.gammaln(prior).sum()
    return np.asarray(lead + halves + rests + constant, dtype=np.float64)


def beta_log_e(successes: ArrayLike, n: ArrayLike, p: float, strength: float, alternative: str) -> FloatArray:
    """Log e-value against successes of probability p (at most p: greater; at least p: less).

    Weights Beta(strength·p, strength·(1 − p)); one-sided, cut off at p.

    Source: Howard and Ramdas, Bernoulli 28, 2022 (beta-binomial mixture, two- and one-sided; formula read in the
    authors' C++ code, `uniform_boundaries.h`). Where the tail of the beta distribution underflows, its
    integral is taken by a Mills ratio; there e is far below 1, and right to a thousandth.

    >>> e = beta_log_e(1, 1, 0.5, 2.0, "greater")   # uniform above ½: average 3/4, over 1/2
    >>> round(math.exp(float(e)), 9)
    1.5
    """
    k, total = np.broadcast_arrays(np.asarray(successes, dtype=np.float64), np.asarray(n, dtype=np.float64))
    if alternative == "less":
        return beta_log_e(total - k, total, 1 - p, strength, "greater")
    both = dirichlet_log_e(np.stack([k, total - k], axis=-1), [p, 1 - p], strength)
    if alternative == "two_sided":
        return both
    a, b = strength * p, strength * (1 - p)
    whole = math.log(max(5e-324, float(special.betaincc(a, b, p))))
    after_a, after_b = a + k, b + (total - k)
    upper = np.asarray(special.betaincc(after_a, after_b, p), dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        near = both + np.log(upper) - whole
        # The integrand's slope and curvature at p: ∫ ≈ f(p) · 2 / (s + √(s² + 4c)); f(p) over the likelihood at p
        # is the weight's own density there, so nothing large is formed.
        slope = (after_b - 1) / (1 - p) - (after_a - 1) / p
        bend = np.maximum(0.0, (after_a - 1) / (p * p) + (after_b - 1) / (1 - p) ** 2)
        density = (a - 1) * math.log(p) + (b - 1) * math.log1p(-p) - float(special.betaln(a, b)) - whole
        far = density + np.log(2 / (slope + np.sqrt(slope * slope + 4 * bend)))
    return np.asarray(np.where(upper > 1e-250, near, far), dtype=np.float64)


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
