"""Real servers for the tests beside it: a Redis once a module, a PostgreSQL once for all; ended by handle."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from fairlead.store import Database
from fairlead.testing import PostgresServer, RedisCluster, RedisServer


@pytest.fixture(scope="module")
def redis_module() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_server(redis_module: RedisServer) -> RedisServer:
    """A Redis of this module, running and empty."""
    if not redis_module.pid:
        redis_module.start()
    redis_module.resume()
    redis_module.command("FLUSHALL")
    return redis_module


@pytest.fixture(scope="module")
def redis_cluster_module() -> Iterator[RedisCluster]:
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
def redis_cluster(redis_cluster_module: RedisCluster) -> RedisCluster:
    """Three masters of this module, running and empty."""
    for node in redis_cluster_module.nodes:
        node.resume()
        node.command("FLUSHALL")
    return redis_cluster_module


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
    """Where a database may be made, on each engine."""
    if request.param == "sqlite":
        return str(tmp_path / "fairlead.db")
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def database(where: str) -> Iterator[Database]:
    """A database on each engine, empty and migrated."""
    with Database(where) as database:
        database.migrate()
        yield database
