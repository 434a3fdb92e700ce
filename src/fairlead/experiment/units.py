"""Who was in the experiment, and what became of each: exposures joined with outcomes, one row per unit.

    exposures → those drawn → first of each unit → units in two arms out → the triggered → those whose window is over
    outcomes  → from first exposure on, within the conversion window → sums per unit, zero where there were none
    the past  → the same sums before exposure: covariates; units without a past are marked, not dropped

Traps this avoids: an outcome from before the exposure cannot be its effect; a unit without an outcome is a zero and no
gap; a unit that saw both variants belongs to neither; a unit that came an hour ago has had no week to come back, and in
a growing arm there are more of those. Everything left out is counted.

The room's only file that speaks Ibis; the expressions are those of the warehouse, so every engine computes alike.
"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.errors import InvalidInput, MissingExtra, TooFewUnits
from fairlead.experiment.plan import HISTORY, STEP, VARIANT, ExperimentPlan
from fairlead.metrics import Family, Metric, parse_condition
from fairlead.metrics.source import COVARIATE, Group
from fairlead.metrics.warehouse import Warehouse
from fairlead.metrics.warehouse_columns import (
    ONE,
    fields_of,
    is_finite,
    pieces_of,
    seconds_of,
    text_of,
    where_of,
)
from fairlead.metrics.warehouse_sums import left_out, moments_of, run
from fairlead.metrics.warehouse_tables import table_of_files, tables_of_events
from fairlead.statistics import Estimate, Moments
from fairlead.statistics.clusters import FloatArray
from fairlead.telemetry.schema import EVENTS, EventRegistry

try:
    import ibis
    import ibis.expr.types as ir
except ImportError as missing:
    raise MissingExtra(missing.name or "ibis-framework", "warehouse") from missing

__all__ = ["Units", "units_of_events", "units_of_files", "units_of_table"]

_UNIT = "fairlead unit"
_ENTERED = "fairlead entered"
_EXPOSED = "fairlead exposed"
_LAST = "fairlead last variant"
_NEW = " is missing"
_DRAWN = "SPLIT"
"""OpenFeature's reason of an exposure whose variant a unit's bucket named."""
_STEPS = (60.0, 300.0, 900.0, 3600.0, 6 * 3600.0, 86400.0, 7 * 86400.0, 28 * 86400.0)
_MOST_STEPS = 40
_NUMBERS = 20
"""Different numbers in a column, beyond which it is cut into quarters to be a segment."""


@dataclass(kw_only=True)
class Units:
    """One row per unit, ready to be summed by any grouping. Not to be shared between threads."""

    rows: ir.Table
    """One row per unit: a column ``group NAME`` for each grouping, and the columns of the metrics."""
    metrics: tuple[Metric, ...]
    """As they are computed: with the unit's field, where a unit has many rows."""
    columns: Mapping[str, tuple[str, ...]]
    """By metric but quantiles: the columns of its sums, without covariates."""
    covariates: Mapping[str, tuple[str, ...]]
    """By metric: columns known before exposure; an ``… is missing`` marks units without a past."""
    groupings: tuple[str, ...]
    """What units can be grouped by, beside the variant."""
    order: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By grouping of numbers: its values by size. Others are sorted by their text."""
    events: Mapping[str, ir.Table] = field(default_factory=dict)
    """By quantile metric: the rows that count, with their unit's variant."""
    excluded: Mapping[str, int] = field(default_factory=dict)
    """How many units were left out, by reason."""
    caveats: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By metric: what a reader must know; "" for all."""
    entered: tuple[float, float] | None = None
    """When the first unit entered, and the last; seconds since 1970, UTC. None: not known."""
    step_seconds: float | None = None
    """Length of a step of the grouping `step`; None where there is none."""
    log: list[str] = field(default_factory=list)
    """The queries so far."""

    def values(self, names: Sequence[str]) -> FloatArray:
        """Columns of the units, shape (n, len(names)); NaN where a value is missing.

        Rows come in any order, another one each time: ask for columns that belong together in one call.
        """
        asked = {f"c{index}": self.rows[name].cast("float64") for index, name in enumerate(names)}
        found = self.rows.select(**asked).to_pyarrow()
        columns = [found[name].to_numpy(zero_copy_only=False) for name in asked]
        return np.column_stack([np.asarray(column, dtype=np.float64) for column in columns])

    def measure(self, by: Sequence[str] = (VARIANT,), *, metrics: Sequence[str] | None = None) -> Family:
        """The moments of the metrics by grouping columns; quantiles by the variant only."""
        for name in by:
            if name not in (VARIANT, *self.groupings):
                raise InvalidInput(
                    f"units cannot be grouped by {name[:80]!r}; there are {', '.join(self.groupings)}"
                )
        wanted = [metric for metric in self.metrics if metrics is None or metric.name in metrics]
        columns = {
            metric.name: (*self.columns[metric.name], *(self.covariates.get(metric.name, ())))
            for metric in wanted
            if metric.name in self.columns
        }
        log: list[str] = []
        moments: dict[str, dict[Group, Moments]] = {}
        units: dict[Group, int] = {}
        caveats: dict[str, tuple[str, ...]] = {}
        if columns:
            moments, units, caveats = moments_of(self.rows, by, columns, log)
        else:
            groups = [f"group {name}" for name in by]
            found = run(self.rows.group_by(groups).aggregate(n=self.rows.count()), log)
            units = {tuple(str(row[name]) for name in groups): int(row["n"]) for row in found}
        quantiles: dict[str, Mapping[Group, Estimate]] = {}
        if tuple(by) == (VARIANT,):
            for metric in wanted:
                if metric.kind == "quantile":
                    found_one = Warehouse(self.events[metric.name]).measure([metric], by=[VARIANT])
                    quantiles[metric.name] = found_one.quantiles[metric.name]
                    caveats |= found_one.caveats
                    log.append(found_one.query_sha256)
        self.log += log
        return Family(
            columns=columns,
            moments=moments,
            quantiles=quantiles,
            units=units,
            query_sha256=hashlib.sha256("\n".join(log).encode()).hexdigest(),
            caveats={
                name: (*self.caveats.get(name, ()), *caveats.get(name, ()))
                for name in {**self.caveats, **caveats}
            },
        )


def units_of_files(
    paths: Sequence[Path],
    plan: ExperimentPlan,
    *,
    variant: str | None,
    unit: str | None = None,
    time: str | None = None,
) -> Units:
    """As `units_of_table`, of Parquet or CSV files. Raises BrokenDocument too."""
    return units_of_table(
        table_of_files([Path(path) for path in paths]), plan, variant=variant, unit=unit, time=time
    )


def units_of_table(
    table: ir.Table,
    plan: ExperimentPlan,
    *,
    variant: str | None,
    unit: str | None = None,
    time: str | None = None,
) -> Units:
    """The units of one table that has the variant, and everything measured, in columns.

    variant, unit, time: columns. variant None: all are `history`, before any experiment. unit None: each row is one.
    Where a unit has several rows they are summed, and its variance is that of units. time: when a unit entered, a
    time stamp or seconds since 1970; it allows steps and stages. Rows without a variant, a unit or a time are left out
    and counted. Raises InvalidInput for a column that is not there.
    """
    log: list[str] = []
    wanted = [*filter(None, (variant, unit, time)), *plan.group_columns]
    wanted += [column for columns in plan.covariates.values() for column in columns]
    wanted += [column for metric in plan.metrics for column in fields_of(metric)]
    _check_columns(wanted, table)
    named = [table[column].notnull() for column in (variant, unit) if column is not None]
    arm = ibis.literal(HISTORY) if variant is None else text_of(table[variant])
    groups, order, cut = _segments(table, plan.group_columns, log)
    prior, covariates = _covariates(table, plan)
    base = table.mutate(**{ONE: ibis.literal(1.0), f"group {VARIANT}": arm, **groups, **prior})
    if time is not None:
        base = base.mutate(**{_ENTERED: seconds_of(base[time], time)})
    excluded = {}
    if time is not None:
        # A unit that entered nobody knows when is in no step and no stage.
        total = _count(base, log)
        base = base.filter(is_finite(base[_ENTERED]))
        excluded["rows without a time"] = total - _count(base, log)
    if named:
        total = _count(base, log)
        base = base.filter(*named)
        excluded["rows without a variant or a unit"] = total - _count(base, log)
    single = unit is None or _is_unique(base, unit, log)
    unit_field = None if single else unit
    metrics = tuple(_per_unit(metric, unit_field) for metric in plan.metrics)
    summed = [metric for metric in metrics if metric.kind != "quantile"]
    caveats = left_out(summed, base, unit_field, log)
    pieces = {metric.name: pieces_of(metric, base, unit_field) for metric in summed}
    columns = {name: tuple(parts) for name, parts in pieces.items()}
    values = {column: value for parts in pieces.values() for column, value in parts.items()}
    keep = [f"group {VARIANT}", *groups, *prior, *([_ENTERED] if time else [])]
    if single:
        rows = base.select(*keep, **values)
        events = base.mutate(**{VARIANT: base[f"group {VARIANT}"]})
    else:
        same = {name: base[name].min() for name in keep}
        rows = base.group_by(**{_UNIT: base[unit]}).aggregate(
            **same,
            **{_LAST: base[f"group {VARIANT}"].max()},
            **{name: value.sum() for name, value in values.items()},
        )
        rows, excluded["units in two arms"] = _in_one_arm(rows, log)
        of_unit = rows.select(_UNIT, **{VARIANT: rows[f"group {VARIANT}"]})
        events = base.drop(VARIANT) if VARIANT in base.columns else base
        events = events.inner_join(of_unit, events[unit] == of_unit[_UNIT]).drop(_UNIT)
    rows, marked = _marked(rows, covariates, log)
    return _finished(
        Units(
            rows=rows,
            metrics=metrics,
            columns=columns,
            covariates=marked,
            groupings=plan.group_columns,
            order=order,
            events={metric.name: events for metric in metrics if metric.kind == "quantile"},
            excluded=excluded,
            caveats={**caveats, **({"": cut} if cut else {})},
            log=log,
        ),
        plan,
        has_time=time is not None,
    )


def units_of_events(
    directory: Path,
    plan: ExperimentPlan,
    *,
    about_units: Path | None = None,
    now: float | None = None,
    registry: EventRegistry = EVENTS,
) -> Units:
    """The units of an experiment from the events in a sink's folder: exposures, and the events of the metrics.

    Only exposures with the reason SPLIT are random: whom a rule, an override or a default gave a variant is in no arm
    by that, and counted where nothing else says its arm. about_units: a Parquet or CSV file with a column `unit`, and
    columns known of each before exposure: segments and covariates. now: when the data end; None: with the last event
    there is. Units whose conversion window is not over then are left out and counted. Raises InvalidInput,
    BrokenDocument, TooFewUnits where nobody was exposed.
    """
    if not plan.flag:
        raise InvalidInput(
            f"experiment {plan.name[:80]}: without a flag nobody can say whose exposures count"
        )
    log: list[str] = []
    kinds = [metric.event for metric in plan.metrics]
    kinds += [plan.trigger.event] if plan.trigger else []
    tables = tables_of_events(Path(directory), ["exposure", *kinds], registry)
    exposures = tables["exposure"]
    exposures = exposures.filter(exposures["flag"] == plan.flag, exposures["targeting_key"] != "")
    served = int(run(exposures.aggregate(n=exposures["targeting_key"].nunique()), log)[0]["n"])
    exposures = exposures.filter(exposures["reason"] == _DRAWN)
    first = exposures.group_by(**{_UNIT: exposures["targeting_key"]}).aggregate(
        **{
            f"group {VARIANT}": exposures["variant"].min(),
            _LAST: exposures["variant"].max(),
            _ENTERED: exposures["at_utc_seconds"].min(),
        }
    )
    first = first.mutate(**{_EXPOSED: first[_ENTERED]})
    excluded = {"units whose variant was never drawn": served - _count(first, log)}
    first, excluded["units in two arms"] = _in_one_arm(first, log)
    exposed = _count(first, log)
    if plan.trigger is not None:
        first = _triggered(first, tables[plan.trigger.event], plan, log)
        excluded["exposed units that were not triggered"] = exposed - _count(first, log)
    if plan.conversion_window is not None:
        end = now if now is not None else _last(tables, log)
        before = _count(first, log)
        first = first.filter(first[_ENTERED] + plan.conversion_window <= end)
        excluded["units whose conversion window is not over"] = before - _count(first, log)
    if _count(first, log) == 0:
        raise TooFewUnits(
            f"{plan.name[:80]}: no unit counts of {served:,} served by flag {plan.flag!r}, {exposed:,} of them "
            f"drawn (reason {_DRAWN}) for one arm; check the flag's name, the trigger, and whether conversion "
            "windows are over"
        )
    # Every metric joins with it: computed once.
    first = _kept(first, "fairlead_exposed")
    rows = first.mutate(**{ONE: ibis.literal(1.0)})
    caveats: dict[str, tuple[str, ...]] = {}
    covariates: dict[str, tuple[str, ...]] = {}
    columns: dict[str, tuple[str, ...]] = {}
    order: dict[str, tuple[str, ...]] = {}
    metrics = []
    events_of: dict[str, ir.Table] = {}
    if about_units is not None:
        rows, order, cut, marked = _with_attributes(rows, Path(about_units), first, plan, log)
        covariates |= marked
        if cut:
            caveats[""] = cut
    for metric in plan.metrics:
        if metric.unit_field is None:
            raise InvalidInput(
                f"metric {metric.name}: unit_field is missing; name the field of {metric.event} that names the unit"
            )
        metrics.append(metric)
        outcomes = tables[metric.event]
        _check_columns([metric.unit_field, *fields_of(metric)], outcomes, metric.name)
        joined = outcomes.inner_join(first, outcomes[metric.unit_field] == first[_UNIT])
        joined = joined.mutate(**{ONE: ibis.literal(1.0)})
        since = joined["at_utc_seconds"] - joined[_ENTERED]
        within = since >= 0.0
        if plan.conversion_window is not None:
            within = within & (since < plan.conversion_window)
        after = joined.filter(within)
        if metric.kind == "quantile":
            events_of[metric.name] = after.mutate(**{VARIANT: after[f"group {VARIANT}"]})
            continue
        caveats |= left_out([metric], after, metric.unit_field, log)
        rows, columns[metric.name] = _joined_sums(rows, metric, after)
        if plan.pre_period is not None:
            # Before exposure, not before the trigger: what treatment may have changed is no covariate.
            until = joined["at_utc_seconds"] - joined[_EXPOSED]
            past = joined.filter(until < 0.0, until >= -plan.pre_period)
            rows, prior = _joined_past(rows, metric, past)
            covariates[metric.name] = (*covariates.get(metric.name, ()), *prior)
    missing = [name for name in plan.group_columns if f"group {name}" not in rows.columns]
    if missing:
        raise InvalidInput(
            f"segments {', '.join(missing)[:200]}: no such column of the units; give a file about units that has it"
        )
    return _finished(
        Units(
            rows=_kept(rows, "fairlead_units"),
            metrics=tuple(metrics),
            columns=columns,
            covariates=covariates,
            groupings=plan.group_columns,
            order=order,
            events=events_of,
            excluded=excluded,
            caveats=caveats,
            log=log,
        ),
        plan,
        has_time=True,
    )


def _finished(units: Units, plan: ExperimentPlan, *, has_time: bool) -> Units:
    """With caps applied, and steps of time where it is known."""
    rows, caveats = units.rows, dict(units.caveats)
    for name, q in plan.caps.items():
        columns = units.columns.get(name, ())
        if len(columns) != 1:
            raise InvalidInput(
                f"cap of {name}: only a value per unit can be capped; a ratio, formula or quantile cannot"
            )
        rows, said = _capped(rows, columns[0], q, units.log)
        caveats[name] = (*caveats.get(name, ()), said)
    if not has_time:
        if plan.stages:
            raise InvalidInput("stages: the column that says when a unit entered is missing; name it as time")
        return replace(units, rows=rows, caveats=caveats)
    entered = rows[_ENTERED]
    span = run(rows.aggregate(first=entered.min(), last=entered.max()), units.log)[0]
    if span["first"] is None:
        return replace(units, rows=rows, caveats=caveats)
    first, last = float(span["first"]), float(span["last"])
    step = next((each for each in _STEPS if last - first < each * _MOST_STEPS), (last - first) / _MOST_STEPS)
    rows = rows.mutate(
        **{f"group {STEP}": ((rows[_ENTERED] - first) / step).floor().cast("int64").cast("string")}
    )
    groupings = (*units.groupings, STEP)
    if plan.stages:
        stage = ibis.literal(0)
        for stage_ in plan.stages:
            stage = stage + (rows[_ENTERED] >= stage_.start).cast("int64")
        rows = rows.mutate(**{"group stage": stage.cast("string")})
        groupings = (*groupings, "stage")
    return replace(
        units, rows=rows, caveats=caveats, entered=(first, last), step_seconds=step, groupings=groupings
    )


def _capped(rows: ir.Table, column: str, q: float, log: list[str]) -> tuple[ir.Table, str]:
    value = rows[column].cast("float64")
    # What is missing stays missing: the engine's `least` would make it the cap, and a NaN its largest value.
    there = is_finite(value).fill_null(False)
    finite = ibis.ifelse(there, value, ibis.null("float64"))
    found = run(rows.aggregate(cap=finite.quantile(q), n=finite.count()), log)[0]
    n = int(found["n"])
    if n * (1 - q) < 10 - 1e-9:
        raise TooFewUnits(
            f"cap of {column}: {n:,} units leave {n * (1 - q):.1f} beyond the {q:g} quantile, 10 needed; lower it"
        )
    cap = float(found["cap"])
    said = f"values above {cap:g}, the {q:g} quantile of all arms together, count as {cap:g}"
    return rows.mutate(**{column: ibis.ifelse(there & (value > cap), cap, value)}), said


def _per_unit(metric: Metric, unit: str | None) -> Metric:
    if unit is None:
        if metric.kind == "total":  # one row per unit: its total is its value
            return replace(metric, kind="mean", unit_field=None)
        return replace(metric, unit_field=None)
    return replace(metric, unit_field=unit, unit_of_analysis=unit)


def _is_unique(base: ir.Table, unit: str, log: list[str]) -> bool:
    found = run(base.aggregate(rows=base.count(), units=base[unit].nunique()), log)[0]
    return int(found["rows"]) == int(found["units"])


def _in_one_arm(rows: ir.Table, log: list[str]) -> tuple[ir.Table, int]:
    crossed = rows[f"group {VARIANT}"] != rows[_LAST]
    count = int(run(rows.aggregate(n=crossed.cast("int64").sum()), log)[0]["n"] or 0)
    return rows.filter(~crossed).drop(_LAST), count


def _kept(table: ir.Table, name: str) -> ir.Table:
    """Computed once, in a temporary table that lives as long as the engine's connection."""
    with warnings.catch_warnings():
        # Ibis 12 asks for the schema by a name that DuckDB has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        # Not cache(): it drops the table when the interpreter ends, by tools that are gone by then.
        return table.get_backend().create_table(name, table, temp=True)


