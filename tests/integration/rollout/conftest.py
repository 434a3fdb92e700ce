"""A database on each engine, empty and migrated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.store import Database


@pytest.fixture(params=["sqlite", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "fairlead.db")
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def database(where: str) -> Iterator[Database]:
    with Database(where) as database:
        database.migrate()
        yield database
