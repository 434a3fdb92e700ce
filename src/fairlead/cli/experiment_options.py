"""The options that several commands of `fairlead experiment` take, and what is written in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, get_args

import typer

from fairlead.errors import InvalidInput
from fairlead.experiment import Fairness
from fairlead.metrics import Metric
from fairlead.metrics.metric import Kind

__all__ = [
    "Alpha",
    "Caps",
    "Change",
    "Covariates",
    "Data",
    "Json",
    "Metrics",
    "Power",
    "Seed",
    "Unit",
    "fairness_of",
    "grouped",
    "metrics_of",
    "number_of",
    "pairs_of",
]

_METRIC = re.compile(r"(?P<name>[^:]+):(?P<kind>[a-z]+)(:(?P<rest>.+))?", re.DOTALL)
_GRAMMAR = "name:kind[:column[/denominator]][@q]"

Change = Annotated[
    Path | None, typer.Argument(metavar="CHANGE", help="A change file with [experiment].", show_default=False)
]
Data = Annotated[
    list[Path] | None,
    typer.Option(
        "--data", metavar="FILE", help="A .parquet or .csv file; may be given again.", show_default=False
    ),
]
Unit = Annotated[
    str | None,
    typer.Option(
        metavar="COL", help="The column that names the unit; default: each row is one.", show_default=False
    ),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        metavar=_GRAMMAR.upper().replace("NAME", "NAME", 1),
        help="What is compared; the first decides. Kinds: mean, total, proportion (a column or a condition), ratio "
        "(column/denominator), quantile (@0.99), count, formula.",
        show_default=False,
    ),
]
Covariates = Annotated[
    list[str] | None,
    typer.Option(
        "--covariate",
        metavar="NAME=COL",
        help="Known of a unit before exposure, by metric.",
        show_default=False,
    ),
]
Caps = Annotated[
    list[str] | None,
    typer.Option(
        "--cap",
        metavar="NAME=Q",
        help="Values above the Q quantile of all arms count as that.",
        show_default=False,
    ),
]
Alpha = Annotated[float, typer.Option(help="Chance of a false alarm, two-sided.")]
Power = Annotated[float, typer.Option(help="Chance of finding what is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Seed = Annotated[int, typer.Option(help="Decides the splits.")]


def metrics_of(specs: Sequence[str] | None) -> tuple[Metric, ...]:
    return tuple(metric_of(spec) for spec in specs or ())


def metric_of(spec: str) -> Metric:
    """`name:kind[:column[/denominator]][@q]`. Raises InvalidInput."""
    match = _METRIC.fullmatch(spec)
    if match is None:
        raise InvalidInput(
            f"--metric {spec[:80]!r}: write {_GRAMMAR}, such as retention:proportion:retention_7"
        )
    name, kind, rest = match["name"], match["kind"], match["rest"]
    kinds = [each for each in get_args(Kind) if each not in ("maximum", "rate")]
    if kind not in kinds:
        raise InvalidInput(f"--metric {spec[:80]!r}: kind {kind[:40]!r} is none of {', '.join(kinds)}")
    q = denominator = formula = None
    column: str | None = rest
    if kind == "quantile" and rest:
        column, at, level = rest.rpartition("@")
        if not at:
            raise InvalidInput(f"--metric {spec[:80]!r}: a quantile needs its q, such as :latency@0.99")
        q = number_of(level, f"q of {name}")
    elif kind == "ratio" and rest:
        column, slash, denominator = rest.partition("/")
        if not slash:
            raise InvalidInput(
                f"--metric {spec[:80]!r}: a ratio needs its denominator, such as :clicks/views"
            )
    elif kind == "formula":
        column, formula = None, rest
    if kind == "total":  # of a table: the unit's column is known where it is read
        return Metric.from_column(name, "total", column, unit_field="unit")
    return Metric.from_column(name, kind, column, denominator=denominator, formula=formula, q=q)  # type: ignore[arg-type]  # checked above


def pairs_of(texts: Sequence[str] | None, option: str) -> list[tuple[str, str]]:
    pairs = []
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InvalidInput(f"{option} {text[:80]!r}: write NAME=VALUE")
        pairs.append((name, value))
    return pairs


def grouped(pairs: Sequence[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    grouped: dict[str, tuple[str, ...]] = {}
    for name, value in pairs:
        grouped[name] = (*grouped.get(name, ()), value)
    return grouped


def number_of(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InvalidInput(f"{what}: {text[:40]!r} is not a number") from error


def fairness_of(text: str) -> Fairness:
    name, *rest = text.split(":")
    if not 1 <= len(rest) <= 2:
        raise InvalidInput(
            f"--fairness {text[:80]!r}: write METRIC:COL or METRIC:COL:LIMIT, such as ctr:language:1.25"
        )
    return Fairness(metric=name, group=rest[0], limit=number_of(rest[1], "limit") if len(rest) == 2 else 1.25)