def _count(rows: ir.Table, log: list[str]) -> int:
    return int(run(rows.aggregate(n=rows.count()), log)[0]["n"])


def _last(tables: Mapping[str, ir.Table], log: list[str]) -> float:
    ends = [
        run(table.aggregate(last=table["at_utc_seconds"].max()), log)[0]["last"] for table in tables.values()
    ]
    return max((float(end) for end in ends if end is not None), default=0.0)


def _triggered(first: ir.Table, events: ir.Table, plan: ExperimentPlan, log: list[str]) -> ir.Table:
    trigger = plan.trigger
    assert trigger is not None  # noqa: S101 - asked before
    _check_columns([trigger.unit_field], events, "trigger")
    if trigger.where:
        parse_condition(trigger.where)
        probe = Metric.from_column("trigger", "count")
        events = events.filter(where_of(replace(probe, where=trigger.where), events))
    joined = events.inner_join(first, events[trigger.unit_field] == first[_UNIT])
    joined = joined.filter(joined["at_utc_seconds"] >= joined[_ENTERED])
    return joined.group_by(_UNIT).aggregate(
        **{
            f"group {VARIANT}": joined[f"group {VARIANT}"].min(),
            _ENTERED: joined["at_utc_seconds"].min(),
            _EXPOSED: joined[_EXPOSED].min(),
        }
    )


