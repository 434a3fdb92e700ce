"""A rollout that grows, from its events: whom each stage had still to draw, beside a loop in plain Python; and what
comes of days that differ, of users who return through all stages, of effects that drive users away."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairlead.errors import InvalidInput, TooFewUnits
from fairlead.experiment import ExperimentPlan, Stage, Trigger, analyse, read_result, units_of_events
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
