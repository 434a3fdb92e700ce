"""A table in SQLite or PostgreSQL as one side of a migration, through SQLAlchemy Core.

Beside the table `orders` lie `orders_migration`, a version and a mark per key, and `fairlead_notes`. A row and its
version are written in one transaction, and the version's row is locked first, so two writers of one key take turns.

Who writes the table past Fairlead gets no version and no mark: the row is not carried over, and only a verification
finds it. Every writer has to be at least in the stage `off` before the migration begins.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from fairlead.calls.bounds import check_number, check_whole
from fairlead.errors import InvalidInput, MissingExtra, StoreUnavailable
from fairlead.migration.store import Key, Row, Value, next_version

try:
    import sqlalchemy as sa
    from sqlalchemy.dialects import postgresql, sqlite
    from sqlalchemy.exc import (
        ArgumentError,
        InterfaceError,
        InternalError,
        NoSuchTableError,
        OperationalError,
        StatementError,
    )
except ImportError as missing:
    raise MissingExtra("sqlalchemy", "store") from missing

__all__ = ["TableStore"]

_T = TypeVar("_T")
_AT_ONCE = 500
"""Keys per statement: SQLite takes 32,766 parameters, and a table may have 60 columns."""
_ANSWERS_WITHIN = 1.0
"""Seconds beyond the timeout of a statement in which a server that lives says that it has ended."""
_DDL_LOCK = 0x6D696772
"""PostgreSQL's CREATE TABLE IF NOT EXISTS fails when two run at once."""


