"""A rollout that grows, from its events: whom each stage had still to draw, beside a loop in plain Python; and what
comes of days that differ, of users who return through all stages, of effects that drive users away."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairlead.errors import InvalidInput, TooFewUnits
from fairlead.experiment import (
    ExperimentPlan,
    Stage,
    Trigger,
    analyse,
    read_result,
    render_report,
    units_of_events,
)
from fairlead.flags import bucket
from fairlead.telemetry import Event
from tests.integration.experiment.test_units import REGISTRY, TOTAL, Watched, exposed, write

DAY = 86_400.0


def stages_at(*shares: float, length: float = DAY, settle: float = 60.0) -> tuple[Stage, ...]:
    return tuple(
        Stage(start=length * index, settle=settle, shares={"control": 1 - share, "treatment": share})
        if share < 1
        else Stage(start=length * index, settle=settle, shares={"treatment": 1.0})
        for index, share in enumerate(shares)
    )


PLAN = ExperimentPlan(name="p", metrics=(TOTAL,), flag="f", stages=stages_at(0.01, 0.05, 0.25, 0.5))


def test_who_was_control_is_drawn_anew_and_who_had_treatment_is_not(tmp_path: Path) -> None:
    events: list[Event] = []
    for user, slot in (("low", 0.005), ("middle", 0.03), ("high", 0.9)):
        for day, share in enumerate((0.01, 0.05, 0.25, 0.5)):
            variant = "treatment" if slot < share else "control"
            events.append(exposed(user, day * DAY + 100.0, variant))
            events.append(Watched(at_utc_seconds=day * DAY + 200.0, user=user, seconds=10.0 + day))
    units = units_of_events(write(tmp_path / "e", events), PLAN, registry=REGISTRY)
    rows = units.rows.to_pyarrow().to_pylist()
    found = {(row["fairlead unit"], row["group stage"]): (row["group variant"], row["total"]) for row in rows}
    assert found == {
        ("low", "1"): ("treatment", 10.0),
        ("middle", "1"): ("control", 10.0),
        ("middle", "2, back from 1"): ("treatment", 11.0),
        ("high", "1"): ("control", 10.0),
        ("high", "2, back from 1"): ("control", 11.0),
        ("high", "3, back from 2"): ("control", 12.0),
        ("high", "4, back from 3"): ("control", 13.0),
    }
    assert units.distinct == 3
    assert [each.get("had had treatment before", 0) for each in units.left_out] == [0, 1, 2, 2]
    assert units.excluded["units in two arms"] == 0
    # Those above 1 % are among the 4 of 99 that 5 % draws from them.
    assert units.strata["2, back from 1"].shares["treatment"] == pytest.approx(0.04 / 0.99)
    assert units.strata["4"].shares["treatment"] == pytest.approx(0.5)


USERS = st.sampled_from([f"u{i}" for i in range(5)])
EXPOSURES = st.lists(
    st.tuples(USERS, st.integers(-2, 45).map(float), st.sampled_from(["control", "treatment"])),
    min_size=1,
    max_size=25,
)
WATCHED = st.lists(st.tuples(USERS, st.integers(-5, 45).map(float), st.integers(1, 9)), max_size=25)
SHARES = st.lists(st.sampled_from([0.01, 0.05, 0.5, 1.0]), min_size=3, max_size=3)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(exposures=EXPOSURES, watched=WATCHED, shares=SHARES, window=st.sampled_from([None, 4.0]))
def test_the_rows_are_those_of_a_loop(
    tmp_path_factory: pytest.TempPathFactory,
    exposures: list[tuple[str, float, str]],
    watched: list[tuple[str, float, int]],
    shares: list[float],
    window: float | None,
) -> None:
    folder = tmp_path_factory.mktemp("e")
    # 0–10, 10–20, 25–: a rollback between, and three seconds in which a stage settles.
    stages = [
        dataclasses.replace(s, start=at, settle=3.0, end=end)
        for s, at, end in zip(stages_at(*shares), (0.0, 10.0, 25.0), (None, 20.0, None), strict=True)
    ]
    plan = dataclasses.replace(PLAN, stages=tuple(stages), conversion_window=window, pre_period=8.0)
    events = [exposed(user, at, variant) for user, at, variant in exposures]
    outcomes = [Watched(at_utc_seconds=at, user=user, seconds=float(s)) for user, at, s in watched]
    write(folder, [*events, *outcomes])
    expected: dict[tuple[str, str], tuple[str, float, float]] = {}
    for user in {user for user, _, _ in exposures}:
        had_treatment, level = False, -1.0
        came_from = 0
        for number, (stage, start, end) in enumerate(
            zip(stages, (3.0, 13.0, 28.0), (10.0, 20.0, 1e9), strict=True), 1
        ):
            share = stage.shares["treatment"]
            mine = [(at, variant) for u, at, variant in exposures if u == user and start <= at < end]
            if not mine:
                continue
            entered = min(at for at, _ in mine)
            variants = {variant for _, variant in mine}
            alone = share == 1.0
            if not alone and len(variants) == 1 and not had_treatment and share > level:
                label = str(number) if level < 0 else f"{number}, back from {came_from}"
                if window is None or entered + window <= min(end, 45.0):
                    until = min(end, entered + (window or 1e9))
                    total = sum(s for u, at, s in watched if u == user and entered <= at < until)
                    past = sum(s for u, at, s in watched if u == user and stage.start - 8 <= at < stage.start)
                    expected[user, label] = (next(iter(variants)), float(total), float(past))
            had_treatment |= "treatment" in variants
            if share > level:
                level, came_from = share, min(index for index, one in enumerate(shares, 1) if one == share)
    if not expected:
        with pytest.raises(TooFewUnits):
            units_of_events(folder, plan, registry=REGISTRY, now=45.0)
        return
    units = units_of_events(folder, plan, registry=REGISTRY, now=45.0)
    assert {
        (row["fairlead unit"], row["group stage"]): (row["group variant"], row["total"], row["before total"])
        for row in units.rows.to_pyarrow().to_pylist()
    } == expected
    assert units.distinct == len({user for user, _ in expected})
    assert set(units.strata) >= {label for _, label in expected}


def rollout_events(
    seed: int,
    users: int,
    effect: float,
    *,
    shares: tuple[float, ...] = (0.01, 0.05, 0.25, 0.5),
    settling: float = 30.0,
) -> list[Event]:
    """Most users come on each of the days, and days differ; for some seconds after each step the share before it is
    still served."""
    rng = np.random.default_rng(seed)
    events: list[Event] = []
    for number in range(users):
        user, level, loyal = f"u{number}", rng.gamma(4.0, 2.5), rng.beta(3.0, 1.5)
        slot = bucket("f", user) / 10_000
        for day, (share, busy) in enumerate(zip(shares, (1.0, 1.6, 0.7, 1.3), strict=True)):
            if rng.random() > loyal:
                continue
            for at in sorted((rng.random(3) * (DAY - 300.0)).tolist()):
                old = shares[day - 1] if day and at < settling else share
                treated = slot < old
                events.append(exposed(user, day * DAY + at, "treatment" if treated else "control"))
                seconds = float(level * busy * rng.lognormal(0.0, 0.5) * (1 + effect * treated))
                events.append(Watched(at_utc_seconds=day * DAY + at + 1.0, user=user, seconds=seconds))
    return events


def test_a_ramp_from_its_events_is_sound_where_as_one_experiment_it_is_void(tmp_path: Path) -> None:
    folder = write(tmp_path / "e", rollout_events(7, 4000, 0.1))
    plan = dataclasses.replace(PLAN, pre_period=DAY)
    result = analyse(plan, units_of_events(folder, plan, registry=REGISTRY))
    assert not result.is_void
    total = result.metric("total")
    assert total.relative_effect_ci is not None
    low, high = total.relative_effect_ci
    assert low is not None
    assert high is not None
    assert low < 0.1 < high
    assert total.verdict == "better"
    assert total.cuped is not None
    assert total.cuped.variance_reduction > 0.2  # what they did as control, the day before
    assert result.excluded.get("units in two arms", 0) == 0
    assert [round(each.shares["treatment"], 9) for each in result.stages] == [0.01, 0.05, 0.25, 0.5]
    assert [each.start_utc_seconds for each in result.stages] == [60.0, DAY + 60, 2 * DAY + 60, 3 * DAY + 60]
    assert [each.end_utc_seconds for each in result.stages] == [DAY, 2 * DAY, 3 * DAY, None]
    assert result.units < sum(sum(each.observed.values()) for each in result.stages)
    assert result.units <= 4000
    for each in result.stages:
        assert sum(each.observed.values()) == pytest.approx(sum(each.expected.values()))
        assert each.p_value is not None
        assert each.p_value > 0.001
    assert result.stages[0].back == 0
    assert result.stages[3].back > 1000
    assert result.stages[3].left_out["had had treatment before"] > 500
    path = tmp_path / "result.json"
    path.write_bytes(result.to_json())
    assert read_result(path) == result
    page = render_report(result)
    assert "<h2>Stages</h2>" in page
    assert "had had treatment before" in page

    as_one = dataclasses.replace(plan, stages=(), treatment_share=0.5, pre_period=None)
    one = analyse(as_one, units_of_events(folder, as_one, registry=REGISTRY))
    assert one.is_void
    assert one.excluded["units in two arms"] > 1000


def test_a_split_that_the_stages_do_not_explain_is_void(tmp_path: Path) -> None:
    # Who is drawn anew at each step, by another salt: those back from control are treatment too often.
    rng = np.random.default_rng(5)
    events = []
    for number in range(3000):
        for day, share in enumerate((0.25, 0.5)):
            variant = "treatment" if rng.random() < share else "control"
            events.append(exposed(f"u{number}", day * DAY + 100.0, variant))
            events.append(
                Watched(at_utc_seconds=day * DAY + 101.0, user=f"u{number}", seconds=float(rng.gamma(4.0)))
            )
    plan = dataclasses.replace(PLAN, stages=stages_at(0.25, 0.5))
    result = analyse(plan, units_of_events(write(tmp_path / "e", events), plan, registry=REGISTRY))
    assert result.is_void
    first, second = result.stages
    assert first.p_value is not None
    assert second.p_value is not None
    assert second.p_value < 0.001 < first.p_value


def test_a_trigger_counts_within_its_stage_only(tmp_path: Path) -> None:
    events: list[Event] = []
    for user in ("a", "b"):
        events += [exposed(user, 100.0, "control"), exposed(user, DAY + 100.0, "control")]
    events += [exposed(user, 100.0, "treatment") for user in ("c", "d")]
    for at in (150.0, 200.0, DAY + 30.0, DAY + 150.0):  # the third, while the second stage settles
        events += [Watched(at_utc_seconds=at, user=user, seconds=1.0, liked=True) for user in "abcd"]
    plan = dataclasses.replace(
        PLAN,
        stages=stages_at(0.05, 0.5),
        trigger=Trigger(event="watched", unit_field="user", where="liked == True"),
    )
    units = units_of_events(write(tmp_path / "e", events), plan, registry=REGISTRY)
    found = sorted(
        (row["fairlead unit"], row["group stage"], row["fairlead entered"], row["total"])
        for row in units.rows.to_pyarrow().to_pylist()
    )
    assert found == [
        ("a", "1", 150.0, 2.0), ("a", "2, back from 1", DAY + 150.0, 1.0),
        ("b", "1", 150.0, 2.0), ("b", "2, back from 1", DAY + 150.0, 1.0),
        ("c", "1", 150.0, 2.0), ("d", "1", 150.0, 2.0),
    ]  # fmt: skip


def test_of_three_variants_only_newcomers_have_a_draw_that_is_known(tmp_path: Path) -> None:
    stages = (
        Stage(start=0.0, shares={"control": 0.8, "b": 0.1, "c": 0.1}),
        Stage(start=DAY, shares={"control": 0.4, "b": 0.3, "c": 0.3}),
    )
    plan = dataclasses.replace(PLAN, stages=stages)
    events = [exposed("a", 1.0, "control"), exposed("a", DAY + 1, "b"), exposed("n", DAY + 1, "c")]
    units = units_of_events(write(tmp_path / "e", events), plan, registry=REGISTRY)
    rows = units.rows.to_pyarrow().to_pylist()
    assert {(row["fairlead unit"], row["group stage"]) for row in rows} == {("a", "1"), ("n", "2")}
    assert sum(units.left_out[1].values()) == 1
    assert set(units.strata) == {"1", "2"}


def test_a_period_counts_who_was_drawn_in_it_and_what_came_of_it_until_its_end(tmp_path: Path) -> None:
    events: list[Event] = [
        exposed("before", 5.0, "control"),
        exposed("moved", 5.0, "control"), exposed("moved", 15.0, "treatment"),
        exposed("in", 12.0, "control"),
        exposed("late", 25.0, "treatment"),
    ]  # fmt: skip
    for user in ("before", "moved", "in", "late"):
        events += [Watched(at_utc_seconds=float(at), user=user, seconds=1.0) for at in (4, 6, 13, 19, 21)]
    folder = write(tmp_path / "e", events)
    plan = dataclasses.replace(PLAN, stages=(), pre_period=100.0)
    units = units_of_events(folder, plan, registry=REGISTRY, since=10.0, until=20.0)
    rows = units.rows.to_pyarrow().to_pylist()
    found = {row["fairlead unit"]: (row["group variant"], row["total"], row["before total"]) for row in rows}
    # The past of who moved ends where it met the flag first, in either arm.
    assert found == {"moved": ("treatment", 1.0, 1.0), "in": ("control", 2.0, 2.0)}
    assert units.excluded["units that were drawn outside the stages or the period only"] == 2
    assert units.period == (10.0, 20.0)
    with pytest.raises(TooFewUnits, match="before the stage or the period ends"):
        units_of_events(
            folder, dataclasses.replace(plan, conversion_window=19.0), registry=REGISTRY, until=20.0, now=99.0
        )
    with pytest.raises(InvalidInput, match="the plan has stages"):
        units_of_events(folder, PLAN, registry=REGISTRY, since=10.0)


def test_exposures_without_a_time_are_in_no_stage_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "e"
    folder.mkdir()
    named = '"event": "exposure", "flag": "f", "reason": "SPLIT", "variant": "control"'
    lines = [
        f'{{{named}, "targeting_key": "a", "at_utc_seconds": 100.0}}',
        f'{{{named}, "targeting_key": "b"}}',
        f'{{{named}, "targeting_key": "c", "at_utc_seconds": null}}',
        f'{{{named}, "targeting_key": "d", "at_utc_seconds": 1e999}}',
        f'{{{named}, "targeting_key": "e", "at_utc_seconds": "noon"}}',
    ]
    (folder / "events-1.jsonl").write_text("".join(line + "\n" for line in lines))
    for plan, reason in (
        (PLAN, "units that were drawn outside the stages or the period only"),
        (dataclasses.replace(PLAN, stages=()), "units whose exposures have no time"),
    ):
        units = units_of_events(folder, plan, registry=REGISTRY)
        assert [row["fairlead unit"] for row in units.rows.to_pyarrow().to_pylist()] == ["a"]
        assert units.excluded[reason] == 4
