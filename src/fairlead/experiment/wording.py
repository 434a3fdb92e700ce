"""An analysis in words and cells, the same in the terminal and on the page.

A figure is written as finely as its interval allows and no finer: 19.02 % beside ± 0.4 pp, 49.4 beside ± 1.8. A
difference of two shares is in percentage points; "+ 2 %" of a share is another thing, and has its own column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fairlead.charts.units import DisplayUnit, display_unit, fixed_number, unit_of
from fairlead.experiment.result import ExperimentResult, Interval, MetricResult, SegmentResult, StageResult

__all__ = [
    "MetricRow",
    "StageRow",
    "headline",
    "interval_text",
    "metric_rows",
    "notes_of",
    "p_text",
    "relative_text",
    "stage_rows",
    "verdict_text",
]

_VERDICTS = {
    "better": "better",
    "worse": "worse",
    "higher": "higher",
    "lower": "lower",
    "not_worse": "not worse",
    "no_difference_shown": "no difference shown",
    "inconclusive": "inconclusive",
    "not_estimable": "not estimable",
    "void": "void",
}
_MISSING = "–"


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricRow:
    """One metric of one variant, as cells."""

    name: str
    variant: str
    control: str
    treatment: str
    effect: str
    """With its interval, in the metric's unit."""
    relative: str
    """With its interval, relative to control."""
    p_value: str
    verdict: str
    notes: tuple[str, ...]
    """What was done (CUPED), what can be found, and every caveat."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRow:
    """One stage, as cells."""

    name: str
    """Its share of treatment: "5 %"."""
    start: str
    """UTC."""
    end: str
    units: tuple[str, ...]
    """By variant, control first: found, and how many there should be."""
    back: str
    p_value: str
    left_out: tuple[str, ...]

    @property
    def text(self) -> str:
        """The stage in a line: "5 % from 2026-11-27 14:00:00 until 2026-11-28 14:00:00 UTC"."""
        return f"{self.name} from {self.start} until {self.end}"


def metric_rows(result: ExperimentResult) -> list[MetricRow]:
    """A row per metric and variant, in the plan's order."""
    return [_row(result, found) for found in result.metrics]


def notes_of(rows: Sequence[MetricRow]) -> list[tuple[str, str]]:
    """Every note once, with the metrics that it is about."""
    about: dict[str, list[str]] = {}
    for row in rows:
        for note in row.notes:
            about.setdefault(note, []).append(row.name)
    return [(", ".join(dict.fromkeys(names)), note) for note, names in about.items()]


def stage_rows(result: ExperimentResult) -> list[StageRow]:
    """A row for each stage of a rollout, or for the one period that was looked at."""
    return [_stage_row(result, stage) for stage in result.stages]


def headline(result: ExperimentResult) -> str:
    """What the experiment says, in a sentence or two."""
    if result.is_void:
        failed = next(check for check in result.health if check.verdict == "failed")
        return f"Void: the {failed.name} is broken, so no effect here is one."
    primary = [found for found in result.metrics if found.role == "primary"]
    said = []
    for found in primary:
        words = {
            "no_difference_shown": "shows no difference, which is not to say that there is none",
            "not_estimable": "cannot be estimated",
        }.get(found.verdict, f"is {_VERDICTS[found.verdict]}")
        effect = "" if found.relative_effect is None else f": {relative_text(found)}"
        said.append(f"{found.name} of {found.variant} {words}{effect}.")
    harmed = [
        f"{found.name} of {found.variant}"
        for found in result.metrics
        if found.role == "guardrail" and found.verdict == "worse"
    ]
    if harmed:
        said.append(f"Guardrails harmed: {', '.join(harmed)}.")
    unfair = [
        f"{one.metric} of {one.variant} by {one.group}"
        for one in result.fairness
        if one.verdict == "exceeded"
    ]
    if unfair:
        said.append(f"Groups are treated too unequally: {', '.join(unfair)}.")
    return " ".join(said)


def verdict_text(found: MetricResult) -> str:
    """The verdict as people read it."""
    return _VERDICTS[found.verdict]


def p_text(p_value: float | None) -> str:
    """A p-value in two digits, in powers of ten where it is small.

    >>> p_text(0.0442), p_text(3.2e-9), p_text(0.999), p_text(None)
    ('0.044', '3.2e−9', '1.0', '–')
    """
    if p_value is None:
        return _MISSING
    if p_value >= 0.095:
        return f"{p_value:.2f}" if p_value < 0.995 else "1.0"
    if p_value >= 0.0001:
        return f"{p_value:.2g}"
    mantissa, _, power = f"{p_value:.1e}".partition("e")
    return f"{mantissa}e−{abs(int(power))}"


