"""Sizes follow from spreads by the textbook formula, stage by stage."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fairlead.errors import InvalidInput
from fairlead.experiment import ExperimentPlan, Margin, design_experiment
from fairlead.experiment.comparison import Arms, harm_and_safety
from fairlead.experiment.design import Spread
from fairlead.metrics import Metric
from fairlead.statistics import Moments

WATCH = Metric.from_column("watch", "mean", "watch")
ERRORS = Metric.from_column("errors", "proportion", "failed", better="lower")
PLAN = ExperimentPlan(
    name="p", metrics=(WATCH, ERRORS), mde=0.02, margins={"errors": Margin(by=0.001, relative=False)}
)
SPREADS: dict[str, Spread | str] = {
    "watch": Spread(figure=100.0, deviation=50.0, adjusted=25.0, n=1000),
    "errors": Spread(figure=0.01, deviation=0.0995),
}


def test_equal_arms_need_sixteen_variances_over_the_effect_squared() -> None:
    found = design_experiment(PLAN, SPREADS, units_per_day=1000.0)
    watch = found.metrics[0].stages[0]
    assert watch.units_needed == pytest.approx(2 * 15.698 * 50.0**2 / 2.0**2, rel=1e-3)
    assert watch.days_needed == pytest.approx(19.62, abs=0.01)
    assert watch.days_needed_adjusted == pytest.approx(
        19.62 / 4, abs=0.01
    )  # half the deviation, a quarter of the time


def test_a_small_stage_needs_more_days_and_sees_less() -> None:
    found = design_experiment(PLAN, SPREADS, units_per_day=1000.0, stages=[(0.01, 7.0), (0.5, 7.0)])
    small, half = found.metrics[0].stages
    assert small.days_needed is not None
    assert half.days_needed is not None
    assert small.days_needed == pytest.approx(half.days_needed * 0.25 / (0.01 * 0.99), rel=1e-3)
    assert small.detectable is not None
    assert half.detectable is not None
    assert small.detectable > 4 * half.detectable
    assert small.power is not None
    assert half.power is not None
    assert half.power_adjusted is not None
    assert (
        0.05 < small.power < half.power < 0.8 < half.power_adjusted
    )  # 7 days in place of 19.6; a week is enough with covariates


def test_a_margin_in_points_is_what_a_guardrail_is_sized_for() -> None:
    found = design_experiment(PLAN, SPREADS, units_per_day=1000.0)
    assert found.metrics[1].wanted == pytest.approx(0.1)


@pytest.mark.parametrize(("sequential", "tolerance"), [(False, 0.03), (True, 0.06)])
def test_a_guardrail_is_found_safe_as_often_as_its_design_says(sequential: bool, tolerance: float) -> None:
    plan = dataclasses.replace(
        PLAN, margins={"errors": Margin(by=0.5, relative=False)}, sequential=sequential
    )
    design = design_experiment(
        plan, {"errors": Spread(figure=10.0, deviation=5.0)}, units_per_day=4000.0, stages=[(0.5, 1.0)]
    )
    stage = next(one for one in design.metrics if one.metric.name == "errors").stages[0]
    metric = Metric.from_column("errors", "mean", "errors", better="lower")
    rng = np.random.default_rng(8)
    safe = 0
    for _ in range(500):
        arms = [Moments.from_rows(("errors",), rng.normal(10.0, 5.0, (2000, 1))) for _ in range(2)]
        both = Arms(metric=metric, columns=("errors",), control=arms[0], treatment=arms[1])
        found = harm_and_safety(both, Margin(by=0.5, relative=False), alpha=0.05, tuned_for=4000)[1]
        assert found.effect is not None
        assert found.sequential is not None
        safe += (found.sequential.effect if sequential else found.effect).p_value < 0.05
    assert stage.power is not None
    assert safe / 500 == pytest.approx(stage.power, abs=tolerance)


def test_a_watched_experiment_pays_for_its_looks() -> None:
    plain = design_experiment(PLAN, SPREADS, units_per_day=1000.0)
    watched = design_experiment(dataclasses.replace(PLAN, sequential=True), SPREADS, units_per_day=1000.0)
    assert watched.alpha < plain.alpha
    once, always = plain.metrics[0].stages[0].units_needed, watched.metrics[0].stages[0].units_needed
    assert once is not None
    assert always is not None
    assert always / once == pytest.approx(((3.127 + 0.842) / (1.960 + 0.842)) ** 2, rel=1e-3)


def test_what_history_cannot_tell_is_a_reason() -> None:
    found = design_experiment(PLAN, {"watch": "all alike"}, units_per_day=10.0)
    assert found.metrics[0].reason == "all alike"
    assert found.metrics[1].reason == "no history of it"


def test_an_effect_that_nobody_can_wait_for_has_no_days() -> None:
    plan = dataclasses.replace(PLAN, mde=1e-6)
    stage = design_experiment(plan, SPREADS, units_per_day=10.0).metrics[0].stages[0]
    assert stage.days_needed is None


@pytest.mark.parametrize("stage", [(0.0, 1.0), (1.0, 1.0), (0.5, 0.0), (0.5, float("nan"))])
def test_a_stage_without_anybody_to_compare_is_refused(stage: tuple[float, float]) -> None:
    with pytest.raises(InvalidInput):
        design_experiment(PLAN, SPREADS, units_per_day=10.0, stages=[stage])
