"""The one table: every change ever made is a row, and the current value of a setting is the row that none replaced.

    version  layer    subject   name              value     actor  …  superseded_by
    1        all      ''        checkout.label    "Buy"     ana       3
    2        user     u7        segment           "power"   ben       –
    3        all      ''        checkout.label    "Pay"     ben       –

So the table is the configuration (rows without `superseded_by`, one per key by a unique partial index), its history and
its audit at once; nothing is updated but that mark, nothing is deleted. Versions are whole numbers without gaps, in the
order in which they became visible (`database.begin_write`), so whoever remembers one number can ask for all that came
after it.

A value of NULL says that the entry was removed. Blocking; for the threads of `threads.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Literal

import msgspec

from fairlead.errors import InvalidInput, MissingExtra
from fairlead_systems.remote_config.database import begin_write, make_database, open_engine
from fairlead_systems.remote_config.schema import SEGMENT, Schema, check_name, check_segment, check_user

try:
    import sqlalchemy as sa
    from sqlalchemy.exc import SQLAlchemyError
except ImportError as missing:
    raise MissingExtra("sqlalchemy", "store") from missing

__all__ = ["CHANNEL", "Change", "ConfigTable", "Entry", "Layer", "Revision", "TableUnavailable"]

Layer = Literal["all", "segment", "user"]
"""Later ones win."""
CHANNEL = "remote_config"
"""Where PostgreSQL tells that there is something new."""
MOST_CHANGES = 1_000
"""Of one write, so that it does not keep the other writers out for long."""
AT_ONCE = 5_000
"""Changes that are read at once by somebody who catches up."""

_number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
METADATA = sa.MetaData()
CONFIG = sa.Table(
    "remote_config",
    METADATA,
    sa.Column("version", _number, primary_key=True, autoincrement=False),
    sa.Column("layer", sa.String(8), nullable=False),
    sa.Column("subject", sa.String(64), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("value", sa.Text),
    sa.Column("actor", sa.String(64), nullable=False),
    sa.Column("reason", sa.String(200), nullable=False),
    sa.Column("at_utc_seconds", sa.Double, nullable=False),
    sa.Column("superseded_by", _number),
)
_current = CONFIG.c.superseded_by.is_(None)
sa.Index(
    "remote_config_current",
    CONFIG.c.layer,
    CONFIG.c.subject,
    CONFIG.c.name,
    unique=True,
    sqlite_where=_current,
    postgresql_where=_current,
)
# The name first: a look-up of one subject can then not take this index, which also holds all that was replaced.
sa.Index("remote_config_history", CONFIG.c.name, CONFIG.c.layer, CONFIG.c.subject, CONFIG.c.version)

_READ = (
    sa.select(CONFIG.c.layer, CONFIG.c.subject, CONFIG.c.name, CONFIG.c.value)
    .where(CONFIG.c.layer == sa.bindparam("layer"), CONFIG.c.subject == sa.bindparam("subject"))
    .where(_current, CONFIG.c.value.is_not(None))
)
_READ_SHARED = (
    sa.select(CONFIG.c.layer, CONFIG.c.subject, CONFIG.c.name, CONFIG.c.value)
    .where(CONFIG.c.layer.in_(("all", "segment")), _current, CONFIG.c.value.is_not(None))
    .order_by(CONFIG.c.layer, CONFIG.c.subject, CONFIG.c.name)
)
_VERSION = sa.select(sa.func.coalesce(sa.func.max(CONFIG.c.version), 0))
_SINCE = (
    sa.select(CONFIG.c.version, CONFIG.c.layer, CONFIG.c.subject)
    .where(CONFIG.c.version > sa.bindparam("seen"))
    .order_by(CONFIG.c.version)
    .limit(AT_ONCE)
)
_LATEST_OF = (
    sa.select(CONFIG.c.version, CONFIG.c.value)
    .where(CONFIG.c.layer == sa.bindparam("layer"), CONFIG.c.subject == sa.bindparam("subject"))
    .where(CONFIG.c.name == sa.bindparam("name"), _current)
)


class TableUnavailable(Exception):
    """The database did not answer, or refused. Reading again is safe."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One entry to be written."""

    layer: Layer
    subject: str = ""
    """The segment or the user; empty for the layer `all`."""
    name: str
    value: object = None
    removed: bool = False
    """True: the entry goes, and what the layers below say stands; `value` is not looked at."""


class Entry(msgspec.Struct, frozen=True):
    """A current entry, as the table holds it."""

    layer: Layer
    subject: str
    name: str
    value: str
    """JSON."""


class Revision(msgspec.Struct, frozen=True):
    """One change that was made: who, when, why."""

    version: int
    value: str | None
    """JSON; None: removed."""
    actor: str
    reason: str
    at_utc_seconds: float


class Changed(msgspec.Struct, frozen=True):
    version: int
    layer: Layer
    subject: str


