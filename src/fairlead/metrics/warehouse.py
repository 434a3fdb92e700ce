"""Metrics over a table of any size: one Ibis expression per family, the same on DuckDB, Spark and others.

Each metric needs a handful of sums per group. All of a family's sums are asked for in one pass, so ten million
users are read once whether there is one metric or ten:

    events → [where, weights] → sums per unit, where a unit has many events → sums per group → Moments

Traps this avoids: squares are taken of doubles, never of integers that overflow; sums are taken about a value near
the mean, or the variance of values near 10⁹ would be noise; a value that is missing or not finite is counted and
said, and does not silently turn a whole figure into NaN.
"""

from __future__ import annotations

import hashlib
import math
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
    values_of,
    where_of,
)
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
_LOOK = 1_000
"""Rows that are looked at to find a value near each mean."""
_UNIT = "fairlead unit"


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
            moments, units, caveats = _moments(rows, by, columns, log)
            caveats = _left_out(plain, events, unit, log) | caveats
        quantiles: dict[str, dict[Group, Estimate]] = {}
        for metric in metrics:
            if metric.kind == "quantile":
                quantiles[metric.name], counted = self._quantile(metric, events, by, unit, log)
                units = units or counted
        if WEIGHT in self._table.columns and quantiles:
            caveats[""] = ("quantiles take every event once, whatever its inclusion probability",)
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
        at = self._table[self._time]
        if at.type().is_timestamp():
            # Compared as seconds since 1970: with a zone they are UTC already, without one they are taken as UTC.
            seconds = (
                at.epoch_seconds()
                if at.type().timezone is None
                else at.cast("timestamp('UTC')").epoch_seconds()
            )
            at = seconds.cast("float64") + at.millisecond().cast("float64") / 1000
        elif not at.type().is_numeric():
            raise InvalidInput(
                f"column {self._time!r} is {at.type()}; a window needs a time stamp, or seconds since 1970"
            )
        return self._table.filter((at >= window.start) & (at < window.end))

    def _quantile(
        self, metric: Metric, events: ir.Table, by: Sequence[str], unit: str | None, log: list[str]
    ) -> tuple[dict[Group, Estimate], dict[Group, int]]:
        assert metric.q is not None and metric.field is not None  # noqa: S101,PT018 - a quantile has both
        value = events[metric.field].cast("float64")
        # +inf is a value: what never came back is slower than all others.
        kept = events.filter(where_of(metric, events), is_finite(value) | (value == float("inf")))
        value = kept[metric.field].cast("float64")
        q = metric.q
        first = _run(
            kept.group_by(list(by)).aggregate(n=kept.count(), value=value.quantile(q)) if by
            else kept.aggregate(n=kept.count(), value=value.quantile(q)),
            log,
        )  # fmt: skip
        found: dict[Group, Estimate] = {}
        counts: dict[Group, int] = {}
        for row in first:
            group = _group(row, by)
            here = _only(kept, by, group)
            column = here[metric.field].cast("float64")

            def read(level: float, column: Any = column) -> float:
                level = min(1.0, max(0.0, level))
                return float(_run(column.quantile(level).name("value").as_table(), log)[0]["value"])

            if unit is None:
                counts[group] = int(row["n"])
                found[group] = _ordered(read, float(row["value"] or 0.0), int(row["n"]), q, self._confidence)
            else:
                below = (column <= float(row["value"])).cast("float64")
                per_unit = here.group_by(**{_UNIT: here[unit]}).aggregate(
                    events=here.count(), below=below.sum()
                )
                sums = _run(
                    _sums(per_unit, (), {"m": ("events", "below")}, {"events": 0.0, "below": 0.0}), log
                )[0]
                units = _as_moments(sums, ("events", "below"), {"events": 0.0, "below": 0.0})
                counts[group] = units.n
                found[group] = clustered_quantile_interval(
                    read, q, units, events="events", at_or_below="below", confidence=self._confidence
                )
        return found, counts


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
    groups = {f"group {name}": events[name].cast("string") for name in by}
    if unit is None:
        return events.select(**groups, **columns, **prior)
    summed = {name: value.sum() for name, value in columns.items()}
    # Known of the unit, not of the event: any row has it.
    same = {name: value.max() for name, value in prior.items()}
    return events.group_by(**groups, **{_UNIT: events[unit]}).aggregate(**summed, **same)


