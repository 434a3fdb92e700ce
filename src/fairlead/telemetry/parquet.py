"""Finished segments made into one Parquet file per kind and day, with a column per field.

JSON Lines are written fast and read slowly; a month of them is neither shipped nor queried. Compaction reads
the finished segments once, checks every line against its kind, and leaves columns of proper types. It can be
killed at any moment: until the catalogue is replaced nothing has changed, and after that only leftovers remain
to be deleted, which the next run does.

    segments → [check each line] → lines per kind and day → DuckDB: merge with that day's file → new files,
    synced → catalogue.json replaced → segments and merged files deleted

Lines that are no event, or of an unknown kind, go to the dead letters; if those cannot take one, nothing is
deleted. Fields that this version does not know stay, as JSON, in the column `unknown_fields`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from fairlead.errors import BrokenDocument, InvalidInput, MissingExtra, NoSpace
from fairlead.telemetry.bounds import check_whole
from fairlead.telemetry.catalogue import Catalogue, alone, read_catalogue, write_catalogue
from fairlead.telemetry.dead_letter import DeadLetterFile
from fairlead.telemetry.event import Event, encode_event
from fairlead.telemetry.file_replacement import sync_directory
from fairlead.telemetry.identity import SeenEvents, event_id
from fairlead.telemetry.jsonl import is_cut, is_finished, segment_lines
from fairlead.telemetry.retention import pins
from fairlead.telemetry.schema import EVENTS, EventRegistry, UnknownEvent

try:
    import duckdb
except ImportError as missing:
    raise MissingExtra("duckdb", "warehouse") from missing

__all__ = ["CompactionReport", "compact", "event_columns", "is_compacted", "parquet_events"]

_OURS = re.compile(r"(?P<kind>[a-z][a-z0-9_]*)-(?P<day>\d{4}-\d\d-\d\d|undated)-(?P<number>\d{6,})\.parquet")
_WORK = ".compaction"
_LATEST = 4_102_444_800.0  # 2100: beyond it, or before 1970, a clock was wrong and the day means nothing
_ROWS = 10_000
_BUFFERED = 4 * 2**20
_TYPES: dict[type, str] = {
    inspect.StrType: "VARCHAR",
    inspect.IntType: "BIGINT",
    inspect.FloatType: "DOUBLE",
    inspect.BoolType: "BOOLEAN",
}


@dataclass(kw_only=True, slots=True)
class CompactionReport:
    """What `compact` met and made."""

    segments: int = 0
    """Segments compacted, and deleted."""
    events: int = 0
    """Events that are in Parquet files now and were in segments before."""
    duplicates: int = 0
    """Lines whose event was there before: delivered twice, and left out."""
    malformed: int = 0
    """Lines that are no event, now with the dead letters."""
    unknown: int = 0
    """Lines of a kind or version that is not registered, now with the dead letters."""
    truncated: int = 0
    """Last lines that a crash had cut short."""
    files: tuple[str, ...] = ()
    """Names of the Parquet files made."""
    bytes_before: int = 0
    """Of the segments and of the files they were merged with."""
    bytes_after: int = 0


def compact(
    directory: str | os.PathLike[str],
    *,
    registry: EventRegistry = EVENTS,
    dead_letters: DeadLetterFile | None = None,
    memory_bytes: int = 512 * 2**20,
) -> CompactionReport:
    """Makes the finished segments of a directory into Parquet files. Blocks; for a job beside the service.

    Segments being written, and pinned files, are left alone. One at a time: a second call waits for the first.

    registry: the kinds that count as events; have the service's own registered.
    dead_letters: takes lines that are none; by default `dead-letters` in the directory. After a crash it may hold a
        letter twice, with the same source.
    memory_bytes: what DuckDB may use before it sorts on disk, from 64 MiB.
    """
    check_whole("memory_bytes", memory_bytes, low=64 * 2**20, high=2**50)
    root = Path(directory)
    if not root.is_dir():
        raise InvalidInput(f"{root}: no such directory, so there are no events to compact")
    letters = DeadLetterFile(root / "dead-letters") if dead_letters is None else dead_letters
    with alone(root):
        catalogue = _cleared(root)
        pinned = {each.file for each in pins(root)}
        segments = [
            path for path in sorted(root.glob("*.jsonl")) if path.name not in pinned and is_finished(path)
        ]
        report = CompactionReport(segments=len(segments))
        if segments:
            work = root / _WORK
            work.mkdir(mode=0o700)
            lines = _Split(work, registry, letters, report)
            for segment in segments:
                report.bytes_before += segment.stat().st_size
                lines.take(segment)
            _merge(root, catalogue, lines, pinned, memory_bytes)
            catalogue.consumed += [path.name for path in segments]
            write_catalogue(root, catalogue)  # the moment
            _cleared(root)
    return report


def _cleared(root: Path) -> Catalogue:
    """Deletes what an earlier run has consumed, or left unfinished; returns the catalogue without it."""
    catalogue = read_catalogue(root)
    for name in catalogue.consumed:
        (root / name).unlink(missing_ok=True)
    kept = {*catalogue.files, *(each.file for each in pins(root))}
    for path in root.glob("*.parquet"):
        if _OURS.fullmatch(path.name) and path.name not in kept:
            path.unlink(missing_ok=True)
    shutil.rmtree(root / _WORK, ignore_errors=True)
    if catalogue.consumed:
        sync_directory(root)  # or a power cut could bring them back, without the note that they are consumed
        catalogue.consumed = []
        write_catalogue(root, catalogue)
    return catalogue


class _Split:
    """The events of segments, checked and sorted into a file of lines per kind and day."""

    def __init__(
        self, work: Path, registry: EventRegistry, letters: DeadLetterFile, report: CompactionReport
    ) -> None:
        self.report = report
        self.kinds: dict[str, type[Event]] = {}
        self.parts: dict[tuple[str, str], Path] = {}
        self._work = work
        self._registry = registry
        self._letters = letters
        self._seen = SeenEvents()
        self._fields: dict[type[Event], tuple[str, frozenset[str]]] = {}
        self._waiting: dict[tuple[str, str], list[bytes]] = defaultdict(list)
        self._buffered = 0

    def take(self, segment: Path) -> None:
        for number, line in segment_lines(segment):
            try:
                event = self._registry.decode(line)
                _check_whole_numbers(event)
            except BrokenDocument as error:
                if is_cut(line):
                    self.report.truncated += 1
                    continue
                self._put_aside(line, error, f"{segment.name}:{number}")
                continue
            identity = event_id(line)
            if not self._seen.add(identity):
                self.report.duplicates += 1
                continue
            self.report.events += 1
            self._keep(event, line, identity)
        self.flush()

    def flush(self) -> None:
        for part, lines in self._waiting.items():
            path = self.parts.setdefault(part, self._work / f"{part[0]}-{part[1]}.lines")
            with path.open("ab") as file:
                file.write(b"".join(lines))
        self._waiting.clear()
        self._buffered = 0

    def _put_aside(self, line: bytes, error: BrokenDocument, source: str) -> None:
        if isinstance(error, UnknownEvent):
            self.report.unknown += 1
        else:
            self.report.malformed += 1
        lost = self._letters.lost
        self._letters.put(line.rstrip(b"\n"), reason=str(error), source=source)
        if self._letters.lost > lost:
            raise NoSpace(
                f"{self._letters.path}: cannot take the dead letter of {source} ({self._letters.failure}), so no "
                f"segment is deleted: make room, or pass another file"
            )

    def _keep(self, event: Event, line: bytes, identity: str) -> None:
        kind = type(event)
        if kind not in self._fields:
            name = str(kind.__struct_config__.tag)
            self._fields[kind] = name, frozenset((*kind.__struct_encode_fields__, "event", "event_id"))
            self.kinds[name] = kind
        name, known = self._fields[kind]
        # Encoded anew: a repeated field counts once, as it did when it was read, and the columns have one form.
        data = encode_event(event)
        more: dict[str, object] = {"event_id": identity} if identity else {}
        found = msgspec.json.decode(line)
        if unknown := {field: value for field, value in found.items() if field not in known}:
            more["unknown_fields"] = msgspec.json.encode(unknown).decode()
        if more:
            data = data[:-1] + b"," + msgspec.json.encode(more)[1:]
        self._waiting[name, _day(event.at_utc_seconds)].append(data + b"\n")
        self._buffered += len(data)
        if self._buffered > _BUFFERED:
            self.flush()


def _merge(root: Path, catalogue: Catalogue, lines: _Split, pinned: set[str], memory_bytes: int) -> None:
    """Writes and syncs a new file for each kind and day, and enters it into `catalogue`, not yet written."""
    report = lines.report
    settings: dict[str, Any] = {
        "memory_limit": f"{memory_bytes}B",
        "temp_directory": str(root / _WORK),
        "threads": 1,
    }
    made: list[str] = []
    with duckdb.connect(config=settings) as database:
        for (name, day), part in sorted(lines.parts.items()):
            columns = event_columns(lines.kinds[name])
            there = [file for file in catalogue.files if file.startswith(f"{name}-{day}-")]
            merged = [
                file for file in there if file not in pinned and _described(database, root / file) == columns
            ]
            catalogue.number += 1
            path = root / f"{name}-{day}-{catalogue.number:06d}.parquet"
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            database.execute(
                _copy(part, columns, [root / file for file in there], [root / file for file in merged], path)
            )
            met = sum(_count(database, root / file) for file in merged)
            new = _count(database, path) - met
            again = _lines_in(part) - new
            report.events -= again
            report.duplicates += again
            if not new:
                path.unlink()
                continue
            _sync(path)
            report.bytes_before += sum((root / file).stat().st_size for file in merged)
            report.bytes_after += path.stat().st_size
            made.append(path.name)
            catalogue.files = [*(file for file in catalogue.files if file not in merged), path.name]
            catalogue.consumed += merged
    report.files = tuple(made)
    sync_directory(root)


def _copy(part: Path, columns: dict[str, str], there: list[Path], merged: list[Path], made: Path) -> str:
    """The statement that writes new lines, without those that are there, and what is merged with them."""
    spec = ", ".join(f"{quoted_text(name)}: {quoted_text(kind)}" for name, kind in columns.items())
    new = (
        f"SELECT * FROM read_json({quoted_path(part)}, format = 'newline_delimited', columns = {{{spec}}}, "  # noqa: S608
        f"maximum_object_size = {64 * 2**20})"
    )
    if there:
        known = ", ".join(map(quoted_path, there))
        new += (
            f" WHERE event_id IS NULL OR event_id NOT IN "  # noqa: S608  # paths only, and quoted
            f"(SELECT event_id FROM read_parquet([{known}], union_by_name = true) WHERE event_id IS NOT NULL)"
        )
    if merged:
        old = ", ".join(map(quoted_path, merged))
        new = f"({new}) UNION ALL BY NAME (SELECT * FROM read_parquet([{old}], union_by_name = true))"  # noqa: S608
    return (
        f"COPY (SELECT * FROM ({new}) ORDER BY at_utc_seconds) TO {quoted_text(str(made))} "  # noqa: S608
        f"(FORMAT parquet, COMPRESSION zstd, USE_TMP_FILE false)"
    )


def parquet_events(path: Path, registry: EventRegistry) -> Iterator[tuple[Event, str]]:
    """The events of one file that `compact` made, each with its id, "" when it has none.

    Raises UnknownEvent when its kind is not registered, BrokenDocument when a row does not fit its kind or the
    file cannot be read.
    """
    match = _OURS.fullmatch(path.name)
    if match is None:
        raise BrokenDocument(f"{path}: not a file of events: its name has no kind, day and number")
    name = match["kind"]
    kind = registry.kind(name)
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType)  # noqa: S101  # what msgspec says of a Struct
    types = {field.encode_name: _type(field.type) for field in described.fields}
    nullable = {field.encode_name for field in described.fields if _optional(field.type)}
    number = 0
    try:
        with duckdb.connect() as database:
            found = database.execute(f"SELECT * FROM read_parquet({quoted_path(path)})")  # noqa: S608  # quoted
            names = [column[0] for column in found.description or ()]
            while rows := found.fetchmany(_ROWS):
                for row in rows:
                    number += 1
                    values = dict(zip(names, row, strict=True))
                    identity = values.pop("event_id", None) or ""
                    fields = {
                        field: msgspec.json.decode(value)
                        if types[field] == "JSON" and value is not None
                        else value
                        for field, value in values.items()
                        if field in types and (value is not None or field in nullable)
                    }
                    yield msgspec.convert({**fields, "event": name}, kind), identity
    except (duckdb.Error, msgspec.MsgspecError) as error:
        raise BrokenDocument(f"{path}: row {number}: not an event: {error}") from error


def is_compacted(path: Path, kind: str) -> bool:
    """Whether a file is one that `compact` made of events of that kind."""
    match = _OURS.fullmatch(path.name)
    return match is not None and match["kind"] == kind


def event_columns(kind: type[Event]) -> dict[str, str]:
    """The columns of a kind, with DuckDB's names of their types."""
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType)  # noqa: S101  # what msgspec says of a Struct
    fields = {field.encode_name: _type(field.type) for field in described.fields}
    return {**fields, "event_id": "VARCHAR", "unknown_fields": "VARCHAR"}


