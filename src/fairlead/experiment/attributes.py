"""What is known of a unit before it enters: the segment it is in, and its past.

A column of many different numbers is cut into quarters to be a segment. A past that is missing, or no number, is 0
with a mark of its own: the unit stays, and the mark takes up what sets the new apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from fairlead.errors import InvalidInput, MissingExtra
from fairlead.experiment.plan import ExperimentPlan
from fairlead.metrics.source import COVARIATE
from fairlead.metrics.warehouse_columns import is_finite, text_of
from fairlead.metrics.warehouse_sums import run

try:
    import ibis
    import ibis.expr.types as ir
except ImportError as missing:
    raise MissingExtra(missing.name or "ibis-framework", "warehouse") from missing

__all__: list[str] = []

NEW = " is missing"
_NUMBERS = 20
"""Different numbers in a column, beyond which it is cut into quarters."""


def segments_of(
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


def covariates_of(table: ir.Table, plan: ExperimentPlan) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
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


def marked(
    rows: ir.Table, of: Mapping[str, tuple[str, ...]], log: list[str]
) -> tuple[ir.Table, dict[str, tuple[str, ...]]]:
    """One row per unit, with 0 and a mark where a unit has no past; the covariates of each metric, marks included."""
    names = list(dict.fromkeys(name for columns in of.values() for name in columns))
    if not names:
        return rows, {}
    new = {name: rows[name].isnull().cast("int64") for name in names}
    counts = run(rows.aggregate(**{name: each.sum() for name, each in new.items()}), log)[0]
    marks = {name: f"{name}{NEW}" for name in names if counts[name]}
    filled = {name: rows[name].fill_null(0.0) for name in names}
    rows = rows.mutate(**filled, **{mark: new[name].cast("float64") for name, mark in marks.items()})
    return rows, {
        metric: tuple(each for name in columns for each in (name, marks.get(name)) if each)
        for metric, columns in of.items()
    }


def check_columns(names: Sequence[str], table: ir.Table, of: str = "") -> None:
    for name in names:
        if name not in table.columns:
            listed = ", ".join(table.columns[:12]) + (" …" if len(table.columns) > 12 else "")
            where = f"{of}: " if of else ""
            raise InvalidInput(f"{where}no column {name[:80]!r}; there are {listed}")
