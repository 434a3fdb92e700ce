"""Exposures joined with outcomes by DuckDB are those that a loop in plain Python finds."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import ibis
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairlead.errors import InvalidInput, TooFewUnits
from fairlead.experiment import ExperimentPlan, Trigger, analyse, units_of_events, units_of_table
from fairlead.metrics import Metric
from fairlead.telemetry import EVENTS, Event, EventRegistry, EventSchema, Exposure, Internal, Personal
from fairlead.telemetry.event import encode_event
from fairlead.telemetry.jsonl import JsonLinesSegments


class Watched(Event, frozen=True, kw_only=True, tag="watched"):
    schema: ClassVar[EventSchema] = EventSchema(role="outcome")
    user: Personal[str]
    seconds: Internal[float | None] = None
    liked: Internal[bool] = False


REGISTRY = EventRegistry([*EVENTS.kinds.values(), Watched])


def metric(name: str, kind: str, field: str | None = None, **more: object) -> Metric:
    return Metric(
        **{  # type: ignore[arg-type]  # fields by name
            "name": name,
            "title": name,
            "role": "secondary",
            "kind": kind,
            "event": "watched",
            "field": field,
            "unit": "ratio" if kind == "proportion" else "seconds",
            "unit_of_analysis": "user",
            "unit_field": "user",
            "side": "client",
            "window": "7d",
            "segment": "everybody",
            "better": "higher",
            "design": "controlled",
            **more,
        }
    )


TOTAL = metric("total", "total", "seconds")
PER_EVENT = metric("per_event", "mean", "seconds")
LIKED = metric("liked", "proportion", "liked")
PLAN = ExperimentPlan(
    name="p", metrics=(TOTAL, PER_EVENT, LIKED), flag="f", conversion_window=10.0, pre_period=20.0
)


def write(folder: Path, events: Sequence[Event]) -> Path:
    writer = JsonLinesSegments(folder, prefix="events")
    try:
        if events:  # a writer is never asked to write nothing
            writer.write([encode_event(event) + b"\n" for event in events])
    finally:
        writer.close()
    return folder


def exposed(user: str, at: float, variant: str, flag: str = "f", reason: str = "SPLIT") -> Exposure:
    return Exposure(at_utc_seconds=at, flag=flag, variant=variant, targeting_key=user, reason=reason)


USERS = st.sampled_from([f"u{i}" for i in range(6)])
MOMENTS = st.integers(0, 60).map(float)
EXPOSURES = st.lists(
    st.tuples(USERS, MOMENTS, st.sampled_from(["control", "treatment"]), st.sampled_from(["f", "g"])),
    max_size=15,
)
WATCHED = st.lists(
    st.tuples(USERS, MOMENTS, st.one_of(st.none(), st.integers(0, 100).map(float)), st.booleans()),
    max_size=30,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(exposures=EXPOSURES, watched=WATCHED)
def test_the_join_is_that_of_a_loop(
    tmp_path_factory: pytest.TempPathFactory,
    exposures: list[tuple[str, float, str, str]],
    watched: list[tuple[str, float, float | None, bool]],
) -> None:
    folder = write(
        tmp_path_factory.mktemp("events"),
        [
            *(exposed(user, at, variant, flag) for user, at, variant, flag in exposures),
            *(
                Watched(at_utc_seconds=at, user=user, seconds=seconds, liked=liked)
                for user, at, seconds, liked in watched
            ),
        ],
    )
    end = 50.0
    variants: dict[str, set[str]] = defaultdict(set)
    first: dict[str, float] = {}
    for user, at, variant, flag in exposures:
        if flag == "f":
            variants[user].add(variant)
            first[user] = min(at, first.get(user, at))
    kept = {user for user in variants if len(variants[user]) == 1 and first[user] + 10.0 <= end}
    if not kept:
        with pytest.raises((TooFewUnits, InvalidInput)):
            units_of_events(folder, PLAN, now=end, registry=REGISTRY)
        return
    units = units_of_events(folder, PLAN, now=end, registry=REGISTRY)
    assert units.excluded["units in two arms"] == sum(len(found) == 2 for found in variants.values())
    family = units.measure()
    for variant in ("control", "treatment"):
        mine = [user for user in kept if variants[user] == {variant}]
        assert family.units.get((variant,), 0) == len(mine)
        if not mine:
            continue
        rows = []
        for user in mine:
            after = [w for w in watched if w[0] == user and first[user] <= w[1] < first[user] + 10.0]
            before = [w for w in watched if w[0] == user and first[user] - 20.0 <= w[1] < first[user]]
            rows.append(
                (
                    sum(w[2] or 0.0 for w in after),
                    sum(w[2] is not None for w in after),
                    sum(w[3] for w in after),
                    len(after),
                    sum(w[2] or 0.0 for w in before),
                    float(not before),
                )
            )
        expected = np.array(rows, dtype=float)
        total, per_event, liked = (
            family.moments[name][(variant,)] for name in ("total", "per_event", "liked")
        )
        assert total.mean("total") == pytest.approx(expected[:, 0].mean())
        assert total.mean("before total") == pytest.approx(expected[:, 4].mean())
        assert total.mean("before total is missing") == pytest.approx(expected[:, 5].mean())
        assert per_event.mean("per_event events") == pytest.approx(expected[:, 1].mean())
        assert liked.mean("liked") == pytest.approx(expected[:, 2].mean())
        assert liked.mean("liked events") == pytest.approx(expected[:, 3].mean())
        if len(mine) > 1:
            assert total.variance("total") == pytest.approx(expected[:, 0].var(ddof=1), abs=1e-9)


def test_only_whose_variant_was_drawn_is_in_an_arm_from_that_moment_on(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        [
            exposed("colleague", 1.0, "treatment", reason="TARGETING_MATCH"),
            exposed("a", 1.0, "control", reason="DEFAULT"),  # before the rollout everybody got control
            exposed("a", 20.0, "treatment"),
            exposed(
                "a", 21.0, "control", reason="ERROR"
            ),  # one request fell back; its arm is the one that was drawn
            exposed("b", 20.0, "control"),
            exposed("", 20.0, "control"),
            Watched(at_utc_seconds=10.0, user="a", seconds=3.0),
            Watched(at_utc_seconds=22.0, user="a", seconds=5.0),
        ],
    )
    plan = dataclasses.replace(PLAN, conversion_window=None)
    units = units_of_events(folder, plan, registry=REGISTRY)
    assert dict(units.excluded) == {"units whose variant was never drawn": 1, "units in two arms": 0}
    family = units.measure()
    assert family.units == {("control",): 1, ("treatment",): 1}
    assert family.moments["total"][("treatment",)].mean("total") == 5.0
    assert family.moments["total"][("treatment",)].mean("before total") == 3.0
    nobody = write(tmp_path / "nobody", [exposed("u", 1.0, "control", reason="DEFAULT")])
    with pytest.raises(TooFewUnits, match=r"1 served by flag 'f', 0 of them drawn \(reason SPLIT\)"):
        units_of_events(nobody, plan, registry=REGISTRY)


def test_only_the_triggered_count_from_their_trigger_on(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        [
            *(exposed(f"u{i}", 0.0, "treatment" if i % 2 else "control") for i in range(8)),
            *(Watched(at_utc_seconds=1.0, user=f"u{i}", seconds=5.0) for i in range(8)),
            *(Watched(at_utc_seconds=2.0, user=f"u{i}", seconds=7.0, liked=True) for i in range(4)),
        ],
    )
    plan = dataclasses.replace(
        PLAN,
        pre_period=None,
        conversion_window=None,
        trigger=Trigger(event="watched", unit_field="user", where="liked"),
    )
    units = units_of_events(folder, plan, registry=REGISTRY)
    assert units.excluded["exposed units that were not triggered"] == 4
    family = units.measure()
    assert family.units == {("control",): 2, ("treatment",): 2}
    assert (
        family.moments["total"][("control",)].mean("total") == 7.0
    )  # what came before the trigger is no outcome


def test_the_past_of_the_triggered_ends_with_their_exposure(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        [
            *(exposed(f"u{i}", 10.0, "treatment" if i % 2 else "control") for i in range(4)),
            *(Watched(at_utc_seconds=9.0, user=f"u{i}", seconds=3.0) for i in range(4)),
            # Exposed and not yet triggered: neither a past, as treatment may have changed it, nor an outcome.
            *(Watched(at_utc_seconds=15.0, user=f"u{i}", seconds=5.0) for i in range(4)),
            *(Watched(at_utc_seconds=20.0, user=f"u{i}", seconds=7.0, liked=True) for i in range(4)),
        ],
    )
    plan = dataclasses.replace(
        PLAN, conversion_window=None, trigger=Trigger(event="watched", unit_field="user", where="liked")
    )
    total = units_of_events(folder, plan, registry=REGISTRY).measure().moments["total"][("control",)]
    assert total.mean("total") == 7.0
    assert total.mean("before total") == 3.0


def test_a_file_about_units_brings_segments_and_covariates(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "events",
        [
            *(exposed(f"u{i}", float(i), "treatment" if i % 2 else "control") for i in range(6)),
            *(Watched(at_utc_seconds=i + 1.0, user=f"u{i}", seconds=float(i)) for i in range(6)),
        ],
    )
    about = tmp_path / "about.csv"
    about.write_text("unit,country,last_week\nu0,AT,1\nu1,AT,2\nu2,DE,3\nu3,DE,\nu9,CH,9\n")
    plan = dataclasses.replace(
        PLAN,
        pre_period=None,
        conversion_window=None,
        segments=("country",),
        covariates={"total": ("last_week",)},
    )
    units = units_of_events(folder, plan, about_units=about, registry=REGISTRY)
    family = units.measure(("variant", "country"))
    assert family.units == {
        ("control", ""): 1,
        ("control", "AT"): 1,
        ("control", "DE"): 1,
        ("treatment", ""): 1,
        ("treatment", "AT"): 1,
        ("treatment", "DE"): 1,
    }
    control = units.measure().moments["total"][("control",)]
    assert control.mean("before last_week") == pytest.approx((1 + 3 + 0) / 3)
    assert control.mean("before last_week is missing") == pytest.approx(1 / 3)  # u4 is not in the file
    with pytest.raises(InvalidInput, match="no such column of the units"):
        units_of_events(folder, plan, registry=REGISTRY)


def table(**columns: object) -> ibis.expr.types.Table:
    return ibis.memtable(pa.table(columns))


def test_many_rows_of_a_unit_are_one_unit() -> None:
    rows = table(
        user=["a", "a", "b", "c", "c", None],
        arm=["control", "control", "treatment", "control", "treatment", "control"],
        seconds=[1.0, 2.0, 4.0, 8.0, 16.0, 32.0],
    )
    plan = ExperimentPlan(
        name="p",
        metrics=(
            Metric.from_column("total", "total", "seconds", unit_field="unit"),
            Metric.from_column("each", "mean", "seconds"),
        ),
    )
    units = units_of_table(rows, plan, variant="arm", unit="user")
    assert dict(units.excluded) == {"rows without a variant or a unit": 1, "units in two arms": 1}
    family = units.measure()
    assert family.units == {("control",): 1, ("treatment",): 1}
    assert family.moments["total"][("control",)].mean("total") == 3.0
    assert units.columns["each"] == ("each", "each events")


def test_units_that_the_file_does_not_know_are_marked_even_where_it_has_no_gap(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "events",
        [
            *(exposed(f"u{i}", float(i), "treatment" if i % 2 else "control") for i in range(6)),
            *(Watched(at_utc_seconds=i + 1.0, user=f"u{i}", seconds=float(i)) for i in range(6)),
        ],
    )
    about = tmp_path / "about.csv"
    about.write_text("unit,last_week\nu0,1\nu1,2\nu2,3\nu3,4\n")
    plan = dataclasses.replace(
        PLAN, pre_period=None, conversion_window=None, covariates={"total": ("last_week",)}
    )
    units = units_of_events(folder, plan, about_units=about, registry=REGISTRY)
    assert units.covariates["total"] == ("before last_week", "before last_week is missing")
    control = units.measure().moments["total"][("control",)]
    assert control.mean("before last_week") == pytest.approx((1 + 3 + 0) / 3)
    assert control.mean("before last_week is missing") == pytest.approx(1 / 3)


@pytest.mark.parametrize("gone", [None, float("nan"), float("inf")])
def test_a_unit_whose_past_is_no_number_stays_and_is_marked(gone: float | None) -> None:
    plan = ExperimentPlan(
        name="p", metrics=(Metric.from_column("v", "mean", "v"),), covariates={"v": ("past",)}
    )
    rows = table(
        arm=["control", "treatment"] * 4, v=[1.0] * 8, past=[gone, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    )
    control = units_of_table(rows, plan, variant="arm").measure().moments["v"][("control",)]
    assert control.n == 4
    assert control.mean("before past") == pytest.approx((0 + 3 + 5 + 7) / 4)
    assert control.mean("before past is missing") == 0.25


def test_a_past_that_only_one_row_of_a_unit_names_is_its_past() -> None:
    plan = ExperimentPlan(
        name="p", metrics=(Metric.from_column("v", "mean", "v"),), covariates={"v": ("past",)}
    )
    rows = table(
        user=["a", "a", "b", "b", "c"],
        arm=["control", "control", "control", "control", "treatment"],
        v=[1.0, 2.0, 3.0, 4.0, 5.0],
        past=[None, 9.0, None, None, 5.0],
    )
    control = units_of_table(rows, plan, variant="arm", unit="user").measure().moments["v"][("control",)]
    assert control.mean("before past") == 4.5
    assert control.mean("before past is missing") == 0.5


def test_values_that_are_not_there_are_said_where_rows_are_summed(tmp_path: Path) -> None:
    metrics = (
        Metric.from_column("each", "mean", "v"),
        Metric.from_column("all", "total", "v", unit_field="unit"),
        Metric.from_column("share", "ratio", "v", denominator="w"),
    )
    rows = table(
        user=["a", "a", "b", "b"],
        arm=["control", "control", "treatment", "treatment"],
        v=[1.0, None, float("nan"), 4.0],
        w=[1.0, 1.0, 1.0, None],
    )
    of_rows = units_of_table(rows, ExperimentPlan(name="p", metrics=metrics), variant="arm", unit="user")
    said = "{} events without a finite value do not count"
    assert dict(of_rows.caveats) == {
        "each": (said.format(2),), "all": (said.format(2),), "share": (said.format(3),)
    }  # fmt: skip
    ratio = ExperimentPlan(name="p", metrics=metrics[2:])
    assert dict(units_of_table(rows, ratio, variant="arm").caveats) == {"share": (said.format(3),)}
    folder = write(
        tmp_path, [exposed("u", 0.0, "control"), *(Watched(at_utc_seconds=1.0, user="u") for _ in range(3))]
    )
    of_events = units_of_events(
        folder, dataclasses.replace(PLAN, conversion_window=None), now=9.0, registry=REGISTRY
    )
    assert dict(of_events.caveats) == {"total": (said.format(3),), "per_event": (said.format(3),)}


def test_values_of_one_unit_stay_together() -> None:
    # So many that the engine gives the groups of two queries in two orders.
    user = np.random.default_rng(3).integers(0, 100_000, 300_000)
    views = user % 7 + 1.0
    plan = ExperimentPlan(
        name="p", metrics=(Metric.from_column("share", "ratio", "clicks", denominator="views"),)
    )
    rows = table(user=user, clicks=views * 2, views=views)
    units = units_of_table(rows, plan, variant=None, unit="user")
    for _ in range(3):
        values = units.values(("share", "share below"))
        assert (values[:, 0] == 2 * values[:, 1]).all()


def test_a_cap_is_taken_over_both_arms() -> None:
    rng = np.random.default_rng(2)
    values = rng.lognormal(0, 2, 2000)
    plan = ExperimentPlan(name="p", metrics=(Metric.from_column("v", "mean", "v"),), caps={"v": 0.99})
    rows = table(arm=["control", "treatment"] * 1000, v=values)
    units = units_of_table(rows, plan, variant="arm")
    cap = np.quantile(values, 0.99)
    found = units.measure().moments["v"][("control",)]
    assert found.mean("v") == pytest.approx(np.minimum(values[::2], cap).mean())
    assert "the 0.99 quantile of all arms together" in units.measure().caveats["v"][0]
    with pytest.raises(TooFewUnits, match="10 needed"):
        units_of_table(rows, dataclasses.replace(plan, caps={"v": 0.9999}), variant="arm")
    ratio = ExperimentPlan(
        name="p", metrics=(Metric.from_column("v", "ratio", "v", denominator="v"),), caps={"v": 0.9}
    )
    with pytest.raises(InvalidInput, match="only a value per unit can be capped"):
        units_of_table(rows, ratio, variant="arm")


@pytest.mark.parametrize("gone", [None, float("nan"), float("inf"), float("-inf")])
def test_a_cap_leaves_what_is_missing_missing(gone: float | None) -> None:
    values: list[float | None] = np.random.default_rng(2).lognormal(0, 2, 2000).tolist()
    cap = np.quantile(np.array(values[200:], dtype=float), 0.99)
    wanted = np.minimum(np.array(values[200:], dtype=float), cap)[::2]
    values[:200] = [gone] * 200
    plan = ExperimentPlan(name="p", metrics=(Metric.from_column("v", "mean", "v"),), caps={"v": 0.99})
    units = units_of_table(table(arm=["control", "treatment"] * 1000, v=values), plan, variant="arm")
    family = units.measure()
    found = family.moments["v"][("control",)]
    assert found.n == 900
    assert found.mean("v") == pytest.approx(wanted.mean())
    assert any("200 units without a finite value" in caveat for caveat in family.caveats["v"])


def test_a_column_of_many_numbers_is_cut_into_quarters() -> None:
    size = np.arange(1.0, 101.0)
    plan = ExperimentPlan(
        name="p", metrics=(Metric.from_column("v", "mean", "size"),), segments=("size", "flag")
    )
    rows = table(arm=["control", "treatment"] * 50, size=size, flag=[1, 2] * 50)
    units = units_of_table(rows, plan, variant="arm")
    family = units.measure(("variant", "size"))
    assert {group[1] for group in family.units} == {
        "up to 25.75",
        "25.75 to 50.5",
        "50.5 to 75.25",
        "above 75.25",
    }
    assert sum(family.units.values()) == 100
    assert {group[1] for group in units.measure(("variant", "flag")).units} == {"1", "2"}
    assert any("quartiles" in caveat for caveat in family.caveats[""])


def test_a_number_that_is_none_is_in_no_quarter() -> None:
    size = [*np.arange(1.0, 101.0), *[float("nan")] * 40, *[float("inf")] * 20]
    plan = ExperimentPlan(name="p", metrics=(Metric.from_column("v", "mean", "v"),), segments=("size",))
    units = units_of_table(
        table(arm=["control", "treatment"] * 80, v=[1.0] * 160, size=size), plan, variant="arm"
    )
    counts: dict[str, int] = {}
    for group, n in units.measure(("variant", "size")).units.items():
        counts[group[1]] = counts.get(group[1], 0) + n
    assert counts == {"": 60, "up to 25.75": 25, "25.75 to 50.5": 25, "50.5 to 75.25": 25, "above 75.25": 25}


def test_quarters_that_lie_close_have_names_of_their_own() -> None:
    since = 1_700_000_000.0 + np.arange(100.0)
    plan = ExperimentPlan(name="p", metrics=(Metric.from_column("v", "mean", "v"),), segments=("since",))
    units = units_of_table(
        table(arm=["control", "treatment"] * 50, v=[1.0] * 100, since=since), plan, variant="arm"
    )
    assert len({group[1] for group in units.measure(("variant", "since")).units}) == 4


def test_a_column_that_is_not_there_is_named_with_those_that_are() -> None:
    plan = ExperimentPlan(name="p", metrics=(Metric.from_column("v", "mean", "v"),))
    with pytest.raises(InvalidInput, match="no column 'arm'; there are variant, v"):
        units_of_table(table(variant=["control"], v=[1.0]), plan, variant="arm")


def test_steps_follow_from_when_units_entered() -> None:
    hour = 3600.0
    plan = ExperimentPlan(name="p", metrics=(Metric.from_column("v", "mean", "v"),))
    at = [1_700_000_000.0 + i * hour for i in range(48)]
    rows = table(arm=["control", "treatment"] * 24, v=[1.0] * 48, at=at)
    units = units_of_table(rows, plan, variant="arm", time="at")
    assert units.step_seconds == 6 * hour
    assert units.entered == (at[0], at[-1])
    family = units.measure(("variant", "step"), metrics=())
    assert sum(family.units.values()) == 48
    assert {int(group[1]) for group in family.units} == set(range(8))


@pytest.mark.parametrize("gone", [None, float("nan"), float("inf"), float("-inf")])
def test_a_row_without_a_time_is_left_out_and_counted(gone: float | None) -> None:
    plan = ExperimentPlan(name="p", metrics=(Metric.from_column("v", "mean", "v"),))
    at: list[float | None] = [float(i) for i in range(100)]
    at[7] = gone
    rows = table(arm=["control", "treatment"] * 50, v=[float(i) for i in range(100)], at=at)
    units = units_of_table(rows, plan, variant="arm", time="at")
    assert units.excluded["rows without a time"] == 1
    assert analyse(plan, units).units == 99
