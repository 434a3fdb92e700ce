"""Queries of an engine are counted and timed, for the engine and for the request that makes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from fairlead.telemetry import MetricRegistry
from fairlead.telemetry.asgi import MetricsMiddleware
from fairlead.telemetry.sqlalchemy import export_engine


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine("sqlite://")
    yield engine
    engine.dispose()


def count(registry: MetricRegistry, name: str) -> dict[str, int]:
    [family] = [each for each in registry.snapshot().families if each.name == name]
    return {
        labels[0]: sum(each.buckets.values()) + each.zero_count for labels, each in family.histograms.items()
    } or {labels[0]: int(value) for labels, value in family.values.items()}


def test_each_query_is_timed_and_many_rows_of_one_are_one(engine: Engine) -> None:
    registry = MetricRegistry()
    export_engine(engine, registry, name="feed")
    with engine.begin() as connection:
        connection.execute(text("create table t (a integer)"))
        connection.execute(text("insert into t values (:a)"), [{"a": n} for n in range(10)])
        assert connection.execute(text("select count(*) from t")).scalar() == 10
        assert count(registry, "db_client_query_duration_seconds") == {"feed": 3}
        assert count(registry, "db_client_query_errors_total") == {"feed": 0}


def test_a_query_that_fails_is_timed_and_counted_as_an_error(engine: Engine) -> None:
    registry = MetricRegistry()
    export_engine(engine, registry)
    with engine.connect() as connection, pytest.raises(OperationalError):
        connection.execute(text("select * from nowhere"))
    assert count(registry, "db_client_query_duration_seconds") == {"default": 1}
    assert count(registry, "db_client_query_errors_total") == {"default": 1}


async def test_the_queries_of_a_request_are_counted_for_its_route(engine: Engine) -> None:
    registry = MetricRegistry()
    export_engine(engine, registry)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with engine.connect() as connection:
            for _ in range(7):
                connection.execute(text("select 1"))
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None: ...

    middleware = MetricsMiddleware(app, registry=registry, route=lambda scope: "/feed", count_queries=True)
    await middleware({"type": "http", "method": "GET", "path": "/feed", "headers": []}, receive, send)
    [family] = [each for each in registry.snapshot().families if each.name == "http_server_request_queries"]
    assert family.histograms[("/feed",)].sum == 7.0


def test_the_pool_shows_what_is_in_use(tmp_path: Any) -> None:
    registry = MetricRegistry()
    engine = create_engine(f"sqlite:///{tmp_path}/t.db")
    export_engine(engine, registry)
    with engine.connect():
        assert count(registry, "db_client_pool_used_connections") == {"default": 1}
    assert count(registry, "db_client_pool_used_connections") == {"default": 0}
    engine.dispose()
    with engine.connect():
        assert count(registry, "db_client_pool_used_connections") == {"default": 1}
    engine.dispose()
