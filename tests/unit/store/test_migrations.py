from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import fairlead.store
from fairlead.ledger.table import METADATA as LEDGER
from fairlead.rollout.journal import METADATA as ROLLOUT
from fairlead.store import Database
from fairlead.store.schema import LATEST, VERSION_TABLE

FOLDER = Path(fairlead.store.__file__).with_name("migrations")


def test_the_latest_version_is_the_last_of_one_line_of_migrations():
    scripts = ScriptDirectory(str(FOLDER), version_locations=[str(FOLDER)])
    revisions = [script.revision for script in scripts.walk_revisions()]
    assert scripts.get_heads() == [LATEST] == revisions[:1]
    assert revisions == sorted(revisions, reverse=True)
    assert sorted(path.stem[:4] for path in FOLDER.glob("*.py")) == sorted(revisions)


def test_migrated_tables_are_those_that_the_rooms_use(tmp_path: Path):
    with Database(tmp_path / "fairlead.db") as database:
        database.migrate()
        with database.read() as connection:
            assert differences(connection) == []


def differences(connection: sa.Connection) -> list[object]:
    options = {"compare_type": True, "compare_server_default": True, "version_table": VERSION_TABLE}
    return compare_metadata(MigrationContext.configure(connection, opts=options), [LEDGER, ROLLOUT])
