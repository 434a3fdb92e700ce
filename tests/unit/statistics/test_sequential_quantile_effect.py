from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from fairlead.errors import FairleadError, InvalidInput, NotEstimable, TooFewUnits
from fairlead.statistics import CumulativeCounts, Hypothesis, sequential_quantile_effect
from fairlead.statistics.sequential_counts import tuned_strength, watched_log_e
from fairlead.statistics.sequential_quantile_effect import EvidenceAbove
from tests.calibration.sequential import buckets


def two_arms(seed: int, n: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.lognormal(size=n), factor * rng.lognormal(size=n)


def of(values: object) -> CumulativeCounts:
    return CumulativeCounts.from_values(values)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("q", [0.3, 0.9])
def test_the_evidence_is_the_least_over_every_value_that_control_could_have(q: float, ties: bool) -> None:
    c, t = two_arms(1, 60, 1.6)
    if ties:
        c, t = np.round(c), np.round(t)
    strength = tuned_strength(50)
    candidates = np.unique(np.concatenate([c, t / 1.1, [0.0, 1e9]]))
    between = (candidates[1:] + candidates[:-1]) / 2
    least = math.inf
    for v in np.concatenate([candidates, between]):
        below, at = int((c < v).sum()), int((t <= 1.1 * v).sum())
        log = watched_log_e(below, 60, q, strength, "greater") + watched_log_e(at, 60, q, strength, "less")
        least = min(least, float(log))
    found = EvidenceAbove(of(c), of(t), q, strength).log_e(1.1, 0.0)
    assert found == pytest.approx(least, abs=1e-9)


@pytest.mark.parametrize("side", ["two_sided", "greater", "less"])
@pytest.mark.parametrize("factor", [0.7, 1.0, 1.5])
def test_interval_and_e_value_are_one_test(side: str, factor: float) -> None:
    arms = [of(values) for values in two_arms(2, 2000, factor)]

    def watched(**margin: float) -> tuple[float, object]:
        hypothesis = Hypothesis(alternative=side, **margin)  # type: ignore[arg-type]
        found = sequential_quantile_effect(*arms, 0.9, tuned_for=2000, hypothesis=hypothesis)
        return found.e_value, found.effect

    _, effect = watched()
    for end, inward, name in (
        (effect.low, 1, "difference"),
        (effect.high, -1, "difference"),
        (effect.relative_low, 1, "ratio"),
        (effect.relative_high, -1, "ratio"),
    ):
        if end is None:
            continue
        at = end + 1 if name == "ratio" else end
        # An end lies on the last value that is rejected; a hair further in, none is.
        assert watched(**{name: at - inward * 1e-6 * abs(at)})[0] >= 20
        assert watched(**{name: at + inward * 1e-3 * abs(at)})[0] < 20
    assert (effect.low is None, effect.high is None) == (side == "less", side == "greater")


def test_arms_change_places_and_units_change_scale_without_a_trace() -> None:
    c, t = two_arms(3, 1500, 1.3)
    one = sequential_quantile_effect(of(c), of(t), 0.95, tuned_for=1000)
    other = sequential_quantile_effect(of(t), of(c), 0.95, tuned_for=1000)
    assert one.log_e_value == pytest.approx(other.log_e_value)
    assert one.effect.low == pytest.approx(-other.effect.high)
    millis = sequential_quantile_effect(of(1000 * c[::-1]), of(1000 * t), 0.95, tuned_for=1000)
    assert millis.log_e_value == pytest.approx(one.log_e_value)
    assert millis.effect.relative_high == pytest.approx(one.effect.relative_high, rel=1e-6)


def test_buckets_err_to_the_safe_side_and_by_little() -> None:
    c, t = two_arms(4, 20_000, 1.12)
    exact = sequential_quantile_effect(of(c), of(t), 0.95, tuned_for=20_000)
    counted = sequential_quantile_effect(buckets(c), buckets(t), 0.95, tuned_for=20_000)
    assert counted.log_e_value <= exact.log_e_value
    assert counted.effect.relative_low <= exact.effect.relative_low
    assert exact.effect.relative_high <= counted.effect.relative_high
    width = exact.effect.relative_high - exact.effect.relative_low
    assert counted.effect.relative_high - counted.effect.relative_low < width + 0.1


def test_what_never_came_back_counts_as_slower_than_all() -> None:
    c, t = two_arms(5, 4000, 1.0)
    t[:400] = math.inf
    found = sequential_quantile_effect(of(c), of(t), 0.85, tuned_for=4000)
    assert found.effect.low > 0
    assert math.isfinite(found.log_e_value)


@pytest.mark.parametrize("n", [1, 2, 30])
def test_too_few_observations_have_no_evidence_and_open_ends(n: int) -> None:
    found = sequential_quantile_effect(of(range(1, n + 1)), of(range(1, n + 1)), 0.99, tuned_for=10_000)
    assert found.effect.p_value == 1.0
    assert found.effect.high is None


def test_a_million_of_one_value_in_either_arm_are_equal() -> None:
    arm = CumulativeCounts(edges=np.array([0.2]), at_or_below=np.array([10**12]), exact=True)
    slower = CumulativeCounts(edges=np.array([0.3]), at_or_below=np.array([10**12]), exact=True)
    assert sequential_quantile_effect(arm, arm, 0.99, tuned_for=1000).effect.p_value == 1.0
    found = sequential_quantile_effect(arm, slower, 0.99, tuned_for=1000)
    assert found.effect.relative_low == pytest.approx(0.5, abs=1e-6)
    assert 0 < found.effect.p_value < 1e-20


ONE = CumulativeCounts.from_values([1.0])


@pytest.mark.parametrize(
    ("refuses", "error", "said"),
    [
        (lambda: CumulativeCounts.from_values([1.0, math.nan]), InvalidInput, "NaN"),
        (lambda: CumulativeCounts.from_values([[1.0]]), InvalidInput, "shape"),
        (lambda: CumulativeCounts.from_values(["a"]), InvalidInput, "not numbers"),
        (lambda: CumulativeCounts.from_buckets([2.0, 1.0], [1, 1]), InvalidInput, "ascend"),
        (lambda: CumulativeCounts.from_buckets([1.0, 2.0], [1, -1]), InvalidInput, "never fall"),
        (lambda: CumulativeCounts.from_buckets([1.0], [0.5]), InvalidInput, "whole numbers"),
        (lambda: CumulativeCounts.from_buckets([1.0, 2.0], [1]), InvalidInput, "as many counts"),
        (
            lambda: sequential_quantile_effect(CumulativeCounts.from_values([]), ONE, 0.5, tuned_for=9),
            TooFewUnits,
            "control has no data",
        ),
        (
            lambda: sequential_quantile_effect(
                ONE, CumulativeCounts.from_values([math.inf]), 0.5, tuned_for=9
            ),
            NotEstimable,
            "treatment: the quantile",
        ),
        (lambda: sequential_quantile_effect(ONE, ONE, 1.0, tuned_for=9), InvalidInput, "q 1.0"),
        (lambda: sequential_quantile_effect(ONE, ONE, 0.5, tuned_for=0), InvalidInput, "tuned_for"),
    ],
)
def test_refusal_names_what_is_wrong(
    refuses: Callable[[], object], error: type[FairleadError], said: str
) -> None:
    with pytest.raises(error, match=said):
        refuses()
