"""The units of a table that has everything in columns: the variant, the outcomes, and what was known before.

Where a unit has several rows they are summed first: requests of one user are not independent, and an interval over
requests would be several times too short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fairlead.errors import MissingExtra
from fairlead.experiment.attributes import check_columns, covariates_of, marked, segments_of
from fairlead.experiment.plan import HISTORY, VARIANT, ExperimentPlan
from fairlead.experiment.units import ENTERED, LAST, UNIT, Units, count_of, finished, in_one_arm
from fairlead.metrics import Metric
from fairlead.metrics.warehouse_columns import ONE, fields_of, is_finite, pieces_of, seconds_of, text_of
from fairlead.metrics.warehouse_sums import left_out, run
from fairlead.metrics.warehouse_tables import table_of_files

try:
    import ibis
    import ibis.expr.types as ir
except ImportError as missing:
    raise MissingExtra(missing.name or "ibis-framework", "warehouse") from missing

__all__ = ["units_of_files", "units_of_table"]


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
    check_columns(wanted, table)
    named = [table[column].notnull() for column in (variant, unit) if column is not None]
    arm = ibis.literal(HISTORY) if variant is None else text_of(table[variant])
    groups, order, cut = segments_of(table, plan.group_columns, log)
    prior, of = covariates_of(table, plan)
    base = table.mutate(**{ONE: ibis.literal(1.0), f"group {VARIANT}": arm, **groups, **prior})
    if time is not None:
        base = base.mutate(**{ENTERED: seconds_of(base[time], time)})
    excluded = {}
    if time is not None:
        # A unit that entered nobody knows when is in no step and no stage.
        total = count_of(base, log)
        base = base.filter(is_finite(base[ENTERED]))
        excluded["rows without a time"] = total - count_of(base, log)
    if named:
        total = count_of(base, log)
        base = base.filter(*named)
        excluded["rows without a variant or a unit"] = total - count_of(base, log)
    single = unit is None or _is_unique(base, unit, log)
    unit_field = None if single else unit
    metrics = tuple(_per_unit(metric, unit_field) for metric in plan.metrics)
    summed = [metric for metric in metrics if metric.kind != "quantile"]
    caveats = left_out(summed, base, unit_field, log)
    pieces = {metric.name: pieces_of(metric, base, unit_field) for metric in summed}
    columns = {name: tuple(parts) for name, parts in pieces.items()}
    values = {column: value for parts in pieces.values() for column, value in parts.items()}
    keep = [f"group {VARIANT}", *groups, *prior, *([ENTERED] if time else [])]
    if single:
        rows = base.select(*keep, **values)
        events = base.mutate(**{VARIANT: base[f"group {VARIANT}"]})
    else:
        same = {name: base[name].min() for name in keep}
        rows = base.group_by(**{UNIT: base[unit]}).aggregate(
            **same,
            **{LAST: base[f"group {VARIANT}"].max()},
            **{name: value.sum() for name, value in values.items()},
        )
        rows, excluded["units in two arms"] = in_one_arm(rows, log)
        of_unit = rows.select(UNIT, **{VARIANT: rows[f"group {VARIANT}"]})
        events = base.drop(VARIANT) if VARIANT in base.columns else base
        events = events.inner_join(of_unit, events[unit] == of_unit[UNIT]).drop(UNIT)
    rows, covariates = marked(rows, of, log)
    return finished(
        Units(
            rows=rows,
            metrics=metrics,
            columns=columns,
            covariates=covariates,
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


def _per_unit(metric: Metric, unit: str | None) -> Metric:
    if unit is None:
        if metric.kind == "total":  # one row per unit: its total is its value
            return replace(metric, kind="mean", unit_field=None)
        return replace(metric, unit_field=None)
    return replace(metric, unit_field=unit, unit_of_analysis=unit)


def _is_unique(base: ir.Table, unit: str, log: list[str]) -> bool:
    found = run(base.aggregate(rows=base.count(), units=base[unit].nunique()), log)[0]
    return int(found["rows"]) == int(found["units"])
