"""Who was in the experiment, and what became of each: exposures joined with outcomes.

    exposures → those drawn → first of each unit → units in two arms out → the triggered → those whose window is over
    outcomes  → from first exposure on, within the conversion window → sums per unit, zero where there were none
    the past  → the same sums before exposure: covariates; units without a past are marked, not dropped

Traps this avoids: an outcome from before the exposure cannot be its effect; a unit without an outcome is a zero and no
gap; a unit that saw both variants belongs to neither; a unit that came an hour ago has had no week to come back, and in
a growing arm there are more of those. Everything left out is counted.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fairlead.errors import InvalidInput, MissingExtra, TooFewUnits
from fairlead.experiment.attributes import NEW, check_columns, covariates_of, marked, segments_of
from fairlead.experiment.plan import VARIANT, ExperimentPlan
from fairlead.experiment.ramp import ENDS, STAGE, TWO_ARMS, Drawn, by_stage, drawn_in_stages
from fairlead.experiment.stages import FOREVER
from fairlead.experiment.units import ENTERED, LAST, UNIT, Units, count_of, finished, in_one_arm
from fairlead.metrics import Metric, parse_condition
from fairlead.metrics.source import COVARIATE
from fairlead.metrics.warehouse_columns import ONE, fields_of, pieces_of, where_of
from fairlead.metrics.warehouse_sums import left_out, run
from fairlead.metrics.warehouse_tables import table_of_files, tables_of_events
from fairlead.telemetry.schema import EVENTS, EventRegistry

try:
    import ibis
    import ibis.expr.types as ir
except ImportError as missing:
    raise MissingExtra(missing.name or "ibis-framework", "warehouse") from missing

__all__ = ["units_of_events"]

_ROW = "fairlead row"
"""What a row is told apart by: its unit, and its stage where there are stages."""
_EXPOSED = "fairlead exposed"
_DRAWN = "SPLIT"
"""OpenFeature's reason of an exposure whose variant a unit's bucket named."""


def units_of_events(
    directory: Path,
    plan: ExperimentPlan,
    *,
    about_units: Path | None = None,
    now: float | None = None,
    since: float | None = None,
    until: float | None = None,
    registry: EventRegistry = EVENTS,
) -> Units:
    """The units of an experiment from the events in a sink's folder: exposures, and the events of the metrics.

    Only exposures with the reason SPLIT are random: whom a rule, an override or a default gave a variant is in no arm
    by that, and counted where nothing else says its arm. about_units: a Parquet or CSV file with a column `unit`, and
    columns known of each before exposure: segments and covariates. now: when the data end; None: with the last event
    there is. Units whose conversion window is not over then are left out and counted.

    A plan with stages counts those whom each stage had still to draw, from their first draw in it to its end
    (`ramp.py`); a unit may then have several rows. since, until: where the shares stood still for a while; seconds
    since 1970. Who is drawn in that time counts, with what came of it until then; what they were served before is not
    asked. Raises InvalidInput, BrokenDocument, TooFewUnits where nobody was exposed.
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
    excluded: dict[str, int] = {}
    staged: Drawn | None = None
    if plan.stages:
        if since is not None or until is not None:
            raise InvalidInput("since, until: the plan has stages, which say it; give the one or the other")
        drawn = int(run(exposures.aggregate(n=exposures["targeting_key"].nunique()), log)[0]["n"])
        first, staged = _in_stages(exposures, plan, log)
        outside = drawn - staged.met
        crossed = sum(each.get(TWO_ARMS, 0) for each in staged.left_out)
    else:
        first = _in_period(exposures, since, until)
        drawn = count_of(first, log)
        first = first.filter(first[ENTERED].notnull())
        outside = drawn - count_of(first, log)
        first, crossed = in_one_arm(first, log)
    excluded["units whose variant was never drawn"] = served - drawn
    if plan.stages or since is not None or until is not None:
        excluded["units that were drawn outside the stages or the period only"] = outside
    elif outside:
        excluded["units whose exposures have no time"] = outside
    excluded["units in two arms"] = crossed
    exposed = count_of(first, log)
    if plan.trigger is not None:
        first = _triggered(first, tables[plan.trigger.event], plan, log)
        excluded["exposed units that were not triggered"] = exposed - count_of(first, log)
    if plan.conversion_window is not None:
        end = now if now is not None else _last(tables, log)
        before = count_of(first, log)
        over = first[ENTERED] + plan.conversion_window
        first = first.filter((over <= end) & (over <= first[ENDS]))
        excluded["units whose conversion window is not over"] = before - count_of(first, log)
    if count_of(first, log) == 0:
        raise TooFewUnits(
            f"{plan.name[:80]}: no unit counts of {served:,} served by flag {plan.flag!r}, {exposed:,} of them "
            f"drawn (reason {_DRAWN}) for one arm; check the flag's name, the trigger, and whether conversion "
            f"windows are over{' before the stage or the period ends' if staged or until is not None else ''}"
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
        rows, order, cut, covariates = _with_attributes(rows, Path(about_units), first, plan, log)
        if cut:
            caveats[""] = cut
    for metric in plan.metrics:
        if metric.unit_field is None:
            raise InvalidInput(
                f"metric {metric.name}: unit_field is missing; name the field of {metric.event} that names the unit"
            )
        metrics.append(metric)
        outcomes = tables[metric.event]
        check_columns([metric.unit_field, *fields_of(metric)], outcomes, metric.name)
        joined = outcomes.inner_join(first, outcomes[metric.unit_field] == first[UNIT])
        joined = joined.mutate(**{ONE: ibis.literal(1.0)})
        age = joined["at_utc_seconds"] - joined[ENTERED]
        within = (age >= 0.0) & (joined["at_utc_seconds"] < joined[ENDS])
        if plan.conversion_window is not None:
            within = within & (age < plan.conversion_window)
        after = joined.filter(within)
        if metric.kind == "quantile":
            events_of[metric.name] = after.mutate(**{VARIANT: after[f"group {VARIANT}"]})
            continue
        caveats |= left_out([metric], after, metric.unit_field, log)
        rows, columns[metric.name] = _joined_sums(rows, metric, after)
        if plan.pre_period is not None:
            # Before exposure, not before the trigger: what treatment may have changed is no covariate.
            since_then = joined["at_utc_seconds"] - joined[_EXPOSED]
            past = joined.filter(since_then < 0.0, since_then >= -plan.pre_period)
            rows, prior = _joined_past(rows, metric, past)
            covariates[metric.name] = (*covariates.get(metric.name, ()), *prior)
    missing = [name for name in plan.group_columns if f"group {name}" not in rows.columns]
    if missing:
        raise InvalidInput(
            f"segments {', '.join(missing)[:200]}: no such column of the units; give a file about units that has it"
        )
    return finished(
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
            strata=staged.strata if staged else {},
            left_out=staged.left_out if staged else (),
            distinct=int(run(rows.aggregate(n=rows[UNIT].nunique()), log)[0]["n"]) if staged else None,
            period=None if since is None and until is None else (since, until),
            log=log,
        ),
        plan,
        has_time=True,
    )


