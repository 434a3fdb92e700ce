"""`fairlead events`: are these lines events, what is happening, and what may an event hold."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from fairlead.cli.exit_codes import ExitCode
from fairlead.cli.outcome import one_line
from fairlead.cli.schemas_option import SchemasOption, import_schemas
from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.telemetry import EVENTS, DeadLetterFile, Event, ReadReport, read_events
from fairlead.telemetry.event import Condition
from fairlead.telemetry.schema import event_name

__all__ = ["SCHEMA", "app"]

SCHEMA = "fairlead.events.check/1"

_POLL = 0.25  # seconds between two looks at the directory

app = typer.Typer(
    help="Checks events, shows them as they come, and prints their schemas.",
    add_completion=False,
    rich_markup_mode=None,
)


class Tally(msgspec.Struct, kw_only=True):
    """What `events check` found of one kind."""

    events: int = 0
    failures: int = 0
    estimated: float = 0.0
    """Sum of 1 / inclusion probability: how many there were before sampling."""
    first_utc_seconds: float = float("inf")
    last_utc_seconds: float = float("-inf")

    def add(self, event: Event) -> None:
        self.events += 1
        self.failures += event.failed()
        self.estimated += 1 / event.inclusion_probability
        self.first_utc_seconds = min(self.first_utc_seconds, event.at_utc_seconds)
        self.last_utc_seconds = max(self.last_utc_seconds, event.at_utc_seconds)


@app.command()
def check(
    path: Annotated[Path, typer.Argument(metavar="FILE|DIR", help="A segment, or a directory of segments.")],
    schemas: SchemasOption = None,
    dead_letters: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Keep what is no event there, with the reason.", show_default=False
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> int:
    """Counts events by kind, and tells which lines are none."""
    import_schemas(schemas)
    report = ReadReport()
    tallies: dict[str, Tally] = {}
    letters = DeadLetterFile(dead_letters) if dead_letters is not None else None
    for event in read_events(path, report=report, dead_letters=letters):
        tallies.setdefault(event_name(type(event)), Tally()).add(event)
    findings = {
        "schema": SCHEMA,
        "path": str(path),
        "segments": report.segments,
        "events": report.events,
        "unknown": report.unknown,
        "malformed": report.malformed,
        "truncated": report.truncated,
        "duplicates": report.duplicates,
        "kinds": dict(sorted(tallies.items())),
        "problems": report.problems,
    }
    if json:
        typer.echo(msgspec.json.format(msgspec.json.encode(findings)))
    else:
        typer.echo(_as_text(path, report, tallies, letters))
    return ExitCode.OK if report.unknown == report.malformed == 0 else ExitCode.ERROR


@app.command()
def tail(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A directory of segments.", exists=True, file_okay=False)
    ],
    kind: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only events of this kind; may be repeated.", show_default=False),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE",
            help="Only events with this value; also != < <= > >=. May be repeated: all must hold.",
            show_default=False,
        ),
    ] = None,
    last: Annotated[int, typer.Option(min=0, help="How many of those already there to begin with.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with those that come.")] = False,
    schemas: SchemasOption = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line, as recorded.")] = False,
) -> None:
    """Shows the last events, and with --follow those that come."""
    import_schemas(schemas)
    names = set(kind or ())
    for name in names:
        EVENTS.kind(name)
    conditions = [_condition(text) for text in where or ()]
    segments = Segments(directory)
    found = [each for each in segments.read() if isinstance(each, str) or _wanted(each, names, conditions)]
    events = [each for each in found if not isinstance(each, str)]
    # By their time: the segments of several processes lie one after another.
    events.sort(key=lambda event: event.at_utc_seconds)
    for event in events[max(0, len(events) - last) :]:
        _show(event, json)
    if len(events) < len(found):
        typer.echo(f"{_lines(len(found) - len(events))} no event: see fairlead events check", err=True)
    while follow:
        time.sleep(_POLL)
        for each in segments.read():
            if isinstance(each, str) or _wanted(each, names, conditions):
                _show(each, json)
        sys.stdout.flush()


@app.command()
def schema(
    name: Annotated[
        str | None, typer.Argument(help="A kind of event; every one if not given.", show_default=False)
    ] = None,
    schemas: SchemasOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON Schema (2020-12).")] = False,
) -> None:
    """Prints what each kind means and what its fields hold."""
    import_schemas(schemas)
    described = EVENTS.json_schema(name)
    if json:
        typer.echo(msgspec.json.format(msgspec.json.encode(described)))
        return
    kinds = EVENTS.kinds if name is None else {name: EVENTS.kind(name)}
    shared = set(Event.__struct_fields__)
    typer.echo("\n\n".join(_kind_as_text(each, kinds[each], described["$defs"], shared) for each in kinds))
    typer.echo(f"\nevery event also has {', '.join(Event.__struct_fields__)}")


class Segments:
    """The segments of one directory, read on from where the last look ended."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._offsets: dict[Path, int] = {}

    def read(self) -> Iterator[Event | str]:
        """What was added since the last call; a string for a line that is no event, saying why.

        A last line without its end is left for the next call: its writer is still at work.
        """
        for segment in sorted(self._directory.glob("*.jsonl")):
            offset = self._offsets.get(segment, 0)
            try:
                with segment.open("rb") as file:
                    file.seek(offset)
                    for line in file:
                        if not line.endswith(b"\n"):
                            break
                        offset += len(line)
                        try:
                            yield EVENTS.decode(line)
                        except BrokenDocument as error:
                            yield f"{segment.name}: {error}"
            except FileNotFoundError:  # compacted or removed since the directory was listed
                continue
            finally:
                self._offsets[segment] = offset


