"""One way to a SQLite file or a PostgreSQL server: transactions, and errors that say what to do.

    read()   a snapshot: what is read within it belongs together, and it never waits for a writer
    write()  the one writer's place, waited for up to `timeout`; committed at the end, rolled back by any exception

Within `write()` nobody else writes, so what was read there still holds when it commits: there are no serialization
failures and no deadlocks to repeat. The only thing that is tried again is taking the place, and that is bounded.
Before the first transaction the schema is compared with what this Fairlead knows.

Everything blocks, and may be called from several threads: each transaction has a connection of its own. The writer's
place is shared by the fleet: by all processes that use this database.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self

from fairlead.calls.bounds import check_number
from fairlead.errors import DatabaseUnavailable, FairleadError, InvalidInput, MissingExtra
from fairlead.store import schema

try:
    import sqlalchemy as sa
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError, DBAPIError
except ImportError as missing:
    raise MissingExtra("sqlalchemy", "store") from missing

__all__ = ["Database"]


_inherited: list[object] = []


class Driver(Protocol):
    """What SQLite and PostgreSQL do differently."""

    engine: sa.Engine

    def create(self) -> None:
        """Makes an empty database where there is none and one can be made. Raises FairleadError."""

    def begin_read(self, connection: sa.Connection) -> None:
        """Begins a transaction that sees one moment of the database."""

    def begin_write(self, connection: sa.Connection) -> None:
        """Begins a transaction, holding the writer's place until it ends."""

    def failure(self, error: Exception, *, committing: bool = False) -> FairleadError | None:
        """What a person calls this error; None for a defect of ours."""


class Database:
    """A database that transactions are opened on; nothing is opened until the first one.

    >>> database = Database("postgresql://ann:secret@db.internal/fairlead")
    >>> database.name
    'postgresql://ann@db.internal/fairlead'
    """

    def __init__(self, where: str | os.PathLike[str], *, timeout: float = 10.0) -> None:
        """where: the path of a SQLite file, or a URL: `sqlite:///path`, `postgresql://user@host/database`.

        timeout: seconds that a transaction waits for a connection, and a writer for the writer before it. 10: longer
        than any write of Fairlead's takes, short enough for somebody who waits.

        Raises InvalidInput for what is neither, MissingExtra where the driver is not installed.
        """
        check_number("timeout", timeout, above=0, high=3600)
        url = _parsed(where)
        self.name = _without_secrets(url)
        """How messages call it: the file, or the URL without password and options."""
        self._driver = _driver(url, float(timeout), self.name)
        self._pid = os.getpid()
        self._is_current = False

    def migrate(self) -> None:
        """Makes the database if there is none, and brings its tables to what this Fairlead knows. Takes no data away.

        Safe to call at each start and from many processes at once: one migrates, the others wait for it. All or
        nothing, also when it is killed. Raises DatabaseTooNew, DatabaseUnavailable or NoSpace.
        """
        # Here, since Alembic takes longer to import than all the rest, and who only reads does not need it.
        from fairlead.store.migration import migrate

        self._driver.create()
        migrate(self._reading, self._writing, self.name)
        self._is_current = True

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection that sees one moment of the database, however long the block takes.

        Raises DatabaseUnavailable, DatabaseTooNew, or BrokenDocument for a file that is no database.
        """
        self._check_schema()
        with self._reading() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A connection with the writer's place; commits at the end of the block, or rolls back what it raises.

        Raises as `read`, and NoSpace. Not to be nested: the inner one would wait for the outer one in vain.
        """
        self._check_schema()
        with self._writing() as connection:
            # Each time: a newer Fairlead may have migrated since, and what it keeps there would be lost.
            schema.check(connection, self.name, are_made=True)
            yield connection

    def close(self) -> None:
        """Closes the connections that no transaction holds. The database can be used again."""
        self._leave_those_of_the_parent()
        self._driver.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_schema(self) -> None:
        if not self._is_current:
            with self._reading() as connection:
                schema.check(connection, self.name)
            self._is_current = True

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._transaction(self._driver.begin_read) as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with self._transaction(self._driver.begin_write) as connection:
            yield connection
            with self._told(committing=True):
                connection.commit()

    @contextmanager
    def _transaction(self, begin: Callable[[sa.Connection], None]) -> Iterator[sa.Connection]:
        self._leave_those_of_the_parent()
        with self._told(), self._driver.engine.connect() as connection:
            begin(connection)
            yield connection

    def _leave_those_of_the_parent(self) -> None:
        if self._pid != os.getpid():
            # Forked: the connections belong to the parent. They are neither used nor closed here, and for that kept:
            # to close one says goodbye to the parent's server, or works on the parent's file.
            _inherited.append(self._driver.engine.pool)
            self._driver.engine.dispose(close=False)
            self._pid = os.getpid()

    @contextmanager
    def _told(self, *, committing: bool = False) -> Iterator[None]:
        """Inside the block the driver's errors become ours; what is a defect stays as it is."""
        try:
            yield
        except DBAPIError as error:
            failure = self._driver.failure(error, committing=committing)
            if failure is None:
                raise
            raise failure from error
        except sa.exc.TimeoutError as error:
            raise DatabaseUnavailable(
                f"{self.name}: all connections are in use; open fewer transactions at once"
            ) from error


def _parsed(where: str | os.PathLike[str]) -> URL:
    if not isinstance(where, str) or "://" not in where:
        path = os.fspath(where)
        if not isinstance(path, str) or not path or "\0" in path:
            raise InvalidInput(
                "database: expected the path of a file, or a URL such as postgresql://host/database"
            )
        return URL.create("sqlite", database=path)
    try:
        url = make_url(where)
    except (ArgumentError, ValueError):
        # Neither the text nor the cause is shown: a password may stand anywhere in it.
        raise InvalidInput(
            "database: the URL cannot be read; expected one such as postgresql://host/database"
        ) from None
    kind = url.drivername.partition("+")[0]
    if kind not in ("sqlite", "postgresql", "postgres"):
        raise InvalidInput(f"database {kind[:32]!r}: sqlite and postgresql are known")
    if kind == "sqlite" and (url.query or url.host or url.database in (None, "", ":memory:")):
        raise InvalidInput(
            "database: a SQLite URL names a file and nothing else: sqlite:////var/lib/fairlead.db"
        )
    return url


def _without_secrets(url: URL) -> str:
    if url.drivername.startswith("sqlite"):
        return url.database or ""
    where = URL.create(
        "postgresql", username=url.username, host=url.host, port=url.port, database=url.database
    )
    return where.render_as_string()


def _driver(url: URL, timeout: float, name: str) -> Driver:
    if url.drivername.startswith("sqlite"):
        from fairlead.store.sqlite import SqliteDriver

        return SqliteDriver(name, timeout)
    from fairlead.store.postgres import PostgresDriver

    return PostgresDriver(url, timeout, name)
