"""What every process of this system counts, and the fault that a trial sets in it: its database hangs.

SQLite is no server that could be stopped, so the hang is made here: for `seconds`, whoever sends a query waits in his
thread, as behind a disk that does not answer. It ends by itself. All processes of an arm hang together.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
from sqlalchemy import Engine, event
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fairlead.telemetry import MetricRegistry
from fairlead.telemetry.sqlalchemy import export_engine

__all__ = ["Instrument", "Window"]

LONGEST_HANG = 30.0


class Window(msgspec.Struct, frozen=True):
    """What a process did since it was last asked."""

    requests: int
    queries: int
    connections: int
    """To its database, now."""


class Instrument:
    """Of one process and its database, whose queries it also shows in `registry`."""

    def __init__(self, engine: Engine, registry: MetricRegistry) -> None:
        export_engine(engine, registry, name="remote_config")
        self._pool: Callable[[], Any] = lambda: engine.pool
        self._hangs_until = 0.0
        self.requests = 0
        self._queries = 0
        self._told = (0, 0)
        event.listen(engine, "before_cursor_execute", self._query)

    def _query(self, *_: object) -> None:
        self._queries += (
            1  # several threads: the interpreter's lock makes a lost count rare, and none matters
        )
        while (left := self._hangs_until - time.monotonic()) > 0:
            time.sleep(left)

    def hang(self, seconds: float) -> None:
        self._hangs_until = time.monotonic() + seconds

    def window(self) -> Window:
        now = (self.requests, self._queries)
        pool = self._pool()
        taken = Window(
            requests=now[0] - self._told[0],
            queries=now[1] - self._told[1],
            connections=pool.checkedin() + pool.checkedout(),
        )
        self._told = now
        return taken

    def routes(self) -> list[Route]:
        """`/lab/hang?seconds=` and `/lab/window`."""
        return [
            Route("/lab/hang", self._set_hang, methods=["POST"]),
            Route("/lab/window", self._tell_window, methods=["POST"]),
        ]

    async def _set_hang(self, request: Request) -> Response:
        try:
            seconds = float(request.query_params.get("seconds", ""))
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds <= LONGEST_HANG:
            return JSONResponse({"error": f"seconds: 0 to {LONGEST_HANG:g}"}, status_code=400)
        self.hang(seconds)
        return JSONResponse({"hangs_seconds": seconds})

    async def _tell_window(self, request: Request) -> Response:
        return Response(msgspec.json.encode(self.window()), media_type="application/json")