def _type(described: inspect.Type) -> str:
    while isinstance(described, inspect.Metadata):
        described = described.type
    if isinstance(described, inspect.UnionType):
        members = [_type(each) for each in described.types if not isinstance(each, inspect.NoneType)]
        return members[0] if len(members) == 1 else "JSON"
    if isinstance(described, inspect.LiteralType):
        kinds = {type(value) for value in described.values}
        return {frozenset({str}): "VARCHAR", frozenset({int}): "BIGINT"}.get(frozenset(kinds), "JSON")
    if isinstance(described, inspect.DictType) and _type(described.key_type) == "VARCHAR":
        inner = _type(described.value_type)
        return f"MAP(VARCHAR, {inner})" if inner in _TYPES.values() else "JSON"
    if isinstance(described, inspect.ListType):
        inner = _type(described.item_type)
        return f"{inner}[]" if inner in _TYPES.values() else "JSON"
    return _TYPES.get(type(described), "JSON")


def _optional(described: inspect.Type) -> bool:
    while isinstance(described, inspect.Metadata):
        described = described.type
    return isinstance(described, inspect.UnionType) and described.includes_none


def _check_whole_numbers(event: Event) -> None:
    for field, value in zip(event.__struct_fields__, msgspec.structs.astuple(event), strict=True):
        if _too_wide(value):
            raise BrokenDocument(f"not an event: {field} holds a whole number beyond 64 bits")


