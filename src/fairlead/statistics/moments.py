"""The narrow waist: what is kept of a million units to compute means, variances and covariances.

Rows are reduced to a count, the mean of each column, and the centred sums of products. Two halves of the
data, or two segments, or two days, merge into exactly what the whole would have given, so a warehouse
computes them and every estimator reads only them.

Invariant: the sums are centred. Σx² − n·x̄² of a million values near 10⁹ has no correct digit left;
Σ(x − x̄)² has them all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fairlead.errors import InvalidInput, TooFewUnits
from fairlead.statistics.clusters import FloatArray

__all__ = ["Moments"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """Count, means and centred sums of products of named columns, one row per unit of analysis.

    Raises InvalidInput for numbers that no data could give (NaN, negative sums of squares, |r| > 1).

    >>> early = Moments.from_rows(("y", "x"), [[1.0, 2.0], [3.0, 2.0]])
    >>> late = Moments.from_rows(("y", "x"), [[5.0, 8.0]])
    >>> whole = early + late
    >>> whole.n, whole.mean("y"), whole.variance("y"), whole.covariance("y", "x")
    (3, 3.0, 4.0, 6.0)
    """

    columns: tuple[str, ...]
    """Names, each once."""
    n: int
    """Units."""
    means: tuple[float, ...]
    """Mean of each column; zeros where there are no units."""
    products: tuple[tuple[float, ...], ...]
    """Shape (d, d): Σ(a − ā)(b − b̄) of each pair of columns; symmetric."""

    def __post_init__(self) -> None:
        d = len(self.columns)
        if len(set(self.columns)) != d or d == 0:
            raise InvalidInput(f"columns {self.columns[:20]!r}: name at least one, and each once")
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 0:
            raise InvalidInput(f"n {self.n!r} is not a count of units")
        if len(self.means) != d or len(self.products) != d or any(len(row) != d for row in self.products):
            raise InvalidInput(f"{d} columns need {d} means and {d}×{d} sums of products")
        for i, name in enumerate(self.columns):
            if not math.isfinite(self.means[i]):
                raise InvalidInput(f"the mean of {name} is {self.means[i]}; drop or cap what is not finite")
            if not math.isfinite(self.products[i][i]) or self.products[i][i] < 0:
                raise InvalidInput(
                    f"the sum of squares of {name} is {self.products[i][i]}, which no data give"
                )
        for i, a in enumerate(self.columns):
            for j in range(i):
                one, other = self.products[i][j], self.products[j][i]
                most = math.sqrt(self.products[i][i]) * math.sqrt(self.products[j][j])
                # A warehouse sums in another order each time; what is off by rounding alone is no error.
                slack = 1e-6 * most
                if not abs(one - other) <= slack or not abs(one) <= most + slack:
                    raise InvalidInput(
                        f"the sum of products of {a} and {self.columns[j]} is {one} and {other}, "
                        f"beyond the {most} that their sums of squares allow"
                    )

    @classmethod
    def from_rows(cls, columns: Sequence[str], rows: ArrayLike) -> Moments:
        """The moments of rows, shape (n, d), one per unit. Raises InvalidInput for what is not finite."""
        names = tuple(columns)
        data = np.asarray(rows, dtype=np.float64)
        if data.size == 0:
            data = data.reshape(0, len(names))
        if data.ndim != 2 or data.shape[1] != len(names):
            raise InvalidInput(f"rows have shape {data.shape}; pass (n, {len(names)}), one row per unit")
        finite = np.isfinite(data).all(axis=0)
        if not finite.all():
            wrong = names[int(np.argmin(finite))]
            raise InvalidInput(f"column {wrong} holds NaN or infinity; drop those units or cap the value")
        n = len(data)
        means = data.mean(axis=0) if n else np.zeros(len(names))
        centred = data - means
        products = centred.T @ centred
        # A spread so small that its squares underflow is none, and has no products with others either.
        flat = np.diag(products) == 0
        products[flat, :] = products[:, flat] = 0.0
        return cls._of(names, n, means, products)

    @classmethod
    def _of(cls, columns: tuple[str, ...], n: int, means: FloatArray, products: FloatArray) -> Moments:
        return cls(
            columns=columns,
            n=n,
            means=tuple(float(mean) for mean in means),
            products=tuple(tuple(float(value) for value in row) for row in products),
        )

    def __add__(self, other: Moments) -> Moments:
        """Both parts together. Raises InvalidInput where the columns differ.

        Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
        variances", 1979; for products of two columns the same with both differences of means.
        """
        if self.columns != other.columns:
            raise InvalidInput(f"columns {self.columns!r} and {other.columns!r} differ; merge like with like")
        n = self.n + other.n
        if n == 0:
            return self
        shift = np.subtract(other.means, self.means)
        means = np.asarray(self.means) + shift * (other.n / n)
        between = np.outer(shift, shift) * (self.n * (other.n / n))
        return Moments._of(self.columns, n, means, np.add(self.products, other.products) + between)

    def mean(self, column: str) -> float:
        """The mean of a column. Raises TooFewUnits when there are none."""
        index = self._index(column)
        if self.n == 0:
            raise TooFewUnits(f"{column}: no units, so no mean; wait for data")
        return self.means[index]

    def variance(self, column: str) -> float:
        """The unbiased variance of a column (divisor n − 1). Raises TooFewUnits below two units."""
        return self.covariance(column, column)

    def covariance(self, a: str, b: str) -> float:
        """The unbiased covariance of two columns (divisor n − 1). Raises TooFewUnits below two units."""
        i, j = self._index(a), self._index(b)
        if self.n < 2:
            raise TooFewUnits(f"{a}: {self.n} unit(s), and a variance needs 2; wait for data")
        return self.products[i][j] / (self.n - 1)

    def combine(self, weights: Mapping[str, float], name: str = "combination") -> Moments:
        """The moments of one new column, the weighted sum of others: how adjusted metrics are made.

        >>> both = Moments.from_rows(("y", "x"), [[1.0, 2.0], [3.0, 2.0], [5.0, 8.0]])
        >>> both.combine({"y": 1.0, "x": -0.5}).mean("combination")
        1.0
        """
        used = [self._index(column) for column in weights]
        vector = np.array([float(weight) for weight in weights.values()])
        mean = float(vector @ np.asarray(self.means)[used])
        spread = float(vector @ np.asarray(self.products)[np.ix_(used, used)] @ vector)
        # Rounding may leave a tiny negative where the combination is constant.
        return Moments(columns=(name,), n=self.n, means=(mean,), products=((max(0.0, spread),),))

    def _index(self, column: str) -> int:
        try:
            return self.columns.index(column)
        except ValueError:
            known = ", ".join(self.columns[:20])
            raise InvalidInput(f"no column {column!r}; there are {known}") from None