class ConfigTable:
    """Reads and writes of the table. Every method blocks; TableUnavailable says that the database did not answer."""

    def __init__(
        self, url: str, schema: Schema, *, connections: int = 4, utc: Callable[[], float] = time.time
    ) -> None:
        self.engine = open_engine(url, connections=connections)
        # A look-up is one statement. On PostgreSQL a transaction around it would be two more round trips; in SQLite it
        # costs nothing.
        self._reads = (
            self.engine.execution_options(isolation_level="AUTOCOMMIT") if self.is_postgres else self.engine
        )
        self._schema = schema
        self._utc = utc
        self._closed = False

    @property
    def is_postgres(self) -> bool:
        return self.engine.dialect.name == "postgresql"

    def create(self) -> None:
        """Makes the database file, the table and its indexes where they are missing."""
        try:
            make_database(self.engine)
        except OSError as error:
            raise TableUnavailable(f"{self.engine.url.database}: {error.strerror}") from error
        with self._asking(self.engine) as connection:
            begin_write(connection)
            METADATA.create_all(connection)
            connection.commit()

    def read(self, layer: Layer, subject: str) -> list[Entry]:
        """The current entries of one user or segment."""
        with self._asking(self._reads) as connection:
            return [Entry(*row) for row in connection.execute(_READ, {"layer": layer, "subject": subject})]

    def read_shared(self) -> tuple[int, list[Entry]]:
        """The entries of `all` and of every segment, and the version that they are at least as new as."""
        with self._asking(self._reads) as connection:
            # First the version: a change in between is then read twice, not missed.
            version = int(connection.execute(_VERSION).scalar_one())
            return version, [Entry(*row) for row in connection.execute(_READ_SHARED)]

    def version(self) -> int:
        """The version of the last change; 0 for an empty table."""
        with self._asking(self._reads) as connection:
            return int(connection.execute(_VERSION).scalar_one())

    def changed_since(self, seen: int) -> tuple[int, list[Changed]]:
        """The last version there is, and the first 5,000 changes after `seen`."""
        with self._asking(self._reads) as connection:
            rows = [Changed(*row) for row in connection.execute(_SINCE, {"seen": seen})]
            if rows and len(rows) < AT_ONCE:
                return rows[-1].version, rows
            return int(connection.execute(_VERSION).scalar_one()), rows

    def history(self, layer: Layer, subject: str, name: str, *, limit: int = 100) -> list[Revision]:
        """What was written under one key, newest first."""
        found = CONFIG.c
        query = (
            sa.select(found.version, found.value, found.actor, found.reason, found.at_utc_seconds)
            .where(found.layer == layer, found.subject == subject, found.name == name)
            .order_by(found.version.desc())
            .limit(limit)
        )
        with self._asking(self._reads) as connection:
            return [Revision(*row) for row in connection.execute(query)]

    def write(self, changes: Sequence[Change], *, actor: str, reason: str = "") -> int:
        """Makes all the changes or none; returns the table's version afterwards.

        A value that stands already is not written again. Raises InvalidInput for what the schema does not allow.
        """
        if not 0 < len(changes) <= MOST_CHANGES:
            raise InvalidInput(f"{len(changes)} changes: 1 to {MOST_CHANGES} are made at once")
        rows = self._checked(changes, actor, reason)
        with self._asking(self.engine) as connection:
            begin_write(connection)
            version = int(connection.execute(_VERSION).scalar_one())
            for row in rows:
                key = {name: row[name] for name in ("layer", "subject", "name")}
                old = connection.execute(_LATEST_OF, key).one_or_none()
                if (None if old is None else old.value) == row["value"]:
                    continue
                version += 1
                if old is not None:  # first: two current rows of one key are refused
                    connection.execute(
                        sa.update(CONFIG).where(CONFIG.c.version == old.version).values(superseded_by=version)
                    )
                connection.execute(sa.insert(CONFIG), row | {"version": version})
            if self.is_postgres:
                connection.exec_driver_sql(f"NOTIFY {CHANNEL}")
            connection.commit()
        return version

    def fill(self, changes: Iterable[Change], *, actor: str) -> int:
        """Writes many entries into an empty table, in one transaction; returns how many. Raises InvalidInput."""
        with self._asking(self.engine) as connection:
            begin_write(connection)
            if connection.execute(_VERSION).scalar_one():
                raise InvalidInput("the table is not empty: write to it instead")
            written = 0
            many = iter(changes)
            while part := list(islice(many, AT_ONCE)):
                rows = self._checked(part, actor, "")
                for version, row in enumerate(rows, written + 1):
                    row["version"] = version
                connection.execute(sa.insert(CONFIG), rows)
                written += len(rows)
            connection.commit()
        return written

    def close(self) -> None:
        """Closes the connections, and those in use when they come back. Does not wait."""
        self._closed = True
        self.engine.dispose()

    def _checked(self, changes: Sequence[Change], actor: str, reason: str) -> list[dict[str, object]]:
        for name, text, least, most in (("actor", actor, 1, 64), ("reason", reason, 0, 200)):
            if not least <= len(text) <= most or not text.isprintable():
                raise InvalidInput(
                    f"{name}: {least} to {most} printable characters are needed, got {text[:80]!r}"
                )
        at = self._utc()
        rows: list[dict[str, object]] = []
        for change in changes:
            _check_key(change)
            value = None if change.removed else self._schema.encode(change.name, change.value)
            rows.append(
                {
                    "layer": change.layer,
                    "subject": change.subject,
                    "name": change.name,
                    "value": value,
                    "actor": actor,
                    "reason": reason,
                    "at_utc_seconds": at,
                }
            )
        return rows

    @contextmanager
    def _asking(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        """A connection, given back whatever happens; what was not committed is rolled back."""
        try:
            with engine.connect() as connection:
                try:
                    yield connection
                finally:
                    if self._closed:  # the pool that it came from is gone, and would leave it open
                        connection.invalidate()
        except SQLAlchemyError as error:
            raise TableUnavailable(f"{self.engine.dialect.name}: {_first_line(error)}") from error


def _check_key(change: Change) -> None:
    check_name(change.name)  # also of what is removed: it need not be declared any more
    if change.layer == "all":
        if change.subject:
            raise InvalidInput(f"the layer all has no subject, got {change.subject[:64]!r}")
    elif change.layer == "segment":
        check_segment(change.subject)
    else:
        check_user(change.subject)
    if change.name == SEGMENT and change.layer != "user":
        raise InvalidInput(f"only a user has a {SEGMENT}, not the layer {change.layer}")


def _first_line(error: SQLAlchemyError) -> str:
    cause = getattr(error, "orig", None) or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0][:200]
