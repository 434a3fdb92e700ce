"""`fairlead change`: write down what a change promises, have it checked, and freeze it before anything is measured."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from fairlead.change import (
    ChangeFile,
    Difference,
    Finding,
    check_change,
    compare_changes,
    freeze_change,
    madr,
    moved_promises,
    new_change,
    parse_change,
    read_change,
    scorecard,
)
from fairlead.change.sections import GuardrailTable
from fairlead.cli.exit_codes import ExitCode
from fairlead.cli.outcome import one_line
from fairlead.cli.store_option import DEFAULT_STORE, StoreOption
from fairlead.errors import FairleadError, InvalidInput, MissingExtra
from fairlead.ledger import FrozenChange, Ledger
from fairlead.store import Database

try:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
except ImportError as missing:
    raise MissingExtra("rich", "cli") from missing

__all__ = ["SCHEMA", "app"]

SCHEMA = "fairlead.change.check/1"

app = typer.Typer(
    help="Writes, checks and freezes the file of a change: what is promised before it is measured.",
    add_completion=False,
    rich_markup_mode=None,
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="A change file in TOML.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower case letters, digits and _.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where; default NAME.toml.", show_default=False)
    ] = None,
) -> None:
    """Writes a change file to begin with; never over one that exists."""
    text = new_change(name)
    path = out or Path(f"{name}.toml")
    try:
        with open(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "w", encoding="utf-8"
        ) as file:
            file.write(text)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}; choose another --out") from error
    typer.echo(f"{path}: replace what stands in «», then: fairlead change check {path}")


@app.command()
def check(file: File, json: Json = False) -> int:
    """Says line by line what is missing, vague, or not to be seen at the expected traffic."""
    content = read_change(file)
    findings = check_change(content, str(file))
    errors = sum(finding.severity == "error" for finding in findings)
    if json:
        said = [
            {name: getattr(finding, name) for name in ("code", "severity", "path", "line", "message")}
            for finding in findings
        ]
        document = {"schema": SCHEMA, "file": str(file), "ok": errors == 0, "findings": said}
        _print_json(document)
    else:
        for finding in findings:
            typer.echo(_finding(file, finding))
        if not errors:
            typer.echo(_promise(parse_change(content, str(file))))
        counted = f"{_many(errors, 'error')}, {_many(len(findings) - errors, 'warning')}"
        typer.echo(counted if errors else f"{counted}: ready to freeze")
    return ExitCode.USAGE if errors else ExitCode.OK


@app.command()
def freeze(file: File, store: StoreOption = DEFAULT_STORE, json: Json = False) -> None:
    """Puts the file into the ledger, byte by byte: from now on, what it promised can be told from what came."""
    content = read_change(file)
    with Database(store) as database:
        database.migrate()
        frozen = freeze_change(content, Ledger(database), name=str(file))
    if json:
        _print_json({"schema": "fairlead.change.freeze/1", "file": str(file), **_version(frozen)})
    else:
        typer.echo(f"{frozen.name} version {frozen.version}: sha256 {frozen.sha256}")


@app.command()
def show(
    file: File,
    store: StoreOption = DEFAULT_STORE,
    as_madr: Annotated[
        bool, typer.Option("--madr", help="Print a decision record (MADR 4) in place of it.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Print what changed since it was frozen.")] = False,
    json: Json = False,
) -> int:
    """Shows the options weighed, which weight would turn the choice, and whether the file is as it was frozen."""
    content = read_change(file)
    change = parse_change(content, str(file))
    if as_madr:
        typer.echo(madr(change), nl=False)
        return ExitCode.OK
    state = _state_of(change, content, store)
    difference = state.difference
    if json:
        card = scorecard(change.options, change.weights) if _is_scored(change) else None
        totals, flips = (card.totals, card.flips) if card else ({}, ())
        schema = "fairlead.change.show/1"
        _print_json(
            {"schema": schema, "file": str(file), **_state_record(state), "totals": totals, "flips": flips}
        )
    elif diff:
        typer.echo("not frozen" if difference is None else difference.diff or "not a byte changed")
    else:
        _show(change)
        typer.echo(_in_words(state))
    return ExitCode.UNVERIFIED if difference is not None and difference.is_broken else ExitCode.OK


@app.command("list")
def list_(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where change files lie.")] = Path(),
    store: StoreOption = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Lists the change files of a folder, each with its state: not frozen, as frozen, grown, broken."""
    if not directory.is_dir():
        raise InvalidInput(f"{directory}: no such folder; name the one that change files lie in")
    listed = [
        (path.name, state) for path in sorted(directory.glob("*.toml")) if (state := _listed(path, store))
    ]
    if json:
        changes = [{"file": name, **_state_record(state)} for name, state in listed]
        _print_json({"schema": "fairlead.change.list/1", "changes": changes})
    elif listed:
        table = Table(box=None, pad_edge=False)
        for heading in ("file", "change", "state"):
            table.add_column(heading)
        for name, state in listed:
            table.add_row(*(Text(one_line(each)) for each in (name, state.name, _in_words(state))))
        Console(highlight=False).print(table)
    else:
        typer.echo(f"{directory}: no change file; fairlead change new NAME makes one")


@dataclass(frozen=True, kw_only=True, slots=True)
class _State:
    """A change file beside what was frozen of it."""

    name: str
    error: str = ""
    frozen: FrozenChange | None = None
    difference: Difference | None = None
    moved: tuple[str, ...] = ()


