"""EXPLAIN on demand, for a statement without its values, on SQLite and PostgreSQL.

Nothing is run: never ANALYZE, only SELECT, inside a transaction that is read-only, has a time limit and is rolled back.
On PostgreSQL a statement without values is prepared and its generic plan shown; on SQLite its parameters are NULL,
which `EXPLAIN QUERY PLAN` does not look at. PostgreSQL may call functions declared IMMUTABLE or STABLE while it plans.

    slow = SlowQueries()
    export_engine(engine, registry, on_query=slow.add)
    …
    with engine.connect() as connection:
        plans = [explain(connection, query.statement) for query in slow.slowest()[:5]]

An AsyncEngine: `await connection.run_sync(explain, statement)`. Blocks for a few milliseconds, for `timeout` at most.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

import msgspec

from fairlead.diagnosis.query_plan import QueryPlan, postgres_plan, sqlite_plan
from fairlead.errors import InvalidInput, MissingExtra
from fairlead.telemetry.bounds import check_number

try:
    from sqlalchemy import text
    from sqlalchemy.engine import Connection
    from sqlalchemy.exc import DBAPIError
except ImportError as missing:
    raise MissingExtra("sqlalchemy", "store") from missing

__all__ = ["explain"]

_PARAMETER = re.compile(r"\$(\d+)")
_QUOTED = re.compile(r'"(?:[^"]|"")*"|`[^`]*`')
_CHANGES = re.compile(r"\b(?:insert|(?<!for )(?<!for no key )update|delete|merge|into)\b", re.IGNORECASE)
_PREPARED = "fairlead_explained"


def explain(connection: Connection, statement: str, *, timeout: float = 2.0) -> QueryPlan:
    """How the database of `connection`, which must be in no transaction, would run the statement.

    statement: as `SlowQuery.statement`, with values as `$1`, `$2`, …. timeout: seconds that planning, and waiting for a
    lock of the table, may take, 0.01 to 60; PostgreSQL only.
    Raises InvalidInput for a statement that is no SELECT, for another database, and for what the database refuses, with
    its words.
    """
    check_number("explain: timeout", timeout, low=0.01, high=60.0)
    _check(statement)
    dialect = connection.dialect.name
    if dialect not in ("sqlite", "postgresql"):
        raise InvalidInput(f"explain: knows SQLite and PostgreSQL, not {dialect}")
    if connection.in_transaction():
        raise InvalidInput(
            "explain: the connection is in a transaction, which it would roll back: give another"
        )
    try:
        if dialect == "sqlite":
            return _on_sqlite(connection, statement)
        return _on_postgres(connection, statement, timeout)
    except DBAPIError as error:
        raise InvalidInput(f"explain: {dialect} refuses {statement[:200]!r}: {_first_line(error)}") from error
    finally:
        connection.rollback()


def _check(statement: str) -> None:
    bare = _QUOTED.sub("", statement)
    word = re.match(r"\s*\(*\s*(\w+)", bare)
    if word is None or word[1].lower() not in ("select", "with"):
        raise InvalidInput(f"explain: only SELECT and WITH … SELECT, not {statement[:80]!r}")
    if ";" in bare or "'" in bare:
        raise InvalidInput(
            f"explain: {statement[:80]!r} holds a value or a second statement: give it as SlowQuery.statement has it"
        )
    if (changes := _CHANGES.search(bare)) is not None:
        raise InvalidInput(
            f"explain: {changes[0].upper()} in {statement[:80]!r}: only what reads is explained"
        )
    if statement.endswith("…"):
        raise InvalidInput("explain: the statement was too long to be kept whole")


def _run(connection: Connection, statement: str, parameters: Any = None) -> Any:
    if parameters is not None:
        return connection.exec_driver_sql(statement, parameters)
    # Without parameters a driver leaves `%` and `$1` alone.
    return connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def _on_sqlite(connection: Connection, statement: str) -> QueryPlan:
    numbers = sorted({int(number) for number in _PARAMETER.findall(statement)})
    with_numbers = _PARAMETER.sub(r"?\1", statement)
    was_read_only = _run(connection, "PRAGMA query_only").scalar()
    _run(connection, "PRAGMA query_only = ON")
    try:
        values = (None,) * max(numbers, default=0)
        rows = [tuple(row) for row in _run(connection, f"EXPLAIN QUERY PLAN {with_numbers}", values)]
        names = _run(connection, "SELECT name FROM sqlite_master WHERE type = 'table'").scalars().all()
        tables = {str(name): _rows_of_sqlite(connection, str(name)) for name in names}
    finally:
        _run(connection, f"PRAGMA query_only = {'ON' if was_read_only else 'OFF'}")
    return sqlite_plan(statement, rows, tables)


def _rows_of_sqlite(connection: Connection, table: str) -> float | None:
    """The highest row number, which one step down the tree finds; counting would read the whole table."""
    quoted = table.replace('"', '""')
    try:
        highest = _run(connection, f'SELECT max(rowid) FROM "{quoted}"').scalar()  # noqa: S608  # quoted above
    except DBAPIError:  # WITHOUT ROWID, or a virtual table that has none
        return None
    return float(highest or 0)


def _on_postgres(connection: Connection, statement: str, timeout: float) -> QueryPlan:
    count = max((int(number) for number in _PARAMETER.findall(statement)), default=0)
    arguments = f"({', '.join(['NULL'] * count)})" if count else ""
    milliseconds = max(1, round(timeout * 1000))
    _run(connection, "SET TRANSACTION READ ONLY")
    for setting in (
        f"statement_timeout = {milliseconds}",
        f"lock_timeout = {milliseconds}",
        "plan_cache_mode = force_generic_plan",
    ):
        _run(connection, f"SET LOCAL {setting}")
    if _run(connection, "SHOW transaction_read_only").scalar() != "on":
        raise InvalidInput(
            "explain: the connection is in autocommit, where nothing can be rolled back: give another"
        )
    prepared = False
    try:
        _run(connection, f"PREPARE {_PREPARED} AS {statement}")
        prepared = True
        found = _run(connection, f"EXPLAIN (FORMAT JSON, VERBOSE) EXECUTE {_PREPARED}{arguments}").scalar()
        document = msgspec.json.decode(found) if isinstance(found, str | bytes) else found
        tables = {name: _rows_of_postgres(connection, *name) for name in _tables(document)}
    finally:
        if prepared:
            # A prepared statement outlives its transaction, also one that failed.
            connection.rollback()
            with contextlib.suppress(DBAPIError):  # behind a pool of transactions this may be another session
                _run(connection, f"DEALLOCATE {_PREPARED}")
    return postgres_plan(statement, document, {".".join(name): rows for name, rows in tables.items()})


def _tables(document: Any) -> set[tuple[str, str]]:
    found, waiting = set(), [each["Plan"] for each in document]
    while waiting:
        node = waiting.pop()
        if "Relation Name" in node:
            found.add((str(node.get("Schema", "")), str(node["Relation Name"])))
        waiting.extend(node.get("Plans", ()))
    return found


def _rows_of_postgres(connection: Connection, schema: str, table: str) -> float | None:
    rows = connection.execute(
        text(
            "SELECT c.reltuples FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = :schema AND c.relname = :table"
        ),
        {"schema": schema, "table": table},
    ).scalar()
    return None if rows is None or rows < 0 else float(rows)


def _first_line(error: DBAPIError) -> str:
    return (str(error.orig).strip().splitlines() or ["no reason given"])[0]
