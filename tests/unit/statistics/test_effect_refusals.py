"""What the data cannot carry is refused by name; what has no value of its own is None, with the reason."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from fairlead.errors import (
    ConstantCovariate,
    FairleadError,
    InvalidInput,
    NotEstimable,
    TooFewUnits,
    UndefinedRatio,
    ZeroVariance,
)
from fairlead.statistics import (
    Estimate,
    Hypothesis,
    Moments,
    benjamini_hochberg,
    bonferroni,
    chi_square,
    clustered_quantile_interval,
    count_effect,
    cuped_effect,
    difference_in_differences,
    equivalence,
    holm,
    jensen_shannon,
    mean_effect,
    mean_interval,
    minimum_detectable_effect,
    not_worse,
    parallel_trends,
    pooled_cap,
    population_stability_index,
    power,
    proportion_deviation,
    proportion_effect,
    quantile_deviation,
    quantile_effect,
    ratio_effect,
    sample_size,
    wasserstein,
    winsorise,
)


def arm(*rows: list[float], columns: tuple[str, ...] = ("y",)) -> Moments:
    return Moments.from_rows(columns, list(rows))


MANY = arm([1.0], [2.0], [4.0])
ALIKE = arm([2.0], [2.0], [2.0])
QUANTILE = Estimate(value=5.0, low=4.0, high=7.0, n=100, clusters=None, confidence=0.95, method="m")


def estimate(value: float | None, low: float | None, high: float | None) -> Estimate:
    caveat = "" if low is not None else "too few data"
    return Estimate(
        value=value, low=low, high=high, n=9, clusters=None, confidence=0.95, method="m", caveat=caveat
    )


@pytest.mark.parametrize(
    ("refuses", "error", "said"),
    [
        (lambda: mean_effect(arm([1.0]), MANY, "y"), TooFewUnits, "a variance needs 2"),
        (lambda: mean_effect(MANY, arm(), "y"), TooFewUnits, "no units|needs 2"),
        (lambda: mean_effect(ALIKE, ALIKE, "y"), ZeroVariance, "alike within their arm"),
        (lambda: mean_effect(ALIKE, arm([3.0], [3.0]), "y"), ZeroVariance, "difference of 1"),
        (lambda: mean_effect(MANY, MANY, "z"), InvalidInput, "no column 'z'"),
        (lambda: mean_effect(MANY, MANY, "y", confidence=95), InvalidInput, "confidence"),
        (lambda: mean_effect(MANY, MANY, "y", distribution="wald"), InvalidInput, "t or normal"),
        (lambda: mean_interval(arm([1.0]), "y"), TooFewUnits, "needs 2"),
        (lambda: Hypothesis(alternative="both"), InvalidInput, "two_sided"),
        (lambda: Hypothesis(ratio=0.0), InvalidInput, "above 0"),
        (lambda: Hypothesis(ratio=0.9, difference=1.0), InvalidInput, "not both"),
        (lambda: Hypothesis(difference=math.nan), InvalidInput, "finite"),
        (lambda: not_worse(by=-1, better="lower"), InvalidInput, "margin"),
        (lambda: not_worse(by=2.0, better="lower", relative=True), InvalidInput, "0.02 means 2 %"),
        (lambda: not_worse(by=0.1, better="up"), InvalidInput, "lower or higher"),
        (lambda: equivalence(lambda h: mean_effect(MANY, MANY, "y", hypothesis=h), margin=0), InvalidInput, "exactly"),
        (lambda: proportion_effect(0, 0, 1, 2), TooFewUnits, "control has no units"),
        (lambda: proportion_effect(3, 2, 1, 2), InvalidInput, "count each unit once"),
        (lambda: proportion_effect(1.0, 2, 1, 2), InvalidInput, "not a count"),
        (lambda: count_effect(1, 0.0, 1, 1.0), InvalidInput, "exposure_control"),
        (lambda: count_effect(-1, 1.0, 1, 1.0), InvalidInput, "not a count"),
        (lambda: count_effect(1, 1.0, 1, 1.0, hypothesis=Hypothesis(difference=1.0)), InvalidInput, "by their ratio"),
        (lambda: ratio_effect(RATIO_OF_NOTHING, RATIO_OF_NOTHING, "a", "b"), UndefinedRatio, "told apart from zero"),
        (lambda: cuped_effect(PAIRS, PAIRS, "y", ["c"]), ConstantCovariate, "covariate c is the same"),
        (lambda: cuped_effect(PAIRS, PAIRS, "y", ["x", "x2"]), ConstantCovariate, "linear function"),
        (lambda: cuped_effect(PAIRS, PAIRS, "y", []), InvalidInput, "at least one column"),
        (lambda: cuped_effect(PAIRS, PAIRS, "y", "x"), InvalidInput, "in a list"),
        (lambda: cuped_effect(FEW, FEW, "y", ["x"]), TooFewUnits, "need more than 2"),
        (lambda: quantile_effect(estimate(5.0, None, None), QUANTILE), TooFewUnits, "control has no interval"),
        (lambda: quantile_effect(QUANTILE, estimate(math.inf, 4.0, math.inf)), NotEstimable, "never came back"),
        (lambda: clustered_quantile_interval(float, 1.0, PAIRS, events="y", at_or_below="x"), InvalidInput, "q 1.0"),
        (lambda: holm([0.1, math.nan]), InvalidInput, "0 to 1"),
        (lambda: bonferroni([1.1]), InvalidInput, "0 to 1"),
        (lambda: benjamini_hochberg([-0.1]), InvalidInput, "0 to 1"),
        (lambda: sample_size(standard_deviation=0.0, effect=1.0), InvalidInput, "standard deviation"),
        (lambda: sample_size(standard_deviation=1.0, effect=0.0), InvalidInput, "no size finds no effect"),
        (lambda: sample_size(standard_deviation=1.0, effect=1e-9), InvalidInput, "no experiment has them"),
        (lambda: sample_size(standard_deviation=1.0, effect=5e-324), InvalidInput, "no experiment has them"),
        (lambda: sample_size(standard_deviation=1e-200, effect=5e-324), InvalidInput, "no experiment has them"),
        (lambda: sample_size(standard_deviation=1.0, effect=1.0, power=1.0), InvalidInput, "power"),
        (lambda: minimum_detectable_effect(standard_deviation=1.0, n_control=1, n_treatment=9), InvalidInput, "n_c"),
        (lambda: power(standard_deviation=1.0, effect=math.inf, n_control=9, n_treatment=9), InvalidInput, "effect"),
        (lambda: proportion_deviation(1.0), InvalidInput, "p 1.0"),
        (lambda: quantile_deviation(0.99, density=0.0), InvalidInput, "density"),
        (lambda: pooled_cap([1.0] * 10, [2.0] * 10), TooFewUnits, "10 needed"),
        (lambda: pooled_cap([1.0], [2.0], q=1.0), InvalidInput, "0.999"),
        (lambda: winsorise([math.nan], 1.0), InvalidInput, "none NaN"),
        (lambda: winsorise([1.0], math.inf), InvalidInput, "cap"),
        (lambda: population_stability_index([1, 2], [0, 0]), TooFewUnits, "after holds nothing"),
        (lambda: jensen_shannon([1, 2], [1, 2, 3]), InvalidInput, "same bins"),
        (lambda: chi_square([1.5, 2], [1, 2]), InvalidInput, "whole counts"),
        (lambda: chi_square([1, 2], [1, 2], alpha=0), InvalidInput, "alpha"),
        (lambda: wasserstein([1, 2], [1, 2], [0, 1, 1], rng=np.random.default_rng(1)), InvalidInput, "edges"),
        (lambda: wasserstein([1], [1], [0, 1], rng=np.random.default_rng(1), alpha=1e-6), InvalidInput, "finer"),
        (lambda: difference_in_differences(PAIRS, PAIRS, before=["x"], after=["x"]), InvalidInput, "named twice"),
        (lambda: parallel_trends(PAIRS, PAIRS, before=["x"]), InvalidInput, "no trend"),
        (lambda: parallel_trends(PAIRS, PAIRS, before=["x", "x2", "x3"]), ZeroVariance, "follows from"),
    ],
)  # fmt: skip
def test_refusal_names_what_is_missing(
    refuses: Callable[[], object], error: type[FairleadError], said: str
) -> None:
    with pytest.raises(error, match=said):
        refuses()


RATIO_OF_NOTHING = arm([1.0, 1.0], [2.0, -1.0], [3.0, 0.1], columns=("a", "b"))
PAIRS = arm(
    [1.0, 1.0, 2.0, 3.0, 7.0], [2.0, 2.0, 4.0, 6.0, 7.0], [4.0, 3.0, 6.0, 9.0, 7.0], [3.0, 5.0, 10.0, 15.0, 7.0],
    columns=("y", "x", "x2", "x3", "c"),
)  # fmt: skip
FEW = arm([1.0, 1.0], [2.0, 2.5], columns=("y", "x"))


def test_a_negative_control_has_no_relative_effect_and_says_why() -> None:
    effect = mean_effect(arm([-1.0], [-2.0], [-4.0]), MANY, "y")
    assert (effect.relative_effect, effect.relative_low, effect.relative_high) == (None, None, None)
    assert "control is not above zero" in effect.caveat


def test_a_control_near_zero_has_a_relative_effect_and_no_interval() -> None:
    effect = mean_effect(arm([-3.0], [0.5], [4.0]), MANY, "y")
    assert effect.relative_effect is not None
    assert (effect.relative_low, effect.relative_high) == (None, None)
    assert "not told apart from zero" in effect.caveat


def test_one_arm_without_variance_still_compares() -> None:
    effect = mean_effect(ALIKE, MANY, "y")
    assert effect.degrees_of_freedom == pytest.approx(2.0)
    assert effect.p_value < 1


def test_the_interval_leaves_zero_out_exactly_when_p_is_below_alpha() -> None:
    rng = np.random.default_rng(3)
    seen = set()
    for _ in range(300):
        effect = mean_effect(
            Moments.from_rows("y", rng.normal(5, 1, (20, 1))),
            Moments.from_rows("y", rng.normal(5.6, 1, (30, 1))),
            "y",
        )
        outside = effect.low > 0 or effect.high < 0
        assert outside == (effect.p_value < 0.05)
        assert outside == (effect.relative_low > 0 or effect.relative_high < 0)
        seen.add(outside)
    assert seen == {True, False}


def test_equivalence_is_the_ninety_percent_interval_within_the_margin() -> None:
    rng = np.random.default_rng(4)
    seen = set()
    for _ in range(200):
        c, t = (Moments.from_rows("y", rng.normal(5, 1, (200, 1))) for _ in range(2))
        found = equivalence(lambda h, c=c, t=t: mean_effect(c, t, "y", hypothesis=h), margin=0.25)
        interval = mean_effect(c, t, "y", confidence=0.9)
        within = interval.low > -0.25 and interval.high < 0.25
        assert within == (found.p_value < 0.05)
        seen.add(within)
    assert seen == {True, False}


def test_counts_without_an_event_in_control_keep_their_difference() -> None:
    effect = count_effect(0, 10.0, 8, 10.0)
    assert effect.p_value == pytest.approx(2 / 2**8)
    assert (effect.relative_effect, effect.relative_low) == (None, None)
    assert effect.low > 0
    nothing = count_effect(0, 10.0, 0, 10.0)
    assert nothing.p_value == 1.0
    assert nothing.low < 0 < nothing.high


def test_a_timeout_in_the_upper_end_leaves_that_end_open() -> None:
    effect = quantile_effect(QUANTILE, estimate(9.0, 8.0, math.inf))
    assert effect.high is None
    assert effect.low == pytest.approx(4.0 - math.hypot(1.0, 2.0))
    assert effect.relative_high is None
    assert effect.relative_low is not None


def test_trends_that_part_before_the_change_are_found() -> None:
    rng = np.random.default_rng(5)
    weeks = rng.normal(0, 1, (40, 3)).cumsum(axis=1)
    columns = ("w1", "w2", "w3")
    same = Moments.from_rows(columns, weeks[:20]), Moments.from_rows(columns, weeks[20:])
    apart = same[0], Moments.from_rows(columns, weeks[20:] + np.array([0.0, 2.0, 4.0]))
    assert parallel_trends(*same, before=columns).p_value > 0.05
    found = parallel_trends(*apart, before=columns)
    assert found.p_value < 1e-6
    assert found.steps == pytest.approx((2.0, 2.0), abs=1.0)
    assert found.could_hide < 1.0


def test_one_bin_cannot_move() -> None:
    for found in (population_stability_index([5], [9]), jensen_shannon([5], [9]), chi_square([5], [9])):
        assert (found.value, found.p_value, found.moved) == (0.0, 1.0, False)


def test_a_crossing_of_the_distribution_functions_is_half_counted_on_each_side() -> None:
    # F − G runs from 0 to 1/2 to 0 and from 0 to −1/2 to 0 over bins of width 1.
    found = wasserstein([2, 0, 0, 2], [1, 1, 1, 1], range(5), rng=np.random.default_rng(1))
    assert found.value == pytest.approx(0.25 / 2 + 0.25 / 2 + 0.25 / 2 + 0.25 / 2)


def test_bins_that_are_empty_on_both_sides_change_no_divergence() -> None:
    for divergence in (population_stability_index, jensen_shannon, chi_square):
        plain = divergence([500, 500], [600, 400])
        padded = divergence([500, 500] + [0] * 40, [600, 400] + [0] * 40)
        assert (padded.value, padded.threshold, padded.p_value) == (
            plain.value,
            plain.threshold,
            plain.p_value,
        )
        assert padded.moved


def test_trends_of_few_units_are_judged_by_few_degrees_of_freedom() -> None:
    rng = np.random.default_rng(3)
    c, t = (Moments.from_rows(("w1", "w2"), rng.normal(size=(n, 2))) for n in (3, 7))
    # One step is Welch's t on the units' changes, as in `difference_in_differences`.
    found = parallel_trends(c, t, before=["w1", "w2"])
    welch = difference_in_differences(c, t, before=["w1"], after=["w2"])
    assert found.p_value == pytest.approx(welch.p_value, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_interval_of_a_difference_of_counts_claims_no_more_than_the_exact_test(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(300):
        exposure = [float(10 ** rng.uniform(0, 3)) for _ in range(2)]
        counts = [int(rng.poisson(rng.choice([0.02, 0.1, 1.0]) * size)) for size in exposure]
        for side in ("two_sided", "greater", "less"):
            found = count_effect(
                counts[0], exposure[0], counts[1], exposure[1], hypothesis=Hypothesis(alternative=side)
            )
            apart = (found.low is not None and found.low > 0) or (found.high is not None and found.high < 0)
            assert not apart or found.p_value < 0.05
