from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from fairlead.errors import FairleadError, InvalidInput, NotEstimable, TooFewUnits
from fairlead.statistics import (
    Estimate,
    Hypothesis,
    Moments,
    mean_effect,
    proportion_effect,
    quantile_ratio_bounds,
    ratio_effect,
    sample_ratio,
    sequential_counts,
    sequential_effect,
    sequential_quantile_interval,
    sequential_sample_ratio,
)
from fairlead.statistics.mixtures import beta_log_e, normal_log_e
from fairlead.statistics.sequential_counts import log_e_value, multinomial_log_e_value


def arm(mean: float, n: int, variance: float = 1.0) -> Moments:
    return Moments(columns=("y",), n=n, means=(mean,), products=((variance * (n - 1),),))


def test_the_boundary_of_one_width_is_that_of_the_paper_and_three_cost_little_more() -> None:
    # σ̂·√((tρ² + 1)/(t²ρ²) · log((tρ² + 1)/α²)) with t = 1000 units of which half are treated: σ² = 4.
    found = sequential_effect(mean_effect(arm(0, 500), arm(0.1, 500), "y"), tuned_for=1000).effect
    wanted = -2 * math.log(0.05)
    rho2 = (wanted + math.log(wanted + 1)) / 1000
    half = 2 * math.sqrt((1000 * rho2 + 1) / (1000**2 * rho2) * math.log((1000 * rho2 + 1) / 0.05**2))
    error = math.sqrt(2 / 500)
    assert float(normal_log_e(half / error, 1000 * rho2, "two_sided")) == pytest.approx(math.log(20))
    assert half < (found.high - found.low) / 2 < 1.035 * half


@pytest.mark.parametrize("side", ["two_sided", "greater"])
@pytest.mark.parametrize(
    ("times", "most"), [(0.001, 3.9), (0.01, 3.7), (0.1, 3.45), (1, 3.2), (10, 3.4), (100, 3.7)]
)
def test_a_wrong_plan_costs_little(times: float, most: float, side: str) -> None:
    hypothesis = Hypothesis(alternative=side)  # type: ignore[arg-type]
    fixed = mean_effect(arm(0, 5000), arm(0.0, 5000), "y", hypothesis=hypothesis)
    found = sequential_effect(fixed, tuned_for=round(10_000 / times)).effect
    assert -found.low / found.standard_error < most - (0.2 if side == "greater" else 0)


