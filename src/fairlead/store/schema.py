"""Which tables a database has, as one word, and whether this Fairlead knows them.

A process that writes into tables it does not know loses what the newer one keeps there, so it refuses. The word is a
row of `fairlead_schema`: the name of the last migration that ran; they sort as they follow one another.
"""

from __future__ import annotations

from fairlead.errors import DatabaseTooNew, DatabaseUnavailable, MissingExtra

try:
    import sqlalchemy as sa
except ImportError as missing:
    raise MissingExtra("sqlalchemy", "store") from missing

__all__ = ["LATEST", "VERSION_TABLE", "check", "refuse_newer", "version"]

LATEST = "0002"
"""The newest migration in `migrations/`."""
VERSION_TABLE = "fairlead_schema"
_VERSION = sa.text(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608 - a name of ours


def version(connection: sa.Connection) -> str | None:
    """The last migration that ran on this database; None before the first."""
    # Asked for first: in PostgreSQL a transaction does not outlive a statement that fails.
    return connection.scalar(_VERSION) if sa.inspect(connection).has_table(VERSION_TABLE) else None


def refuse_newer(found: str | None, name: str) -> None:
    """Raises DatabaseTooNew for a version that this Fairlead does not know."""
    if found is not None and found > LATEST:
        raise DatabaseTooNew(
            f"{name}: its tables are of version {found[:32]}, this Fairlead knows up to {LATEST}; upgrade Fairlead"
        )


def check(connection: sa.Connection, name: str, *, are_made: bool = False) -> None:
    """Raises unless the tables are those of this Fairlead. are_made: they were there once, so one query will do."""
    found = connection.scalar(_VERSION) if are_made else version(connection)
    refuse_newer(found, name)
    if found != LATEST:
        state = (
            "has no tables of Fairlead"
            if found is None
            else f"has tables of version {found[:32]}, not {LATEST}"
        )
        raise DatabaseUnavailable(f"{name}: {state}; call migrate() on it first")
