"""An experiment from a table, whole: planted effects come out, broken ones are void, and every word is in the
result."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pytest

from fairlead.errors import BrokenDocument, InvalidInput, TooFewUnits
from fairlead.experiment import (
    CalendarEntry,
    ExperimentPlan,
    Fairness,
    Margin,
    Stage,
    analyse,
    read_result,
    render_report,
    simulate_experiment,
    units_of_table,
)
from fairlead.experiment.design import Spread, spreads_of
from fairlead.experiment.result import ANALYSIS_SCHEMA
from fairlead.metrics import Metric

N = 20_000


@pytest.fixture(scope="module")
def rows() -> dict[str, Any]:
    rng = np.random.default_rng(21)
    treated = rng.random(N) < 0.5
    before = rng.lognormal(3, 0.8, N)
    new = rng.random(N) < 0.1
    return {
        "arm": np.where(treated, "treatment", "control").tolist(),
        "watch": before * rng.lognormal(0, 0.4, N) * np.where(treated, 1.05, 1.0),
        "before": [None if gone else float(value) for gone, value in zip(new, before, strict=True)],
        "failed": rng.random(N) < 0.02,
        "clicks": rng.integers(0, 4, N),
        "views": rng.integers(4, 30, N),
        "country": rng.choice(["AT", "DE", "CH"], N).tolist(),
        "at": 1_700_000_000.0 + np.sort(rng.random(N)) * 14 * 86400,
    }


PLAN = ExperimentPlan(
    name="watching",
    metrics=(
        Metric.from_column("watch", "mean", "watch"),
        Metric.from_column("failed", "proportion", "failed", better="lower"),
        Metric.from_column("ctr", "ratio", "clicks", denominator="views"),
        Metric.from_column("watch_p90", "quantile", "watch", q=0.9),
    ),
    covariates={"watch": ("before",)},
    segments=("country",),
    fairness=(Fairness(metric="watch", group="country"),),
    planned_units=N,
)


def units(rows: dict[str, Any], plan: ExperimentPlan = PLAN) -> Any:
    return units_of_table(ibis.memtable(pa.table(rows)), plan, variant="arm", time="at")


def test_a_planted_effect_is_found_with_its_interval(rows: dict[str, Any]) -> None:
    result = analyse(PLAN, units(rows))
    watch = result.metric("watch")
    assert watch.relative_effect_ci is not None
    low, high = watch.relative_effect_ci
    assert low is not None
    assert high is not None
    assert low <= 0.05 <= high
    assert watch.verdict == "higher"  # ad hoc: which way is good, nobody said
    assert watch.cuped is not None
    assert watch.cuped.variance_reduction > 0.4
    assert watch.cuped.covariates == ("before before", "before before is missing")
    assert len(watch.cuped.theta) == 2
    assert watch.sequential is not None
    assert watch.sequential.tuned_for == N
    assert result.metric("failed").verdict == "no_difference_shown"
    assert result.metric("watch_p90").sequential is None
    assert result.sample_ratio.verdict == "as planned"
    assert not result.is_void
    assert [check.name for check in result.health if check.verdict == "failed"] == []


def test_a_mark_that_no_unit_bears_is_not_named_as_a_covariate(rows: dict[str, Any]) -> None:
    whole = dict(rows, before=[1.0 if value is None else value for value in rows["before"]])
    plan = dataclasses.replace(PLAN, metrics=PLAN.metrics[:1])
    made = units(whole, plan)
    made.covariates = {"watch": ("before before", "before nothing")}
    made.rows = made.rows.mutate(**{"before nothing": ibis.literal(0.0)})
    watch = analyse(plan, made).metric("watch")
    assert watch.cuped is not None
    assert watch.cuped.covariates == ("before before",)
    assert len(watch.cuped.theta) == 1


def test_segments_are_exploratory_and_adjusted(rows: dict[str, Any]) -> None:
    result = analyse(PLAN, units(rows))
    mine = [row for row in result.segments if row.metric == "watch"]
    assert [row.value for row in mine] == ["AT", "CH", "DE"]
    assert sum(row.n_control + row.n_treatment for row in mine) == N
    for row in mine:
        assert row.p_value is not None
        assert row.adjusted_p_value is not None
        assert row.adjusted_p_value >= row.p_value
        assert row.heterogeneity_p_value is not None
        assert row.heterogeneity_p_value > 0.001  # the effect is the same everywhere
    assert result.fairness[0].verdict == "within"


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([float(k % 12) - 2 for k in range(N)], [f"{k - 2}.0" for k in range(12)]),
        ([k % 12 for k in range(N)], [str(k) for k in range(12)]),
        (
            [float(k) / 100 for k in range(N)],
            ["up to 49.9975", "49.9975 to 99.995", "99.995 to 149.993", "above 149.993"],
        ),
        (["all others" if k % 3 else "web" for k in range(N)], ["all others", "web"]),
        (
            ["all others" if k % 3 else f"r{k % 60:02}" for k in range(N)],
            ["all others", *(f"r{k:02}" for k in range(0, 30, 3)), "all others, joined"],
        ),
    ],
)
def test_the_values_of_a_segment_stand_in_their_order(
    rows: dict[str, Any], values: list[Any], shown: list[str]
) -> None:
    plan = dataclasses.replace(PLAN, metrics=PLAN.metrics[:1], covariates={}, segments=("size",), fairness=())
    found = [row.value for row in analyse(plan, units({**rows, "size": values}, plan)).segments]
    assert found == shown


def test_fairness_looks_at_small_groups_too(rows: dict[str, Any]) -> None:
    groups = [f"g{k % 30}" for k in range(N)]
    watch = (
        np.where((np.array(groups) == "g29") & (np.array(rows["arm"]) == "treatment"), 0.2, 1.0)
        * rows["watch"]
    )
    plan = dataclasses.replace(
        PLAN,
        metrics=PLAN.metrics[:1],
        covariates={},
        segments=(),
        fairness=(Fairness(metric="watch", group="g"),),
    )
    found = analyse(plan, units({**rows, "watch": watch, "g": groups}, plan)).fairness[0]
    assert found.verdict == "exceeded"
    assert found.between[1] == "g29"
    many = analyse(plan, units({**rows, "g": [f"g{k % 80}" for k in range(N)]}, plan)).fairness[0]
    assert "only the 49 largest groups were looked at; 7,750 units are in smaller ones" in many.caveats


def test_the_course_ends_where_the_whole_is(rows: dict[str, Any]) -> None:
    result = analyse(PLAN, units(rows))
    assert len(result.steps) > 10
    assert [step.n for step in result.steps] == sorted(step.n for step in result.steps)
    last = result.steps[-1]
    assert last.n == N
    assert last.effect == pytest.approx(result.metric("watch").effect)
    assert last.ci == pytest.approx(result.metric("watch").sequential.ci)  # type: ignore[union-attr]  # there is one


def test_a_broken_split_voids_every_verdict(rows: dict[str, Any]) -> None:
    keep = [not (arm == "treatment" and index % 12 == 0) for index, arm in enumerate(rows["arm"])]
    fewer = {
        name: [value for value, kept in zip(column, keep, strict=True) if kept]
        for name, column in rows.items()
    }
    result = analyse(PLAN, units(fewer))
    assert result.is_void
    assert {found.verdict for found in result.metrics} == {"void"}
    assert result.fairness[0].verdict == "void"
    assert result.metric("watch").effect is not None  # for whoever looks for the cause
    assert "Void" in render_report(result)
    planned = dataclasses.replace(PLAN, shares={"control": 12.0, "treatment": 11.0})
    assert not analyse(planned, units(fewer, planned)).is_void


def test_an_arm_that_loses_values_is_a_warning(rows: dict[str, Any]) -> None:
    some = dict(rows)
    some["watch"] = [
        None if arm == "treatment" and index % 15 == 0 else float(value)
        for index, (arm, value) in enumerate(zip(rows["arm"], rows["watch"], strict=True))
    ]
    plan = dataclasses.replace(PLAN, metrics=PLAN.metrics[:1])
    result = analyse(plan, units(some, plan))
    missing = [check for check in result.health if check.name == "missing values"]
    assert [check.verdict for check in missing] == ["warning"]


def test_arms_that_differed_before_are_a_warning(rows: dict[str, Any]) -> None:
    some = dict(rows)
    some["before"] = [
        None if value is None else value * (1.2 if arm == "treatment" else 1.0)
        for arm, value in zip(rows["arm"], rows["before"], strict=True)
    ]
    result = analyse(PLAN, units(some))
    found = next(check for check in result.health if check.name == "before exposure")
    assert found.verdict == "warning"
    assert "treatment" in found.message


def test_an_arm_that_came_late_is_a_warning(rows: dict[str, Any]) -> None:
    some = dict(rows)
    first = min(rows["at"])
    some["at"] = [
        first + (at - first) / 2 if arm == "control" else at
        for at, arm in zip(rows["at"], rows["arm"], strict=True)
    ]
    result = analyse(PLAN, units(some))
    assert next(check for check in result.health if check.name == "entering over time").verdict == "warning"


def test_a_growing_rollout_is_no_broken_split(rows: dict[str, Any]) -> None:
    rng = np.random.default_rng(6)
    middle = float(np.median(rows["at"]))
    some = dict(rows)
    some["arm"] = [
        "treatment" if rng.random() < (0.05 if at < middle else 0.5) else "control" for at in rows["at"]
    ]
    stages = (
        Stage(start=0.0, shares={"control": 0.95, "treatment": 0.05}),
        Stage(start=middle, shares={"control": 0.5, "treatment": 0.5}),
    )
    plan = dataclasses.replace(PLAN, stages=stages, fairness=(), segments=())
    assert not analyse(plan, units(some, plan)).is_void
    pooled = dataclasses.replace(plan, stages=(), shares={"control": 0.725, "treatment": 0.275})
    result = analyse(pooled, units(some, pooled))
    # Added up, the shares look right; that they moved is what the check over time says.
    assert next(check for check in result.health if check.name == "entering over time").verdict == "warning"
    wrong = dataclasses.replace(plan, stages=(stages[0], Stage(start=middle, shares=stages[0].shares)))
    assert analyse(wrong, units(some, wrong)).is_void


def test_stages_are_compared_within_and_never_pooled() -> None:
    rng = np.random.default_rng(12)
    n = 20_000
    at = np.sort(rng.random(n)) * 1000.0
    late = at >= 500.0
    treated = rng.random(n) < np.where(late, 0.5, 0.05)
    # Users of the second stage watch twice as much, whatever they are shown; the change does nothing.
    watch = rng.gamma(2.0, 10.0, n) * np.where(late, 2.0, 1.0)
    rows = {"arm": np.where(treated, "treatment", "control").tolist(), "watch": watch, "at": at}
    stages = (
        Stage(start=0.0, shares={"control": 0.95, "treatment": 0.05}),
        Stage(start=500.0, shares={"control": 0.5, "treatment": 0.5}),
    )
    metric = Metric.from_column("watch", "mean", "watch")
    staged = ExperimentPlan(name="s", metrics=(metric,), stages=stages)
    pooled = dataclasses.replace(staged, stages=(), shares={"control": 0.725, "treatment": 0.275})
    found = analyse(staged, units(rows, staged)).metric("watch")
    assert found.verdict == "no_difference_shown"
    assert found.sequential is not None
    assert found.sequential.e_value < 20
    fooled = analyse(pooled, units(rows, pooled)).metric("watch")
    assert fooled.verdict == "higher"  # Simpson's paradox, and why the plan names its stages


def test_arms_of_a_growing_rollout_are_alike_within_its_stages() -> None:
    rng = np.random.default_rng(13)
    n = 20_000
    late = np.arange(n) >= n / 2
    treated = rng.random(n) < np.where(late, 0.5, 0.05)
    past = rng.gamma(2.0, 10.0, n) * np.where(
        late, 2.0, 1.0
    )  # who comes late has a longer past, in either arm
    rows = {
        "arm": np.where(treated, "treatment", "control").tolist(),
        "watch": past + rng.normal(0, 1, n),
        "past": past,
        "at": np.arange(n) * 1.0,
    }
    stages = (
        Stage(start=0.0, shares={"control": 0.95, "treatment": 0.05}),
        Stage(start=n / 2, shares={"control": 0.5, "treatment": 0.5}),
    )
    plan = ExperimentPlan(name="s", metrics=PLAN.metrics[:1], stages=stages, covariates={"watch": ("past",)})
    check = next(
        check for check in analyse(plan, units(rows, plan)).health if check.name == "before exposure"
    )
    assert check.verdict == "ok"
    assert "treatment of stage" in check.message
    rows["past"] = past * np.where(treated & late, 1.2, 1.0)
    check = next(
        check for check in analyse(plan, units(rows, plan)).health if check.name == "before exposure"
    )
    assert check.verdict == "warning"
    assert "in treatment of stage 2" in check.message


def test_who_came_before_the_first_stage_is_counted_and_strangers_are_refused(rows: dict[str, Any]) -> None:
    stages = (Stage(start=float(rows["at"][500]), shares={"control": 1.0, "treatment": 1.0}),)
    plan = dataclasses.replace(PLAN, stages=stages, fairness=(), segments=())
    result = analyse(plan, units(rows, plan))
    assert result.excluded["units that entered in no stage"] == 500
    assert result.units == N - 500
    third = {**rows, "arm": ["third", *rows["arm"][1:]]}
    with pytest.raises(InvalidInput, match="variants third have a share in no stage"):
        analyse(plan, units(third, plan))
    with pytest.raises(InvalidInput, match="stages: the column that says when a unit entered is missing"):
        units_of_table(ibis.memtable(pa.table(rows)), plan, variant="arm")


def test_the_calendar_travels_with_the_result(rows: dict[str, Any]) -> None:
    from datetime import UTC, datetime

    entry = CalendarEntry(
        kind="incident", what="search down", start=datetime.fromtimestamp(1_700_100_000, UTC)
    )
    result = analyse(PLAN, units(rows), calendar=[entry])
    assert any(check.name == "calendar" and "search down" in check.message for check in result.health)


def test_a_guardrail_is_safe_within_its_margin_or_says_that_it_does_not_know(rows: dict[str, Any]) -> None:
    failed = dataclasses.replace(PLAN.metrics[1], role="guardrail")
    wide = dataclasses.replace(
        PLAN,
        metrics=(PLAN.metrics[0], failed),
        fairness=(),
        margins={"failed": Margin(by=0.01, relative=False)},
    )
    assert analyse(wide, units(rows, wide)).metric("failed").verdict == "not_worse"
    narrow = dataclasses.replace(wide, margins={"failed": Margin(by=0.0001, relative=False)})
    assert analyse(narrow, units(rows, narrow)).metric("failed").verdict == "inconclusive"


def test_a_margin_does_not_hide_that_a_metric_got_better_or_worse(rows: dict[str, Any]) -> None:
    watch = dataclasses.replace(PLAN.metrics[0], role="primary")
    plan = dataclasses.replace(
        PLAN, metrics=(watch,), segments=(), fairness=(), margins={"watch": Margin(by=0.2)}
    )
    assert analyse(plan, units(rows, plan)).metric("watch").verdict == "higher"
    swapped = {**rows, "arm": ["control" if a == "treatment" else "treatment" for a in rows["arm"]]}
    assert analyse(plan, units(swapped, plan)).metric("watch").verdict == "lower"
    guarded = dataclasses.replace(
        plan, metrics=(PLAN.metrics[2], dataclasses.replace(watch, role="guardrail"))
    )
    assert analyse(guarded, units(rows, guarded)).metric("watch").verdict == "not_worse"


def test_a_watched_guardrail_is_judged_by_what_holds_at_every_look(rows: dict[str, Any]) -> None:
    failed = dataclasses.replace(PLAN.metrics[1], role="guardrail")
    once = dataclasses.replace(
        PLAN,
        metrics=(PLAN.metrics[0], failed),
        fairness=(),
        margins={"failed": Margin(by=0.01, relative=False)},
    )
    watched = dataclasses.replace(once, sequential=True)
    fixed, always = (analyse(plan, units(rows, plan)).metric("failed").margin for plan in (once, watched))
    assert fixed is not None
    assert always is not None
    assert fixed.p_not_worse < always.p_not_worse < 0.05
    assert always.p_worse == 1.0


def test_a_watched_quantile_says_why_it_has_no_verdict(rows: dict[str, Any]) -> None:
    watched = dataclasses.replace(PLAN, sequential=True)
    found = analyse(watched, units(rows, watched)).metric("watch_p90")
    assert found.verdict == "not_estimable"
    assert any("no watched form" in caveat for caveat in found.caveats)


def test_a_watched_experiment_finds_larger_effects_only(rows: dict[str, Any]) -> None:
    watched = dataclasses.replace(PLAN, sequential=True)
    once, always = (analyse(plan, units(rows, plan)).metric("ctr").detectable for plan in (PLAN, watched))
    assert once is not None
    assert always is not None
    # (3.127 + 0.842) standard errors beside (1.960 + 0.842)
    assert always / once == pytest.approx(1.417, abs=0.001)


def test_several_variants_pay_for_each_other(rows: dict[str, Any]) -> None:
    some = dict(rows)
    rng = np.random.default_rng(4)
    some["arm"] = rng.choice(["control", "b", "c", "d"], N).tolist()
    result = analyse(PLAN, units(some))
    mine = [found for found in result.metrics if found.name == "watch"]
    assert [found.variant for found in mine] == ["b", "c", "d"]
    smallest = min(mine, key=lambda found: found.p_value or 1.0)
    assert smallest.adjusted_p_value == pytest.approx(min(1.0, 3 * (smallest.p_value or 1.0)))


def test_the_result_is_json_that_comes_back_the_same(rows: dict[str, Any], tmp_path: Path) -> None:
    result = analyse(PLAN, units(rows), data_sha256="0" * 64)
    path = tmp_path / "result.json"
    path.write_bytes(result.to_json())
    assert read_result(path) == result
    document = json.loads(path.read_bytes())
    assert document["schema"] == ANALYSIS_SCHEMA
    watch = next(found for found in document["metrics"] if found["name"] == "watch")
    assert set(watch["control"]) == {"n", "mean", "sd"}
    assert set(next(f for f in document["metrics"] if f["name"] == "ctr")["control"]) == {"n", "value", "sd"}
    assert set(watch["sequential"]) >= {"e_value", "always_valid_p", "ci"}
    assert set(watch["cuped"]) >= {"theta", "variance_reduction"}
    path.write_text("{}")
    with pytest.raises(BrokenDocument, match="no result of an experiment"):
        read_result(path)


def test_the_page_holds_every_figure_and_no_script(rows: dict[str, Any]) -> None:
    hostile = dict(rows)
    hostile["country"] = ["<script>alert(1)</script>" if c == "CH" else c for c in rows["country"]]
    result = analyse(PLAN, units(hostile))
    page = render_report(result)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<figure") >= 2
    assert "exploratory" in page
    assert render_report(result) == page


def test_a_control_that_is_not_there_is_named_with_those_that_are(rows: dict[str, Any]) -> None:
    plan = dataclasses.replace(PLAN, control="contrl")
    with pytest.raises(InvalidInput, match="'control', 'treatment'"):
        analyse(plan, units(rows, plan))
    alone = dict(rows, arm=["control"] * N)
    with pytest.raises(TooFewUnits, match="nothing to compare"):
        analyse(PLAN, units(alone))


def test_history_says_how_much_units_vary(rows: dict[str, Any]) -> None:
    history = units_of_table(ibis.memtable(pa.table(rows)), PLAN, variant=None)
    found = spreads_of(history)
    watch = np.asarray(rows["watch"])
    spread = found["watch"]
    assert isinstance(spread, Spread)
    assert (spread.figure, spread.deviation) == (
        pytest.approx(watch.mean()),
        pytest.approx(watch.std(ddof=1)),
    )
    assert spread.variance_reduction == pytest.approx(0.65, abs=0.1)
    p = np.mean(rows["failed"])
    failed = found["failed"]
    assert isinstance(failed, Spread)
    assert failed.deviation == pytest.approx(np.sqrt(p * (1 - p)), rel=1e-3)
    quantile = found["watch_p90"]
    assert isinstance(quantile, Spread)
    density = np.mean(np.abs(watch - quantile.figure) < 1.0) / 2.0
    assert quantile.deviation == pytest.approx(np.sqrt(0.09) / density, rel=0.15)


def test_splits_without_an_effect_raise_the_stated_alarms_and_planted_ones_are_found(
    rows: dict[str, Any],
) -> None:
    some = {name: column[:3000] for name, column in rows.items()}
    plan = dataclasses.replace(PLAN, segments=(), fairness=())
    history = units_of_table(ibis.memtable(pa.table(some)), plan, variant=None)
    for one in simulate_experiment(plan, history, runs=200, seed=3):
        assert one.is_calibrated, one
        assert one.covered.value is not None
        assert 0.9 <= one.covered.value <= 1.0, one
        if one.watched is not None:
            assert one.watched.value is not None
            assert one.found.value is not None
            assert one.watched.value <= one.found.value
    means = dataclasses.replace(plan, metrics=plan.metrics[:2], covariates={"watch": ("before",)})
    planted = simulate_experiment(
        means,
        units_of_table(ibis.memtable(pa.table(some)), means, variant=None),
        planted=0.1,
        runs=200,
        seed=3,
    )
    assert planted[0].found.value is not None
    assert planted[0].found.value > 0.9
    assert planted[0].mean_effect == pytest.approx(0.1, abs=0.02)
    assert planted[1].covered.value is not None
    assert planted[1].covered.value >= 0.9


def test_a_simulation_is_the_same_for_the_same_seed(rows: dict[str, Any]) -> None:
    plan = dataclasses.replace(PLAN, metrics=PLAN.metrics[:1], covariates={}, segments=(), fairness=())
    history = units_of_table(
        ibis.memtable(pa.table({k: v[:500] for k, v in rows.items()})), plan, variant=None
    )
    assert simulate_experiment(plan, history, runs=30, seed=9) == simulate_experiment(
        plan, history, runs=30, seed=9
    )
