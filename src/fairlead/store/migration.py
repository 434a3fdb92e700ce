"""Brings a database forward, one numbered file of `migrations/` after the other, within one transaction.

Alembic keeps the order and the operations; there is no alembic.ini and no env.py, since the library migrates its own
tables only. Both engines take changes of tables back with the transaction, so a migration that fails or is killed
leaves the database as it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from fairlead.errors import MissingExtra
from fairlead.store import schema

try:
    import sqlalchemy as sa
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
except ImportError as missing:
    raise MissingExtra("alembic", "store") from missing

__all__ = ["migrate"]

_FOLDER = Path(__file__).with_name("migrations")
_one_at_a_time = threading.Lock()
"""Per process: `alembic.op` is one object for all threads. Taken before the writer's place, never within it."""

_Transaction = Callable[[], AbstractContextManager[sa.Connection]]


def migrate(read: _Transaction, write: _Transaction, name: str) -> None:
    """Runs what has not run yet. Raises DatabaseTooNew for a database from a newer Fairlead."""
    with read() as connection:
        found = schema.version(connection)
    schema.refuse_newer(found, name)
    if found == schema.LATEST:  # the usual start waits for no writer
        return
    with _one_at_a_time, write() as connection:
        schema.refuse_newer(schema.version(connection), name)  # it may have grown while this one waited
        _upgrade(connection)


def _upgrade(connection: sa.Connection) -> None:
    scripts = ScriptDirectory(str(_FOLDER), version_locations=[str(_FOLDER)])
    context = MigrationContext.configure(connection, opts={"version_table": schema.VERSION_TABLE})
    steps = list(scripts.iterate_revisions(schema.LATEST, context.get_current_revision() or "base"))
    with Operations.context(context):
        for step in reversed(steps):
            step.module.upgrade()
            context.stamp(scripts, step.revision)
