"""One way to a SQLite file or a PostgreSQL server: how connections are made, and how a write begins.

Everything else is the same SQL. A write holds the one writer's place from its first statement: in SQLite by BEGIN
IMMEDIATE, in PostgreSQL by an advisory lock until the transaction ends. So versions are given out in the order in which
they become visible, and who has seen version 7 will never find a new 6 later, as happens with a sequence.
"""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fairlead.errors import InvalidInput, MissingExtra

try:
    from sqlalchemy import Connection, Engine, create_engine, event
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError
    from sqlalchemy.pool import QueuePool
except ImportError as missing:
    raise MissingExtra("sqlalchemy", "store") from missing

__all__ = ["begin_write", "make_database", "open_engine"]

_WRITER = 0x72636667
"""The advisory lock of the table's writers, in PostgreSQL. Shared by the fleet."""
_WRITES = "remote_config_writes"
BUSY = 5.0
"""Seconds that a writer waits for another one to finish."""
STATEMENT = 2.0
"""Seconds after which PostgreSQL gives up a statement, so that a caller who left does not keep it busy."""


def open_engine(url: str, *, connections: int = 4) -> Engine:
    """An engine for `sqlite:///path` or `postgresql://user@host/database`; opens nothing yet. Raises InvalidInput."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise InvalidInput(
            f"database {url[:80]!r} is not a URL such as sqlite:////var/lib/config.db"
        ) from error
    kind = parsed.drivername.partition("+")[0]
    if kind == "sqlite" and not parsed.database:
        raise InvalidInput(f"database {url[:80]!r}: a SQLite in memory is nobody else's; name a file")
    if kind not in ("sqlite", "postgresql", "postgres"):
        raise InvalidInput(f"database {kind[:32]!r}: sqlite and postgresql are known")
    options: dict[str, Any] = {
        "poolclass": QueuePool,
        "pool_size": connections,
        "max_overflow": 0,
        "pool_timeout": BUSY,
        "pool_use_lifo": True,  # an idle service keeps one connection warm, not all in turn
    }
    if kind == "sqlite":
        # mode=rw: a file that is gone must be a failure, not an empty configuration.
        file = f"file:{quote(parsed.database or '')}?mode=rw"
        connect = partial(sqlite3.connect, file, uri=True, timeout=BUSY, check_same_thread=False)
        engine = create_engine(parsed, creator=connect, **options)
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    return _postgres(parsed, options)


def _postgres(url: URL, options: dict[str, Any]) -> Engine:
    limits = f"-c statement_timeout={STATEMENT * 1000:.0f} -c lock_timeout={BUSY * 1000:.0f}"
    try:
        return create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args={
                "connect_timeout": 2,
                "options": limits,
                "application_name": "remote_config",
                "prepare_threshold": 1,
            },
            **options,
        )
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise MissingExtra("psycopg", "postgres") from error


def _configure_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")  # readers never wait for the writer
    cursor.execute("PRAGMA synchronous=FULL")  # what was acknowledged survives a power cut
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def make_database(engine: Engine) -> None:
    """Makes an empty SQLite file where there is none. Raises OSError."""
    if engine.dialect.name == "sqlite":
        Path(engine.url.database or "").touch()


def begin_write(connection: Connection) -> None:
    """Takes the writer's place until the transaction of `connection`, which begins here, has ended."""
    connection.execution_options(**{_WRITES: True})
    connection.begin()
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER})")
