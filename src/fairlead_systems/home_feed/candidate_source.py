"""The candidate source: which videos could be shown for a topic. HTTP, JSON, finite capacity.

`GET /candidates?topic=N` answers `{"topic", "items", "as_of_seconds"}`, 503 when its queue is full.
"""

from __future__ import annotations

import argparse
import time

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fairlead_systems.home_feed.capacity import Capacity, Full, ServiceTime
from fairlead_systems.home_feed.serving import argument_parser, main
from fairlead_systems.home_feed.world import World

SERVICE_TIME = ServiceTime(median=0.055, sigma=0.45, stall_chance=0.004, stall=0.250)
WORKERS = 12
QUEUE = 200


def build(arguments: argparse.Namespace) -> Starlette:
    world = World(arguments.seed)
    capacity = Capacity(workers=WORKERS, queue=QUEUE, service_time=SERVICE_TIME, seed=arguments.seed)

    async def candidates(request: Request) -> Response:
        topic = request.query_params.get("topic", "")
        try:
            # int() alone would take "+7", "1_0" and digits of other scripts for topics.
            items = world.candidates(
                int(topic) if topic.isascii() and topic.isdigit() and len(topic) <= 9 else -1
            )
        except IndexError:
            return JSONResponse({"error": f"no topic {topic[:32]!r}"}, status_code=404)
        as_of = time.monotonic()
        try:
            await capacity.serve(topic)
        except Full:
            return JSONResponse({"error": "queue full"}, status_code=503, headers={"Retry-After": "1"})
        body = {"topic": int(topic), "items": items, "as_of_seconds": as_of}
        return Response(msgspec.json.encode(body), media_type="application/json")

    async def window(request: Request) -> Response:
        return Response(msgspec.json.encode(capacity.take_window()), media_type="application/json")

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/candidates", candidates),
            Route("/lab/window", window, methods=["POST"]),
            Route("/healthz", healthz),
        ]
    )


if __name__ == "__main__":
    main(argument_parser("The home feed's candidate source."), build)
