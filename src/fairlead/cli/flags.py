"""`fairlead flags`: read a document strictly, ask it, have an answer explained, see whom a change moves, import."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from fairlead.cli.exit_codes import ExitCode
from fairlead.cli.outcome import one_line, written
from fairlead.errors import InvalidInput
from fairlead.flags import EvaluationContext, FlagSet
from fairlead.flags.explain import explain as explained
from fairlead.flags.file import read_flag_file
from fairlead.flags.flagd import import_flagd, needs_fairlead
from fairlead.flags.moves import FlagChange, compare_documents
from fairlead.flags.stale import SeenFlags, stale_flags
from fairlead.telemetry import ReadReport, read_events

__all__ = ["CHECK_SCHEMA", "DIFF_SCHEMA", "EVAL_SCHEMA", "app"]

CHECK_SCHEMA = "fairlead.flags.check/1"
EVAL_SCHEMA = "fairlead.flags.eval/1"
DIFF_SCHEMA = "fairlead.flags.diff/1"

app = typer.Typer(
    help="Checks flag documents, asks them, explains an answer, counts whom a change moves, imports flagd's.",
    add_completion=False,
    rich_markup_mode=None,
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="A flag document in JSON.")]
Name = Annotated[str, typer.Argument(metavar="FLAG", help="Name of the flag.")]
Key = Annotated[str, typer.Option("--key", metavar="TEXT", help="The targeting key: who asks.")]
Attributes = Annotated[
    list[str] | None,
    typer.Option(
        "--attribute",
        metavar="NAME=VALUE",
        help="Of the context; the value is JSON, or else text; may be repeated.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def check(
    file: File,
    events: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A sink's events: which flags expose nobody?", show_default=False),
    ] = None,
    stale_after: Annotated[
        str, typer.Option(metavar="TIME", help="How long a flag may serve one variant alone.")
    ] = "90d",
    json: Json = False,
) -> None:
    """Reads the document as a service would, and says what is in it, what flagd lacks to read it, and what is stale."""
    from fairlead.metrics.duration import parse_duration

    after = parse_duration(stale_after)
    flags = FlagSet.from_file(file)
    document = flags.document
    report = ReadReport()
    seen = None if events is None else SeenFlags.of(read_events(events, report=report))
    stale = stale_flags(document, now=time.time(), after=after, seen=seen)
    beyond = {flag.name: needs_fairlead(flag) for flag in document.flags.values()}
    if json:
        record: dict[str, object] = {"schema": CHECK_SCHEMA, "file": str(file), "sha256": flags.digest}
        record |= {"killed": document.killed, "stale": msgspec.to_builtins(stale)}
        listed = [
            {
                "flag": flag.name,
                "enabled": flag.enabled,
                "killed": flag.killed,
                "type": str(flag.type),
                "variants": list(flag.variants),
                "default": flag.default_variant,
                "targeted": flag.targeting is not None,
                "not_for_flagd": list(beyond[flag.name]),
            }
            for flag in document.flags.values()
        ]
        _print_json(record | {"flags": listed})
        return
    for one in document.flags.values():
        state = "" if one.enabled else ", killed" if one.killed else ", switched off"
        how = "targeted" if one.targeting is not None else "the same for everybody"
        typer.echo(
            f"{one_line(one.name)}: {one.type}, {', '.join(map(one_line, one.variants))}; "
            f"default {one_line(str(one.default_variant))}, {how}{state}"
        )
    typer.echo(f"{len(beyond)} flag{'s' * (len(beyond) != 1)}, sha256 {flags.digest}")
    for name, what in beyond.items():
        if what:
            typer.echo(f"not for flagd's own readers: {one_line(name)} ({', '.join(what)})")
    for each in stale:
        typer.echo(f"stale? {one_line(each.flag)} {one_line(each.said)}")
    unread = report.malformed + report.unknown
    if unread:
        typer.echo(f"{unread} line{'s' * (unread > 1)} of the events could not be read", err=True)


@app.command("eval")
def evaluate(file: File, flag: Name, key: Key = "", attribute: Attributes = None, json: Json = False) -> int:
    """Asks a flag on behalf of somebody. Ends with 1 where the answer would be the caller's default for an error."""
    flags = FlagSet.from_file(file)
    found = flags.evaluate(flag, _context(key, attribute))
    if json:
        _print_json({"schema": EVAL_SCHEMA, "flag": flag, **_record(found)})
    else:
        value = msgspec.json.encode(found.value, enc_hook=dict).decode()
        detail = f" ({one_line(found.detail)})" if found.detail else ""
        typer.echo(f"{one_line(found.variant or '-')} {value} {found.reason}{detail}")
    return ExitCode.ERROR if found.reason == "ERROR" else ExitCode.OK


