"""Switchbacks and before/after: planted effects come out, and drift before the change is told."""

from __future__ import annotations

import dataclasses
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pytest

from fairlead.errors import InvalidInput, TooFewUnits
from fairlead.experiment import (
    ExperimentPlan,
    Switchback,
    analyse,
    analyse_before_after,
    units_of_switchback,
)
from fairlead.metrics import Metric

HOUR = 3600.0
WAIT = Metric.from_column("wait", "mean", "wait", better="lower")
PLAN = ExperimentPlan(name="dispatch", metrics=(WAIT,))


def table(columns: dict[str, Any]) -> Any:
    return ibis.memtable(pa.table(columns))


def rides(seed: int, effect: float, carry_over: float = 0.0) -> dict[str, Any]:
    """Three weeks of rides in two cities; each hour has a level of its own, so rides of an hour are alike."""
    rng = np.random.default_rng(seed)
    design = Switchback(salt="dispatch", slot_seconds=HOUR)
    n = 30_000
    at = rng.random(n) * 21 * 24 * HOUR
    city = rng.choice(["vienna", "graz"], n)
    slot = (at // HOUR).astype(int)
    level = rng.normal(0.0, 30.0, (2, slot.max() + 1))
    treated = np.array(
        [design.variant_of(int(s), str(c)) == "treatment" for s, c in zip(slot, city, strict=True)]
    )
    before = np.array(
        [design.variant_of(int(s) - 1, str(c)) == "treatment" for s, c in zip(slot, city, strict=True)]
    )
    fresh = at % HOUR < 600
    felt = np.where(fresh & (carry_over > 0), before, treated)
    wait = 300 + level[(city == "graz").astype(int), slot] + rng.normal(0, 60, n) + effect * felt
    return {"at": at, "city": city.tolist(), "wait": wait}


def test_a_switchback_finds_what_was_planted_with_an_interval_over_slots() -> None:
    design = Switchback(salt="dispatch", slot_seconds=HOUR)
    units = units_of_switchback(table(rides(1, effect=-12.0)), PLAN, design, time="at", place="city")
    result = analyse(PLAN, units)
    wait = result.metric("wait")
    assert wait.effect_ci is not None
    low, high = wait.effect_ci
    assert low is not None
    assert high is not None
    assert low <= -12.0 <= high
    assert result.units == pytest.approx(2 * 21 * 24, abs=5)  # slots, not rides
    assert high - low > 4.0  # rides counted singly would give less than 3


def test_what_carries_over_is_left_out_with_the_washout() -> None:
    rows = table(rides(2, effect=-40.0, carry_over=1.0))
    plain = Switchback(salt="dispatch", slot_seconds=HOUR)
    careful = dataclasses.replace(plain, washout_seconds=600.0)
    diluted = analyse(PLAN, units_of_switchback(rows, PLAN, plain, time="at", place="city")).metric("wait")
    whole = analyse(PLAN, units_of_switchback(rows, PLAN, careful, time="at", place="city")).metric("wait")
    assert diluted.effect is not None
    assert whole.effect is not None
    assert whole.effect < diluted.effect
    assert whole.effect == pytest.approx(-40.0, abs=6.0)
    units = units_of_switchback(rows, PLAN, careful, time="at", place="city")
    assert units.excluded["events in a washout, or without a time"] == pytest.approx(5000, rel=0.1)


def test_a_switchback_of_one_slot_is_refused() -> None:
    rows = table({"at": [1.0, 2.0], "city": ["a", "a"], "wait": [1.0, 2.0]})
    with pytest.raises(TooFewUnits, match="1 slots"):
        units_of_switchback(rows, PLAN, Switchback(salt="s", slot_seconds=HOUR), time="at")


def test_a_column_that_is_called_as_the_units_of_a_switchback_is_refused_where_it_is_asked_for() -> None:
    rows = {**rides(1, effect=0.0), "slot": ["top"] * 30_000}
    design = Switchback(salt="dispatch", slot_seconds=HOUR)
    assert units_of_switchback(table(rows), PLAN, design, time="at").measure().units
    by_slot = dataclasses.replace(PLAN, segments=("slot",))
    with pytest.raises(InvalidInput, match="column 'slot': so a switchback calls its units"):
        units_of_switchback(table(rows), by_slot, design, time="at")


@pytest.mark.parametrize("gone", [None, float("nan"), float("inf"), 1e300])
def test_an_event_without_a_time_is_in_no_slot_and_counted(gone: float | None) -> None:
    rows = rides(1, effect=-12.0)
    rows["at"] = [gone, *rows["at"][1:].tolist()]
    design = Switchback(salt="dispatch", slot_seconds=HOUR)
    units = units_of_switchback(table(rows), PLAN, design, time="at", place="city")
    assert units.excluded["events in a washout, or without a time"] == 1


def shops(seed: int, effect: float, drift: float = 0.0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    rows: dict[str, list[Any]] = {"shop": [], "country": [], "at": [], "sales": []}
    for shop in range(80):
        country = "AT" if shop < 40 else "DE"
        level = rng.normal(100, 20)
        for week in range(-4, 2):
            value = level + 5 * week + rng.normal(0, 4)
            if country == "AT":
                value += drift * week + (effect if week >= 0 else 0.0)
            rows["shop"].append(f"s{shop}")
            rows["country"].append(country)
            rows["at"].append(1_700_000_000.0 + week * 7 * 86400 + 100)
            rows["sales"].append(value)
    return rows


def before_after(rows: dict[str, Any], kind: str = "total") -> Any:
    return analyse_before_after(
        table(rows), Metric.from_column("sales", kind, "sales", unit_field="shop"),  # type: ignore[arg-type]  # a kind
        unit="shop", group="country", treated="AT", time="at", changed_at_utc_seconds=1_700_000_000.0,
        period_seconds=7 * 86400.0, periods_before=4, periods_after=2,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["total", "mean"])
def test_a_change_in_one_country_is_the_difference_of_differences(kind: str) -> None:
    found = before_after(shops(1, effect=10.0), kind)
    assert found.effect.low <= 10.0 <= found.effect.high
    assert found.trends is not None
    assert found.trends.p_value > 0.01
    assert len(found.series["treatment"]) == 6
    assert any("not randomised" in caveat for caveat in found.caveats)


def test_a_drift_before_the_change_is_told() -> None:
    found = before_after(shops(1, effect=0.0, drift=3.0))
    assert found.effect.low > 0.0  # there is no effect at all: it is the drift
    assert any("did not move in parallel" in caveat for caveat in found.caveats)


@pytest.mark.parametrize("gone", [None, float("nan"), float("inf")])
def test_a_row_without_a_time_is_in_no_period_and_said(gone: float | None) -> None:
    rows = shops(1, effect=10.0)
    rows["shop"].append("s0")
    rows["country"].append("AT")
    rows["at"].append(gone)
    rows["sales"].append(1e6)
    found = before_after(rows)
    assert found.effect.effect == before_after(shops(1, effect=10.0)).effect.effect
    assert "1 rows without a shop, country or at do not count" in found.caveats


def test_a_unit_of_two_groups_is_refused_and_so_is_a_group_that_nobody_is_in() -> None:
    rows = shops(1, effect=0.0)
    rows["country"][0] = "DE"
    with pytest.raises(InvalidInput, match="a unit has one group"):
        before_after(rows)
    rows = shops(1, effect=0.0)
    rows["country"] = ["DE"] * len(rows["country"])
    with pytest.raises(TooFewUnits, match="check the name"):
        before_after(rows)
    with pytest.raises(InvalidInput, match="no value per unit and period"):
        before_after(shops(1, 0.0), "maximum")
