from __future__ import annotations

import math

import numpy as np
import pytest

from fairlead.errors import InvalidInput
from fairlead.statistics import quantile_interval
from fairlead.statistics.quantiles import binomial_ranks
from fairlead.statistics.tails import critical_value


def exact_tails(n: int, q: float, low: int, high: int) -> tuple[float, float]:
    mass = [math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(n + 1)]
    return math.fsum(mass[:low]), math.fsum(mass[high:])


@pytest.mark.parametrize(("n", "q"), [(100, 0.5), (60, 0.9), (500, 0.99), (37, 0.2)])
def test_ranks_are_the_tightest_whose_tails_stay_below_half_of_alpha(n: int, q: float) -> None:
    low, high = binomial_ranks(n, q, 0.95)
    below, above = exact_tails(n, q, low, high)
    assert below <= 0.025
    assert above <= 0.025
    wider_below, _ = exact_tails(n, q, low + 1, high)
    _, wider_above = exact_tails(n, q, low, high - 1)
    assert wider_below > 0.025
    assert wider_above > 0.025


def test_ranks_of_a_million_values_agree_with_the_normal_approximation() -> None:
    low, high = binomial_ranks(1_000_000, 0.99, 0.95)
    half = 1.959964 * math.sqrt(1_000_000 * 0.99 * 0.01)
    assert abs(low - (990_000 - half)) < 3
    assert abs(high - (990_000 + half)) < 3


@pytest.mark.parametrize(
    ("degrees", "table"),
    [(1, 12.7062), (2, 4.3027), (5, 2.5706), (30, 2.0423), (120, 1.9799), (100_000, 1.95999)],
)
def test_student_t_agrees_with_the_printed_table(degrees: int, table: float) -> None:
    assert critical_value(0.025, degrees) == pytest.approx(table, abs=6e-5)


def test_a_quantile_at_a_whole_rank_takes_that_rank_and_not_the_next() -> None:
    # 0.99 * 1000 is 990.0000000000001 in floating point
    assert quantile_interval(np.arange(1, 1001), 0.99).value == 990


def test_order_of_the_values_does_not_matter_and_the_callers_array_is_left_alone() -> None:
    values = np.random.default_rng(1).permutation(1000).astype(np.float64)
    before = values.copy()
    shuffled = quantile_interval(values, 0.9)
    assert shuffled == quantile_interval(np.arange(1000.0), 0.9)
    assert (values == before).all()


def test_timeouts_are_worse_than_every_answer_and_never_become_nan() -> None:
    values = np.concatenate((np.linspace(0.1, 0.2, 9_700), np.full(300, np.inf)))
    p99 = quantile_interval(values, 0.99)
    assert (p99.value, p99.low, p99.high) == (math.inf, math.inf, math.inf)
    assert "never came back" in p99.caveat
    assert math.isfinite(quantile_interval(values, 0.9).high or math.inf)


def test_timeouts_that_come_in_one_cluster_widen_the_interval_although_all_are_tied() -> None:
    values = np.tile(np.linspace(0.1, 0.2, 100), 100)
    spread, together = values.copy(), values.copy()
    spread[::50] = np.inf
    together[:200] = np.inf
    clusters = np.repeat(np.arange(100), 100)
    narrow = quantile_interval(spread, 0.99, clusters=clusters)
    wide = quantile_interval(together, 0.99, clusters=clusters)
    assert narrow.low == math.inf  # 2 % timed out, evenly: the p99 surely lies among them
    assert wide.low is None  # two bad seconds are two observations
    assert "too few" in wide.caveat


def test_too_few_values_give_the_value_without_an_interval_and_say_why() -> None:
    estimate = quantile_interval(np.arange(499.0), 0.99)
    assert estimate.value == 494
    assert estimate.low is None
    assert estimate.high is None
    assert "5.0 values expected beyond the quantile, 5 needed" in estimate.caveat
    assert quantile_interval(np.arange(501.0), 0.99).low is not None


