from __future__ import annotations

import numpy as np
import pytest

from fairlead.errors import InvalidInput, TooFewUnits
from fairlead.statistics import Moments


def test_parts_merge_into_what_the_whole_gives() -> None:
    rows = np.random.default_rng(1).normal(5, 2, (1000, 3))
    parts = [Moments.from_rows("abc", part) for part in np.array_split(rows, 7)]
    merged = sum(parts[1:], parts[0])
    assert merged.n == 1000
    np.testing.assert_allclose(merged.means, rows.mean(axis=0), rtol=1e-13)
    covariance = [[merged.covariance(a, b) for b in "abc"] for a in "abc"]
    np.testing.assert_allclose(covariance, np.cov(rows.T), rtol=1e-11)


def test_a_huge_mean_does_not_drown_the_variance() -> None:
    rows = (1e9 + np.random.default_rng(2).normal(0, 1, (10_000, 1))).astype(np.float64)
    parts = [Moments.from_rows("y", part) for part in np.array_split(rows, 10)]
    assert sum(parts[1:], parts[0]).variance("y") == pytest.approx(float(rows.var(ddof=1)), rel=1e-6)


def test_nothing_merges_with_anything() -> None:
    empty, one = Moments.from_rows("y", []), Moments.from_rows("y", [[3.0]])
    assert empty + empty == empty
    assert empty + one == one + empty == one


def test_no_unit_has_no_mean_and_one_has_no_variance() -> None:
    with pytest.raises(TooFewUnits, match="no units"):
        Moments.from_rows("y", []).mean("y")
    with pytest.raises(TooFewUnits, match="needs 2"):
        Moments.from_rows("y", [[3.0]]).variance("y")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused_by_the_name_of_its_column(value: float) -> None:
    with pytest.raises(InvalidInput, match="column watch holds NaN or infinity"):
        Moments.from_rows(("y", "watch"), [[1.0, 2.0], [1.0, value]])


@pytest.mark.parametrize(
    ("n", "means", "products", "said"),
    [
        (-1, (0.0,), ((0.0,),), "not a count"),
        (2, (float("nan"),), ((1.0,),), "the mean of y"),
        (2, (0.0,), ((-1.0,),), "which no data give"),
        (2, (0.0,), ((float("inf"),),), "which no data give"),
        (2, (0.0, 0.0), ((1.0,),), "2×2"),
    ],
)
def test_numbers_that_no_data_give_are_refused(
    n: int, means: tuple[float, ...], products: tuple[tuple[float, ...], ...], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        Moments(columns=("y", "x")[: max(1, len(means))], n=n, means=means, products=products)


def test_a_correlation_above_one_is_refused() -> None:
    with pytest.raises(InvalidInput, match="beyond"):
        Moments(columns=("y", "x"), n=3, means=(0.0, 0.0), products=((1.0, 1.1), (1.1, 1.0)))


def test_columns_of_another_name_do_not_merge() -> None:
    with pytest.raises(InvalidInput, match="differ"):
        Moments.from_rows("y", [[1.0]]) + Moments.from_rows("x", [[1.0]])
    with pytest.raises(InvalidInput, match="no column 'z'; there are y"):
        Moments.from_rows("y", [[1.0]]).mean("z")
