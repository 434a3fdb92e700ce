"""Has the distribution moved? Divergences of binned counts, each with what chance alone would give.

"PSI above 0.2 is a shift" is folklore that ignores n: two samples of 200 from one distribution in ten bins
reach 0.2 now and then, two of a million never reach 0.001. So each divergence comes with the value that
samples of these sizes from *one* distribution exceed with probability alpha.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from fairlead.errors import InvalidInput, TooFewUnits
from fairlead.statistics.clusters import FloatArray
from fairlead.statistics.tails import chi_square_tail, is_number

__all__ = ["Divergence", "chi_square", "jensen_shannon", "population_stability_index", "wasserstein"]

_DRAWS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Divergence:
    """How far two histograms lie apart."""

    value: float
    """0: the same shares. Unit: see the function."""
    threshold: float
    """What two samples of these sizes from one distribution exceed with probability alpha."""
    p_value: float | None
    """The probability of such a value by chance, above 0; None where only a threshold is known."""
    n_before: int
    n_after: int
    method: str

    @property
    def moved(self) -> bool:
        """Whether it is more than chance gives at that alpha."""
        return self.value > self.threshold


def population_stability_index(before: ArrayLike, after: ArrayLike, *, alpha: float = 0.001) -> Divergence:
    """Σ (b − a) · ln(b / a) over the bins' shares; half a unit is added to each where one is empty on one side.

    before, after: shape (B,), whole counts of the same bins. Raises InvalidInput, TooFewUnits.

    Under no change PSI / (1/n + 1/m) is close to a chi-square variable with B − 1 degrees of freedom: the
    index is twice a symmetrised likelihood-ratio statistic (Potgieter et al., arXiv:2307.11878, on why fixed
    limits mislead).

    >>> d = population_stability_index([500, 500], [600, 400])
    >>> round(d.value, 5), round(d.threshold, 5), d.moved   # 0.1·ln 1.2 − 0.1·ln 0.8; 10.828 / 500
    (0.04055, 0.02166, True)
    """
    a, b = _histograms(before, after)
    n, m = float(a.sum()), float(b.sum())
    a, b = (
        a[a + b > 0],
        b[a + b > 0],
    )  # a bin that is empty on both sides says nothing, and is no degree of freedom
    if (a == 0).any() or (b == 0).any():
        a, b = a + 0.5, b + 0.5
    p, q = a / a.sum(), b / b.sum()
    value = float(((q - p) * np.log(q / p)).sum())
    return _by_chi_square(value, value / (1 / n + 1 / m), 1 / n + 1 / m, a, b, alpha, "PSI", (n, m))


def jensen_shannon(before: ArrayLike, after: ArrayLike, *, alpha: float = 0.001) -> Divergence:
    """The Jensen–Shannon divergence in bits, 0 (same) to 1 (no overlap); both samples weigh the same.

    Source: Lin, IEEE Transactions on Information Theory 37, 1991. Near equality it is PSI / (8 ln 2), hence
    its threshold. Raises InvalidInput, TooFewUnits.

    >>> jensen_shannon([500, 0], [0, 500]).value
    1.0
    """
    a, b = _histograms(before, after)
    n, m = float(a.sum()), float(b.sum())
    p, q = a / n, b / m
    middle = (p + q) / 2
    value = float((special.rel_entr(p, middle) + special.rel_entr(q, middle)).sum() / 2 / np.log(2))
    scale = (1 / n + 1 / m) / (8 * np.log(2))
    return _by_chi_square(value, value / scale, float(scale), a, b, alpha, "Jensen–Shannon", (n, m))


def chi_square(before: ArrayLike, after: ArrayLike, *, alpha: float = 0.001) -> Divergence:
    """Pearson's statistic of homogeneity of two histograms.

    Expected counts below 5 make it rough; join such bins. Raises InvalidInput, TooFewUnits. Source: Pearson,
    Philosophical Magazine 50, 1900.

    >>> d = chi_square([500, 500], [600, 400])
    >>> round(d.value, 4)   # 550 and 450 expected: 2 · 50²/550 + 2 · 50²/450
    20.202
    """
    a, b = _histograms(before, after)
    n, m = float(a.sum()), float(b.sum())
    pooled = (a + b) / (n + m)
    used = pooled > 0
    value = float(
        ((a - n * pooled)[used] ** 2 / (n * pooled[used])).sum()
        + ((b - m * pooled)[used] ** 2 / (m * pooled[used])).sum()
    )
    return _by_chi_square(value, value, 1.0, a, b, alpha, "chi-square", (n, m))


def wasserstein(
    before: ArrayLike,
    after: ArrayLike,
    edges: Sequence[float],
    *,
    rng: np.random.Generator,
    alpha: float = 0.001,
) -> Divergence:
    """The earth mover's distance, in the metric's unit: Σ |F − G| · width, mass taken to be uniform in a bin.

    edges: B + 1 finite numbers, ascending. The threshold and the p-value come from 2,000 pairs of samples drawn
    from both histograms together with `rng`; p-values end at 1/2001. Raises InvalidInput, TooFewUnits.

    Source: on the line the distance is the area between the distribution functions (Vallender, Theory of
    Probability and its Applications 18, 1974).

    >>> d = wasserstein([100, 0], [0, 100], [0.0, 1.0, 2.0], rng=np.random.default_rng(1))
    >>> d.value, d.moved   # all of the mass moved by one bin of width 1
    (1.0, True)
    """
    a, b = _histograms(before, after)
    _check_alpha(alpha)
    if alpha < 2 / _DRAWS:
        raise InvalidInput(
            f"alpha {alpha:g} is finer than {_DRAWS} draws can tell; use at least {2 / _DRAWS:g}"
        )
    grid = np.asarray(edges, dtype=np.float64)
    if grid.shape != (len(a) + 1,) or not np.isfinite(grid).all() or not (np.diff(grid) > 0).all():
        raise InvalidInput(f"edges: pass {len(a) + 1} finite numbers, each above the one before")
    n, m = int(a.sum()), int(b.sum())
    widths = np.diff(grid)

    def distance(one: FloatArray, other: FloatArray) -> FloatArray:
        gap = np.cumsum(one / n - other / m, axis=-1)
        before_bin = np.concatenate([np.zeros((*gap.shape[:-1], 1)), gap[..., :-1]], axis=-1)
        return np.asarray((_mean_size(before_bin, gap) * widths).sum(axis=-1), dtype=np.float64)

    value = float(distance(a, b))
    pooled = (a + b) / (n + m)
    drawn = distance(
        rng.multinomial(n, pooled, size=_DRAWS).astype(np.float64),
        rng.multinomial(m, pooled, size=_DRAWS).astype(np.float64),
    )
    return Divergence(
        value=value,
        threshold=float(np.quantile(drawn, 1 - alpha, method="higher")),
        p_value=float((1 + (drawn >= value - 1e-12 * abs(value)).sum()) / (1 + _DRAWS)),
        n_before=n,
        n_after=m,
        method=f"Wasserstein distance, {_DRAWS} draws",
    )


def _mean_size(left: FloatArray, right: FloatArray) -> FloatArray:
    """The mean of |x| along the line from `left` to `right`."""
    same_side = left * right >= 0
    apart = np.abs(left) + np.abs(right)
    crossed = (left**2 + right**2) / (2 * np.where(apart > 0, apart, 1.0))
    return np.asarray(np.where(same_side, apart / 2, crossed), dtype=np.float64)


def _by_chi_square(
    value: float,
    statistic: float,
    scale: float,
    a: FloatArray,
    b: FloatArray,
    alpha: float,
    method: str,
    sizes: tuple[float, float],
) -> Divergence:
    _check_alpha(alpha)
    degrees = int(((a + b) > 0).sum()) - 1
    # One bin: nothing can move.
    threshold = float(special.chdtri(degrees, alpha)) * scale if degrees else 0.0
    return Divergence(
        value=max(0.0, value),
        threshold=threshold,
        p_value=chi_square_tail(max(0.0, statistic), degrees) if degrees else 1.0,
        n_before=int(sizes[0]),
        n_after=int(sizes[1]),
        method=method,
    )


def _histograms(before: ArrayLike, after: ArrayLike) -> tuple[FloatArray, FloatArray]:
    a, b = (np.asarray(side) for side in (before, after))
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise InvalidInput(f"before {a.shape} and after {b.shape}: pass one count for each of the same bins")
    for name, side in (("before", a), ("after", b)):
        if side.dtype.kind not in "iu" or (side < 0).any():
            raise InvalidInput(f"{name}: pass whole counts of 0 or more")
        if side.sum() == 0:
            raise TooFewUnits(f"{name} holds nothing; wait for data")
    return a.astype(np.float64), b.astype(np.float64)


def _check_alpha(alpha: float) -> None:
    if not is_number(alpha) or not 0 < alpha < 1:
        raise InvalidInput(f"alpha {alpha!r} is not a number between 0 and 1, both excluded")