def _condition(text: str) -> Condition:
    for op in ("!=", "<=", ">=", "=", "<", ">"):
        field, found, value = text.partition(op)
        if found:
            break
    else:
        raise InvalidInput(f"--where {text!r}: expected FIELD=VALUE, or one of != < <= > >= in its place")
    known = {field.name for kind in EVENTS.kinds.values() for field in msgspec.structs.fields(kind)}
    if field not in known:
        raise InvalidInput(
            f"--where {text!r}: no registered event has a field {field!r}: fairlead events schema"
        )
    return Condition(field, op, _plain(value))


def _plain(value: str) -> bool | int | float | str:
    """Numbers, true and false as such; anything else, and whatever is quoted, as text."""
    try:
        found = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return value
    return found if isinstance(found, bool | int | float | str) else value


def _wanted(event: Event, names: set[str], conditions: list[Condition]) -> bool:
    if names and event_name(type(event)) not in names:
        return False
    try:
        return all(condition.holds(event) for condition in conditions)
    except (AttributeError, TypeError):  # another kind, without the field or with another type in it
        return False


def _show(found: Event | str, as_json: bool) -> None:
    if isinstance(found, str):
        typer.echo(f"not an event: {one_line(found)}", err=True)
    elif as_json:
        typer.echo(msgspec.json.encode(found).decode())
    else:
        fields: dict[str, Any] = msgspec.to_builtins(found)
        kind = fields.pop("event")
        at = fields.pop("at_utc_seconds")
        for name in ("schema_version", "inclusion_probability"):
            if fields[name] == 1:
                del fields[name]
        said = " ".join(
            f"{name}={_value(value)}" for name, value in fields.items() if value not in ("", {}, None)
        )
        typer.echo(one_line(f"{_clock(at)} {kind:<16} {said}"))


def _value(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else msgspec.json.encode(value).decode().strip('"')


def _clock(utc_seconds: float) -> str:
    try:
        whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(utc_seconds))
    except (OverflowError, ValueError, OSError):
        return repr(utc_seconds)
    return f"{whole}.{int(utc_seconds % 1 * 1000):03d}Z"


def _as_text(
    path: Path, report: ReadReport, tallies: dict[str, Tally], letters: DeadLetterFile | None
) -> str:
    lines = [f"{one_line(str(path))}: {report.events:,} events in {report.segments} files", ""]
    if tallies:
        lines.append(f"  {'kind':<20} {'events':>12} {'of all':>12} {'failures':>10}  from … to (UTC)")
    for name, tally in sorted(tallies.items()):
        span = f"{_clock(tally.first_utc_seconds)} … {_clock(tally.last_utc_seconds)}"
        lines.append(
            f"  {name:<20} {tally.events:>12,} {tally.estimated:>12,.0f} {tally.failures:>10,}  {span}"
        )
    if tallies:
        lines.append("")
    for count, word in (
        (report.unknown, "of a kind or version that is not registered (--schemas?)"),
        (report.malformed, "no event"),
        (report.truncated, "cut at the end of a segment, by a crash or a writer at work"),
        (report.duplicates, "an event that was delivered before, and counted once"),
    ):
        if count:
            lines.append(f"  {_lines(count)} {word}")
    lines += [f"    {one_line(problem)}" for problem in report.problems]
    if letters is not None:
        kept = f"  {letters.kept:,} lines kept in {one_line(str(letters.path))}"
        lines.append(f"{kept}, {letters.lost:,} lost: {letters.failure}" if letters.lost else kept)
    bad = report.unknown + report.malformed
    return "\n".join([*lines, f"{_lines(bad)} not taken" if bad else "every line is an event"])


def _lines(count: int) -> str:
    return f"{count:,} {'line is' if count == 1 else 'lines are'}"


def _kind_as_text(name: str, kind: type[Event], definitions: dict[str, Any], left_out: set[str]) -> str:
    described = definitions[kind.__name__]
    lines = [
        f"{name}  version {described['x-version']}, {described['x-role']}"
        + (f", sampled at {described['x-sampling']:g}" if described["x-sampling"] < 1 else ""),
        f"  {' '.join((described.get('description') or '').split())}",
    ]
    if described["x-failure"]:
        lines.append(f"  a failure when {' or '.join(described['x-failure'])}")
    required = set(described["required"])
    for field, properties in described["properties"].items():
        if field != "event" and field not in left_out:
            needed = "required" if field in required else ""
            said = f"{_type(properties):<18} {properties['x-classification']:<9} {needed}"
            lines.append(f"    {field:<24} {said}".rstrip())
    return "\n".join(lines)


def _type(properties: dict[str, Any]) -> str:
    if "anyOf" in properties:
        return " or ".join(_type(each) for each in properties["anyOf"])
    if "enum" in properties:
        return "one of " + ", ".join(str(value) for value in properties["enum"])
    return str(properties.get("type", "any"))