def _moments(
    rows: ir.Table,
    by: Sequence[str],
    columns: Mapping[str, tuple[str, ...]],
    log: list[str],
) -> tuple[dict[str, dict[Group, Moments]], dict[Group, int], dict[str, tuple[str, ...]]]:
    groups = tuple(f"group {name}" for name in by)
    used = tuple(dict.fromkeys(column for names in columns.values() for column in names))
    near = _near(rows, used, log)
    found = _run(_sums(rows, groups, columns, near), log)
    caveats: dict[str, tuple[str, ...]] = {}
    units = {_group(row, groups): int(row["n"]) for row in found}
    moments: dict[str, dict[Group, Moments]] = {}
    for name, names in columns.items():
        whole = all(
            row[f"count {column}"] == row["n"] and _is_finite(row[f"sum {column}"])
            for row in found
            for column in names
        )
        rows_of = found
        if not whole:
            # Rare: one more pass, over the rows in which this metric has all its values.
            valid = [is_finite(rows[column].cast("float64")) for column in names]
            rows_of = _run(_sums(rows.filter(*valid), groups, {name: names}, near), log)
            left = sum(units.values()) - sum(int(row["n"]) for row in rows_of)
            caveats[name] = (f"{left:,} units without a finite value are left out",)
        moments[name] = {_group(row, groups): _as_moments(row, names, near) for row in rows_of}
    return moments, units, caveats


def _left_out(
    metrics: Sequence[Metric], events: ir.Table, unit: str | None, log: list[str]
) -> dict[str, tuple[str, ...]]:
    """How many events do not count for want of a finite value, by metric whose columns are sums of events."""
    asked: dict[str, Any] = {}
    for metric in metrics:
        needed = values_of(metric, events) if unit is not None or metric.where else []
        for value in needed:
            missing = ibis.ifelse(is_finite(value), 0, 1)
            asked[metric.name] = (
                missing if metric.name not in asked else ibis.greatest(asked[metric.name], missing)
            )
    if not asked:
        return {}
    found = _run(events.aggregate(**{name: missing.sum() for name, missing in asked.items()}), log)[0]
    return {
        name: (f"{int(count):,} events without a finite value do not count",)
        for name, count in found.items()
        if count
    }


def _near(rows: ir.Table, columns: Sequence[str], log: list[str]) -> dict[str, float]:
    """A value near the mean of each column, from the first rows: sums about it lose no digits."""
    first = rows.limit(_LOOK)
    values = {column: first[column].cast("float64") for column in columns}
    found = _run(
        first.aggregate(
            **{
                f"near {column}": ibis.ifelse(is_finite(value), value, ibis.null("float64")).mean()
                for column, value in values.items()
            }
        ),
        log,
    )[0]
    # A round number, so that the query of the same data stays the same query.
    return {column: _round(found[f"near {column}"] or 0.0) for column in columns}


def _sums(
    rows: ir.Table, groups: Sequence[str], columns: Mapping[str, tuple[str, ...]], near: Mapping[str, float]
) -> ir.Table:
    """One row per group: how many, and per metric the sums and sums of products about the near values."""
    wanted: dict[str, Any] = {"n": rows.count()}
    shifted = {
        column: rows[column].cast("float64") - near[column]
        for column in dict.fromkeys(column for names in columns.values() for column in names)
    }
    for names in columns.values():
        for index, a in enumerate(names):
            wanted.setdefault(f"count {a}", rows[a].count())
            wanted.setdefault(f"sum {a}", shifted[a].sum())
            for b in names[: index + 1]:
                wanted.setdefault(f"product {b} {a}", (shifted[b] * shifted[a]).sum())
    return rows.group_by(list(groups)).aggregate(**wanted) if groups else rows.aggregate(**wanted)


def _as_moments(row: Mapping[str, Any], columns: Sequence[str], near: Mapping[str, float]) -> Moments:
    n = int(row["n"])
    if n == 0:
        return Moments.from_rows(columns, [])
    shift = {column: row[f"sum {column}"] / n for column in columns}
    size = len(columns)
    products = [[0.0] * size for _ in range(size)]
    for i, a in enumerate(columns):
        for j, b in enumerate(columns[: i + 1]):
            value = row[f"product {b} {a}"] - n * shift[a] * shift[b]
            if i == j:
                # What is left by rounding alone is no spread.
                value = value if value > 1e-12 * abs(row[f"product {b} {a}"]) else 0.0
            products[i][j] = products[j][i] = value
    for i in range(size):
        for j in range(size):
            if products[i][i] == 0 or products[j][j] == 0:
                products[i][j] = products[j][i] = 0.0
    return Moments(
        columns=tuple(columns),
        n=n,
        means=tuple(near[column] + shift[column] for column in columns),
        products=tuple(tuple(line) for line in products),
    )


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
    same = [rows[name].cast("string") == value for name, value in zip(by, group, strict=True)]
    return rows.filter(*same) if same else rows


def _run(expression: ir.Table, log: list[str]) -> list[dict[str, Any]]:
    log.append(str(ibis.to_sql(expression)))
    rows: list[dict[str, Any]] = expression.to_pyarrow().to_pylist()
    return rows


def _group(row: Mapping[str, Any], names: Sequence[str]) -> Group:
    return tuple("" if row[name] is None else str(row[name]) for name in names)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _round(value: float) -> float:
    return float(f"{value:.3g}") if math.isfinite(value) else 0.0


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:12]) + (f" and {len(listed) - 12} more" if len(listed) > 12 else "")
