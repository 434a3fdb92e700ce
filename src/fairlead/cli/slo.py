"""`fairlead slo`: what was promised, what is left of the budget, and the alerts that a Prometheus should have."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from fairlead.cli.exit_codes import ExitCode
from fairlead.cli.outcome import one_line
from fairlead.cli.output_file import write_output
from fairlead.cli.schemas_option import SchemasOption, import_schemas
from fairlead.errors import InvalidInput, MissingExtra
from fairlead.slo import (
    Counters,
    ErrorBudget,
    Objective,
    RollingPeriod,
    alerts_of,
    budget_from_events,
    objectives_toml,
    prometheus_rules,
    read_objectives,
)
from fairlead.slo.rules import decimal_text, duration_text

if TYPE_CHECKING:
    from fairlead.metrics.prometheus import PrometheusServer

try:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
except ImportError as missing:
    raise MissingExtra("rich", "cli") from missing

__all__ = ["BUDGET_SCHEMA", "app"]

BUDGET_SCHEMA = "fairlead.slo.budget/1"

app = typer.Typer(
    help="Checks objectives, shows their error budgets, and writes a Prometheus' rules for them.",
    add_completion=False,
    rich_markup_mode=None,
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="Objectives in TOML.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="FILE", help="Where to; default: print it.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def check(file: File, json: Json = False) -> None:
    """Reads the objectives and says what each of them promises, allows and wakes whom for."""
    objectives = read_objectives(file)
    if json:
        listed = [
            {
                "name": one.name,
                "target": decimal_text(one.target),
                "budget": decimal_text(one.budget),
                "budget_minutes": one.budget_minutes,
                "period": str(one.period),
                "owner": one.owner,
                "runbook": one.runbook,
                "alerts": [
                    {
                        "severity": alert.severity,
                        "burn_rate": float(alert.burn_rate),
                        "long_seconds": alert.long_seconds,
                        "short_seconds": alert.short_seconds,
                    }
                    for alert in alerts_of(one)
                ],
            }
            for one in objectives
        ]
        typer.echo(_json({"schema": "fairlead.slo.check/1", "file": str(file), "objectives": listed}))
        return
    for one in objectives:
        typer.echo(one_line(f"{one.name}: {one.title}"))
        typer.echo(
            one_line(
                f"  {decimal_text(one.target * 100)} % of {one.period}: {_minutes(one.budget_minutes)} of "
                f"outage in a period; "
                f"{one.owner}, {one.runbook}"
            )
        )
        for alert in alerts_of(one):
            typer.echo(
                f"  {alert.severity}: {float(alert.burn_rate):g} times too fast over "
                f"{duration_text(alert.long_seconds)} and "
                f"{duration_text(alert.short_seconds)}, {float(alert.budget_share):.0%} of the budget"
            )
        if not one.minimum_events:
            typer.echo("  no minimum_events: at night one failure of three is 33 %")
    typer.echo(f"{len(objectives)} objective{'s' if len(objectives) != 1 else ''}: ready")


@app.command()
def budget(
    file: File,
    events: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder of a sink's events.", show_default=False)
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="A .parquet or .csv file of events; may be given again.",
            show_default=False,
        ),
    ] = None,
    time_column: Annotated[
        str | None, typer.Option(metavar="COL", help="With --data: when an event was.", show_default=False)
    ] = None,
    prometheus: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask a Prometheus.", show_default=False)
    ] = None,
    schemas: SchemasOption = None,
    now: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="As of when; seconds since 1970.", show_default=False),
    ] = None,
    json: Json = False,
) -> int:
    """What is left of each error budget, and what it was spent on. Ends with 3 where one is overdrawn."""
    import_schemas(schemas)
    if sum(source is not None for source in (events, data or None, prometheus)) != 1:
        raise InvalidInput("give one source: --events DIR, --data FILE or --prometheus URL")
    objectives = read_objectives(file)
    moment = now if now is not None else time.time()
    if prometheus is not None:
        if now is not None:
            raise InvalidInput("--now is for events; a Prometheus is asked about the present")
        from fairlead.metrics.prometheus import PrometheusServer

        with PrometheusServer(prometheus) as server:
            budgets = [_asked(server, objective) for objective in objectives]
    else:
        budgets = [_counted(objective, events, data or [], time_column, moment) for objective in objectives]
    if json:
        typer.echo(_json({"schema": BUDGET_SCHEMA, "budgets": [_record(one) for one in budgets]}))
    else:
        _print(budgets)
    if any(one.remaining is not None and one.remaining < 0 for one in budgets):
        return ExitCode.BREACHED
    return ExitCode.INCONCLUSIVE if any(one.remaining is None for one in budgets) else ExitCode.OK


@app.command()
def rules(file: File, out: Out = None) -> None:
    """Prometheus recording and alerting rules for every objective; promtool check rules takes them."""
    _written(prometheus_rules(read_objectives(file)), out)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="OpenSLO documents (v1, v1alpha) in YAML.")],
    out: Out = None,
    owner: Annotated[str, typer.Option(help="Who answers for those that name nobody.")] = "",
    runbook: Annotated[str, typer.Option(help="What to read, for those that name nothing.")] = "",
) -> None:
    """Turns OpenSLO documents into objectives; says on stderr what was not taken over."""
    from fairlead.slo.openslo import MAX_BYTES, import_openslo

    try:
        # Not to wait for a pipe that nobody writes to.
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as source:
            content = source.read(MAX_BYTES + 1) or b""
    except OSError as error:
        raise InvalidInput(
            f"{file}: cannot be read ({error.strerror}); name a file of OpenSLO documents"
        ) from error
    found = import_openslo(content, owner=owner, runbook=runbook, name=str(file))
    for reason in found.left_out:
        print(f"not taken over: {one_line(reason)}", file=sys.stderr)
    if not found.objectives:
        raise InvalidInput(f"{file}: nothing of it could be taken over")
    _written(objectives_toml(found.objectives), out)


def _counted(
    objective: Objective, events: Path | None, data: list[Path], time_column: str | None, now: float
) -> ErrorBudget:
    from fairlead.metrics.warehouse import Warehouse

    objective.metric()  # says what is missing before anything is read
    source = (
        Warehouse.of_events(events, objective.event)
        if events is not None
        else Warehouse.of_files(data, time_column=time_column)
    )
    return budget_from_events(objective, source, now=now)


def _asked(server: PrometheusServer, objective: Objective) -> ErrorBudget:
    if objective.prometheus is None or not isinstance(objective.period, RollingPeriod):
        raise InvalidInput(
            f"{objective.name}: a Prometheus is asked about rolling periods, by counters: "
            f"[objectives.{objective.name}.prometheus]"
        )
    return _budget_of(server, objective, objective.period.seconds)


def _budget_of(server: PrometheusServer, objective: Objective, seconds: float) -> ErrorBudget:
    assert objective.prometheus is not None  # noqa: S101 - asked before
    good, valid = (
        server.increase(selector, seconds)
        for selector in (objective.prometheus.good, objective.prometheus.valid)
    )
    for reading in (valid, good):
        # A counter of good events that nobody ever counted is zero. A bucket that does not exist is no edge, and a
        # server that does not answer is no figure.
        never = isinstance(objective.prometheus, Counters) and reading is good and reading.reason == "no_data"
        if reading.reason is not None and not never:
            return ErrorBudget(
                objective=objective, valid=0.0, bad=0.0, caveats=(f"{reading.reason}: {reading.detail}",)
            )
    assert valid.value is not None  # noqa: S101 - without a reason there is a value
    bad = max(0.0, valid.value - (good.value or 0.0))
    return ErrorBudget(objective=objective, valid=valid.value, bad=min(bad, valid.value))


def _record(one: ErrorBudget) -> dict[str, object]:
    return {
        "name": one.objective.name,
        "target": decimal_text(one.objective.target),
        "observed": one.observed,
        "valid": one.valid,
        "bad": one.bad,
        "spent": one.spent,
        "remaining": one.remaining,
        "budget_minutes": one.objective.budget_minutes,
        "remaining_minutes": one.remaining_minutes,
        "spent_by": one.spent_by(),
        "window": None if one.window is None else {"start": one.window.start, "end": one.window.end},
        "caveats": list(one.caveats),
    }


def _print(budgets: list[ErrorBudget]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140, markup=False, highlight=False)
    with console.capture() as captured:
        table = Table(box=None, pad_edge=False)
        table.add_column("objective")
        for heading in ("target", "good", "events", "bad", "spent", "left", "of outage"):
            table.add_column(heading, justify="right")
        for one in budgets:
            left = "no events" if one.remaining is None else f"{one.remaining:.1%}"
            minutes = "–" if one.remaining_minutes is None else _minutes(one.remaining_minutes)
            table.add_row(
                one_line(one.objective.name), f"{decimal_text(one.objective.target * 100)} %",
                "–" if one.observed is None else f"{one.observed:.4%}", f"{one.valid:,.0f}", f"{one.bad:,.0f}",
                "–" if one.spent is None else f"{one.spent:.1%}",
                Text(left, style="bold red" if one.remaining is not None and one.remaining < 0 else ""), minutes,
            )  # fmt: skip
        console.print(table)
        for one in budgets:
            for cause, share in one.spent_by().items():
                console.print(
                    Text(one_line(f"  {one.objective.name}: {share:.1%} spent on {cause}"), style="dim")
                )
            for caveat in one.caveats:
                console.print(Text(one_line(f"  {one.objective.name}: {caveat}"), style="dim"))
    sys.stdout.write(captured.get())


def _minutes(minutes: float) -> str:
    return f"{minutes:.3g} min" if abs(minutes) < 120 else f"{minutes / 60:.3g} h"


def _written(text: str, out: Path | None) -> None:
    if out is None:
        typer.echo(text, nl=False)
        return
    write_output(out, text)


def _json(document: dict[str, object]) -> str:
    return msgspec.json.format(msgspec.json.encode(document)).decode()
