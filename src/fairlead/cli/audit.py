"""`fairlead audit`: is the ledger whole, and what stands in it.

`verify` alone judges; `list` and `show` refuse an entry that does not have its own hash, and look no further. A head
that is kept elsewhere makes `verify` see what nothing inside the database can: `fairlead audit head` prints it.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
import typer

from fairlead.cli.exit_codes import ExitCode
from fairlead.cli.outcome import one_line
from fairlead.cli.store_option import DEFAULT_STORE, StoreOption
from fairlead.errors import InvalidInput, MissingExtra
from fairlead.ledger import AuditReport, Decision, Entry, Evidence, FrozenChange, Head, Ledger
from fairlead.store import Database

try:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
except ImportError as missing:
    raise MissingExtra("rich", "cli") from missing

__all__ = ["SCHEMA", "app"]

SCHEMA = "fairlead.audit.verify/1"

_ID = 12  # digits of an id that are shown; `show` takes them
_LONGEST = 72

app = typer.Typer(
    help="Verifies the ledger, and shows what was recorded and decided.",
    add_completion=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def verify(
    store: StoreOption = DEFAULT_STORE,
    expect: Annotated[
        str | None,
        typer.Option(
            metavar="HEAD",
            help="A head that was kept: shows a cut at the end, and a chain written anew.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Reads the whole chain and tells any edit, deletion, reordering or cut."""
    kept = None if expect is None else Head.parse(expect)
    with _ledger(store) as (ledger, name):
        report = ledger.verify(kept)
    if json:
        found = {"schema": SCHEMA, "store": name, "whole": report.is_whole, "entries": report.entries}
        found |= {
            "head": str(report.head),
            "expected": expect,
            "found": report.found,
            "problems": report.problems,
        }
        typer.echo(msgspec.json.format(msgspec.json.encode(found)))
    else:
        typer.echo(_as_text(report, name, kept))
    return ExitCode.OK if report.is_whole else ExitCode.UNVERIFIED


@app.command()
def head(store: StoreOption = DEFAULT_STORE) -> None:
    """Prints the end of the chain, to be kept where the ledger's owner cannot write."""
    with _ledger(store) as (ledger, _):
        typer.echo(str(ledger.head()))


@app.command("list")
def list_(
    store: StoreOption = DEFAULT_STORE,
    change: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only of this change.", show_default=False)
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="Only this kind: evidence, decision or frozen_change.", show_default=False),
    ] = None,
    last: Annotated[int, typer.Option(min=1, max=100_000, help="How many, counted from the end.")] = 20,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Shows the last entries."""
    with _ledger(store) as (ledger, _):
        after = 0 if change or kind else max(0, ledger.head().number - last)
        found = deque(ledger.entries(after=after, change=change, kind=kind), maxlen=last)
    if json:
        for entry in found:
            typer.echo(msgspec.json.encode(_builtins(entry, with_content=False)).decode())
    else:
        _print_table(found)


@app.command()
def show(
    which: Annotated[
        str, typer.Argument(metavar="ID", help="Number of an entry, or how its id begins (8 digits or more).")
    ],
    store: StoreOption = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Shows one entry with all its fields."""
    with _ledger(store) as (ledger, name):
        entry = ledger.entry(int(which) if which.isascii() and which.isdigit() and len(which) < 8 else which)
    if entry is None:
        raise InvalidInput(f"{name}: the ledger has no entry {which[:64]!r}; see fairlead audit list")
    if json:
        typer.echo(msgspec.json.format(msgspec.json.encode(_builtins(entry, with_content=True))))
        return
    fields = _builtins(entry, with_content=False)
    fields |= fields.pop("body")
    for label, value in fields.items():
        lines = (
            value if isinstance(value, list | tuple) else ("–" if value is None else str(value)).split("\n")
        )
        for number, line in enumerate(lines or [""]):
            shown = f"{_clock(value)} ({value})" if label.endswith("_utc_seconds") else one_line(str(line))
            typer.echo(f"{label if number == 0 else '':<24} {shown}".rstrip())
    if isinstance(entry.body, FrozenChange):
        typer.echo()
        for line in entry.body.content.decode("utf-8", "backslashreplace").splitlines():
            typer.echo(f"  {one_line(line)}")


@contextmanager
def _ledger(store: str) -> Iterator[tuple[Ledger, str]]:
    with Database(store) as database:
        yield Ledger(database), one_line(database.name)


def _as_text(report: AuditReport, name: str, kept: Head | None) -> str:
    lines = [f"{name}: {report.entries:,} {'entry' if report.entries == 1 else 'entries'}"]
    lines += [f"  {one_line(problem)}" for problem in report.problems]
    if (more := report.found - len(report.problems)) > 0:
        lines.append(f"  … and {more:,} more")
    if not report.is_whole:
        return "\n".join(
            [*lines, f"BROKEN: {report.found:,} {'problem' if report.found == 1 else 'problems'}"]
        )
    since = "no kept head was given (--expect), so a cut at the end may not show"
    if kept is not None:
        since = f"nothing up to entry {kept.number} was cut off or written anew"
    return "\n".join([*lines, f"whole: {since}", f"head  {report.head}"])


def _print_table(entries: deque[Entry]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("entry", justify="right", no_wrap=True)
    table.add_column("recorded (UTC)", no_wrap=True)
    for heading in ("kind", "change"):
        table.add_column(heading)
    table.add_column("what", overflow="fold")
    table.add_column("id", no_wrap=True)
    for entry in entries:
        body = entry.body
        change = body.name if isinstance(body, FrozenChange) else body.change
        cells = (str(entry.number), _clock(entry.recorded_at_utc_seconds), body.__struct_config__.tag, change)
        table.add_row(*(Text(one_line(str(cell))) for cell in (*cells, _summary(body), entry.id[:_ID])))
    # A pipe has no width of its own, and a table squeezed to 80 columns breaks its figures.
    console = Console(width=None if sys.stdout.isatty() else 180, markup=False, highlight=False)
    # Captured, because rich would end the program by its own rules when the reader of the pipe has left.
    with console.capture() as captured:
        console.print(table)
    sys.stdout.write(captured.get())


def _summary(body: Evidence | Decision | FrozenChange) -> str:
    if isinstance(body, Evidence):
        interval = (
            "" if body.low is None and body.high is None else f" [{_number(body.low)}, {_number(body.high)}]"
        )
        return f"{body.metric}, {body.arm}: {_number(body.value)} {body.unit}{interval}, n = {body.n:,}"
    if isinstance(body, Decision):
        reason = body.reason if len(body.reason) <= _LONGEST else f"{body.reason[:_LONGEST]}…"
        return f"{body.verdict} by {body.decided_by}: {reason}"
    return f"version {body.version}, {len(body.content):,} bytes, sha256 {body.sha256[:_ID]}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"


def _builtins(entry: Entry, *, with_content: bool) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(entry)
    if isinstance(entry.body, FrozenChange) and not with_content:
        del found["body"]["content"]
        found["body"]["content_bytes"] = len(entry.body.content)
    return found


def _clock(utc_seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(utc_seconds))
    except (OverflowError, ValueError, OSError):
        return repr(utc_seconds)
