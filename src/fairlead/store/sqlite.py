"""SQLite: a file on a local disk, written in WAL mode by one writer at a time.

- WAL: who reads sees a snapshot and never waits for the writer. It needs shared memory, so no network drive.
- `BEGIN IMMEDIATE`: a transaction that will write says so first. Begun as a reader, it would fail half-way whenever
  another one wrote in between.
- `synchronous=FULL`: a commit that returned survives a power cut. With NORMAL the last ones may be gone, and a ledger
  whose head somebody kept would then look as if it had been cut on purpose.
- A file that was moved away or replaced is opened anew by its path: what is written into a deleted file is lost.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from fairlead.errors import BrokenDocument, DatabaseUnavailable, FairleadError, MissingExtra, NoSpace

try:
    import sqlalchemy as sa
    from sqlalchemy.exc import DBAPIError, DisconnectionError
    from sqlalchemy.pool import QueuePool
except ImportError as missing:
    raise MissingExtra("sqlalchemy", "store") from missing

__all__ = ["SqliteDriver"]

_WRITES = "fairlead_writes"
_FILE = "fairlead_file"
_LOOK = 0.005
"""Seconds within which one attempt looks for the writer's place. SQLite's own pauses grow to 0.1 s, and those who write
without a pause take turns past the one who pauses (docs/decisions/0150)."""
# SQLite says FULL for ENOSPC alone; a quota and the file-size limit are an IOERR to it.
_NO_SPACE = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE})
_NO_DATABASE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_LOCKED = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_REFUSED = frozenset(
    {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY}
)


class SqliteDriver:
    """How `Database` uses a SQLite file."""

    def __init__(self, name: str, timeout: float) -> None:
        self._name = name
        self._path = Path(os.path.abspath(name))  # a process that changes its directory keeps its database
        self._timeout = timeout
        self.engine = sa.create_engine(
            "sqlite://",
            # mode=rw: a file that is gone must be a failure, not an empty memory.
            creator=partial(self._connect, "rw"),
            poolclass=QueuePool,
            pool_timeout=timeout,
            pool_use_lifo=True,
        )
        sa.event.listen(self.engine, "begin", self._begin)
        sa.event.listen(self.engine, "connect", self._opened)
        sa.event.listen(self.engine, "checkout", self._check_file)

    def create(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # By SQLite and not by touch(): to close a file takes this process's locks on it away.
            connection = self._connect("rwc")
            try:
                # Kept in the file. The change does not always wait while another process opens the file.
                self._patiently(partial(connection.execute, "PRAGMA journal_mode=WAL"))
            finally:
                connection.close()
        except OSError as error:
            raise DatabaseUnavailable(f"{self._name}: cannot be made: {error.strerror}") from error
        except sqlite3.Error as error:
            raise self.failure(error) or error from error

    def begin_read(self, connection: sa.Connection) -> None:
        connection.begin()

    def begin_write(self, connection: sa.Connection) -> None:
        connection.execution_options(**{_WRITES: True})
        connection.begin()

    def failure(self, error: Exception, *, committing: bool = False) -> FairleadError | None:
        code, said = _code(error), getattr(error, "orig", error)
        primary = code & 0xFF
        if code in _NO_SPACE:
            return NoSpace(
                f"{self._name}: the disk, a quota or the file-size limit stopped a write: {said}; make room"
            )
        if primary in _NO_DATABASE or "Could not decode" in str(said):
            return BrokenDocument(f"{self._name}: not a database that can be read: {said}; restore a backup")
        if primary in _LOCKED:
            return DatabaseUnavailable(
                f"{self._name}: another process has been writing for more than {self._timeout:g} s; try again later"
            )
        if primary == sqlite3.SQLITE_CANTOPEN and not self._path.exists():
            return DatabaseUnavailable(
                f"{self._name}: there is no such file; correct the path, or begin one with migrate(), as each command "
                "that records does"
            )
        if primary in _REFUSED:
            unknown = "; whether it was written is not known" if committing else ""
            return DatabaseUnavailable(
                f"{self._name}: {said}; look at the file, its folder and their owner{unknown}"
            )
        if str(said).startswith("no such"):
            return DatabaseUnavailable(f"{self._name}: {said}; Fairlead has made it, so restore a backup")
        return None

    def _connect(self, mode: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(os.fsencode(self._path))}?mode={mode}",
            uri=True,
            timeout=self._timeout,
            isolation_level=None,  # transactions begin where we say, not where sqlite3 guesses
            check_same_thread=False,  # the pool hands a connection to one thread at a time
        )
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    def _opened(self, connection: object, record: Any) -> None:
        record.info[_FILE] = self._file()

    def _check_file(self, connection: object, record: Any, proxy: object) -> None:
        if record.info.get(_FILE) != self._file():
            raise DisconnectionError("the file was moved or replaced")  # the pool then connects anew

    def _file(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _begin(self, connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        # Without SQLAlchemy, which takes ten times as long for it.
        pragma = cast(sqlite3.Connection, connection.connection.dbapi_connection).execute
        # Else a reader could write, and what it wrote would be rolled back without a word.
        pragma(f"PRAGMA query_only={not writes:d}")
        if not writes:
            connection.exec_driver_sql("BEGIN")
            return
        pragma(f"PRAGMA busy_timeout={_LOOK * 1000:.0f}")
        try:
            self._patiently(partial(connection.exec_driver_sql, "BEGIN IMMEDIATE"))
        finally:
            pragma(f"PRAGMA busy_timeout={self._timeout * 1000:.0f}")

    def _patiently(self, step: Callable[[], object]) -> None:
        """Takes the step, again and again while another process is in its way, for up to the timeout."""
        end = time.monotonic() + self._timeout
        while True:
            try:
                step()
            except (sqlite3.OperationalError, DBAPIError) as error:
                if _code(error) & 0xFF not in _LOCKED or time.monotonic() >= end:
                    raise
                time.sleep(_LOOK / 5)  # where SQLite did not wait by itself
            else:
                return


def _code(error: Exception) -> int:
    """SQLite's extended code of an error, whether SQLAlchemy has wrapped it or not."""
    return int(getattr(getattr(error, "orig", error), "sqlite_errorcode", sqlite3.SQLITE_OK))