def _in_period(exposures: ir.Table, since: float | None, until: float | None) -> ir.Table:
    """A row for each unit that was drawn; without a moment of entering where not in this time."""
    at, variant = exposures["at_utc_seconds"], exposures["variant"]
    end = FOREVER if until is None else until
    inside = (at >= (-FOREVER if since is None else since)) & (at < end)
    first = exposures.group_by(**{UNIT: exposures["targeting_key"]}).aggregate(
        **{
            f"group {VARIANT}": variant.min(where=inside),
            LAST: variant.max(where=inside),
            ENTERED: at.min(where=inside),
            _EXPOSED: at.min(),
        }
    )
    return first.mutate(**{_ROW: first[UNIT], ENDS: ibis.literal(end)})


def _in_stages(exposures: ir.Table, plan: ExperimentPlan, log: list[str]) -> tuple[ir.Table, Drawn]:
    """A row for each unit and stage; its past ends where the stage began, as some were drawn while it settled."""
    drawn = drawn_in_stages(exposures, plan, log)
    rows = drawn.rows
    columns = {
        _ROW: rows[STAGE].cast("string") + " " + rows[UNIT].cast("string"),
        _EXPOSED: by_stage(rows[STAGE], [stage.start for stage in plan.stages]),
    }
    return rows.mutate(**columns), drawn