class TableStore:
    """One table with a primary key of one column. Work is done on threads, so the loop is never blocked.

    url: `sqlite:////path/to.db`, or `postgresql://user@host/database`.
    table: its name, read from the database when first used; or a SQLAlchemy Table, which decides types and columns.
    threads: how much runs at once, and how many connections there are, 1 to 64.
    timeout: seconds that SQLite waits for another writer, and that a statement in PostgreSQL may take. A server that
        hangs is given up a second later, and holds a thread until then.

    Values are whole rows: every column but the key, and no other. Raises InvalidInput for what is no such URL or table.
    """

    def __init__(self, url: str, table: str | sa.Table, *, threads: int = 4, timeout: float = 10.0) -> None:
        check_whole("TableStore.threads", threads, low=1, high=64)
        check_number("TableStore.timeout", timeout, above=0.0, high=3600.0)
        self._engine = _engine(url, threads, timeout)
        self._postgres = self._engine.dialect.name == "postgresql"
        self._insert = postgresql.insert if self._postgres else sqlite.insert
        self._named = table
        self._tables: _Tables | None = None
        self._reflecting = threading.Lock()
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self.name = f"{self._engine.url.render_as_string(hide_password=True)} {table}"
        """How messages call it."""

    async def read(self, keys: Sequence[Key]) -> list[Row]:
        return await self._run(self._read, list(keys))

    async def write(self, key: Key, value: Value | None, *, parity: int, floor: int = 0) -> int:
        return await self._run(self._write, key, value, parity, floor)

    async def touch(self, key: Key, *, version: int, parity: int, floor: int = 0) -> None:
        await self._run(self._touch, key, version, parity, floor)

    async def apply(self, rows: Sequence[Row], *, spare_marked: bool = False) -> list[int]:
        return await self._run(self._apply, list(rows), spare_marked)

    async def settle(self, versions: Mapping[Key, int]) -> None:
        await self._run(self._settle, dict(versions))

    async def marked(self, after: Key | None, limit: int) -> list[Key]:
        return await self._run(self._marked, after, limit)

    async def count_marked(self) -> int:
        return await self._run(self._count_marked)

    async def scan(self, after: Key | None, limit: int) -> list[Row]:
        return await self._run(self._scan, after, limit)

    async def count(self) -> int:
        return await self._run(self._count)

    async def recall(self, name: str) -> str | None:
        return await self._run(self._recall, name)

    async def remember(self, name: str, text: str) -> None:
        await self._run(self._remember, name, text)

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)
        await asyncio.to_thread(self._engine.dispose)

    async def _run(self, work: Callable[..., _T], *arguments: object) -> _T:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="fairlead-migration")
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    @contextmanager
    def _begin(self, *, writes: bool) -> Iterator[tuple[sa.Connection, _Tables]]:
        try:
            tables = self._tables or self._described()
            with self._engine.connect() as connection:
                if not self._postgres:
                    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
                yield connection, tables
                connection.commit()
        except (StatementError, sa.exc.TimeoutError, UnicodeError, OverflowError) as error:
            cause = getattr(error, "orig", None) or error
            # The first line alone: PostgreSQL puts values of the row into the others.
            said = (str(cause).strip().splitlines() or [type(cause).__name__])[0][:300]
            if isinstance(error, OperationalError | InterfaceError | InternalError | sa.exc.TimeoutError):
                raise StoreUnavailable(f"{self.name}: {said}; look at the database") from error
            raise InvalidInput(f"{self.name}: the row is refused: {said}; correct it") from error

    def _described(self) -> _Tables:
        with self._reflecting:
            if self._tables is None:
                table = self._named
                if isinstance(table, str):
                    try:
                        table = sa.Table(table, sa.MetaData(), autoload_with=self._engine)
                    except NoSuchTableError as error:
                        raise InvalidInput(f"{self.name}: there is no such table; create it first") from error
                tables = _Tables(table, self.name)
                with self._engine.connect() as connection:
                    if self._postgres:
                        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_DDL_LOCK)))
                    else:
                        connection.exec_driver_sql("BEGIN IMMEDIATE")
                    tables.beside.create_all(connection)
                    connection.commit()
                self._tables = tables
            return self._tables

    def _read(self, keys: list[Key]) -> list[Row]:
        found: dict[Key, Row] = {}
        with self._begin(writes=False) as (connection, tables):
            for start in range(0, len(keys), _AT_ONCE):
                for row in connection.execute(tables.reading(keys[start : start + _AT_ONCE])):
                    found[row[0]] = Row(row[0], tables.value(row[3:]) if row[2] is not None else None, row[1])
        return [found[key] for key in keys]

    def _write(self, key: Key, value: Value | None, parity: int, floor: int) -> int:
        with self._begin(writes=True) as (connection, tables):
            tables.check(value)
            version: int = connection.execute(
                self._numbering(tables, key, parity, floor).returning(tables.versions.c.version)
            ).scalar_one()
            if value is None:
                connection.execute(sa.delete(tables.rows).where(tables.key == key))
            else:
                connection.execute(self._upsert(tables), [tables.as_row(key, value)])
        return version

    def _touch(self, key: Key, version: int, parity: int, floor: int) -> None:
        with self._begin(writes=True) as (connection, tables):
            connection.execute(self._numbering(tables, key, parity, floor, expected=version))

    def _numbering(
        self, tables: _Tables, key: Key, parity: int, floor: int, *, expected: int | None = None
    ) -> Any:
        versions = tables.versions
        had = sa.case((versions.c.version > floor, versions.c.version), else_=floor)
        return (
            self._insert(versions)
            .values(key=key, version=next_version(floor, parity), marked=True)
            .on_conflict_do_update(
                index_elements=[versions.c.key],
                set_={"version": had + 1 + (had + 1 + parity) % 2, "marked": True},
                where=None if expected is None else versions.c.version == expected,
            )
        )

    def _apply(self, rows: list[Row], spare_marked: bool) -> list[int]:
        now: dict[Key, int] = {}
        # In one order everywhere: two batches that meet must not wait for each other.
        ordered = sorted(rows, key=lambda row: cast(Any, row.key))
        with self._begin(writes=True) as (connection, tables):
            for start in range(0, len(ordered), _AT_ONCE):
                some = ordered[start : start + _AT_ONCE]
                now.update(self._apply_some(connection, tables, some, spare_marked))
        return [now[row.key] for row in rows]

    def _apply_some(
        self, connection: sa.Connection, tables: _Tables, rows: list[Row], spare_marked: bool
    ) -> dict[Key, int]:
        versions = tables.versions
        for row in rows:
            tables.check(row.value)
        insert = self._insert(versions).values(
            [{"key": row.key, "version": row.version, "marked": False} for row in rows]
        )
        newer = versions.c.version < insert.excluded.version
        taking = insert.on_conflict_do_update(
            index_elements=[versions.c.key],
            set_={"version": insert.excluded.version, "marked": False},
            where=sa.and_(newer, ~versions.c.marked) if spare_marked else newer,
        ).returning(versions.c.key)
        taken = {row[0] for row in connection.execute(taking)}
        kept = [
            tables.as_row(row.key, row.value) for row in rows if row.key in taken and row.value is not None
        ]
        known = {row.key for row in rows if row.version == 0}
        ours = tables.key.name
        for statement, some in (
            (self._upsert(tables), [row for row in kept if row[ours] not in known]),
            (self._upsert(tables, keeps=True), [row for row in kept if row[ours] in known]),
        ):
            if some:
                connection.execute(statement, some)
        gone = [row.key for row in rows if row.key in taken and row.value is None and row.version]
        if gone:
            connection.execute(sa.delete(tables.rows).where(tables.key.in_(gone)))
        now = {row.key: row.version for row in rows if row.key in taken}
        older = [row.key for row in rows if row.key not in taken]
        if older:
            query = sa.select(versions.c.key, versions.c.version).where(versions.c.key.in_(older))
            now.update((key, version) for key, version in connection.execute(query))
        return now

    def _upsert(self, tables: _Tables, *, keeps: bool = False) -> Any:
        insert = self._insert(tables.rows)
        if keeps or not tables.fields:
            return insert.on_conflict_do_nothing(index_elements=[tables.key])
        return insert.on_conflict_do_update(
            index_elements=[tables.key], set_={name: insert.excluded[name] for name in tables.fields}
        )

    def _settle(self, versions: dict[Key, int]) -> None:
        if not versions:
            return
        with self._begin(writes=True) as (connection, tables):
            beside = tables.versions
            connection.execute(
                sa.update(beside)
                .where(beside.c.key == sa.bindparam("at"), beside.c.version == sa.bindparam("still"))
                .values(marked=False),
                [
                    {"at": key, "still": versions[key]}
                    for key in sorted(versions, key=lambda key: cast(Any, key))
                ],
            )

    def _marked(self, after: Key | None, limit: int) -> list[Key]:
        with self._begin(writes=False) as (connection, tables):
            key = tables.versions.c.key
            query = sa.select(key).where(tables.versions.c.marked).order_by(key).limit(limit)
            return list(connection.execute(query if after is None else query.where(key > after)).scalars())

    def _count_marked(self) -> int:
        with self._begin(writes=False) as (connection, tables):
            query = sa.select(sa.func.count()).select_from(tables.versions).where(tables.versions.c.marked)
            return int(connection.execute(query).scalar_one())

    def _scan(self, after: Key | None, limit: int) -> list[Row]:
        with self._begin(writes=False) as (connection, tables):
            query = tables.scanning().limit(limit)
            found = connection.execute(query if after is None else query.where(tables.key > after))
            return [Row(row[0], tables.value(row[2:]), row[1]) for row in found]

    def _count(self) -> int:
        with self._begin(writes=False) as (connection, tables):
            return int(connection.execute(sa.select(sa.func.count()).select_from(tables.rows)).scalar_one())

    def _recall(self, name: str) -> str | None:
        with self._begin(writes=False) as (connection, tables):
            notes = tables.notes
            return connection.execute(sa.select(notes.c.text).where(notes.c.name == name)).scalar()

    def _remember(self, name: str, text: str) -> None:
        with self._begin(writes=True) as (connection, tables):
            insert = self._insert(tables.notes).values(name=name, text=text)
            connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_={"text": text}))