def _too_wide(value: object) -> bool:
    if type(value) is int:
        return not -(2**63) <= value < 2**63
    if isinstance(value, dict):
        return any(map(_too_wide, value.values()))
    return isinstance(value, list) and any(map(_too_wide, value))


def _day(at_utc_seconds: float) -> str:
    if not 0 <= at_utc_seconds < _LATEST:
        return "undated"
    return datetime.fromtimestamp(at_utc_seconds, UTC).strftime("%Y-%m-%d")


def _described(database: duckdb.DuckDBPyConnection, path: Path) -> dict[str, str]:
    rows = database.execute(f"DESCRIBE SELECT * FROM read_parquet({quoted_path(path)})").fetchall()  # noqa: S608
    return {row[0]: row[1] for row in rows}


def _count(database: duckdb.DuckDBPyConnection, path: Path) -> int:
    found = database.execute(f"SELECT count(*) FROM read_parquet({quoted_path(path)})").fetchone()  # noqa: S608
    return int(found[0]) if found else 0


def _lines_in(path: Path) -> int:
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(2**20), b""))


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def quoted_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def quoted_path(path: Path) -> str:
    """The path as DuckDB's readers take it: they would expand `*`, `?` and `[`."""
    return quoted_text(re.sub(r"[*?\[]", r"[\g<0>]", str(path)))
