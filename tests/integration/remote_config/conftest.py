"""A table on each database, and a real PostgreSQL for those tests that hang and kill it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from fairlead.testing import PostgresServer
from fairlead_systems.remote_config.schema import PAGE
from fairlead_systems.remote_config.table import ConfigTable


@pytest.fixture(scope="session")
def postgres_session() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres(postgres_session: PostgresServer) -> PostgresServer:
    """Running; its database `postgres` may hold anything."""
    if not postgres_session.pid:
        postgres_session.start()
    postgres_session.resume()
    return postgres_session


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> str:
    """Of an empty database of the test's own."""
    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"postgresql://postgres@127.0.0.1:{postgres.port}/{name}"


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
