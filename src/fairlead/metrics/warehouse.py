"""Metrics over a table of any size: one Ibis expression per family, the same on DuckDB, Spark and others.

Each metric needs a handful of sums per group. All of a family's sums are asked for in one pass, so ten million
users are read once whether there is one metric or ten:

    events → [where, weights] → sums per unit, where a unit has many events → sums per group → Moments

Traps this avoids: squares are taken of doubles, never of integers that overflow; sums that cancel are taken again
about each mean, or the variance of values near 10⁹ would be noise; a value that is missing or not finite is counted
and said, and does not silently turn a whole figure into NaN.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fairlead.errors import InvalidInput, MissingExtra
from fairlead.metrics.metric import Metric
from fairlead.metrics.source import COVARIATE, Family, Group, Window
from fairlead.metrics.warehouse_columns import (
    ONE,
    WEIGHT,
    fields_of,
    is_finite,
    pieces_of,
    seconds_of,
    text_of,
    where_of,
)
from fairlead.metrics.warehouse_sums import as_moments, group_of, left_out, moments_of, run, sums_of
from fairlead.metrics.warehouse_tables import table_of_events, table_of_files
from fairlead.statistics import Estimate, Moments, clustered_quantile_interval
from fairlead.statistics.estimate import checked_confidence
from fairlead.statistics.quantiles import binomial_ranks
from fairlead.telemetry.schema import EVENTS, EventRegistry

try:
    import ibis
    import ibis.expr.types as ir
except ImportError as missing:
    raise MissingExtra(missing.name or "ibis-framework", "warehouse") from missing

__all__ = ["Warehouse"]

_EVENT_TIME = "at_utc_seconds"
_UNIT = "fairlead unit"
_VALUE = "fairlead value"


class Warehouse:
    """A table that metrics are computed over. Not to be shared between threads: its connection is not.

    >>> import ibis, pyarrow
    >>> people = ibis.memtable(pyarrow.table({"variant": ["c", "c", "t", "t"], "watch": [1.0, 3.0, 5.0, 9.0]}))
    >>> family = Warehouse(people).measure([Metric.from_column("watch", "mean", "watch")], by=["variant"])
    >>> {group: arm.mean("watch") for group, arm in sorted(family.moments["watch"].items())}
    {('c',): 2.0, ('t',): 7.0}
    """

    def __init__(self, table: ir.Table, *, time_column: str | None = None, confidence: float = 0.95) -> None:
        """table: any Ibis table, one row per event, or per unit. time_column: what a `Window` is compared with, seconds
        since 1970 or a time stamp (without a zone it is taken as UTC); None: `at_utc_seconds` where there is one.
        """
        self._table = table
        self._time = time_column or (_EVENT_TIME if _EVENT_TIME in table.columns else None)
        self._confidence = checked_confidence(confidence)
        if self._time is not None and self._time not in table.columns:
            raise InvalidInput(f"no column {self._time[:80]!r}; there are {_some(table.columns)}")

    @classmethod
    def of_files(cls, paths: Iterable[Path], *, time_column: str | None = None) -> Warehouse:
        """Parquet or CSV files, read by DuckDB. Raises BrokenDocument for what cannot be read, or InvalidInput."""
        return cls(table_of_files([Path(path) for path in paths]), time_column=time_column)

    @classmethod
    def of_events(cls, directory: Path, kind: str, *, registry: EventRegistry = EVENTS) -> Warehouse:
        """The events of one kind in a sink's folder: segments of JSON Lines, and what was compacted to Parquet.

        An event that is there twice, by its id, counts once; a line that is cut or is no event does not count
        (`fairlead events check` lists those). Raises UnknownEvent, BrokenDocument where there is nothing to read.
        """
        return cls(table_of_events(Path(directory), kind, registry))

    def measure(
        self,
        metrics: Sequence[Metric],
        *,
        by: Sequence[str] = (),
        covariates: Mapping[str, Sequence[str]] | None = None,
        window: Window | None = None,
    ) -> Family:
        """As `Source.measure`: one query for all moments, three for each quantile."""
        before = {name: tuple(columns) for name, columns in (covariates or {}).items()}
        unit = _checked(metrics, by, before, self._table.columns)
        events = self._within(window).mutate(**{ONE: ibis.literal(1.0)})
        log: list[str] = []
        family: tuple[str, ...] = ()
        if unit is not None:
            events, family = _with_unit(events, unit, log)
        plain = [metric for metric in metrics if metric.kind != "quantile"]
        columns: dict[str, tuple[str, ...]] = {}
        moments: dict[str, dict[Group, Moments]] = {}
        caveats: dict[str, tuple[str, ...]] = {}
        units: dict[Group, int] = {}
        if plain:
            pieces = {metric.name: pieces_of(metric, events, unit) for metric in plain}
            for metric in plain:
                columns[metric.name] = (
                    *pieces[metric.name],
                    *(f"{COVARIATE}{column}" for column in before.get(metric.name, ())),
                )
            rows = _unit_rows(events, by, unit, pieces, before)
            moments, units, caveats = moments_of(rows, by, columns, log)
            for name, said in left_out(plain, events, unit, log).items():
                caveats[name] = (*said, *caveats.get(name, ()))
            for metric in plain:
                _name_as_fields(metric, columns, moments)
        quantiles: dict[str, dict[Group, Estimate]] = {}
        for metric in metrics:
            if metric.kind == "quantile":
                quantiles[metric.name], counted, missing = self._quantile(metric, events, by, unit, log)
                units = units or counted
                if missing:
                    caveats[metric.name] = (f"{missing:,} events without a value do not count",)
        if WEIGHT in self._table.columns and quantiles:
            family = (*family, "quantiles take every event once, whatever its inclusion probability")
        if family:
            caveats[""] = family
        return Family(
            columns=columns,
            moments=moments,
            quantiles=quantiles,
            units=units,
            query_sha256=hashlib.sha256("\n".join(log).encode()).hexdigest(),
            window=window,
            caveats=caveats,
        )

    def _within(self, window: Window | None) -> ir.Table:
        if window is None:
            return self._table
        if self._time is None:
            raise InvalidInput("a window needs a time column; name it, or leave the window out")
        at = seconds_of(self._table[self._time], self._time)
        return self._table.filter((at >= window.start) & (at < window.end))

    def _quantile(
        self, metric: Metric, events: ir.Table, by: Sequence[str], unit: str | None, log: list[str]
    ) -> tuple[dict[Group, Estimate], dict[Group, int], int]:
        assert metric.q is not None and metric.field is not None  # noqa: S101,PT018 - a quantile has both
        value = events[metric.field].cast("float64")
        # +inf is a value: what never came back is slower than all others.
        groups = {f"group {name}": text_of(events[name]) for name in by}
        named = {_UNIT: events[unit]} if unit is not None else {}
        counting = events.filter(where_of(metric, events)).select(**groups, **named, **{_VALUE: value})
        value = counting[_VALUE]
        kept = counting.filter(is_finite(value) | (value == float("inf")))
        value = kept[_VALUE]
        q = metric.q
        wanted = {"n": kept.count(), "value": value.quantile(q)}
        first = run(
            kept.group_by(list(groups)).aggregate(**wanted) if groups else kept.aggregate(**wanted), log
        )
        missing = int(run(counting.aggregate(n=counting.count()), log)[0]["n"])
        missing -= sum(int(row["n"]) for row in first)
        found: dict[Group, Estimate] = {}
        counts: dict[Group, int] = {}
        for row in first:
            group = group_of(row, tuple(groups))
            here = _only(kept, tuple(groups), group)
            column = here[_VALUE]

            def read(level: float, column: Any = column) -> float:
                level = min(1.0, max(0.0, level))
                return float(run(column.quantile(level).name("value").as_table(), log)[0]["value"])

            if unit is None or not row["n"]:
                counts[group] = int(row["n"])
                found[group] = _ordered(read, float(row["value"] or 0.0), int(row["n"]), q, self._confidence)
            else:
                below = (column <= float(row["value"])).cast("float64")
                per_unit = here.group_by(_UNIT).aggregate(events=here.count(), below=below.sum())
                sums = run(
                    sums_of(per_unit, (), {"m": ("events", "below")}, {"events": 0.0, "below": 0.0}), log
                )[0]
                units = as_moments(sums, ("events", "below"), {"events": 0.0, "below": 0.0})
                counts[group] = units.n
                found[group] = clustered_quantile_interval(
                    read, q, units, events="events", at_or_below="below", confidence=self._confidence
                )
        return found, counts, missing


def _checked(
    metrics: Sequence[Metric],
    by: Sequence[str],
    covariates: Mapping[str, Sequence[str]],
    columns: Sequence[str],
) -> str | None:
    """The one unit field of the family. Raises InvalidInput."""
    if not metrics or len({metric.name for metric in metrics}) < len(metrics):
        raise InvalidInput("metrics: give at least one, and each name once")
    units = {metric.unit_field for metric in metrics}
    events = {metric.event for metric in metrics}
    if len(units) > 1 or len(events) > 1:
        raise InvalidInput(
            f"a family has one event and one unit: these have {_some(sorted(map(str, events)))} and "
            f"{_some(sorted(map(str, units)))}; measure them apart"
        )
    unit = units.pop()
    for metric in metrics:
        if metric.kind == "maximum":
            raise InvalidInput(
                f"metric {metric.name}: a maximum has no statistics beyond itself; no warehouse figure"
            )
        wanted = [*fields_of(metric), *covariates.get(metric.name, ())]
        if metric.kind == "quantile" and covariates.get(metric.name):
            raise InvalidInput(f"metric {metric.name}: a quantile takes no covariates")
        for column in [*wanted, *by, *([unit] if unit else [])]:
            if column not in columns:
                raise InvalidInput(
                    f"metric {metric.name}: no column {column[:80]!r}; there are {_some(columns)}"
                )
    for name in covariates:
        if name not in {metric.name for metric in metrics}:
            raise InvalidInput(f"covariates: {name[:80]!r} is no metric of this family")
    return unit


def _unit_rows(
    events: ir.Table,
    by: Sequence[str],
    unit: str | None,
    pieces: Mapping[str, Mapping[str, Any]],
    covariates: Mapping[str, Sequence[str]],
) -> ir.Table:
    columns = {column: value for parts in pieces.values() for column, value in parts.items()}
    prior = {
        f"{COVARIATE}{name}": events[name].cast("float64") for names in covariates.values() for name in names
    }
    # As they are: text is made of the groups, not of ten million rows, which would take as long as all sums together.
    groups = {f"group {name}": events[name] for name in by}
    if unit is None:
        return events.select(**groups, **columns, **prior)
    summed = {name: value.sum() for name, value in columns.items()}
    # Known of the unit, not of the event: any row has it.
    same = {name: value.max() for name, value in prior.items()}
    return events.group_by(**groups, **{_UNIT: events[unit]}).aggregate(**summed, **same)


def _with_unit(events: ir.Table, unit: str, log: list[str]) -> tuple[ir.Table, tuple[str, ...]]:
    """The events that name their unit: those that do not are no unit together."""
    count = int(run(events.aggregate(n=events[unit].isnull().cast("int64").sum()), log)[0]["n"] or 0)
    said = (f"{count:,} events without {unit} do not count",) if count else ()
    return events.filter(events[unit].notnull()), said


def _name_as_fields(
    metric: Metric, columns: dict[str, tuple[str, ...]], moments: dict[str, dict[Group, Moments]]
) -> None:
    """Names a formula's columns by its fields; in the query each metric has columns of its own."""
    formula = metric.parsed_formula
    if formula is not None:
        names = (*formula.names, *columns[metric.name][len(formula.names) :])
        columns[metric.name] = names
        moments[metric.name] = {
            group: dataclasses.replace(found, columns=names) for group, found in moments[metric.name].items()
        }


def _ordered(read: Any, value: float, n: int, q: float, confidence: float) -> Estimate:
    """The interval of a quantile of independent values, from the order statistics that bracket it."""
    low_rank, high_rank = binomial_ranks(n, q, confidence) if n else (0, 1)
    enough = low_rank >= 1 and high_rank <= n and n * min(q, 1 - q) >= 5
    return Estimate(
        value=value if n else None,
        low=read((low_rank - 1) / max(1, n - 1)) if enough else None,
        high=read((high_rank - 1) / max(1, n - 1)) if enough else None,
        n=n,
        clusters=None,
        confidence=confidence,
        method="order statistics, exact binomial",
        caveat="" if enough else "too few data" if n else "no data",
    )


def _only(rows: ir.Table, by: Sequence[str], group: Group) -> ir.Table:
    same = [rows[name] == value for name, value in zip(by, group, strict=True)]
    return rows.filter(*same) if same else rows


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:12]) + (f" and {len(listed) - 12} more" if len(listed) > 12 else "")
