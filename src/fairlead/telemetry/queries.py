"""How many database queries one request made.

A list of 50 items that asks the database once for each is fast on the developer's machine and takes a second in
production; no single query is slow, so nothing that looks at queries one by one finds it. Counted per request, it
stands out.

The count lies in a ContextVar as one mutable number, so it is the same number in every task and thread that the request
starts. A load that several requests wait for counts for the one that started it: that is the request without which the
queries would not have been made. What goes on after the end of its request counts for nobody.
"""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ["QueryCount", "count_query", "current_count"]


class QueryCount:
    """Queries so far."""

    __slots__ = ("made",)

    def __init__(self) -> None:
        self.made = 0


current_count: ContextVar[QueryCount | None] = ContextVar("fairlead_queries", default=None)


def count_query(queries: int = 1) -> None:
    """Counts queries for the running request, if `MetricsMiddleware(count_queries=True)` is around it.

    For SQLAlchemy, `fairlead.telemetry.sqlalchemy` calls this.
    """
    count = current_count.get()
    if count is not None:
        count.made += queries