def relative_text(found: MetricResult | SegmentResult) -> str:
    """The relative effect with its interval, in percent."""
    return interval_text(found.relative_effect, found.relative_effect_ci, DisplayUnit("%", 0.01), signed=True)


def interval_text(
    value: float | None, interval: Interval | None, unit: DisplayUnit, *, signed: bool = False
) -> str:
    """A figure and its interval in one unit, with as many decimals as the interval is worth."""
    if value is None:
        return _MISSING
    low, high = interval or (None, None)
    decimals = _decimals(value, (low, high), unit)
    shown = _fixed(value, decimals, unit, signed) + unit.suffix
    if low is None and high is None:
        return shown
    ends = ", ".join(_MISSING if end is None else _fixed(end, decimals, unit, signed) for end in (low, high))
    return f"{shown} [{ends}]"


def _row(result: ExperimentResult, found: MetricResult) -> MetricRow:
    unit = unit_of(found.unit)
    figures = [
        arm.mean if isinstance(arm.mean, float) else arm.value if isinstance(arm.value, float) else None
        for arm in (found.control, found.treatment)
    ]
    shown = display_unit([abs(figure) for figure in figures if figure is not None], unit)
    # A difference of shares is in points, which are no percent.
    difference = DisplayUnit("pp", 0.01) if unit == "ratio" else shown
    cells = [
        _MISSING
        if figure is None
        else _fixed(figure, _decimals(figure, found.effect_ci or (None, None), shown), shown, False)
        + shown.suffix
        for figure in figures
    ]
    notes = []
    if found.cuped is not None:
        names = ", ".join(name.removeprefix("before ") for name in found.cuped.covariates)
        notes.append(
            f"adjusted by {names}: {found.cuped.variance_reduction:.0%} of the variance taken out; "
            "the effect is that of the adjusted figures"
        )
    if found.margin is not None:
        by = f"{found.margin.by:.2%}" if found.margin.relative else f"{found.margin.by:g} {found.unit}"
        notes.append(
            f"beside a margin of {by}: not worse p = {p_text(found.margin.p_not_worse)}, worse p = "
            f"{p_text(found.margin.p_worse)}"
        )
    if found.verdict in ("no_difference_shown", "inconclusive") and found.detectable is not None:
        notes.append(
            f"with {found.control.n + found.treatment.n:,} units an effect of {found.detectable:.2%} is found "
            f"{result.power:.0%} of the time; a smaller one may well be there"
        )
    p_value = found.adjusted_p_value if found.adjusted_p_value is not None else found.p_value
    return MetricRow(
        name=found.name,
        variant=found.variant,
        control=cells[0],
        treatment=cells[1],
        effect=interval_text(found.effect, found.effect_ci, difference, signed=True),
        relative=relative_text(found),
        p_value=p_text(p_value),
        verdict=verdict_text(found),
        notes=(*notes, *found.caveats),
    )


def _stage_row(result: ExperimentResult, stage: StageResult) -> StageRow:
    arms = (result.control, *result.variants)
    treated = 1 - stage.shares.get(result.control, 0.0)
    return StageRow(
        name=f"{treated * 100:.4g} %",
        start="the first" if stage.start_utc_seconds is None else _moment(stage.start_utc_seconds),
        end="now" if stage.end_utc_seconds is None else _moment(stage.end_utc_seconds),
        units=tuple(
            f"{stage.observed[arm]:,} ({stage.expected[arm]:,.0f})" if arm in stage.observed else _MISSING
            for arm in arms
        ),
        back=f"{stage.back:,}",
        p_value=p_text(stage.p_value),
        left_out=tuple(f"{count:,} {reason}" for reason, count in stage.left_out.items()),
    )


def _moment(utc_seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(utc_seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):  # a plan may name the beginning of time
        return f"{utc_seconds:.0f}"


def _decimals(value: float, interval: Interval, unit: DisplayUnit) -> int:
    """So many that the interval's half has two digits; three digits of the value where there is none."""
    low, high = interval
    if low is not None and high is not None and high > low:
        size = (high - low) / 2 / unit.factor
        digits = 1
    else:
        size, digits = abs(value) / unit.factor, 2
    if not size > 0 or not math.isfinite(size):
        return 2
    return min(8, max(0, digits - math.floor(math.log10(size))))


def _fixed(value: float, decimals: int, unit: DisplayUnit, signed: bool) -> str:
    text = fixed_number(value / unit.factor, decimals)
    return f"+{text}" if signed and value > 0 and text.strip("0.,") else text