def _kept(table: ir.Table, name: str) -> ir.Table:
    """Computed once, in a temporary table that lives as long as the engine's connection."""
    with warnings.catch_warnings():
        # Ibis 12 asks for the schema by a name that DuckDB has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        # Not cache(): it drops the table when the interpreter ends, by tools that are gone by then.
        return table.get_backend().create_table(name, table, temp=True)


def _last(tables: Mapping[str, ir.Table], log: list[str]) -> float:
    ends = [
        run(table.aggregate(last=table["at_utc_seconds"].max()), log)[0]["last"] for table in tables.values()
    ]
    return max((float(end) for end in ends if end is not None), default=0.0)


def _triggered(first: ir.Table, events: ir.Table, plan: ExperimentPlan, log: list[str]) -> ir.Table:
    trigger = plan.trigger
    assert trigger is not None  # noqa: S101 - asked before
    check_columns([trigger.unit_field], events, "trigger")
    if trigger.where:
        parse_condition(trigger.where)
        probe = Metric.from_column("trigger", "count")
        events = events.filter(where_of(replace(probe, where=trigger.where), events))
    joined = events.inner_join(first, events[trigger.unit_field] == first[UNIT])
    joined = joined.filter(joined["at_utc_seconds"] >= joined[ENTERED])
    joined = joined.filter(joined["at_utc_seconds"] < joined[ENDS])
    same = [name for name in first.columns if name != ENTERED]
    return joined.group_by(same).aggregate(**{ENTERED: joined["at_utc_seconds"].min()})


def _joined_sums(rows: ir.Table, metric: Metric, after: ir.Table) -> tuple[ir.Table, tuple[str, ...]]:
    pieces = pieces_of(metric, after, metric.unit_field)
    sums = after.group_by(_ROW).aggregate(**{name: value.sum() for name, value in pieces.items()})
    return _left(rows, sums, tuple(pieces)), tuple(pieces)


def _joined_past(rows: ir.Table, metric: Metric, past: ir.Table) -> tuple[ir.Table, tuple[str, ...]]:
    """The metric's own sums before exposure, and a mark for units that had none."""
    pieces = pieces_of(metric, past, metric.unit_field)
    renamed = {f"{COVARIATE}{name}": value.sum() for name, value in pieces.items()}
    mark = f"{COVARIATE}{metric.name}{NEW}"
    sums = past.group_by(_ROW).aggregate(**renamed, **{mark: past.count()})
    rows = _left(rows, sums, (*renamed, mark))
    rows = rows.mutate(**{mark: (rows[mark] == 0).cast("int64").cast("float64")})
    return rows, (*renamed, mark)


def _left(rows: ir.Table, sums: ir.Table, names: tuple[str, ...]) -> ir.Table:
    """Rows without one in `sums` get zeros: nothing happened to them."""
    sums = sums.rename({"fairlead other": _ROW})
    joined = rows.left_join(sums, rows[_ROW] == sums["fairlead other"]).drop("fairlead other")
    return joined.mutate(**{name: joined[name].cast("float64").fill_null(0.0) for name in names})


def _with_attributes(
    rows: ir.Table, path: Path, first: ir.Table, plan: ExperimentPlan, log: list[str]
) -> tuple[ir.Table, dict[str, tuple[str, ...]], tuple[str, ...], dict[str, tuple[str, ...]]]:
    # Through Arrow, as the file has a connection of its own.
    about = table_of_files([path])
    asked = [column for columns in plan.covariates.values() for column in columns]
    check_columns(["unit", *plan.group_columns, *asked], about, str(path))
    groups, order, cut = segments_of(about, plan.group_columns, log)
    prior, of = covariates_of(about, plan)
    table = about.mutate(**groups, **prior).select(
        **{"fairlead other": about["unit"].cast("string")},
        **{name: ibis._[name] for name in (*groups, *prior)},
    )
    local = ibis.memtable(table.to_pyarrow())
    once = local.group_by("fairlead other").aggregate(
        **{name: local[name].min() for name in (*groups, *prior)}
    )
    joined = rows.left_join(once, rows[UNIT].cast("string") == once["fairlead other"]).drop("fairlead other")
    joined = joined.mutate(**{name: joined[name].fill_null("") for name in groups})
    joined, covariates = marked(joined, of, log)
    return joined, order, cut, covariates
