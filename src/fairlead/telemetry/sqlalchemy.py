"""Counts and times the queries of a SQLAlchemy engine, and counts them for the request that makes them.

Three event hooks of the engine; nothing is kept but a start time on the execution context, and no statement is read but
by an `on_query`: an SQL text as a label would be one series per query that somebody's ORM made up. An `executemany` is
one query, as it is one round trip or one pipeline. Works for async engines too (`engine.sync_engine` is found by
itself).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

from fairlead.errors import MissingExtra
from fairlead.telemetry.metrics import MetricRegistry
from fairlead.telemetry.queries import count_query

try:
    from sqlalchemy import event
    from sqlalchemy.engine import Engine, ExceptionContext
except ImportError as missing:
    raise MissingExtra("sqlalchemy", "store") from missing

__all__ = ["export_engine"]

_log = logging.getLogger(__name__)


def export_engine(
    engine: Any,
    registry: MetricRegistry,
    *,
    name: str = "default",
    on_query: Callable[[str, float, str], object] | None = None,
) -> None:
    """Shows the queries of `engine` (an Engine or AsyncEngine) in `registry`, under the label `database`.

    With `MetricsMiddleware(count_queries=True)` they are also counted per request. Call it once per engine.

    on_query: told of each query, those that failed included: its statement, the seconds it took, and how it marks its
        parameters; `fairlead.diagnosis.SlowQueries.add` is one. In the thread of the query; what it raises is logged.
    """
    sync: Engine = getattr(engine, "sync_engine", engine)
    duration = registry.histogram(
        "db_client_query_duration_seconds",
        "Time of a database query, its rows not read.",
        labels=("database",),
    ).labels(database=name)
    errors = registry.counter(
        "db_client_query_errors_total", "Database queries that failed.", labels=("database",)
    ).labels(database=name)
    for gauge, meaning, method in (
        ("db_client_pool_used_connections", "Connections that are in use.", "checkedout"),
        (
            "db_client_pool_connections",
            "Connections that the pool keeps, and may use without overflow.",
            "size",
        ),
    ):
        if callable(getattr(sync.pool, method, None)):
            # Asked for anew each time: dispose() gives the engine another pool.
            read = partial(_of_pool, sync, method)
            registry.gauge(gauge, meaning, labels=("database",)).labels(database=name).track(read)

    def begins(
        connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        count_query()
        if context is not None:
            context._fairlead_began = perf_counter()

    def ended(
        connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        began = getattr(context, "_fairlead_began", None)
        if began is not None:
            seconds = perf_counter() - began
            duration.observe(seconds)
            if on_query is not None:
                try:
                    on_query(statement, seconds, sync.dialect.paramstyle)
                except Exception:  # who listens must not fail the query
                    _log.exception("on_query %r failed", on_query)

    def failed(context: ExceptionContext) -> None:
        if (
            context.execution_context is not None
        ):  # else it failed before a query: no connection, for instance
            errors.add()
            ended(None, None, context.statement or "", None, context.execution_context, False)

    event.listen(sync, "before_cursor_execute", begins)
    event.listen(sync, "after_cursor_execute", ended)
    event.listen(sync, "handle_error", failed)


def _of_pool(engine: Engine, method: str) -> float:
    return float(getattr(engine.pool, method)())
