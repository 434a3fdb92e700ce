"""What every downstream of the home feed answers to a load test, beside its work."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

from fairlead_systems.home_feed.capacity import Capacity, Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

__all__ = ["lab_routes"]

LONGEST_STALL = 30.0


def lab_routes(*capacities: Capacity, **healthy: Callable[[], str]) -> list[Route]:
    """What a downstream answers to a load test: `/lab/stall` hangs its workers, `/lab/window` tells its counters.

    healthy: what `/healthz` says beside its status.
    """
    import msgspec
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    async def stall(request: Request) -> Response:
        try:
            seconds = float(request.query_params.get("seconds", ""))
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds <= LONGEST_STALL:
            return JSONResponse({"error": f"seconds: 0 to {LONGEST_STALL}"}, status_code=400)
        for capacity in capacities:
            capacity.stall(seconds)
        return JSONResponse({"stalled_seconds": seconds})

    async def window(request: Request) -> Response:
        taken = reduce(Window.add, [capacity.take_window() for capacity in capacities])
        return Response(msgspec.json.encode(taken), media_type="application/json")

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"} | {name: say() for name, say in healthy.items()})

    return [
        Route("/lab/stall", stall, methods=["POST"]),
        Route("/lab/window", window, methods=["POST"]),
        Route("/healthz", healthz),
    ]
