"""A database on each engine, empty and migrated."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from fairlead.ledger import Ledger
from fairlead.store import Database
from fairlead.testing import PostgresServer

pytest.register_assert_rewrite("tests.unit.ledger.contract")


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


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)
