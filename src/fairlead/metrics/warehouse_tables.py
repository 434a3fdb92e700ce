"""Files as tables: Parquet, CSV, and a sink's segments with what was compacted of them, read by DuckDB.

Delivery is at least once, and compaction may be killed between two of its steps, so an event can lie in two files. Its
id tells, and it counts once. A line that was cut by a crash is not an event and is passed over here;
`fairlead events check` is what finds it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from fairlead.errors import BrokenDocument, InvalidInput, MissingExtra
from fairlead.telemetry.event import Event
from fairlead.telemetry.parquet import event_columns, is_compacted, quoted_path, quoted_text
from fairlead.telemetry.schema import EventRegistry

try:
    import duckdb
    import ibis
    import ibis.expr.types as ir
except ImportError as missing:
    raise MissingExtra(missing.name or "ibis-framework", "warehouse") from missing

__all__: list[str] = []


def table_of_files(files: Sequence[Path]) -> ir.Table:
    """One table of Parquet or CSV files. Raises InvalidInput for a mixture, BrokenDocument for what cannot be read."""
    kinds = {path.suffix.lower() for path in files}
    if not files or len(kinds) != 1 or not kinds <= {".parquet", ".csv"}:
        raise InvalidInput("give one or more files, all of them .parquet or all .csv")
    for path in files:
        if not path.is_file():
            raise BrokenDocument(f"{path}: no such file")
    reader = "read_parquet" if kinds == {".parquet"} else "read_csv_auto"
    listed = ", ".join(quoted_path(path) for path in files)
    return _view(f"SELECT * FROM {reader}([{listed}])", files[0])  # noqa: S608 - quoted


def tables_of_events(root: Path, kinds: Iterable[str], registry: EventRegistry) -> dict[str, ir.Table]:
    """As `table_of_events` for several kinds; the tables can be joined, as they have one connection."""
    database = ibis.duckdb.connect()
    return {kind: table_of_events(root, kind, registry, database) for kind in dict.fromkeys(kinds)}


def table_of_events(
    root: Path, kind: str, registry: EventRegistry, database: ibis.BaseBackend | None = None
) -> ir.Table:
    """The events of one kind below a folder, each once. Raises UnknownEvent, BrokenDocument."""
    struct = registry.kind(kind)
    columns = event_columns(struct)
    found = sorted(path for path in root.rglob("*") if not _is_hidden(path, root))
    segments = [path for path in found if path.suffix == ".jsonl" and path.is_file()]
    compacted = [path for path in found if is_compacted(path, kind)]
    if not segments and not compacted:
        raise BrokenDocument(f"{root}: no segments, and no {kind} in Parquet; name the folder of a sink")
    parts = []
    if segments:
        shapes = {**columns, "event": "VARCHAR"}.items()
        typed = ", ".join(f"{quoted_text(name)}: {quoted_text(shape)}" for name, shape in shapes)
        names = ", ".join(quoted_path(path) for path in segments)
        lines = (
            f"read_json([{names}], format = 'newline_delimited', columns = {{{typed}}}, ignore_errors = true)"
        )
        parts.append(
            f"SELECT * EXCLUDE (event) REPLACE ({_defaults(struct, columns)}) FROM {lines} "  # noqa: S608 - quoted
            f"WHERE event = {quoted_text(kind)}"
        )
    if compacted:
        names = ", ".join(quoted_path(path) for path in compacted)
        parts.append(f"SELECT * FROM read_parquet([{names}], union_by_name = true)")  # noqa: S608 - quoted
    once = "coalesce(event_id, '') = '' OR row_number() OVER (PARTITION BY event_id) = 1"
    return _view(f"SELECT * FROM ({' UNION ALL BY NAME '.join(parts)}) QUALIFY {once}", root, database, kind)  # noqa: S608 - quoted


def _defaults(struct: type[Event], columns: Mapping[str, str]) -> str:
    """A field that a line lacks has its default: a writer may leave it out, and an older one did not know it."""
    filled = []
    for field in msgspec.structs.fields(struct):
        default, name = field.default, field.encode_name
        if isinstance(default, str):
            literal = quoted_text(default)
        elif isinstance(default, bool | int | float):
            literal = str(default).lower()
        else:
            continue
        column = '"' + name.replace('"', '""') + '"'
        filled.append(f"coalesce({column}, CAST({literal} AS {columns[name]})) AS {column}")
    return ", ".join(filled)


def _is_hidden(path: Path, root: Path) -> bool:
    """Whether it lies in a folder of work, such as that of a compaction."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _view(
    query: str, name: Path, database: ibis.BaseBackend | None = None, view: str = "fairlead"
) -> ir.Table:
    """What DuckDB reads, as a table of Ibis. Raises BrokenDocument."""
    database = database or ibis.duckdb.connect()
    try:
        database.con.execute(f"CREATE TEMP VIEW {view} AS {query}")
        with warnings.catch_warnings():
            # Ibis 12 asks for the schema by a name that DuckDB has deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            return database.table(view)
    except duckdb.Error as error:
        raise BrokenDocument(f"{name}: cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
