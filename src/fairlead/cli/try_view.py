"""What `fairlead try` shows: progress on stderr while it runs, tables on stdout when it is done."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from fairlead.charts import format_value
from fairlead.errors import MissingExtra
from fairlead.experiment.wording import metric_rows
from fairlead.trial.budgets import BudgetRecord
from fairlead.trial.progress import Live
from fairlead.trial.result import Result
from fairlead.trial.rollout_record import LetOutRecord
from fairlead.trial.rollout_words import (
    DECISION_COLUMNS,
    FIELD_COLUMNS,
    canary_in_words,
    decision_rows,
    field_rows,
    parts_missing,
    rollout_in_words,
    shadow_in_words,
)
from fairlead.trial.summary import (
    Ablation,
    PhaseTable,
    ablations,
    burn_in_words,
    causes_in_words,
    outcome_in_words,
    phase_tables,
    planted_in_words,
)
from fairlead.trial.system import Arm, Plan
from fairlead.trial.users import UsersRecord

try:
    from rich.console import Console
    from rich.live import Live as RichLive
    from rich.table import Table
    from rich.text import Text
except ImportError as missing:
    raise MissingExtra("rich", "cli") from missing

__all__ = ["LiveProgress", "print_result"]

_BAR = 28
_MARKS = {True: ("✓ met", "green"), False: ("✗ missed", "yellow"), None: ("– not judged", "dim")}


class LiveProgress:
    """A line that moves on a terminal, a line per turn elsewhere; always on stderr."""

    def __init__(self, title: str, directory: Path) -> None:
        self._console = Console(stderr=True)
        self._title = title
        self._directory = directory
        self._live: RichLive | None = None

    def __enter__(self) -> LiveProgress:
        self._console.print(f"{self._title}: starting its processes", highlight=False, markup=False)
        if self._console.is_terminal:
            # Four refreshes a second: drawing shares two cores with the services that are being measured.
            self._live = RichLive(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if error is not None:
            self._say(f"recorded so far: {self._directory}")

    def began(self, plan: Plan) -> None:
        arms = ", ".join(arm.name for arm in plan.arms)
        self._say(f"{len(plan.arms)} arms ({arms}), {plan.cycles} cycles each, {plan.seconds:.0f} s of load")

    def moved(self, live: Live) -> None:
        if self._live is None:
            return
        done = min(1.0, live.elapsed / live.total)
        bar = "━" * round(done * _BAR) + "╌" * (_BAR - round(done * _BAR))
        self._live.update(
            Text.assemble(
                (bar, "cyan"),
                f" {live.elapsed:3.0f}/{live.total:.0f} s  cycle {live.cycle}  ",
                (f"{live.arm}", "bold"),
                f"  {live.phase}  {live.answered} answered, {live.failed} failed of {live.due} due",
            )
        )

    def finished(self, arm: Arm, cycle: int, text: str) -> None:
        self._say(f"cycle {cycle + 1}  {arm.name}: {text}")

    def said(self, text: str) -> None:
        if self._live is not None:
            self._live.update(Text())  # the comparison is over, and so is its bar
        self._say(text)

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def print_result(result: Result, directory: Path) -> None:
    """Tables per phase, targets, what is simulated, and where the report lies."""
    # A pipe has no width of its own, and a table squeezed to 80 columns breaks its figures. Names are names: one with
    # brackets is no markup.
    console = Console(width=None if sys.stdout.isatty() else 140, markup=False)
    # Captured, because rich would end the program by its own rules when the reader of the pipe has left.
    with console.capture() as captured:
        _print_result(console, result, directory)
    sys.stdout.write(captured.get())


def _print_result(console: Console, result: Result, directory: Path) -> None:
    console.print()
    console.print(Text(result.summary), highlight=False)
    for table in phase_tables(result):
        console.print("\n", _table(table))
        for caveat in table.caveats:
            console.print(Text(f"† {caveat}", style="dim"))
    console.print("\n", _targets(result))
    if (ablation := ablations(result)) is not None:
        console.print("\n", _ablations(ablation))
    if result.budgets:
        _print_budgets(console, result.budgets)
    if result.users is not None:
        _print_users(console, result.users)
    if result.let_out is not None:
        _print_let_out(console, result.let_out)
    console.print(Text("\nsimulated:", style="bold"))
    for line in result.simulated:
        console.print(Text(f"  - {line}"), highlight=False)
    console.print()
    validity = result.validity
    if validity.valid:
        lag = format_value(validity.send_lag_p99_seconds, "seconds")
        console.print(Text(f"valid: {validity.requests:,} requests, send lag p99 {lag}", style="green"))
        for turn in validity.left_out:
            console.print(Text(f"left out, for every arm: {turn}", style="yellow"))
    else:
        for reason in validity.reasons:
            console.print(Text(f"NOT VALID, do not use these figures: {reason}", style="bold red"))
    if result.change is not None:
        frozen = f"promised beforehand: {result.change.name}, sha256 {result.change.sha256[:12]}"
        console.print(Text(f"{frozen}; every figure is in {directory / 'ledger.db'}"), soft_wrap=True)
    console.print(Text(f"{result.run_seconds:.0f} s; report: {directory / 'report.html'}"), soft_wrap=True)


def _print_budgets(console: Console, budgets: Sequence[BudgetRecord]) -> None:
    """How fast each arm burned the error budgets."""
    table = Table(title="error budget: how many times too fast it burned", title_justify="left", box=None)
    for heading in ("objective", "target", "arm", "bad", "of", "burn rate", "spent on"):
        table.add_column(
            heading, justify="right" if heading in ("target", "bad", "of", "burn rate") else "left"
        )
    for one in budgets:
        table.add_row(
            one.objective, format_value(float(one.target), "ratio"), one.arm, f"{one.bad:,}", f"{one.valid:,}",
            burn_in_words(one), causes_in_words(one),
        )  # fmt: skip
    console.print("\n", table)


def _print_users(console: Console, users: UsersRecord) -> None:
    """The experiment on made users, each effect beside the one that was planted."""
    experiment = users.experiment
    planted = {one.metric: one for one in users.planted}
    table = Table(
        title=f"made users (simulated): {experiment.units:,}, divided by the flag",
        title_justify="left",
        box=None,
    )
    for heading in ("metric", "control", "treatment", "relative effect", "verdict", "planted"):
        table.add_column(heading, justify="left" if heading in ("metric", "verdict", "planted") else "right")
    for row, found in zip(metric_rows(experiment), experiment.metrics, strict=True):
        one = planted.get(found.name)
        table.add_row(
            found.name.replace("_", " "), row.control, row.treatment, row.relative, row.verdict,
            "– (real: as the clients met it)" if one is None else planted_in_words(one, found.unit),
        )  # fmt: skip
    console.print("\n", table)
    # What was done to the metric that decides, and what so few users could not show.
    for note in metric_rows(experiment)[0].notes:
        console.print(Text(f"† {experiment.metrics[0].name.replace('_', ' ')}: {note}", style="dim"))
    for check in experiment.health:
        if check.verdict != "ok":
            console.print(Text(f"{check.name}: {check.message}", style="yellow"), highlight=False)


def _print_let_out(console: Console, let_out: LetOutRecord) -> None:
    """Unseen, to a canary that does harm, then by the whole plan: every decision with what it stood on."""
    shadow, canary, rollout = let_out.shadow, let_out.canary, let_out.rollout
    if shadow is not None:
        console.print(Text("\nlet out: unseen beside control (shadow, live)", style="bold"))
        console.print(Text(shadow_in_words(shadow)), highlight=False)
        if shadow.fields:
            console.print(_rows(FIELD_COLUMNS, field_rows(shadow), left=1))
    if canary is not None:
        title = f"\nlet out: a canary that does harm, at {canary.share * 100:g} % of the users (live)"
        console.print(Text(title, style="bold"))
        console.print(Text(f"planted: {canary.planted}"), highlight=False)
        console.print(_rows(DECISION_COLUMNS, decision_rows(canary.rollout), left=5))
        console.print(Text(canary_in_words(canary)), highlight=False)
        if canary.incident:
            console.print(Text(f"incident: {canary.incident}"), highlight=False)
    if rollout is not None:
        title = "\nlet out: the whole plan, on virtual time over the recorded events"
        console.print(Text(title, style="bold"))
        console.print(_rows(DECISION_COLUMNS, decision_rows(rollout), left=5))
        console.print(Text(rollout_in_words(rollout)), highlight=False)
    if let_out.missing:
        console.print(Text(f"\nlet out: {parts_missing(let_out)}", style="yellow"))


def _rows(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> Table:
    """left: how many of the first columns are words."""
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _table(table: PhaseTable) -> Table:
    shown = Table(title=table.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    shown.add_column("", no_wrap=True)
    for arm, n in zip(table.arms, table.requests, strict=True):
        shown.add_column(f"{arm} (n = {n:,})", justify="right")
    shown.add_column("change", justify="right")
    for title, cells, change in table.rows:
        shown.add_row(title, *cells, change)
    return shown


def _ablations(ablation: Ablation) -> Table:
    shown = Table(
        title="what each mechanism contributes",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    shown.add_column("arm", no_wrap=True, vertical="bottom")
    for column in ablation.columns:
        shown.add_column(column, justify="right", vertical="bottom")
    for name, cells in ablation.rows:
        shown.add_row(name, *cells)
    return shown


def _targets(result: Result) -> Table:
    shown = Table(title="targets", title_justify="left", title_style="bold", box=None, pad_edge=False)
    shown.add_column("")
    shown.add_column("phase")
    shown.add_column("control → treatment")
    shown.add_column("outcome", no_wrap=True)
    for target in result.targets:
        text, style = _MARKS[target.met]
        shown.add_row(target.statement, target.phase, outcome_in_words(target), Text(text, style=style))
    return shown
