"""One row per unit, however it was made: of events (`exposures.py`) or of a table (`unit_table.py`).

Every question of an analysis (arms, segments, steps of time, covariates) is one pass of sums over these rows, by
another grouping; what leaves the engine is moments. The expressions are those of the warehouse, so every engine
computes alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fairlead.errors import InvalidInput, MissingExtra, TooFewUnits
from fairlead.experiment.plan import STEP, VARIANT, ExperimentPlan
from fairlead.experiment.stages import Stratum, stage_of, strata_of
from fairlead.metrics import Family, Metric
from fairlead.metrics.source import Group
from fairlead.metrics.warehouse import Warehouse
from fairlead.metrics.warehouse_columns import is_finite
from fairlead.metrics.warehouse_sums import moments_of, run
from fairlead.statistics import Estimate, Moments
from fairlead.statistics.clusters import FloatArray

try:
    import ibis
    import ibis.expr.types as ir
except ImportError as missing:
    raise MissingExtra(missing.name or "ibis-framework", "warehouse") from missing

__all__ = ["Units"]

UNIT = "fairlead unit"
ENTERED = "fairlead entered"
LAST = "fairlead last variant"
_STEPS = (60.0, 300.0, 900.0, 3600.0, 6 * 3600.0, 86400.0, 7 * 86400.0, 28 * 86400.0)
_MOST_STEPS = 40


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
    strata: Mapping[str, Stratum] = field(default_factory=dict)
    """Where there are stages: by the values of the grouping `stage`, whom each compares. "0" is in none."""
    left_out: tuple[Mapping[str, int], ...] = ()
    """For each stage: how many units it met and does not count, by reason."""
    distinct: int | None = None
    """How many units there are, where one has a row for each stage in which it counts; None: as many as rows."""
    period: tuple[float | None, float | None] | None = None
    """The stretch of time that was looked at, seconds since 1970; an end that is None is open. None: all there is."""
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


def finished(units: Units, plan: ExperimentPlan, *, has_time: bool) -> Units:
    """With caps applied, and steps of time where it is known."""
    rows, caveats, strata = units.rows, dict(units.caveats), units.strata
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
    entered = rows[ENTERED]
    span = run(rows.aggregate(first=entered.min(), last=entered.max()), units.log)[0]
    if span["first"] is None:
        return replace(units, rows=rows, caveats=caveats)
    first, last = float(span["first"]), float(span["last"])
    step = next((each for each in _STEPS if last - first < each * _MOST_STEPS), (last - first) / _MOST_STEPS)
    rows = rows.mutate(
        **{f"group {STEP}": ((rows[ENTERED] - first) / step).floor().cast("int64").cast("string")}
    )
    groupings = (*units.groupings, STEP)
    if plan.stages:
        if not strata:  # a row per unit: it is in the stage in which it entered
            rows = rows.mutate(**{"group stage": stage_of(rows[ENTERED], plan).cast("string")})
            strata = strata_of(plan)
        groupings = (*groupings, "stage")
    return replace(
        units, rows=rows, caveats=caveats, entered=(first, last), step_seconds=step, groupings=groupings,
        strata=strata,
    )  # fmt: skip


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


def in_one_arm(rows: ir.Table, log: list[str]) -> tuple[ir.Table, int]:
    crossed = rows[f"group {VARIANT}"] != rows[LAST]
    count = int(run(rows.aggregate(n=crossed.cast("int64").sum()), log)[0]["n"] or 0)
    return rows.filter(~crossed).drop(LAST), count


def count_of(rows: ir.Table, log: list[str]) -> int:
    return int(run(rows.aggregate(n=rows.count()), log)[0]["n"])
