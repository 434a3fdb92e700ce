"""A database of today meets the Fairlead of tomorrow, on both engines."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa

from fairlead.errors import DatabaseTooNew, DatabaseUnavailable
from fairlead.ledger import Ledger
from fairlead.store import Database, migration, schema
from tests.unit.ledger.contract import figure

TODAY = schema.LATEST

TOMORROW = """
import sqlalchemy as sa
from alembic import op

revision = "{this}"
down_revision = "{before}"
branch_labels = None
depends_on = None


def upgrade():
    op.add_column("fairlead_ledger", sa.Column("note_{this}", sa.Text))
    op.create_table("fairlead_{this}", sa.Column("id", sa.Integer, primary_key=True))
    {then}
"""


@pytest.fixture
def tomorrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of migrations of a Fairlead that has two more."""
    folder = tmp_path / "migrations"
    shutil.copytree(migration._FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for this, before in (("9001", TODAY), ("9002", "9001")):
        text = TOMORROW.format(this=this, before=before, then="")
        (folder / f"{this}_more.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(migration, "_FOLDER", folder)
    monkeypatch.setattr(schema, "LATEST", "9002")
    return folder


def tables(where: str) -> set[str]:
    engine = Database(where)._driver.engine
    found = set(sa.inspect(engine).get_table_names())
    engine.dispose()
    return found


def test_an_older_database_is_brought_forward_with_all_it_holds(
    where: str, database: Database, ledger: Ledger, request: pytest.FixtureRequest
):
    id = ledger.record_evidence(figure())
    request.getfixturevalue("tomorrow")
    with Database(where) as newer:
        with pytest.raises(
            DatabaseUnavailable, match=rf"has tables of version {TODAY}, not 9002; call migrate\(\)"
        ):
            Ledger(newer).verify()
        newer.migrate()
        assert Ledger(newer).verify().is_whole
        assert Ledger(newer).evidence_by_ids([id]) == {id: figure()}
        Ledger(newer).record_evidence(figure(n=1))
    assert {"fairlead_9001", "fairlead_9002"} <= tables(where)


def test_an_empty_database_goes_all_the_way_at_once(where: str, tomorrow: Path):
    with Database(where) as newer:
        newer.migrate()
        Ledger(newer).record_evidence(figure())
    assert {"fairlead_ledger", "fairlead_9001", "fairlead_9002"} <= tables(where)


def test_a_migration_that_fails_leaves_the_database_as_it_was(
    where: str, database: Database, ledger: Ledger, tomorrow: Path, monkeypatch: pytest.MonkeyPatch
):
    before = tables(where)
    text = TOMORROW.format(this="9002", before="9001", then="1 / 0")
    (tomorrow / "9002_more.py").write_text(text, encoding="utf-8")
    with Database(where) as newer, pytest.raises(ZeroDivisionError):
        newer.migrate()
    assert tables(where) == before
    monkeypatch.setattr(schema, "LATEST", TODAY)
    ledger.record_evidence(figure())


def test_a_process_of_yesterday_stops_writing_when_the_tables_are_those_of_tomorrow(
    where: str, database: Database, ledger: Ledger, tomorrow: Path, monkeypatch: pytest.MonkeyPatch
):
    with Database(where) as newer:
        newer.migrate()
    monkeypatch.setattr(schema, "LATEST", TODAY)
    with pytest.raises(
        DatabaseTooNew, match=f"its tables are of version 9002, this Fairlead knows up to {TODAY}"
    ):
        ledger.record_evidence(figure())
    with Database(where) as other, pytest.raises(DatabaseTooNew):
        other.migrate()
    assert ledger.verify().entries == 0