@app.command()
def explain(file: File, flag: Name, key: Key = "", attribute: Attributes = None, json: Json = False) -> int:
    """Says why somebody gets what they get: every rule that was asked, what it read, and what it said."""
    found = explained(FlagSet.from_file(file), flag, _context(key, attribute))
    if json:
        record = {"schema": "fairlead.flags.explain/1", "flag": flag, **_record(found.evaluation)}
        _print_json({**record, "steps": msgspec.to_builtins(found.steps)})
    else:
        for step in found.steps:
            typer.echo(f"{'  ' * step.depth}{one_line(step.rule)}: {one_line(step.said)}")
        answer = found.evaluation
        detail = f" ({one_line(answer.detail)})" if answer.detail else ""
        typer.echo(f"→ {one_line(answer.variant or 'the caller’s default')}, {answer.reason}{detail}")
    return ExitCode.ERROR if found.evaluation.reason == "ERROR" else ExitCode.OK


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The document that answers now.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The one that is to replace it.")],
    json: Json = False,
) -> int:
    """Says what changes and how many units change their variant. Ends with 3 where some move between drawn arms."""
    changes = compare_documents(FlagSet.from_file(old).document, FlagSet.from_file(new).document)
    if json:
        _print_json({"schema": DIFF_SCHEMA, "changes": msgspec.to_builtins(changes)})
    else:
        for change in changes:
            for line in _said(change):
                typer.echo(one_line(line))
        if not changes:
            typer.echo("nothing changes")
    return ExitCode.BREACHED if any(change.between_arms for change in changes) else ExitCode.OK


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A flag document of flagd's, in JSON.")],
    fractional: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION",
            help="Which has drawn so far: v1 (flagd up to 0.14), v2 (from 0.15), v3 (openfeature-flagd-core 2.0).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Where to; default: print it.", show_default=False),
    ] = None,
) -> None:
    """Turns flagd's fractional into buckets that draw alike, so that nobody moves; says on stderr what may differ."""
    found = import_flagd(read_flag_file(file), source=one_line(str(file)), fractional=fractional)
    for notice in found.notices:
        typer.echo(one_line(notice), err=True)
    written(found.document.decode(), out)


def _said(change: FlagChange) -> Iterator[str]:
    """Lines: what differs, then who moves."""
    head = f"{change.flag}: {', '.join(change.what)}"
    if change.moves is None:
        yield (
            f"{head}; who moves depends on who comes"
            if len(change.what) > 1 or "targeting" in change.what
            else head
        )
        return
    yield head if change.moves else f"{head}; nobody moves"
    for move in change.moves:
        was, becomes = (variant or "the caller's default" for variant in (move.was, move.becomes))
        of = "" if move.among == "everybody" else f" of those with {move.among}"
        warning = "; drawn arms: no experiment on this flag survives that" if move.between_arms else ""
        yield f"  {move.share:.2%}{of}: {was} → {becomes}{warning}"


def _context(key: str, attributes: list[str] | None) -> EvaluationContext:
    read: dict[str, object] = {}
    for pair in attributes or ():
        name, equals, text = pair.partition("=")
        if not name or not equals:
            raise InvalidInput(f"--attribute {pair[:80]!r}: write NAME=VALUE")
        try:
            read[name] = msgspec.json.decode(text.encode())
        except msgspec.DecodeError:
            read[name] = text
    return EvaluationContext(targeting_key=key, attributes=read)


def _record(found: object) -> dict[str, object]:
    return {
        name: value
        if isinstance(value, str | int | float | bool | None)
        else msgspec.to_builtins(value, enc_hook=dict)
        for name, value in ((name, getattr(found, name)) for name in ("variant", "value", "reason", "detail"))
    }


def _print_json(document: dict[str, object]) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(document, enc_hook=dict), indent=2).decode())