@pytest.mark.parametrize("tuned_for", [100, 1000, 10_000])
def test_it_is_tightest_where_it_is_tuned_for(tuned_for: int) -> None:
    def width(tuned: int) -> float:
        effect = sequential_effect(
            mean_effect(arm(0, tuned_for // 2), arm(0, tuned_for // 2), "y"), tuned_for=tuned
        ).effect
        return effect.high - effect.low

    assert width(tuned_for) < min(width(int(tuned_for * 1.2)), width(int(tuned_for / 1.2)))
    assert width(tuned_for * 10) < 1.35 * width(tuned_for)


@pytest.mark.parametrize("side", ["two_sided", "greater", "less"])
@pytest.mark.parametrize("shift", [-0.3, -0.05, 0.0, 0.08, 0.3])
def test_the_interval_leaves_zero_out_exactly_when_e_passes_one_over_alpha(side: str, shift: float) -> None:
    hypothesis = Hypothesis(alternative=side)  # type: ignore[arg-type]
    found = sequential_effect(
        mean_effect(arm(1, 2000), arm(1 + shift, 2000), "y", hypothesis=hypothesis), tuned_for=4000
    )
    effect = found.effect
    outside = (effect.low is not None and effect.low > 0) or (effect.high is not None and effect.high < 0)
    assert outside == (found.e_value >= 20) == (effect.p_value <= 0.05)


def test_a_one_sided_watch_is_narrower_on_its_side() -> None:
    arms = arm(1, 2000), arm(1.1, 2000)
    two = sequential_effect(mean_effect(*arms, "y"), tuned_for=4000).effect
    one = sequential_effect(
        mean_effect(*arms, "y", hypothesis=Hypothesis(alternative="greater")), tuned_for=4000
    ).effect
    assert two.low < one.low < 0.1
    assert one.high is None


def test_looking_always_is_wider_than_looking_once_and_not_much() -> None:
    effect = mean_effect(arm(1, 2000), arm(1.1, 2000), "y")
    always = sequential_effect(effect, tuned_for=4000).effect
    assert 1.4 < (always.high - always.low) / (effect.high - effect.low) < 1.6


def test_huge_evidence_stays_finite() -> None:
    found = sequential_effect(mean_effect(arm(0, 10**12), arm(1, 10**12), "y"), tuned_for=10**6)
    assert found.log_e_value > 1e9
    assert math.isfinite(found.e_value)
    assert found.effect.p_value > 0


@pytest.mark.parametrize(("successes", "n", "p"), [(3, 10, 0.2), (0, 5, 0.5), (7, 7, 0.9)])
def test_the_e_value_of_counts_is_the_mixture(successes: int, n: int, p: float) -> None:
    strength = 4.0
    prior = stats.beta(strength * p, strength * (1 - p))
    for side, (low, high) in {"two_sided": (0.0, 1.0), "greater": (p, 1.0), "less": (0.0, p)}.items():
        # Cut into pieces of equal mass, the integral of the likelihood ratio over the prior.
        masses = np.linspace(prior.cdf(low), prior.cdf(high), 200_001)
        theta = prior.ppf((masses[:-1] + masses[1:]) / 2)
        ratio = np.exp(stats.binom.logpmf(successes, n, theta) - stats.binom.logpmf(successes, n, p))
        found = float(beta_log_e(successes, n, p, strength, side))
        assert math.exp(found) == pytest.approx(ratio.mean(), rel=1e-3)


@pytest.mark.parametrize("side", ["two_sided", "greater", "less"])
def test_an_e_value_of_counts_is_worth_one_on_average(side: str) -> None:
    # Exactly, at every n: the sum over all outcomes of probability times e-value.
    for n in (1, 5, 40):
        k = np.arange(n + 1)
        e = np.exp([log_e_value(int(each), n, 0.3, 6.0, side) for each in k])
        assert float((stats.binom.pmf(k, n, 0.3) * e).sum()) == pytest.approx(1.0, rel=1e-9)
        if side == "greater":  # and at most one for every smaller probability
            assert float((stats.binom.pmf(k, n, 0.2) * e).sum()) <= 1.0


def test_two_cells_of_the_multinomial_are_the_binomial() -> None:
    assert multinomial_log_e_value([30, 70], [0.4, 0.6], tuned_for=100) == pytest.approx(
        log_e_value(30, 100, 0.4, 100 / (-2 * math.log(0.05) + math.log1p(-2 * math.log(0.05))), "two_sided")
    )


def test_counts_all_on_one_side_or_none_keep_their_ends() -> None:
    none = sequential_counts(0, 0, treatment_share=0.5, tuned_for=100)
    assert (none.ratio, none.low, none.high, none.p_value) == (None, 0.0, None, 1.0)
    all_treated = sequential_counts(0, 60, treatment_share=0.5, tuned_for=100)
    assert all_treated.low > 1
    assert (all_treated.ratio, all_treated.high) == (None, None)
    all_control = sequential_counts(60, 0, treatment_share=0.5, tuned_for=100)
    assert (all_control.ratio, all_control.low) == (0.0, 0.0)
    assert all_control.high < 1
    assert all_treated.p_value == pytest.approx(all_control.p_value)


def test_counts_of_a_trillion_are_finite() -> None:
    found = sequential_counts(10**12, 10**12 + 10**7, treatment_share=0.5, tuned_for=10**12)
    assert 1.0 < found.low < 1.00001 < found.high
    assert 0 < found.p_value < 0.05


def test_a_quantile_watched_holds_the_one_of_a_single_look() -> None:
    found = sequential_quantile_interval(lambda p: p, 5000, 0.99, tuned_for=5000)
    assert found.low < 0.9872  # a single look: ranks 4936 to 4964
    assert found.high > 0.9928
    assert 0.983 < found.low < found.high < 0.997


@pytest.mark.parametrize("n", [1, 10, 200])
def test_too_few_values_have_no_interval(n: int) -> None:
    found = sequential_quantile_interval(lambda p: p, n, 0.99, tuned_for=5000)
    assert (found.low, found.high) == (None, None)
    assert "too few data" in found.caveat


def test_stages_add_their_evidence_and_pool_no_counts() -> None:
    # Simpson's trap: each stage splits as planned, the sums look like neither.
    one = ({"control": 9_900, "treatment": 100}, {"control": 0.99, "treatment": 0.01})
    two = ({"control": 500, "treatment": 500}, {"control": 0.5, "treatment": 0.5})
    found = sequential_sample_ratio([one, two], tuned_for=10_000)
    assert found.verdict == "as planned"
    assert found.expected == pytest.approx({"control": 10_400, "treatment": 600})
    parts = [sequential_sample_ratio([stage], tuned_for=10_000).log_e_value for stage in (one, two)]
    assert found.log_e_value == pytest.approx(sum(parts))


def test_an_arm_without_a_unit_is_a_mismatch_and_not_a_crash() -> None:
    assert sample_ratio({"control": 4000}, {"control": 1, "treatment": 1}).p_value > 0
    assert sample_ratio({"control": 4000}, {"control": 1, "treatment": 1}).verdict == "mismatch"
    assert sample_ratio({"control": 4}, {"control": 1, "treatment": 1}).p_value == 0.125
    assert sequential_sample_ratio([({}, {"a": 1, "b": 1})], tuned_for=100).verdict == "as planned"


def estimate(low: float | None, high: float | None) -> Estimate:
    caveat = "" if low is not None else "no data"
    return Estimate(
        value=low, low=low, high=high, n=9, clusters=None, confidence=0.975, method="m", caveat=caveat
    )


MEANS = mean_effect(arm(1, 100), arm(1, 100), "y")


@pytest.mark.parametrize(
    ("refuses", "error", "said"),
    [
        (lambda: sequential_effect(MEANS, tuned_for=0), InvalidInput, "tuned_for"),
        (
            lambda: sequential_effect(mean_effect(arm(1, 49), arm(1, 100), "y"), tuned_for=99),
            TooFewUnits,
            "49 units",
        ),
        (
            lambda: sequential_effect(proportion_effect(1, 99, 1, 99), tuned_for=99),
            NotEstimable,
            "no standard error",
        ),
        (lambda: sequential_counts(-1, 1, treatment_share=0.5, tuned_for=9), InvalidInput, "count_control"),
        (lambda: sequential_counts(1, 1, treatment_share=1.0, tuned_for=9), InvalidInput, "treatment_share"),
        (lambda: sequential_counts(1, 1, treatment_share=0.5, tuned_for=0), InvalidInput, "tuned_for"),
        (
            lambda: sequential_counts(
                1, 1, treatment_share=0.5, tuned_for=9, hypothesis=Hypothesis(difference=1.0)
            ),
            InvalidInput,
            "by their ratio",
        ),
        (lambda: sequential_quantile_interval(float, 9, 1.0, tuned_for=9), InvalidInput, "q 1.0"),
        (lambda: sequential_quantile_interval(float, -9, 0.5, tuned_for=9), InvalidInput, "n -9"),
        (
            lambda: quantile_ratio_bounds(estimate(None, None), estimate(1.0, 2.0)),
            TooFewUnits,
            "control has no",
        ),
        (lambda: quantile_ratio_bounds(estimate(0.0, 1.0), estimate(1.0, 2.0)), InvalidInput, "above 0"),
        (lambda: sample_ratio({"a": 1}, {"a": 1}), InvalidInput, "two arms"),
        (lambda: sample_ratio({"c": 1}, {"a": 1, "b": 1}), InvalidInput, r"without one: \['c'\]"),
        (lambda: sample_ratio({"a": 1}, {"a": 1, "b": 0}), InvalidInput, "share of b"),
        (lambda: sample_ratio({"a": 1.5}, {"a": 1, "b": 1}), InvalidInput, "units of a"),
        (lambda: sample_ratio({}, {"a": 1, "b": 1}), TooFewUnits, "no units"),
        (lambda: sample_ratio({"a": 1}, {"a": 1, "b": 1}, alpha=2), InvalidInput, "alpha"),
        (lambda: sequential_sample_ratio([], tuned_for=9), InvalidInput, "stages"),
    ],
)
def test_refusal_names_what_is_wrong(
    refuses: Callable[[], object], error: type[FairleadError], said: str
) -> None:
    with pytest.raises(error, match=said):
        refuses()


def test_a_ratio_can_be_watched_too() -> None:
    rng = np.random.default_rng(6)
    rows = np.column_stack([rng.poisson(2, 400), rng.poisson(8, 400) + 1])
    c, t = Moments.from_rows(("a", "b"), rows[:200]), Moments.from_rows(("a", "b"), rows[200:])
    fixed = ratio_effect(c, t, "a", "b")
    watched = sequential_effect(fixed, tuned_for=400).effect
    assert watched.low < fixed.low < fixed.high < watched.high
    assert watched.relative_low < fixed.relative_low
    assert "delta method" in watched.method


def test_a_small_arm_without_an_event_is_no_proof() -> None:
    # 1 % of units have an event; of 50 treated units none had. Six in ten A/A runs begin like this.
    control = Moments(columns=("y",), n=5000, means=(0.01,), products=((5000 * 0.01 * 0.99,),))
    treatment = Moments(columns=("y",), n=50, means=(0.0,), products=((0.0,),))
    fixed = mean_effect(control, treatment, "y")
    assert "treatment does not vary" in fixed.caveat
    watched = sequential_effect(fixed, tuned_for=5000)
    assert watched.effect.p_value == 1.0
    assert watched.effect.low < 0 < watched.effect.high
    assert watched.effect.relative_low < 0 < watched.effect.relative_high


def test_arms_that_vary_alike_are_watched_with_their_own_errors() -> None:
    fixed = mean_effect(arm(1, 300), arm(1.1, 2000), "y")
    assert sequential_effect(fixed, tuned_for=2000).effect.standard_error == pytest.approx(
        fixed.standard_error
    )
    more = mean_effect(arm(1, 2000), arm(1.1, 300, variance=4.0), "y")  # and a larger variance is believed
    assert sequential_effect(more, tuned_for=2000).effect.arm_errors[1] == pytest.approx(more.arm_errors[1])
    assert sequential_effect(more, tuned_for=2000).effect.arm_errors[0] > more.arm_errors[0]


def test_a_split_with_a_rare_arm_is_judged_exactly() -> None:
    # 15 where 6 were expected: chi-square says 0.0002 and voids the experiment; it happens to 1 in 700.
    found = sample_ratio({"control": 585, "treatment": 15}, {"control": 99, "treatment": 1})
    assert found.p_value == pytest.approx(2 * stats.binom.sf(14, 600, 0.01), rel=1e-9)
    assert found.verdict == "as planned"
    three = sample_ratio({"control": 95, "a": 5, "b": 0}, {"control": 98, "a": 1, "b": 1})
    every = [(100 - a - b, a, b) for a in range(101) for b in range(101 - a)]
    mass = stats.multinomial.pmf(every, 100, [0.98, 0.01, 0.01])
    own = stats.multinomial.pmf((95, 5, 0), 100, [0.98, 0.01, 0.01])
    assert three.p_value == pytest.approx(mass[mass <= own * (1 + 1e-7)].sum(), rel=1e-6)
    assert (three.method, three.verdict) == ("exact multinomial", "as planned")


@pytest.mark.parametrize("control", [0, 10**6, 10**12])
def test_a_split_of_any_size_has_a_positive_p_value(control: int) -> None:
    for treated in (1, 10**6 + 10**3, 10**12 - 3 * 10**6, 10**12):
        for found in (
            sample_ratio({"control": control, "treatment": treated}, {"control": 1, "treatment": 1}),
            sequential_sample_ratio(
                [({"control": control, "treatment": treated}, {"control": 1, "treatment": 1})],
                tuned_for=10**4,
            ),
        ):
            assert 0 < found.p_value <= 1
    same = sample_ratio({"control": 10**12, "treatment": 10**12 - 3 * 10**6}, {"control": 1, "treatment": 1})
    z = 3 * 10**6 / math.sqrt(2 * 10**12)  # of the difference of both counts
    assert same.p_value == pytest.approx(2 * stats.norm.sf(z), rel=1e-4)


@pytest.mark.parametrize("n", [777, 1000, 3001, 10_007])
def test_a_plain_ceiling_reads_the_ranks_that_are_meant(n: int) -> None:
    # Values 1 to n: their own ranks. A quantile function without a guard against 0.453 · 1000 = 453.0000000000001.
    def plain(p: float) -> float:
        return float(math.ceil(n * p))

    def exact(p: float) -> float:
        return float(math.ceil(n * p - 1e-6))

    for q in (0.1, 0.5, 0.9):
        found, meant = (sequential_quantile_interval(f, n, q, tuned_for=1000) for f in (plain, exact))
        assert (found.low, found.high) == (meant.low, meant.high)