class _Tables:
    """The table, what lies beside it, and the statements that join them."""

    def __init__(self, rows: sa.Table, name: str) -> None:
        keys = list(rows.primary_key.columns)
        if len(keys) != 1:
            raise InvalidInput(f"{name}: needs a primary key of one column, and has one of {len(keys)}")
        self.rows, self.key, self.name = rows, keys[0], name
        self.fields = [
            column.name for column in rows.columns if column is not self.key and column.computed is None
        ]
        self._fields = frozenset(self.fields)
        self.beside = sa.MetaData()
        self.versions = sa.Table(
            f"{rows.name}_migration",
            self.beside,
            sa.Column("key", self.key.type, primary_key=True, autoincrement=False),
            sa.Column("version", sa.BigInteger, nullable=False),
            sa.Column("marked", sa.Boolean, nullable=False),
            schema=rows.schema,
        )
        only = self.versions.c.marked
        sa.Index(
            f"{rows.name}_migration_marked", self.versions.c.key, postgresql_where=only, sqlite_where=only
        )
        self.notes = sa.Table(
            "fairlead_notes",
            self.beside,
            sa.Column("name", sa.Text, primary_key=True),
            sa.Column("text", sa.Text, nullable=False),
            schema=rows.schema,
        )

    def check(self, value: Value | None) -> None:
        """Raises InvalidInput unless the value is a whole row: the stores would drift apart by what it leaves out."""
        if value is not None and value.keys() != self._fields:
            wrong = sorted(set(value) - self._fields) or sorted(self._fields - set(value))
            known = "is no column" if set(value) - self._fields else "is missing"
            raise InvalidInput(
                f"{self.name}: {str(wrong[0])[:64]!r} {known}; a value has every column but the key: "
                f"{', '.join(self.fields)}"
            )

    def as_row(self, key: Key, value: Value) -> dict[str, object]:
        return {self.key.name: key, **value}

    def value(self, cells: Sequence[object]) -> Value:
        return {
            name: bytes(cell) if isinstance(cell, memoryview) else cell
            for name, cell in zip(self.fields, cells, strict=True)
        }

    def reading(self, keys: Sequence[Key]) -> sa.Select[Any]:
        """Key, version, the row's key or null, and the fields; one statement, so both are of one moment."""
        wanted = (
            sa.values(sa.column("wanted", self.key.type), name="asked").data([(key,) for key in keys]).cte()
        )
        asked, versions = wanted.c.wanted, self.versions
        return sa.select(
            asked,
            sa.func.coalesce(versions.c.version, 0),
            self.key,
            *(self.rows.c[name] for name in self.fields),
        ).select_from(
            wanted.outerjoin(versions, versions.c.key == asked).outerjoin(self.rows, self.key == asked)
        )

    def scanning(self) -> sa.Select[Any]:
        versions = self.versions
        return (
            sa.select(
                self.key,
                sa.func.coalesce(versions.c.version, 0),
                *(self.rows.c[name] for name in self.fields),
            )
            .select_from(self.rows.outerjoin(versions, versions.c.key == self.key))
            .order_by(self.key)
        )


