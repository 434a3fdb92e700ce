"""PostgreSQL through psycopg: the writer's place is an advisory lock, held until the transaction ends.

- Written at READ COMMITTED: the lock comes first, and what is read after it includes all that was written before.
- Read at REPEATABLE READ, read only: one snapshot, which never fails to serialize.
- A writer that stops in the middle (a paused process, a lost machine) is thrown out by the server after a minute, so
  that it does not keep the fleet from writing.
- A server that hangs is given up after half a minute: its connection is closed, and who waited gets an error.
- A server that is configured to forget the last commits in a crash (`synchronous_commit = off`) is told to keep these.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

from fairlead.errors import DatabaseUnavailable, FairleadError, MissingExtra, NoSpace

try:
    import psycopg
    import sqlalchemy as sa
    from sqlalchemy.engine import URL
    from sqlalchemy.exc import DBAPIError
except ImportError as missing:
    raise MissingExtra(missing.name or "psycopg", "postgres") from missing

__all__ = ["PostgresDriver"]

_WRITER = 0x666169726C656164
"""The advisory lock of all who write; a lock of one database, shared by the fleet."""
_ABANDONED = 60.0
"""Seconds that a writer may do nothing before the server ends its transaction."""
_HUNG = 30.0
"""Seconds without an answer, beyond what a statement may wait for the writer's place, after which a server hangs."""


class PostgresDriver:
    """How `Database` uses a PostgreSQL server."""

    def __init__(self, url: URL, timeout: float, name: str) -> None:
        self._timeout = timeout
        self._name = name
        self.engine = sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args={
                "connect_timeout": max(2, round(timeout)),
                "application_name": url.query.get("application_name", "fairlead"),
                # Few statements are worth preparing, and a pool such as pgbouncer hands the next one elsewhere.
                "prepare_threshold": None,
            },
            pool_pre_ping=True,  # a connection that died while nobody used it is replaced before anything is done
            pool_timeout=timeout,
            pool_use_lifo=True,
        )
        sa.event.listen(self.engine, "do_connect", self._connect)

    def create(self) -> None:
        """A database is made by who runs the server; here it is only looked at."""
        try:
            with self.engine.connect() as connection:
                encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
        except DBAPIError as error:
            raise self.failure(error) or error from error
        if encoding != "UTF8":
            raise DatabaseUnavailable(
                f"{self._name}: its encoding is {encoding}, which cannot hold every name; create it with UTF8"
            )

    def begin_read(self, connection: sa.Connection) -> None:
        connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        connection.begin()

    def begin_write(self, connection: sa.Connection) -> None:
        connection.execution_options(isolation_level="READ COMMITTED", postgresql_readonly=False)
        connection.begin()
        connection.exec_driver_sql(
            f"SET LOCAL lock_timeout = {self._timeout * 1000:.0f};"
            f"SET LOCAL idle_in_transaction_session_timeout = {_ABANDONED * 1000:.0f};"
            "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off';"
            f"SELECT pg_advisory_xact_lock({_WRITER})"
        )

    def failure(self, error: Exception, *, committing: bool = False) -> FairleadError | None:
        cause = getattr(error, "orig", error)
        state = getattr(cause, "sqlstate", None) or ""
        said = (str(cause).strip().splitlines() or [type(cause).__name__])[0][:300]
        if state == "53100":
            return NoSpace(f"{self._name}: the server's disk is full: {said}; make room there")
        if state == "55P03":
            return DatabaseUnavailable(
                f"{self._name}: another process has been writing for more than {self._timeout:g} s; try again later"
            )
        if state == "25P03":
            return DatabaseUnavailable(
                f"{self._name}: the writer did nothing for {_ABANDONED:g} s, and the server ended its transaction"
            )
        if state.startswith("28"):
            return DatabaseUnavailable(f"{self._name}: {said}; check user and password")
        if state in ("25006", "42501"):
            return DatabaseUnavailable(f"{self._name}: {said}; use the primary, and a user that may write")
        if state in ("42P01", "42703"):
            return DatabaseUnavailable(f"{self._name}: {said}; Fairlead has made it, so restore a backup")
        if isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError):
            unknown = "; whether it was written is not known" if committing else ""
            return DatabaseUnavailable(f"{self._name}: {said}; look at the server{unknown}")
        return None

    def _connect(self, dialect: object, record: object, words: list[Any], options: dict[str, Any]) -> Any:
        connection = _Bounded.connect(*words, **options)
        connection.patience = self._timeout + _HUNG
        return connection


class _Bounded(psycopg.Connection[Any]):
    """A connection that does not wait for ever. The kernel answers for a process that hangs, so TCP never gives up."""

    patience = _HUNG

    def wait(self, gen: Generator[Any, Any, Any], *given: Any, **named: Any) -> Any:
        return super().wait(self._limited(gen), *given, **named)

    def _limited(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        end = time.monotonic() + self.patience
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted  # psycopg comes back at least every `interval`, with nothing if nothing came
                if not ready and time.monotonic() > end:
                    self.close()
                    raise psycopg.OperationalError(f"no answer within {self.patience:g} s")
                wanted = gen.send(ready)
        except StopIteration as ending:
            return ending.value
