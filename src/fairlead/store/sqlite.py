"""SQLite: a file on a local disk, written in WAL mode by one writer at a time.

- WAL: who reads sees a snapshot and never waits for the writer. It needs shared memory, so no network drive.
- `BEGIN IMMEDIATE`: a transaction that will write says so first. Begun as a reader, it would fail half-way whenever
  another one wrote in between.
- `synchronous=FULL`: a commit that returned survives a power cut. With NORMAL the last ones may be gone, and a ledger
  whose head somebody kept would then look as if it had been cut on purpose.
"""

from __future__ import annotations

import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fairlead.errors import BrokenDocument, DatabaseUnavailable, FairleadError, MissingExtra, NoSpace

try:
    import sqlalchemy as sa
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.pool import QueuePool
except ImportError as missing:
    raise MissingExtra("sqlalchemy", "store") from missing

__all__ = ["SqliteDriver"]

_WRITES = "fairlead_writes"
_POLL = 0.005
"""Seconds within which SQLite itself looks for the writer's place. Its own pauses grow to 0.1 s, in which others that
write without a pause would take turns past the one who waits."""
_NO_SPACE = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_SHMSIZE,
        sqlite3.SQLITE_IOERR_TRUNCATE,
    }
)
_NO_DATABASE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_LOCKED = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_REFUSED = frozenset(
    {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY}
)


class SqliteDriver:
    """How `Database` uses a SQLite file."""

    def __init__(self, path: Path, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self.engine = sa.create_engine(
            "sqlite://", creator=self._connect, poolclass=QueuePool, pool_timeout=timeout, pool_use_lifo=True
        )
        sa.event.listen(self.engine, "begin", self._begin)

    def create(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch()
        connection = self._connect()
        try:
            # Kept in the file. The change of mode does not wait by itself while another process opens the file.
            self._patiently(partial(connection.execute, "PRAGMA journal_mode=WAL"))
        except sqlite3.OperationalError:
            pass  # another process holds it, so it is made, or what keeps us out is told by the transaction to come
        finally:
            connection.close()

    def begin_read(self, connection: sa.Connection) -> None:
        connection.begin()

    def begin_write(self, connection: sa.Connection) -> None:
        connection.execution_options(**{_WRITES: True})
        connection.begin()

    def failure(self, error: DBAPIError, name: str) -> FairleadError | None:
        code = _code(error)
        primary = code & 0xFF
        if code in _NO_SPACE:
            return NoSpace(
                f"{name}: the disk, a quota or the file-size limit stopped the write; make room: {error.orig}"
            )
        if primary in _NO_DATABASE:
            return BrokenDocument(
                f"{name}: no database that SQLite can read: {error.orig}; restore it from a backup"
            )
        if primary in _LOCKED:
            return DatabaseUnavailable(
                f"{name}: another process has been writing for more than {self._timeout:g} s; try again later"
            )
        if primary == sqlite3.SQLITE_CANTOPEN and not self._path.exists():
            return DatabaseUnavailable(
                f"{name}: there is no such file; call migrate() on it first, or correct the path"
            )
        if primary in _REFUSED:
            return DatabaseUnavailable(f"{name}: {error.orig}; look at the file, its folder and their owner")
        return None

    def _connect(self) -> sqlite3.Connection:
        # mode=rw: a file that is gone must be a failure, not an empty memory.
        connection = sqlite3.connect(
            f"file:{quote(str(self._path))}?mode=rw",
            uri=True,
            timeout=self._timeout,
            isolation_level=None,  # transactions begin where we say, not where sqlite3 guesses
            check_same_thread=False,  # the pool hands a connection to one thread at a time
        )
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    def _begin(self, connection: sa.Connection) -> None:
        if not connection.get_execution_options().get(_WRITES, False):
            connection.exec_driver_sql("BEGIN")
            return
        connection.exec_driver_sql(f"PRAGMA busy_timeout={_POLL * 1000:.0f}")
        try:
            self._patiently(partial(connection.exec_driver_sql, "BEGIN IMMEDIATE"))
        finally:
            connection.exec_driver_sql(f"PRAGMA busy_timeout={self._timeout * 1000:.0f}")

    def _patiently(self, step: Any) -> None:
        """Takes the step, again and again while another process is in its way, for up to the timeout."""
        end = time.monotonic() + self._timeout
        while True:
            try:
                step()
                return
            except (sqlite3.OperationalError, DBAPIError) as error:
                if _code(error) & 0xFF not in _LOCKED or time.monotonic() >= end:
                    raise


def _code(error: Exception) -> int:
    """SQLite's extended code of an error, whether SQLAlchemy has wrapped it or not."""
    return int(getattr(getattr(error, "orig", error), "sqlite_errorcode", sqlite3.SQLITE_OK))
