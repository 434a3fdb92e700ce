"""Which estimator a metric gets, and what is said where it gets none."""

from __future__ import annotations

import numpy as np
import pytest

from fairlead.experiment import Fairness, Margin
from fairlead.experiment.comparison import Arms, compare_arms, harm_and_safety
from fairlead.experiment.fairness import judge_fairness
from fairlead.metrics import Metric
from fairlead.statistics import (
    Moments,
    cuped_effect,
    mean_effect,
    proportion_effect,
    quantile_interval,
    ratio_effect,
)

RNG = np.random.default_rng(5)
N = 2000
BEFORE = RNG.gamma(2.0, 10.0, (2, N))
WATCH = BEFORE * RNG.lognormal(0.0, 0.3, (2, N)) + [[0.0], [1.0]]
MEAN = Metric.from_column("watch", "mean", "watch")


def moments(*columns: np.ndarray, names: tuple[str, ...]) -> tuple[Moments, Moments]:
    both = [Moments.from_rows(names, np.column_stack([column[arm] for column in columns])) for arm in (0, 1)]
    return both[0], both[1]


def test_a_mean_is_compared_by_welch_and_adjusted_by_its_past() -> None:
    control, treatment = moments(WATCH, BEFORE, names=("watch", "before seconds"))
    arms = Arms(metric=MEAN, columns=("watch",), control=control, treatment=treatment)
    found = compare_arms(arms, alpha=0.05, tuned_for=2 * N)
    wanted = cuped_effect(control, treatment, "watch", ["before seconds"])
    assert found.effect == wanted.effect
    assert found.cuped is not None
    assert found.cuped.unadjusted == mean_effect(control, treatment, "watch")
    assert found.sequential is not None
    assert found.sequential.effect.low is not None
    assert found.effect is not None
    assert found.effect.low is not None
    assert found.sequential.effect.low < found.effect.low  # what holds at all looks is wider


def test_a_mark_that_never_varies_is_no_covariate() -> None:
    always = np.zeros((2, N))
    control, treatment = moments(
        WATCH, BEFORE, always, names=("watch", "before seconds", "before seconds is missing")
    )
    arms = Arms(metric=MEAN, columns=("watch",), control=control, treatment=treatment)
    found = compare_arms(arms, alpha=0.05, tuned_for=None)
    assert found.cuped is not None
    assert len(found.cuped.theta) == 1


def test_a_covariate_that_follows_from_the_others_is_left_out_and_the_rest_adjusts() -> None:
    new = (RNG.random((2, N)) < 0.2).astype(float)
    past, events = BEFORE * (1 - new), 1 - new  # each has one event of a past, or none
    control, treatment = moments(
        WATCH, past, events, new, names=("watch", "before v", "before v events", "before v is missing")
    )
    arms = Arms(metric=MEAN, columns=("watch",), control=control, treatment=treatment)
    found = compare_arms(arms, alpha=0.05, tuned_for=None)
    assert found.effect == cuped_effect(control, treatment, "watch", ["before v", "before v events"]).effect
    assert found.cuped is not None
    assert found.cuped.variance_reduction > 0.5
    assert found.caveats == ()


def test_a_constant_covariate_is_said_and_the_effect_stays() -> None:
    control, treatment = moments(WATCH, np.ones((2, N)), names=("watch", "before seconds"))
    found = compare_arms(
        Arms(metric=MEAN, columns=("watch",), control=control, treatment=treatment),
        alpha=0.05,
        tuned_for=None,
    )
    assert found.effect == mean_effect(control, treatment, "watch")
    assert any(caveat.startswith("not adjusted: covariate") for caveat in found.caveats)


def test_a_share_of_units_is_compared_by_score_and_watched_as_a_mean() -> None:
    kept = (RNG.random((2, N)) < [[0.2], [0.25]]).astype(float)
    control, treatment = moments(kept, names=("kept",))
    arms = Arms(
        metric=Metric.from_column("kept", "proportion", "kept"),
        columns=("kept",),
        control=control,
        treatment=treatment,
    )
    found = compare_arms(arms, alpha=0.05, tuned_for=2 * N)
    assert found.effect == proportion_effect(int(kept[0].sum()), N, int(kept[1].sum()), N)
    assert found.sequential is not None


def test_a_ratio_is_compared_by_the_delta_method() -> None:
    views = RNG.integers(1, 9, (2, N)).astype(float)
    clicks = RNG.binomial(views.astype(int), 0.3).astype(float)
    control, treatment = moments(clicks, views, names=("ctr", "ctr below"))
    metric = Metric.from_column("ctr", "ratio", "clicks", denominator="views")
    found = compare_arms(
        Arms(metric=metric, columns=("ctr", "ctr below"), control=control, treatment=treatment),
        alpha=0.05,
        tuned_for=None,
    )
    assert found.effect == ratio_effect(control, treatment, "ctr", "ctr below")


def test_what_the_data_cannot_carry_is_a_reason() -> None:
    control, treatment = moments(np.ones((2, 10)), names=("watch",))
    found = compare_arms(
        Arms(metric=MEAN, columns=("watch",), control=control, treatment=treatment),
        alpha=0.05,
        tuned_for=None,
    )
    assert found.effect is None
    assert "alike" in found.reason