def _joined_sums(rows: ir.Table, metric: Metric, after: ir.Table) -> tuple[ir.Table, tuple[str, ...]]:
    pieces = pieces_of(metric, after, metric.unit_field)
    sums = after.group_by(_UNIT).aggregate(**{name: value.sum() for name, value in pieces.items()})
    return _left(rows, sums, tuple(pieces)), tuple(pieces)


def _joined_past(rows: ir.Table, metric: Metric, past: ir.Table) -> tuple[ir.Table, tuple[str, ...]]:
    """The metric's own sums before exposure, and a mark for units that had none."""
    pieces = pieces_of(metric, past, metric.unit_field)
    renamed = {f"{COVARIATE}{name}": value.sum() for name, value in pieces.items()}
    mark = f"{COVARIATE}{metric.name}{_NEW}"
    sums = past.group_by(_UNIT).aggregate(**renamed, **{mark: past.count()})
    rows = _left(rows, sums, (*renamed, mark))
    rows = rows.mutate(**{mark: (rows[mark] == 0).cast("int64").cast("float64")})
    return rows, (*renamed, mark)


def _left(rows: ir.Table, sums: ir.Table, names: tuple[str, ...]) -> ir.Table:
    """Units without a row in `sums` get zeros: nothing happened to them."""
    sums = sums.rename({"fairlead other": _UNIT})
    joined = rows.left_join(sums, rows[_UNIT] == sums["fairlead other"]).drop("fairlead other")
    return joined.mutate(**{name: joined[name].cast("float64").fill_null(0.0) for name in names})