def _listed(path: Path, store: str) -> _State | None:
    """None for a TOML file of another kind."""
    try:
        content = read_change(path)
    except FairleadError:
        return None
    try:
        change = parse_change(content, path.name)
    except FairleadError as error:  # a slip of the pen must not make a change vanish from the list
        return _State(name="", error=str(error)) if re.search(rb"^\[change\]", content, re.M) else None
    return _state_of(change, content, store)


def _many(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _print_json(document: dict[str, object]) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(document)))


def _state_of(change: ChangeFile, content: bytes, store: str) -> _State:
    name = change.change.name
    if "://" not in store and not Path(store).exists():
        return _State(name=name)
    with Database(store) as database:
        ledger = Ledger(database)
        frozen = ledger.frozen(name)
        if frozen is None:
            return _State(name=name)
        moved = moved_promises(ledger, name) if frozen.version > 1 else ()
    return _State(name=name, frozen=frozen, difference=compare_changes(frozen.content, content), moved=moved)


def _version(frozen: FrozenChange) -> dict[str, object]:
    return {
        "change": frozen.name,
        "version": frozen.version,
        "sha256": frozen.sha256,
        "frozen_at_utc_seconds": frozen.frozen_at_utc_seconds,
    }


def _state_record(state: _State) -> dict[str, object]:
    difference = state.difference
    return {
        "change": state.name,
        "error": state.error or None,
        "frozen": None if state.frozen is None else _version(state.frozen),
        "broken": difference.broken if difference else (),
        "grown": difference.grown if difference else (),
        "reworded": difference.reworded if difference else (),
        "moved_after_evidence": state.moved,
    }


def _in_words(state: _State) -> str:
    frozen, difference, moved = state.frozen, state.difference, state.moved
    if state.error:
        return f"cannot be read: {state.error}"
    if frozen is None or difference is None:
        return "not frozen"
    version = f"version {frozen.version}, {frozen.sha256[:12]}"
    if difference.is_broken:
        return f"pre-registration broken since {version}: {_few(difference.broken)}"
    if moved:
        return f"frozen again ({version}) with other promises after something was measured: {_few(moved)}"
    if difference.reworded:
        return f"as frozen ({version}) but for the words of {', '.join(difference.reworded[:3])}"
    return f"as frozen ({version})" + (", grown since" if difference.grown else "")


def _few(keys: tuple[str, ...]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _finding(file: Path, finding: Finding) -> str:
    place = f"{file}:{finding.line}" if finding.line else str(file)
    return one_line(f"{place}: {finding.severity}: {finding.message} [{finding.code}]")


def _promise(change: ChangeFile) -> str:
    """What the file commits to, in a few lines; of a draft, what there is of it."""
    lines = []
    for name, table in change.metrics.items():
        if table.role == "primary":
            with contextlib.suppress(InvalidInput):  # `check` says it
                lines.append(
                    f"judged by {table.title or name.replace('_', ' ')}: {table.metric(name).definition()}"
                )
            if table.baseline is not None and table.target is not None:
                lines.append(f"from {table.baseline:g} to {table.target:g} {table.unit}")
    if change.rollout is not None:
        stages = [
            (stage.audience or f"{100 * (stage.share or 0.0):.4g} %")
            + (f" for {stage.bake}" if stage.bake else "")
            for stage in change.rollout.stages
        ]
        lines.append(f"let out: {' → '.join(stages)}")
        lines.append(f"stopped by: {', '.join(map(_limit, change.rollout.guardrails))}")
    chosen = change.chosen()
    if chosen is not None:
        said = (
            ("because", chosen.because),
            ("accepting", chosen.accepting),
            ("mitigated by", chosen.mitigation),
        )
        lines.append(
            ", ".join([f"chosen: {chosen.name}", *(f"{word} {text}" for word, text in said if text)])
        )
    return "\n".join(one_line(line) for line in lines)


def _is_scored(change: ChangeFile) -> bool:
    return any(option.scores for option in change.options)


def _limit(guardrail: GuardrailTable) -> str:
    if guardrail.worse_by:
        said = f"{guardrail.metric} worse than control by {guardrail.worse_by}"
    elif guardrail.above is not None:
        said = f"{guardrail.metric} above {guardrail.above:g}"
    else:
        said = f"{guardrail.metric} below {guardrail.below or 0.0:g}"
    return f"{said} for {guardrail.for_}" if guardrail.for_ else said


def _show(change: ChangeFile) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(one_line(change.change.title or change.change.name), style="bold"))
    for text in (change.change.problem, change.change.hypothesis):
        if text:
            console.print(Text(one_line(text)))
    console.print()
    console.print(Text(_promise(change)))
    if not _is_scored(change):
        return
    card = scorecard(change.options, change.weights)
    table = Table(box=None, pad_edge=False)
    table.add_column("criterion", no_wrap=True)
    table.add_column("weight", justify="right")
    for name in card.totals:
        table.add_column(one_line(name), justify="right")
    scores = {option.name: option.scores for option in change.options}
    for criterion, weight in zip(card.criteria, card.weights, strict=True):
        table.add_row(criterion, f"{weight:.0%}", *(f"{scores[name][criterion]:g}" for name in card.totals))
    table.add_row("total", "", *(f"{total:.2f}" for total in card.totals.values()))
    console.print()
    console.print(table)
    for flip in card.flips:
        console.print(
            Text(
                one_line(
                    f"{flip.winner} would win if {flip.criterion} weighed {flip.at:.0%} in place of {flip.now:.0%}"
                )
            )
        )
    if not card.flips:
        console.print(Text("no weight of a single criterion turns the choice"))
    console.print()
