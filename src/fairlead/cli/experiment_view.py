"""Experiments in the terminal: what it says first, then whether to believe it, then the figures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import typer

from fairlead.charts import format_value, unit_of
from fairlead.cli.outcome import one_line
from fairlead.errors import MissingExtra
from fairlead.experiment import ExperimentResult
from fairlead.experiment.wording import headline, metric_rows, notes_of, p_text, relative_text, stage_rows

if TYPE_CHECKING:
    from fairlead.experiment.design import Design, StageDesign
    from fairlead.experiment.simulate import Simulated
    from fairlead.statistics import Estimate

try:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
except ImportError as missing:
    raise MissingExtra("rich", "cli") from missing

__all__ = ["print_analysis", "print_design", "print_simulated"]

DESIGN_SCHEMA = "fairlead.experiment.design/1"
SIMULATED_SCHEMA = "fairlead.experiment.simulated/1"
_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "bold red")}
_STYLES = {"better": "green", "not worse": "green", "worse": "bold red", "void": "bold red"}


def print_analysis(result: ExperimentResult, page: Path | None) -> None:
    """Headline, health, effects, segments."""

    def show(console: Console) -> None:
        console.print(
            Text(
                one_line(f"{result.name}: {headline(result)}"), style="bold red" if result.is_void else "bold"
            )
        )
        console.print()
        for check in result.health:
            mark, style = _MARKS[check.verdict]
            console.print(Text.assemble((f"{mark} ", style), f"{check.name}: {one_line(check.message)}"))
        for reason, count in result.excluded.items():
            console.print(Text(f"  left out: {count:,} {reason}", style="dim"))
        console.print()
        _print_stages(console, result)
        rows = metric_rows(result)
        several = len(result.variants) > 1
        table = _table(
            "metric",
            *(["variant"] if several else []),
            *_right(one_line(result.control)),
            *_right("treatment" if several else one_line(result.variants[0])),
            *_right("effect", "relative", "p"),
            "verdict",
        )
        for row in rows:
            table.add_row(
                one_line(row.name),
                *([one_line(row.variant)] if several else []),
                row.control,
                row.treatment,
                row.effect,
                row.relative,
                row.p_value,
                Text(row.verdict, style=_STYLES.get(row.verdict, "")),
            )
        console.print(table)
        for names, note in notes_of(rows):
            console.print(Text(one_line(f"  {names}: {note}"), style="dim"))
        _print_segments(console, result)
        for fair in result.fairness:
            ratio = "–" if fair.largest_ratio is None else f"{fair.largest_ratio:.3g}"
            ends = "" if fair.ci is None else f" [{_three(fair.ci[0])}, {_three(fair.ci[1])}]"
            between = f" ({' over '.join(fair.between)})" if fair.between else ""
            whose = f"{fair.metric} of {fair.variant}" if several else fair.metric
            said = (
                f"fairness of {whose} by {fair.group}: {ratio}{ends}{between}, limit {fair.limit:g}: "
                f"{fair.verdict.replace('_', ' ')}"
            )
            console.print(Text(one_line(said)))
            for caveat in fair.caveats:
                console.print(Text(one_line(f"  {caveat}"), style="dim"))
        for caveat in result.caveats:
            console.print(Text(one_line(caveat), style="dim"))
        if page is not None:
            console.print(Text(f"\npage: {page}"))

    _print(show)


def print_design(design: Design, *, as_json: bool) -> None:
    """Per metric and stage: what is found, and when."""
    if as_json:
        _print_json(DESIGN_SCHEMA, design)
        return

    def show(console: Console) -> None:
        console.print(
            Text(
                f"{design.units_per_day:,.10g} units a day, alpha {design.alpha:.2g}, power {design.power:.0%}",
                style="bold",
            )
        )
        for caveat in design.caveats:
            console.print(Text(caveat, style="dim"))
        for metric in design.metrics:
            console.print()
            name = metric.metric.name
            if metric.spread is None:
                console.print(Text(one_line(f"{name}: {metric.reason}")))
                continue
            spread, unit = metric.spread, unit_of(metric.metric.unit)
            said = (
                f"{name}: {format_value(spread.figure, unit)}, a unit's deviation "
                f"{format_value(spread.deviation, unit)}"
            )
            if spread.n:
                said += f", from {spread.n:,} units"
            if spread.variance_reduction is not None:
                said += f"; covariates take out {spread.variance_reduction:.0%} of the variance"
            console.print(Text(one_line(said), style="bold"))
            if spread.caveat:
                console.print(Text(one_line(spread.caveat), style="dim"))
            wanted = "–" if metric.wanted is None else f"{metric.wanted:.2%}"
            adjusted = spread.adjusted is not None
            with_covariates = ["with covariates"] if adjusted else []
            table = _table(
                *_right("share", "planned", f"days to find {wanted}", *with_covariates, "units"),
                *_right(
                    f"chance of {wanted} as planned",
                    *with_covariates,
                    "least found as planned",
                    *with_covariates,
                ),
            )
            for stage in metric.stages:
                table.add_row(*_stage_cells(stage, adjusted))
            console.print(table)

    _print(show)


def print_simulated(found: Sequence[Simulated], *, seed: int, as_json: bool) -> None:
    """Per metric: false alarms or power, and coverage."""
    if as_json:
        _print_json(SIMULATED_SCHEMA, {"seed": seed, "metrics": found})
        return

    def show(console: Console) -> None:
        planted = found[0].planted
        what = "no effect planted (A/A)" if planted == 0 else f"{planted:+.2%} planted in treatment"
        console.print(
            Text(f"{found[0].runs + found[0].refused:,} random splits, {what}, seed {seed}", style="bold")
        )
        table = _table(
            "metric",
            *_right(
                "units",
                "false alarms" if planted == 0 else "found",
                "watched, at the end",
                "interval covers",
                "mean estimate",
            ),
            "",
        )
        for one in found:
            table.add_row(
                one_line(one.metric),
                f"{one.units:,}",
                _share(one.found),
                _share(one.watched),
                _share(one.covered),
                "–" if one.mean_effect is None else f"{one.mean_effect:+.2%}",
                Text("as stated", style="green")
                if one.is_calibrated
                else Text("NOT as stated", style="bold red"),
            )
        console.print(table)
        alpha = found[0].alpha
        console.print(
            Text(
                f"stated: {alpha:.3g} false alarms, {1 - alpha:.3g} covered; intervals of 95 % from the "
                f"number of splits",
                style="dim",
            )
        )

    _print(show)


def _print_stages(console: Console, result: ExperimentResult) -> None:
    if not result.stages:
        return
    table = _table(
        *("share", "from", "until"),
        *_right(*(f"{one_line(arm)} (expected)" for arm in (result.control, *result.variants)), "back", "p"),
    )
    rows = stage_rows(result)
    for row in rows:
        table.add_row(row.name, row.start, row.end, *row.units, row.back, row.p_value)
    console.print(table)
    for row in rows:
        if row.left_out:
            said = f"  {row.name}: drawn, and not counted: {'; '.join(row.left_out)}"
            console.print(Text(one_line(said), style="dim"))
    console.print()


def _print_segments(console: Console, result: ExperimentResult) -> None:
    if not result.segments:
        return
    console.print(
        Text(
            "\nsegments: exploratory, adjusted over all of them; where to look next, and nothing to decide by",
            style="bold",
        )
    )
    several = len(result.variants) > 1
    table = _table(
        *("segment", "value", "metric"), *(["variant"] if several else []),
        *_right("units", "relative", "p"), "",
    )  # fmt: skip
    for row in result.segments:
        table.add_row(
            one_line(row.segment),
            one_line(row.value or "(none)"),
            one_line(row.metric),
            *([one_line(row.variant)] if several else []),
            f"{row.n_control + row.n_treatment:,}",
            relative_text(row),
            p_text(row.adjusted_p_value),
            Text(one_line("; ".join(row.caveats)), style="dim"),
        )
    console.print(table)
    asked = {
        (row.segment, row.metric, row.variant): row.heterogeneity_p_value
        for row in result.segments
        if row.heterogeneity_p_value is not None
    }
    for (segment, metric, variant), p_value in asked.items():
        whose = f"the effect of {variant} on {metric}" if several else f"the effect on {metric}"
        console.print(
            Text(
                one_line(f"  does {whose} differ between values of {segment} at all? p = {p_text(p_value)}"),
                style="dim",
            )
        )


def _stage_cells(stage: StageDesign, adjusted: bool) -> list[str]:
    def days(value: float | None) -> str:
        return "–" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"

    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.2%}"

    def chance(value: float | None) -> str:
        return "–" if value is None else f"{value:.0%}"

    return [
        f"{stage.share:.3g}" if stage.share < 0.01 else f"{stage.share:.0%}",
        "–" if stage.bake is None else f"{days(stage.bake)} d",
        days(stage.days_needed),
        *([days(stage.days_needed_adjusted)] if adjusted else []),
        "–" if stage.units_needed is None else f"{stage.units_needed:,}",
        chance(stage.power),
        *([chance(stage.power_adjusted)] if adjusted else []),
        share(stage.detectable),
        *([share(stage.detectable_adjusted)] if adjusted else []),
    ]


def _share(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.1%}"
    return f"{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}]"


def _three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _right(*names: str) -> list[tuple[str]]:
    """Headings of columns of figures."""
    return [(name,) for name in names]


def _table(*columns: str | tuple[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        if isinstance(column, tuple):
            table.add_column(column[0], justify="right", no_wrap=True)
        else:
            table.add_column(column)
    return table


def _print(show: Callable[[Console], None]) -> None:
    # A pipe has no width of its own, and a table squeezed to 80 columns breaks its figures.
    is_terminal = sys.stdout.isatty()
    console = Console(
        width=None if is_terminal else 150, markup=False, highlight=False, soft_wrap=not is_terminal
    )
    with console.capture() as captured:
        show(console)
    sys.stdout.write(captured.get())


def _print_json(schema: str, document: object) -> None:
    fields = msgspec.to_builtins(document)
    whole = {"schema": schema, **fields} if isinstance(fields, dict) else {"schema": schema, "found": fields}
    typer.echo(msgspec.json.format(msgspec.json.encode(whole)).decode())
