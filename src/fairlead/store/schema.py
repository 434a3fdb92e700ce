"""Which tables a database has, as one word, and whether this Fairlead knows them.

A process that writes into tables it does not know loses what the newer one keeps there, so it refuses. The word is a
row of `fairlead_schema`: the name of the last migration that ran, which sort as they follow one another.
"""

from __future__ import annotations

from fairlead.errors import DatabaseTooNew, DatabaseUnavailable, MissingExtra

try:
    import sqlalchemy as sa
except ImportError as missing:
    raise MissingExtra("sqlalchemy", "store") from missing

__all__ = ["LATEST", "VERSION_TABLE", "check", "refuse_newer", "version"]

LATEST = "0001"
"""The newest migration in `migrations/`."""
VERSION_TABLE = "fairlead_schema"


def version(connection: sa.Connection) -> str | None:
    """The last migration that ran on this database; None before the first."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    found = connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608 - ours
    return None if found is None else str(found)


def refuse_newer(found: str | None, name: str) -> None:
    """Raises DatabaseTooNew for a version that this Fairlead does not know."""
    if found is not None and found > LATEST:
        raise DatabaseTooNew(
            f"{name}: its tables are of version {found[:32]}, this Fairlead knows up to {LATEST}; upgrade Fairlead"
        )


def check(connection: sa.Connection, name: str) -> None:
    """Raises unless the tables are those of this Fairlead."""
    found = version(connection)
    refuse_newer(found, name)
    if found != LATEST:
        state = (
            "has no tables of Fairlead"
            if found is None
            else f"has tables of version {found[:32]}, not {LATEST}"
        )
        raise DatabaseUnavailable(f"{name}: {state}; call migrate() on it first")
