from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.ledger import Ledger
from fairlead.store import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "fairlead.db") as database:
        database.migrate()
        yield database


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)
