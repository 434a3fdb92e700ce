"""PostgreSQL through psycopg: the writer's place is an advisory lock, held until the transaction ends.

- Written at READ COMMITTED: the lock comes first, and what is read after it includes all that was written before.
- Read at REPEATABLE READ, read only: one snapshot, which never fails to serialize.
- A writer that stops in the middle (a paused process, a lost machine) is thrown out by the server after a minute, so
  that it does not keep the fleet from writing.
- A server that is configured to forget the last commits in a crash (`synchronous_commit = off`) is told to keep these.
"""

from __future__ import annotations

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
_ABANDONED = 60
"""Seconds that a writer may do nothing before the server ends its transaction."""


class PostgresDriver:
    """How `Database` uses a PostgreSQL server."""

    def __init__(self, url: URL, timeout: float) -> None:
        self._timeout = timeout
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

    def create(self) -> None:
        """A database is made by who runs the server."""

    def begin_read(self, connection: sa.Connection) -> None:
        connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        connection.begin()

    def begin_write(self, connection: sa.Connection) -> None:
        connection.execution_options(isolation_level="READ COMMITTED", postgresql_readonly=False)
        connection.begin()
        connection.exec_driver_sql(
            f"SET LOCAL lock_timeout = {self._timeout * 1000:.0f};"
            f"SET LOCAL idle_in_transaction_session_timeout = {_ABANDONED * 1000};"
            "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off';"
            f"SELECT pg_advisory_xact_lock({_WRITER})"
        )

    def failure(self, error: DBAPIError, name: str) -> FairleadError | None:
        cause = error.orig
        state = getattr(cause, "sqlstate", None) or ""
        said = (str(cause).strip().splitlines() or [type(cause).__name__])[0][:300]
        if state == "53100":
            return NoSpace(f"{name}: the server's disk is full; make room there: {said}")
        if state == "55P03":
            return DatabaseUnavailable(
                f"{name}: another process has been writing for more than {self._timeout:g} s; try again later"
            )
        if state.startswith("28"):
            return DatabaseUnavailable(f"{name}: {said}; check user and password")
        if error.connection_invalidated or isinstance(
            cause, psycopg.OperationalError | psycopg.InterfaceError
        ):
            return DatabaseUnavailable(f"{name}: {said}; look at the server")
        if state in ("25006", "42501"):
            return DatabaseUnavailable(f"{name}: {said}; use the primary, and a user that may write")
        return None