def _engine(url: str, threads: int, timeout: float) -> sa.Engine:
    try:
        parsed = sa.engine.make_url(url)
    except (ArgumentError, ValueError):
        # Without the text and without the cause: a password may stand anywhere in it.
        raise InvalidInput(
            "TableStore: the URL cannot be read; expected postgresql://host/database"
        ) from None
    kind = parsed.drivername.partition("+")[0]
    if kind == "sqlite" and parsed.database not in (None, "", ":memory:"):
        # Made absolute: a process that changes its directory keeps its database.
        path = Path(os.path.abspath(parsed.database or ""))
        engine = sa.create_engine(
            parsed.set(database=str(path)),
            connect_args={"timeout": timeout, "isolation_level": None, "check_same_thread": False},
            poolclass=sa.pool.QueuePool,
            pool_size=threads,
            pool_timeout=timeout,
        )
        sa.event.listen(engine, "connect", _opened)
        return engine
    if kind in ("postgresql", "postgres"):
        return _postgres(parsed, threads, timeout)
    raise InvalidInput(f"TableStore: {kind[:32]!r} is not known; sqlite (a file) and postgresql are")


def _opened(connection: sqlite3.Connection, record: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _postgres(url: sa.URL, threads: int, timeout: float) -> sa.Engine:
    try:
        import psycopg  # here, since a move between two SQLite files needs none
    except ImportError as error:
        raise MissingExtra(error.name or "psycopg", "postgres") from error

    class Impatient(psycopg.Connection[Any]):
        """Gives up on a server that hangs: its socket takes what is sent for ever, and its threads would be lost."""

        def wait(self, gen: Generator[Any, Any, _T], *given: Any, **named: Any) -> _T:
            return super().wait(self._limited(gen), *given, **named)

        def _limited(self, gen: Generator[Any, Any, _T]) -> Generator[Any, Any, _T]:
            end = time.monotonic() + timeout + _ANSWERS_WITHIN
            try:
                wanted = next(gen)
                while True:
                    ready = yield wanted  # psycopg comes back every now and then, with nothing if nothing came
                    if not ready and time.monotonic() > end:
                        self.close()
                        raise psycopg.OperationalError(f"no answer within {timeout + _ANSWERS_WITHIN:g} s")
                    wanted = gen.send(ready)
            except StopIteration as ending:
                return cast(_T, ending.value)

    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        connect_args={
            "connect_timeout": max(2, round(timeout)),
            "options": f"-c statement_timeout={timeout * 1000:.0f}",
        },
        pool_size=threads,
        pool_timeout=timeout,
        pool_pre_ping=True,
    )

    def connect(dialect: object, record: object, words: Sequence[Any], options: Mapping[str, Any]) -> object:
        return Impatient.connect(*words, **options)

    sa.event.listen(engine, "do_connect", connect)
    return engine
