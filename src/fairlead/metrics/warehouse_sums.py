"""The sums that moments are made of, and what to do where they cancel.

The variance of values near 10⁹ is noise when it is the difference of two sums of squares. The sums themselves show it:
nearly all of the squares are the mean's. Where that is so they are taken once more, about each group's own mean;
everywhere else one pass is enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from fairlead.errors import MissingExtra
from fairlead.metrics.metric import Metric
from fairlead.metrics.source import Group
from fairlead.metrics.warehouse_columns import WEIGHT, is_finite, text_of, values_of, where_of
from fairlead.statistics import Moments

try:
    import ibis
    import ibis.expr.operations as ops
    import ibis.expr.types as ir
except ImportError as missing:
    raise MissingExtra("ibis-framework", "warehouse") from missing

__all__: list[str] = []

_CANCELS = 1e-6
"""A spread below this share of the squares has lost half of its digits."""


def moments_of(
    rows: ir.Table,
    by: Sequence[str],
    columns: Mapping[str, tuple[str, ...]],
    log: list[str],
) -> tuple[dict[str, dict[Group, Moments]], dict[Group, int], dict[str, tuple[str, ...]]]:
    """By metric and group the moments of its columns; units by group; caveats by metric.

    rows: one per unit, with a column ``group NAME`` for each of `by`, and those that `columns` names.
    """
    groups = tuple(f"group {name}" for name in by)
    used = tuple(dict.fromkeys(column for names in columns.values() for column in names))
    near = dict.fromkeys(used, 0.0)
    found = run(sums_of(rows, groups, columns, near), log)
    far = far_means(found, groups, used, near)
    about = moved(rows, groups, near, far)
    if far:
        # Rare: a spread that is small beside the mean, of which little but rounding would be left.
        found = run(sums_of(rows, groups, columns, about), log)
    caveats: dict[str, tuple[str, ...]] = {}
    units: dict[Group, int] = {}
    for row in found:
        units[group_of(row, groups)] = units.get(group_of(row, groups), 0) + int(row["n"])
    moments: dict[str, dict[Group, Moments]] = {}
    for name, names in columns.items():
        whole = all(
            row[count] == row["n"] and all(is_finite_number(row[f"sum {column}"]) for column in names)
            for row in found
            for count in _counts(names)
        )
        rows_of, far_of = found, far
        if not whole:
            # Rare: one more pass, over the rows in which this metric has all its values.
            valid = [is_finite(rows[column].cast("float64")) for column in names]
            rows_of = run(sums_of(rows.filter(*valid), groups, {name: names}, near), log)
            far_of = far_means(rows_of, groups, names, near)
            if far_of:
                there = rows.filter(*valid)
                rows_of = run(sums_of(there, groups, {name: names}, moved(there, groups, near, far_of)), log)
            left = sum(units.values()) - sum(int(row["n"]) for row in rows_of)
            caveats[name] = (f"{left:,} units without a finite value are left out",)
        parts = moments[name] = {}
        for row in rows_of:
            group = group_of(row, groups)
            part = as_moments(row, names, {**near, **far_of.get(group, {})})
            # What is missing and what is empty are one group.
            parts[group] = parts[group] + part if group in parts else part
    return moments, units, caveats


def far_means(
    found: Sequence[Mapping[str, Any]],
    groups: Sequence[str],
    columns: Sequence[str],
    near: Mapping[str, float],
) -> dict[Group, dict[str, float]]:
    """By group, the columns whose sums were taken too far from their mean to tell the spread, and that mean."""
    far: dict[Group, dict[str, float]] = {}
    for row in found:
        n = int(row["n"])
        for column in columns:
            total, square = row[f"sum {column}"], row[f"product {column} {column}"]
            # A single unit has no spread to be lost.
            if n < 2 or not (is_finite_number(total) and is_finite_number(square)):
                continue
            if square * (1 - _CANCELS) < total / n * total:
                far.setdefault(group_of(row, groups), {})[column] = near[column] + total / n
    return far


def moved(
    rows: ir.Table, groups: Sequence[str], near: Mapping[str, float], far: Mapping[Group, Mapping[str, float]]
) -> dict[str, Any]:
    """What sums are taken about, by column: the group's own mean where it is far from the others'."""
    branches: dict[str, list[tuple[Any, float]]] = {}
    for group, means in far.items():
        here = [text_of(rows[name]) == value for name, value in zip(groups, group, strict=True)]
        whole = here[0] if here else ibis.literal(True)
        for part in here[1:]:
            whole = whole & part
        for column, mean in means.items():
            branches.setdefault(column, []).append((whole, mean))
    # One expression with many branches: one within the other, a thousand groups are too deep for an engine.
    return {**near, **{column: ibis.cases(*found, else_=near[column]) for column, found in branches.items()}}


def sums_of(
    rows: ir.Table, groups: Sequence[str], columns: Mapping[str, tuple[str, ...]], near: Mapping[str, Any]
) -> ir.Table:
    """One row per group: how many, and per metric the sums and sums of products about the near values."""
    wanted: dict[str, Any] = {"n": rows.count()}
    shifted = {}
    for column in dict.fromkeys(column for names in columns.values() for column in names):
        value, about = rows[column].cast("float64"), near[column]
        shifted[column] = value if isinstance(about, float) and about == 0 else value - about
    for names in columns.values():
        for index, a in enumerate(names):
            wanted.setdefault(f"sum {a}", shifted[a].sum())
            for b in names[: index + 1]:
                wanted.setdefault(f"product {b} {a}", (shifted[b] * shifted[a]).sum())
        for count, (a, b) in _counts(names).items():
            wanted.setdefault(count, (shifted[a] * shifted[b]).count())
    if not groups:
        return rows.aggregate(**wanted)
    grouped = rows.group_by(list(groups)).aggregate(**wanted)
    return grouped.mutate(**{name: text_of(grouped[name]) for name in groups})


def _counts(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """What to count, to know that no value is missing: products, which are taken anyway, of as few pairs as name
    all."""
    pairs = [(names[i], names[i + 1]) for i in range(0, len(names) - 1, 2)]
    if len(names) % 2:
        pairs.append((names[0], names[-1]))
    return {f"count {a} {b}": (a, b) for a, b in pairs}


def as_moments(row: Mapping[str, Any], columns: Sequence[str], near: Mapping[str, float]) -> Moments:
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
                # What is left by rounding alone is no spread; what is no number stays none, to be refused.
                rounding = 1e-12 * abs(row[f"product {b} {a}"]), n * (1e-15 * near[a]) * (1e-15 * near[a])
                value = 0.0 if value <= max(rounding) and math.isfinite(value) else value
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


def left_out(
    metrics: Sequence[Metric], events: ir.Table, unit: str | None, log: list[str]
) -> dict[str, tuple[str, ...]]:
    """How many events do not count for want of a finite value, by metric whose columns are sums of events."""
    asked: dict[str, Any] = {}
    for metric in metrics:
        # A mean of rows is no ratio of sums: there a row without a value is missing from the moments, which say so.
        plain = metric.kind == "mean" and unit is None and not metric.where and WEIGHT not in events.columns
        for value in [] if plain else values_of(metric, events):
            missing = ibis.ifelse(is_finite(value) | ~where_of(metric, events), 0, 1)
            asked[metric.name] = (
                missing if metric.name not in asked else ibis.greatest(asked[metric.name], missing)
            )
    if not asked:
        return {}
    found = run(events.aggregate(**{name: missing.sum() for name, missing in asked.items()}), log)[0]
    return {
        name: (f"{int(count):,} events without a finite value do not count",)
        for name, count in found.items()
        if count
    }


def run(expression: ir.Table, log: list[str]) -> list[dict[str, Any]]:
    """The rows of an expression; what was asked is added to the log, to be hashed."""
    rows: list[dict[str, Any]]
    backend = None if expression.op().find(ops.InMemoryTable) else expression.get_backend()
    if backend is not None and backend.name == "duckdb":
        # Compiled once: half of the time that a million users take goes into making SQL.
        sql = str(backend.compile(expression))
        log.append(sql)
        rows = backend.con.sql(sql).to_arrow_table().to_pylist()
        # A sum of the constants 1.0 and 0.0 is a decimal to DuckDB.
        return [
            {name: float(value) if isinstance(value, Decimal) else value for name, value in row.items()}
            for row in rows
        ]
    log.append(str(ibis.to_sql(expression, pretty=False)))
    rows = expression.to_pyarrow().to_pylist()
    return rows


def group_of(row: Mapping[str, Any], names: Sequence[str]) -> Group:
    return tuple("" if row[name] is None else str(row[name]) for name in names)


def is_finite_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
