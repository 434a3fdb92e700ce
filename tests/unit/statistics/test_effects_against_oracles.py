"""The same numbers as other people's programs: SciPy's tests, and tea-tasting on one table."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import tea_tasting as tt
from scipy import stats

from fairlead.statistics import (
    Hypothesis,
    Moments,
    count_effect,
    cuped_effect,
    cuped_ratio_effect,
    mean_effect,
    power,
    proportion_effect,
    ratio_effect,
    sample_size,
)
from fairlead.statistics.tails import LEAST, chi_square_tail, critical_value, two_tails, upper_tail

COLUMNS = ("y", "x", "clicks", "views", "old_clicks", "old_views")


@pytest.fixture(scope="module")
def table() -> pa.Table:
    rng = np.random.default_rng(7)
    n = 3000
    variant = rng.integers(0, 2, n)
    level = rng.gamma(2, 2, n)
    views, old_views = rng.poisson(6, n) + 1, rng.poisson(6, n) + 1
    rate = rng.beta(2, 6, n)
    return pa.table(
        {
            "variant": variant,
            "y": level + rng.normal(size=n) + 0.2 * variant,
            "x": level,
            "clicks": rng.binomial(views, rate),
            "views": views,
            "old_clicks": rng.binomial(old_views, rate),
            "old_views": old_views,
        }
    )


@pytest.fixture(scope="module")
def arms(table: pa.Table) -> tuple[Moments, Moments]:
    rows = np.column_stack([table[name].to_numpy() for name in COLUMNS])
    variant = table["variant"].to_numpy()
    return Moments.from_rows(COLUMNS, rows[variant == 0]), Moments.from_rows(COLUMNS, rows[variant == 1])


def theirs(table: pa.Table, metric: object) -> object:
    return tt.Experiment(m=metric).analyze(table)["m"]


def test_a_mean_is_welchs_of_scipy_and_of_tea_tasting(table: pa.Table, arms: tuple[Moments, Moments]) -> None:
    ours = mean_effect(*arms, "y")
    other = theirs(table, tt.Mean("y"))
    assert (ours.control, ours.treatment, ours.effect) == pytest.approx(
        (other.control, other.treatment, other.effect_size), rel=1e-12
    )
    assert (ours.low, ours.high) == pytest.approx(
        (other.effect_size_ci_lower, other.effect_size_ci_upper), rel=1e-9
    )
    assert ours.p_value == pytest.approx(other.pvalue, rel=1e-9)
    # Their relative interval is a delta method on the log scale, ours Fieller's: close, not equal.
    assert (ours.relative_low, ours.relative_high) == pytest.approx(
        (other.rel_effect_size_ci_lower, other.rel_effect_size_ci_upper), rel=0.03
    )
    variant, y = table["variant"].to_numpy(), table["y"].to_numpy()
    assert ours.p_value == pytest.approx(
        stats.ttest_ind(y[variant == 1], y[variant == 0], equal_var=False).pvalue
    )


@pytest.mark.parametrize("side", ["greater", "less"])
def test_one_sided_means_agree_with_tea_tasting(
    table: pa.Table, arms: tuple[Moments, Moments], side: str
) -> None:
    ours = mean_effect(*arms, "y", hypothesis=Hypothesis(alternative=side))  # type: ignore[arg-type]
    other = theirs(table, tt.Mean("y", alternative=side))
    assert ours.p_value == pytest.approx(other.pvalue, rel=1e-9)
    if side == "greater":
        assert ours.low == pytest.approx(other.effect_size_ci_lower, rel=1e-9)
        assert ours.high is None
    else:
        assert ours.high == pytest.approx(other.effect_size_ci_upper, rel=1e-9)
        assert ours.low is None


def test_a_ratio_is_the_delta_method_of_tea_tasting(table: pa.Table, arms: tuple[Moments, Moments]) -> None:
    ours = ratio_effect(*arms, "clicks", "views")
    other = theirs(table, tt.RatioOfMeans("clicks", "views"))
    assert (ours.effect, ours.low, ours.high, ours.p_value) == pytest.approx(
        (other.effect_size, other.effect_size_ci_lower, other.effect_size_ci_upper, other.pvalue), rel=1e-9
    )


def test_cuped_agrees_with_tea_tasting_but_for_thetas_definition(
    table: pa.Table, arms: tuple[Moments, Moments]
) -> None:
    # Theirs takes theta from all users at once, ours within arms; with 3,000 users that is the fourth digit.
    ours = cuped_effect(*arms, "y", ["x"]).effect
    other = theirs(table, tt.Mean("y", covariate="x"))
    assert ours.effect == pytest.approx(other.effect_size, abs=0.02 * (ours.high - ours.low))
    assert ours.high - ours.low == pytest.approx(
        other.effect_size_ci_upper - other.effect_size_ci_lower, rel=2e-3
    )


def test_cuped_of_a_ratio_agrees_with_tea_tasting(table: pa.Table, arms: tuple[Moments, Moments]) -> None:
    ours = cuped_ratio_effect(*arms, "clicks", "views", [("old_clicks", "old_views")]).effect
    other = theirs(
        table,
        tt.RatioOfMeans("clicks", "views", numer_covariate="old_clicks", denom_covariate="old_views"),
    )
    assert ours.effect == pytest.approx(other.effect_size, abs=0.02 * (ours.high - ours.low))
    assert ours.high - ours.low == pytest.approx(
        other.effect_size_ci_upper - other.effect_size_ci_lower, rel=5e-3
    )


def test_several_covariates_are_the_regression_with_an_arm_indicator(
    table: pa.Table, arms: tuple[Moments, Moments]
) -> None:
    variant = table["variant"].to_numpy()
    x = np.column_stack(
        [np.ones(len(variant)), variant, table["x"].to_numpy(), table["old_views"].to_numpy()]
    )
    slopes = np.linalg.lstsq(x, table["y"].to_numpy(), rcond=None)[0]
    found = cuped_effect(*arms, "y", ["x", "old_views"])
    assert found.theta == pytest.approx(tuple(slopes[2:]), rel=1e-9)
    assert found.effect.effect == pytest.approx(slopes[1], rel=1e-9)


def test_a_proportion_is_the_chi_square_test_but_for_one_unit() -> None:
    ours = proportion_effect(50, 1000, 80, 1200)
    chi = stats.chi2_contingency([[50, 950], [80, 1120]], correction=False).statistic * 2199 / 2200
    assert ours.p_value == pytest.approx(stats.chi2.sf(chi, 1), rel=1e-9)


def test_counts_are_scipys_binomial_test() -> None:
    ours = count_effect(30, 10.0, 55, 12.0)
    share = 12 / 22
    doubled = 2 * min(stats.binom.sf(54, 85, share), stats.binom.cdf(55, 85, share))
    assert ours.p_value == pytest.approx(doubled, rel=1e-9)
    ends = stats.binomtest(55, 85).proportion_ci(0.95, "exact")
    relative = [10 / 12 * end / (1 - end) - 1 for end in (ends.low, ends.high)]
    assert (ours.relative_low, ours.relative_high) == pytest.approx(tuple(relative), rel=1e-9)


@pytest.mark.parametrize("z", [0.0, 1.0, 5.0, 8.5, 20.0, 36.9])
def test_normal_tails_keep_their_digits(z: float) -> None:
    assert math.log(upper_tail(z, None)) == pytest.approx(stats.norm.logsf(z), rel=1e-12)
    assert two_tails(-z, None) == pytest.approx(2 * upper_tail(z, None))


@pytest.mark.parametrize("degrees", [1.0, 3.7, 30.0, 1e4, 1e9])
@pytest.mark.parametrize("t", [0.5, 4.0, 20.0, 35.0, 1e6])
def test_t_tails_keep_their_digits(t: float, degrees: float) -> None:
    expected = max(stats.t.logsf(t, degrees), math.log(LEAST))
    assert math.log(upper_tail(t, degrees)) == pytest.approx(expected, rel=1e-6)


def test_tails_never_reach_zero() -> None:
    for tail in (
        upper_tail(math.inf, None),
        upper_tail(1e200, 5.0),
        upper_tail(1e9, 1e9),
        chi_square_tail(1e9, 3),
    ):
        assert tail > 0
    assert upper_tail(37.0, None) == pytest.approx(5.7e-300, rel=0.01)
    assert chi_square_tail(1372.0, 1) == pytest.approx(stats.chi2.sf(1372.0, 1), rel=1e-9)


def test_critical_values_are_scipys() -> None:
    for tail in (0.4, 0.025, 1e-10):
        assert critical_value(tail, None) == pytest.approx(stats.norm.isf(tail))
        assert critical_value(tail, 7.3) == pytest.approx(stats.t.isf(tail, 7.3))


@pytest.mark.parametrize(("n", "effect"), [(20, 0.9), (200, 0.28), (2000, 0.05)])
def test_power_is_that_of_the_noncentral_t(n: int, effect: float) -> None:
    shift = effect / math.sqrt(2 / n)
    critical = stats.t.isf(0.025, 2 * n - 2)
    expected = stats.nct.sf(critical, 2 * n - 2, shift) + stats.nct.cdf(-critical, 2 * n - 2, shift)
    assert power(standard_deviation=1.0, effect=effect, n_control=n, n_treatment=n) == pytest.approx(
        expected, abs=1e-6
    )


def test_the_rule_of_sixteen_is_fifteen_point_seven() -> None:
    found = sample_size(standard_deviation=1.0, effect=0.001)
    assert found.control * 0.001**2 == pytest.approx(15.698, abs=0.001)
    small = sample_size(standard_deviation=1.0, effect=0.001, treatment_share=0.01)
    assert small.treatment < found.treatment < small.control  # 1 % needs fewer there, and far more in all
    assert small.total > 25 * found.total / 2