def _with_attributes(
    rows: ir.Table, path: Path, first: ir.Table, plan: ExperimentPlan, log: list[str]
) -> tuple[ir.Table, dict[str, tuple[str, ...]], tuple[str, ...], dict[str, tuple[str, ...]]]:
    # Through Arrow, as the file has a connection of its own.
    about = table_of_files([path])
    covariates = [column for columns in plan.covariates.values() for column in columns]
    _check_columns(["unit", *plan.group_columns, *covariates], about, str(path))
    groups, order, cut = _segments(about, plan.group_columns, log)
    prior, of = _covariates(about, plan)
    table = about.mutate(**groups, **prior).select(
        **{"fairlead other": about["unit"].cast("string")},
        **{name: ibis._[name] for name in (*groups, *prior)},
    )
    local = ibis.memtable(table.to_pyarrow())
    once = local.group_by("fairlead other").aggregate(
        **{name: local[name].min() for name in (*groups, *prior)}
    )
    joined = rows.left_join(once, rows[_UNIT].cast("string") == once["fairlead other"]).drop("fairlead other")
    joined = joined.mutate(**{name: joined[name].fill_null("") for name in groups})
    joined, marked = _marked(joined, of, log)
    return joined, order, cut, marked


def _segments(
    table: ir.Table, names: Sequence[str], log: list[str]
) -> tuple[dict[str, Any], dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Grouping columns as text, the order of those that are numbers, and what was cut into quarters."""
    groups: dict[str, Any] = {}
    order: dict[str, tuple[str, ...]] = {}
    said: list[str] = []
    for name in names:
        column = table[name]
        if not column.type().is_numeric() or column.type().is_boolean():
            groups[f"group {name}"] = text_of(column)
            continue
        number = column.cast("float64")
        there = is_finite(number).fill_null(False)
        number = ibis.ifelse(there, number, ibis.null("float64"))
        found = run(
            table.aggregate(
                different=number.nunique(), **{str(q): number.quantile(q) for q in (0.25, 0.5, 0.75)}
            ),
            log,
        )[0]
        if int(found["different"]) > _NUMBERS:
            edges = sorted({float(found[str(q)]) for q in (0.25, 0.5, 0.75)})
            texts = _told_apart(edges)
            order[name] = (
                f"up to {texts[0]}",
                *(f"{low} to {high}" for low, high in itertools.pairwise(texts)),
                f"above {texts[-1]}",
            )
            label = ibis.literal(order[name][-1])
            for edge, text in reversed(list(zip(edges, order[name], strict=False))):
                label = ibis.ifelse(number <= edge, text, label)
            groups[f"group {name}"] = ibis.ifelse(there, label, "")
            said.append(f"{name} is cut at {', '.join(texts)}, its quartiles")
            continue
        groups[f"group {name}"] = ibis.ifelse(there, text_of(column), "")
        texts_of = table.filter(there).select(text=text_of(column), number=number).distinct()
        order[name] = tuple(str(row["text"]) for row in run(texts_of.order_by("number"), log))
    return groups, order, tuple(said)


def _told_apart(edges: Sequence[float]) -> list[str]:
    """Numbers as text, with as many digits as tell them apart."""
    for digits in range(6, 18):
        texts = [f"{edge:.{digits}g}" for edge in edges]
        if len(set(texts)) == len(edges):
            break
    return texts


def _covariates(table: ir.Table, plan: ExperimentPlan) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
    """Covariate columns, null where there is no past or no number of it, and which metric has which."""
    names = list(dict.fromkeys(column for columns in plan.covariates.values() for column in columns))
    prior = {}
    for name in names:
        value = table[name].cast("float64")
        prior[f"{COVARIATE}{name}"] = ibis.ifelse(is_finite(value), value, ibis.null("float64"))
    of = {
        metric: tuple(f"{COVARIATE}{name}" for name in columns) for metric, columns in plan.covariates.items()
    }
    return prior, of


def _marked(
    rows: ir.Table, of: Mapping[str, tuple[str, ...]], log: list[str]
) -> tuple[ir.Table, dict[str, tuple[str, ...]]]:
    """One row per unit, with 0 and a mark where a unit has no past; the covariates of each metric, marks included."""
    names = list(dict.fromkeys(name for columns in of.values() for name in columns))
    if not names:
        return rows, {}
    new = {name: rows[name].isnull().cast("int64") for name in names}
    counts = run(rows.aggregate(**{name: each.sum() for name, each in new.items()}), log)[0]
    marks = {name: f"{name}{_NEW}" for name in names if counts[name]}
    filled = {name: rows[name].fill_null(0.0) for name in names}
    rows = rows.mutate(**filled, **{mark: new[name].cast("float64") for name, mark in marks.items()})
    return rows, {
        metric: tuple(each for name in columns for each in (name, marks.get(name)) if each)
        for metric, columns in of.items()
    }


def _check_columns(names: Sequence[str], table: ir.Table, of: str = "") -> None:
    for name in names:
        if name not in table.columns:
            listed = ", ".join(table.columns[:12]) + (" …" if len(table.columns) > 12 else "")
            where = f"{of}: " if of else ""
            raise InvalidInput(f"{where}no column {name[:80]!r}; there are {listed}")
