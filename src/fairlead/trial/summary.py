"""A result as tables of text, the same rows for the terminal and for the page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fairlead.charts import format_value, unit_of
from fairlead.trial.budgets import BudgetRecord
from fairlead.trial.result import Figure, Result, TargetRecord
from fairlead.trial.users import PlantedRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Ablation",
    "PhaseTable",
    "ablations",
    "burn_in_words",
    "causes_in_words",
    "cell",
    "outcome_in_words",
    "phase_tables",
    "planted_in_words",
]

_FIGURES = re.compile(r" \([\d.]+\)|: [\d.]+ .*$")


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseTable:
    """The figures of one phase: a row per metric, a column per arm."""

    phase: str
    title: str
    arms: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...], str], ...]
    """Metric title, one cell per arm, and the change from the first arm to the second."""
    requests: tuple[int, ...]
    caveats: tuple[str, ...]
    """What the cells marked with a dagger need to be read with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablation:
    """Every arm beside what the targets are about: what a mechanism contributes is what is lost without it."""

    columns: tuple[str, ...]
    """Metric and phase of each target, then degraded answers and every ratio of the whole run."""
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    """Arm and one cell per column, without intervals."""


def ablations(result: Result) -> Ablation | None:
    """None for a run without ablations."""
    if not any(arm.without for arm in result.arms):
        return None
    metrics = {metric.name: metric for metric in result.metrics}
    phases = {phase.name: phase.title for phase in result.phases} | {"run": "whole run"}
    pairs = [
        *list(dict.fromkeys((target.metric, target.phase) for target in result.targets)),
        ("degraded", "run"),
        *((metric.name, "run") for metric in result.metrics if metric.kind == "ratio"),
    ]
    index = {(figure.metric, figure.arm, figure.phase): figure for figure in result.figures}
    known = {(figure.metric, figure.phase) for figure in result.figures}
    pairs = [pair for pair in dict.fromkeys(pairs) if pair in known]
    rows = []
    for arm in result.arms:
        figures = [(metric, index.get((metric, arm.name, phase))) for metric, phase in pairs]
        rows.append((arm.name, tuple(_bare(figure, metrics[metric].unit) for metric, figure in figures)))
    return Ablation(
        columns=tuple(f"{metrics[metric].title}, {phases[phase]}" for metric, phase in pairs),
        rows=tuple(rows),
    )


def _bare(figure: Figure | None, unit: str) -> str:
    return "–" if figure is None or figure.value is None else format_value(figure.value, unit_of(unit))


def outcome_in_words(target: TargetRecord) -> str:
    """The figures and the change beside a mark for the outcome; why, where it was not judged."""
    words = target.wording if target.met is None else target.wording.rpartition(":")[0]
    return f"{words}; {target.caveat}" if target.caveat else words


def burn_in_words(budget: BudgetRecord) -> str:
    """The burn rate, in three digits."""
    return "–" if budget.burn_rate is None else f"{format_value(budget.burn_rate)}×"


def causes_in_words(budget: BudgetRecord) -> str:
    """What the budget went to, by how requests ended."""
    late = {"ok": "answered too late", "degraded": "degraded, and too late"}
    return ", ".join(
        f"{late.get(cause, cause)} {format_value(share)}×" for cause, share in budget.spent_by.items()
    )


def planted_in_words(planted: PlantedRecord, unit: str) -> str:
    """A planted effect beside what was found of it."""
    if planted.effect == 0:
        size = "nothing"
    else:
        size = format_value(
            planted.effect, "percentage_points" if unit_of(unit) == "ratio" else unit_of(unit)
        )
        size = f"+{size}" if planted.effect > 0 else size
        if planted.relative_effect is not None:
            size += f" ({planted.relative_effect:+.2%})"
    if planted.inside is None:
        return f"{size}; not found, as there is no interval"
    return f"{size}; inside the interval" if planted.inside else f"{size}; OUTSIDE the interval"


def cell(figure: Figure | None, unit: str) -> str:
    """Value and interval, a dagger where a caveat goes with them; a dash where there is nothing to say."""
    if figure is None or figure.value is None:
        return "–"
    shown = format_value(figure.value, unit_of(unit))
    dagger = " †" if figure.caveat else ""
    if figure.low is None or figure.high is None or figure.low == figure.high == figure.value:
        return shown + dagger
    low, high = (format_value(bound, unit_of(unit)) for bound in (figure.low, figure.high))
    return f"{shown} [{low} – {high}]{dagger}"


def phase_tables(result: Result) -> Sequence[PhaseTable]:
    """Control and treatment: one table per measured phase, then one for the whole run."""
    index = {(figure.metric, figure.arm, figure.phase): figure for figure in result.figures}
    phases = [(phase.name, phase.title) for phase in result.phases if phase.measured] + [("run", "whole run")]
    arms = tuple(arm.name for arm in result.arms[:2])
    tables = []
    for name, title in phases:
        rows = []
        for metric in result.metrics:
            figures = [index.get((metric.name, arm, name)) for arm in arms]
            if not any(figures):
                continue
            cells = tuple(cell(figure, metric.unit) for figure in figures)
            rows.append((metric.title, cells, _change(figures[0], figures[1], metric.unit)))
        requests = tuple(
            found.n if (found := index.get(("latency_p50", arm, name))) is not None else 0 for arm in arms
        )
        shown = [index.get((metric.name, arm, name)) for metric in result.metrics for arm in arms]
        # Without their figures, which differ from cell to cell and stand in result.json.
        caveats = dict.fromkeys(
            _FIGURES.sub("", figure.caveat)
            for figure in shown
            if figure is not None and figure.value is not None and figure.caveat
        )
        tables.append(
            PhaseTable(
                phase=name,
                title=title,
                arms=arms,
                rows=tuple(rows),
                requests=requests,
                caveats=tuple(caveats),
            )
        )
    return tables


def _change(control: Figure | None, treatment: Figure | None, unit: str) -> str:
    if control is None or treatment is None or control.value is None or treatment.value is None:
        return ""
    difference = treatment.value - control.value
    if unit == "ratio":
        return f"{_signed(difference * 100, 1)} pp"
    if control.value == 0:
        return "" if difference == 0 else "from 0"
    return f"{_signed(difference / control.value * 100, 0)} %"


def _signed(number: float, digits: int) -> str:
    text = f"{number:+.{digits}f}".replace("-", "−")
    return text if text.strip("+−0.") else f"{0:.{digits}f}"
