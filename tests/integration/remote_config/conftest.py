"""A table on each database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead_systems.remote_config.schema import PAGE
from fairlead_systems.remote_config.table import ConfigTable


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'config'}.db"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def table(url: str) -> Iterator[ConfigTable]:
    table = ConfigTable(url, PAGE)
    table.create()
    yield table
    table.close()