def test_a_confidence_that_no_order_statistic_reaches_gives_no_interval() -> None:
    estimate = quantile_interval(
        np.arange(60.0), 0.9, confidence=0.9999
    )  # all 60 lie below it with 0.9**60 = 0.0018
    assert estimate.low is None
    assert estimate.caveat == "too few data for this confidence"


def test_a_low_quantile_needs_values_below_it() -> None:
    assert quantile_interval(np.arange(400.0), 0.01).low is None


def test_no_data_give_no_value() -> None:
    estimate = quantile_interval([], 0.5, clusters=np.array([], dtype=np.int64))
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == (None, None, None, 0)
    assert estimate.caveat == "no data"


def test_one_cluster_gives_no_interval() -> None:
    estimate = quantile_interval(np.arange(1000.0), 0.5, clusters=np.zeros(1000, dtype=np.int64))
    assert estimate.low is None
    assert estimate.clusters == 1
    assert "one cluster" in estimate.caveat


def test_few_clusters_are_said_to_be_few() -> None:
    rng = np.random.default_rng(2)
    estimate = quantile_interval(rng.random(5000), 0.5, clusters=np.arange(5000) % 5)
    assert estimate.low is not None
    assert "only 5 clusters" in estimate.caveat


def test_clusters_that_explain_nothing_leave_the_interval_nearly_as_it_is() -> None:
    rng = np.random.default_rng(3)
    values = rng.lognormal(size=20_000)
    alone = quantile_interval(values, 0.9)
    grouped = quantile_interval(values, 0.9, clusters=np.arange(20_000) // 100)
    assert alone.high and alone.low and grouped.high and grouped.low  # noqa: PT018  # narrows four types at once
    assert 0.95 < (grouped.high - grouped.low) / (alone.high - alone.low) < 1.3


def test_clusters_that_move_together_widen_the_interval() -> None:
    rng = np.random.default_rng(4)
    values = np.repeat(rng.lognormal(size=200), 100) * rng.lognormal(0, 0.1, 20_000)
    alone = quantile_interval(values, 0.9)
    grouped = quantile_interval(values, 0.9, clusters=np.arange(20_000) // 100)
    assert alone.high and alone.low and grouped.high and grouped.low  # noqa: PT018  # narrows four types at once
    assert grouped.high - grouped.low > 4 * (alone.high - alone.low)


def test_slices_shorter_than_the_memory_of_the_system_are_reported() -> None:
    rng = np.random.default_rng(5)
    level = np.repeat(rng.lognormal(size=40), 500)
    estimate = quantile_interval(level * rng.lognormal(size=20_000), 0.5, clusters=np.arange(20_000) // 100)
    assert "neighbouring clusters are correlated" in estimate.caveat


@pytest.mark.parametrize("values", [[1.0, math.nan], [1.0, -math.inf], [[1.0], [2.0]], ["a"], 3.0])
def test_values_that_are_no_row_of_numbers_are_refused(values: object) -> None:
    with pytest.raises(InvalidInput):
        quantile_interval(values, 0.5)  # type: ignore[arg-type]  # hostile on purpose


@pytest.mark.parametrize("q", [0, 1, -0.1, 1.1, math.nan, True, "0.5"])
def test_a_q_outside_its_range_is_refused(q: float) -> None:
    with pytest.raises(InvalidInput, match="q "):
        quantile_interval([1.0, 2.0], q)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, math.nan, True])
def test_a_confidence_outside_its_range_is_refused(confidence: float) -> None:
    with pytest.raises(InvalidInput, match="confidence"):
        quantile_interval([1.0, 2.0], 0.5, confidence=confidence)


@pytest.mark.parametrize("clusters", [[0], [0.5, 1.5], ["a", "b"], [[0], [1]]])
def test_clusters_that_do_not_label_each_value_are_refused(clusters: object) -> None:
    with pytest.raises(InvalidInput, match="clusters"):
        quantile_interval([1.0, 2.0], 0.5, clusters=clusters)  # type: ignore[arg-type]  # hostile on purpose
