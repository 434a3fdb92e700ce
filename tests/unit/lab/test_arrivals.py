from __future__ import annotations

import math

import numpy as np
import pytest

from fairlead.errors import InvalidInput
from fairlead.lab import Surge, Zipf, poisson_arrivals, surge_arrivals


def test_the_same_seed_draws_the_same_arrivals() -> None:
    first = poisson_arrivals(50.0, 20.0, np.random.default_rng(7))
    second = poisson_arrivals(50.0, 20.0, np.random.default_rng(7))
    assert first.dtype == np.float64
    assert np.array_equal(first, second)


def test_arrivals_have_the_mean_and_the_variance_of_a_poisson_count() -> None:
    counts = [len(poisson_arrivals(20.0, 5.0, np.random.default_rng(seed))) for seed in range(2_000)]
    # Standard error of the mean is sqrt(100 / 2000) = 0.22, of the variance about 100 * sqrt(2 / 2000) = 3.2.
    assert abs(np.mean(counts) - 100) < 1.0
    assert abs(np.var(counts) - 100) < 15


def test_gaps_between_arrivals_are_exponential() -> None:
    gaps = np.diff(poisson_arrivals(1_000.0, 100.0, np.random.default_rng(3)))
    # An exponential has equal mean and standard deviation, and 1/e of it lies above the mean.
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.02)
    assert (gaps > gaps.mean()).mean() == pytest.approx(1 / math.e, abs=0.01)


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf, 1e9, True, "10", None])
def test_a_rate_outside_its_range_is_refused_by_name(rate: object) -> None:
    with pytest.raises(InvalidInput, match=r"^rate: .* outside|^rate: .* is not a number"):
        poisson_arrivals(rate, 1.0, np.random.default_rng(1))  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("duration", [0, -1, math.nan, math.inf, 1e9])
def test_a_duration_outside_its_range_is_refused_by_name(duration: float) -> None:
    with pytest.raises(InvalidInput, match=r"^duration: "):
        poisson_arrivals(1.0, duration, np.random.default_rng(1))


def test_more_requests_than_memory_should_hold_are_refused_before_they_are_drawn() -> None:
    with pytest.raises(InvalidInput, match="lower one of them"):
        poisson_arrivals(1e6, 86_400.0, np.random.default_rng(1))


def test_a_surge_adds_its_factor_inside_and_nothing_outside() -> None:
    surge = Surge(start=10.0, end=20.0, factor=3.0)
    excess = surge_arrivals(1_000.0, surge, np.random.default_rng(1))
    assert excess.min() >= 10.0
    assert excess.max() < 20.0
    assert len(excess) == pytest.approx(20_000, abs=5 * math.sqrt(20_000))


def test_a_ramp_rises_linearly_to_the_full_factor() -> None:
    surge = Surge(start=0.0, end=10.0, factor=2.0, ramp=4.0)
    excess = surge_arrivals(10_000.0, surge, np.random.default_rng(1))
    quarters, _ = np.histogram(excess, bins=[0, 2, 4, 6, 8, 10])
    # Average height over [0, 2) is 1/4, over [2, 4) 3/4, over [4, 6) 1, then the mirror image.
    assert quarters / 20_000 == pytest.approx([0.25, 0.75, 1.0, 0.75, 0.25], abs=0.03)


def test_a_factor_of_one_adds_nothing() -> None:
    assert len(surge_arrivals(100.0, Surge(start=0.0, end=1.0, factor=1.0), np.random.default_rng(1))) == 0


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("end", {"start": 5.0, "end": 5.0, "factor": 2.0}),
        ("factor", {"start": 0.0, "end": 5.0, "factor": 0.5}),
        ("factor", {"start": 0.0, "end": 5.0, "factor": math.nan}),
        ("ramp", {"start": 0.0, "end": 5.0, "factor": 2.0, "ramp": 2.6}),
        ("hot_keys", {"start": 0.0, "end": 5.0, "factor": 2.0, "hot_keys": ()}),
        ("hot_keys", {"start": 0.0, "end": 5.0, "factor": 2.0, "hot_keys": (-1,)}),
    ],
)
def test_a_wrong_surge_is_refused_naming_the_field(field: str, settings: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match=rf"^{field}: "):
        Surge(**settings)  # type: ignore[arg-type]  # wrong on purpose


def test_zipf_probabilities_follow_the_power_law() -> None:
    zipf = Zipf(4, 2.0)
    total = 1 + 1 / 4 + 1 / 9 + 1 / 16
    assert [zipf.probability(key) for key in range(4)] == pytest.approx(
        [1 / total, 1 / 4 / total, 1 / 9 / total, 1 / 16 / total]
    )


def test_zipf_of_alpha_zero_asks_for_every_key_alike() -> None:
    assert [Zipf(5, 0.0).probability(key) for key in range(5)] == pytest.approx([0.2] * 5)


def test_zipf_samples_match_its_probabilities() -> None:
    zipf = Zipf(100, 1.0)
    n = 200_000
    counts = np.bincount(zipf.sample(n, np.random.default_rng(5)), minlength=100)
    expected = np.array([zipf.probability(key) for key in range(100)]) * n
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 99 + 5 * math.sqrt(2 * 99)  # mean 99, standard deviation sqrt(2 * 99)


@pytest.mark.parametrize(
    ("keys", "alpha"), [(0, 1.0), (10**9, 1.0), (2.0, 1.0), (10, -0.1), (10, 3.1), (10, math.nan)]
)
def test_a_zipf_outside_its_range_is_refused(keys: int, alpha: float) -> None:
    with pytest.raises(InvalidInput, match=r"^(keys|alpha): "):
        Zipf(keys, alpha)


def test_the_probability_of_a_key_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"^key: "):
        Zipf(10).probability(10)