def test_too_few_units_for_a_watched_interval_are_said() -> None:
    control, treatment = moments(WATCH[:, :20], names=("watch",))
    found = compare_arms(
        Arms(metric=MEAN, columns=("watch",), control=control, treatment=treatment),
        alpha=0.05,
        tuned_for=None,
    )
    assert found.effect is not None
    assert found.sequential is None
    assert any("no watched interval" in caveat for caveat in found.caveats)


def test_a_quantile_has_an_effect_and_no_covariates() -> None:
    estimates = [quantile_interval(WATCH[arm], 0.9) for arm in (0, 1)]
    metric = Metric.from_column("p90", "quantile", "watch", q=0.9)
    arms = Arms(metric=metric, control_quantile=estimates[0], treatment_quantile=estimates[1])
    found = compare_arms(arms, alpha=0.05, tuned_for=None)
    assert found.effect is not None
    assert found.effect.control == estimates[0].value


@pytest.mark.parametrize(
    ("shift", "safe", "harmed"), [(0.0, True, False), (3.0, False, True), (0.55, False, False)]
)
def test_a_margin_is_asked_from_both_sides(shift: float, safe: bool, harmed: bool) -> None:
    rng = np.random.default_rng(3)
    latency = rng.normal(10.0, 2.0, (2, 400)) + np.array([[0.0], [shift]])
    control, treatment = moments(latency, names=("latency",))
    metric = Metric.from_column("latency", "mean", "latency", better="lower")
    arms = Arms(metric=metric, columns=("latency",), control=control, treatment=treatment)
    found = harm_and_safety(arms, Margin(by=0.05), alpha=0.05, tuned_for=None)
    harm, safety = (each.effect for each in found)
    assert harm is not None
    assert safety is not None
    assert (safety.p_value < 0.05, harm.p_value < 0.05) == (safe, harmed)


def groups(ratios: dict[str, float], n: int = 4000) -> dict[str, Arms]:
    rng = np.random.default_rng(8)
    made = {}
    for name, ratio in ratios.items():
        values = rng.gamma(4.0, 1.0, (2, n)) * [[1.0], [ratio]]
        control, treatment = moments(values, names=("watch",))
        made[name] = Arms(metric=MEAN, columns=("watch",), control=control, treatment=treatment)
    return made


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ({"de": 1.0, "en": 1.0, "es": 1.0}, "within"),
        ({"de": 1.5, "en": 1.0, "es": 1.0}, "exceeded"),
        ({"de": 1.2, "en": 1.0, "es": 1.0}, "inconclusive"),
    ],
)
def test_fairness_judges_the_two_groups_that_are_furthest_apart(
    ratios: dict[str, float], verdict: str
) -> None:
    found = judge_fairness(
        Fairness(metric="watch", group="language"), "treatment", groups(ratios), alpha=0.05
    )
    assert found.verdict == verdict
    assert found.largest_ratio is not None
    assert found.ci is not None
    assert found.ci[0] is not None
    assert found.ci[1] is not None
    assert 1.0 <= found.ci[0] <= found.largest_ratio <= found.ci[1]
    if verdict == "exceeded":
        assert found.between[0] == "de"


def test_fairness_raises_no_alarm_among_many_equal_groups() -> None:
    alarms = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        made = {}
        for name in "abcdefgh":
            values = rng.gamma(1.0, 1.0, (2, 120))
            control, treatment = moments(values, names=("watch",))
            made[name] = Arms(metric=MEAN, columns=("watch",), control=control, treatment=treatment)
        found = judge_fairness(Fairness(metric="watch", group="g", limit=1.0001), "t", made, alpha=0.05)
        alarms += found.verdict == "exceeded"
    assert alarms <= 9  # 5 % of 60 is 3; more than 9 has a chance below 1 in 500


def test_a_figure_lost_in_its_noise_leaves_the_interval_of_fairness_open() -> None:
    names = ("watch",)
    noise = RNG.normal(0.0, 1.0, 200)
    near = Moments.from_rows(names, (noise - noise.mean() + 1e-4)[:, None])  # a refund eats up what was paid
    clear = Moments.from_rows(names, (noise - noise.mean() + 9.0)[:, None])
    groups = {
        "a": Arms(metric=MEAN, columns=names, control=near, treatment=clear),
        "b": Arms(metric=MEAN, columns=names, control=clear, treatment=clear),
    }
    found = judge_fairness(Fairness(metric="watch", group="g"), "treatment", groups, alpha=0.05)
    assert found.verdict == "inconclusive"
    assert found.ci == (1.0, None)


def test_a_group_that_only_one_arm_has_is_left_out_with_that_reason() -> None:
    (both,) = moments(WATCH[:1].repeat(2, axis=0), names=("watch",))[:1]
    groups = {
        "a": Arms(metric=MEAN, columns=("watch",), control=both, treatment=both),
        "b": Arms(metric=MEAN, columns=("watch",), control=both),
    }
    found = judge_fairness(Fairness(metric="watch", group="g"), "treatment", groups, alpha=0.05)
    assert found.caveats[0] == "g b left out: an arm has no unit of it"


def test_fairness_needs_two_groups() -> None:
    found = judge_fairness(Fairness(metric="watch", group="g"), "t", groups({"one": 1.0}), alpha=0.05)
    assert (found.verdict, found.largest_ratio) == ("not_estimable", None)
    assert found.caveats
