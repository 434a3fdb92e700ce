"""The label service: whether an item may be shown, and how popular it is. HTTP, JSON, finite capacity.

`GET /safety?items=1,2` answers `{"values": {"1": true}, "as_of_seconds"}`, `GET /popularity?items=` the same with
numbers. An item that does not exist is left out. Two stores stand behind it, each with workers of its own: who waits
for one takes no place of the other.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fairlead.telemetry import MetricRegistry
from fairlead_systems.home_feed.capacity import Capacity, Full, ServiceTime
from fairlead_systems.home_feed.serving import lab_routes
from fairlead_systems.home_feed.world import World
from fairlead_systems.serving import application, argument_parser, main

SERVICE_TIME = ServiceTime(median=0.003, sigma=0.5, per_item=0.00005, stall_chance=0.001, stall=0.200)
WORKERS = 16
QUEUE = 256
MAX_ITEMS = 512


def build(arguments: argparse.Namespace) -> Starlette:
    world = World(arguments.seed)
    safety, popularity = (
        Capacity(workers=WORKERS, queue=QUEUE, service_time=SERVICE_TIME, seed=arguments.seed + each)
        for each in (0, 1)
    )

    def serve(
        capacity: Capacity, read: Callable[[int], bool | float]
    ) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def answer(request: Request) -> Response:
            items = _items(request.query_params.get("items", ""))
            if items is None:
                message = f"items: 1 to {MAX_ITEMS} item numbers, separated by commas"
                return JSONResponse({"error": message}, status_code=400)
            as_of = time.monotonic()
            values: dict[str, bool | float] = {}
            for item in items:
                try:
                    values[str(item)] = read(item)
                except IndexError:
                    continue
            try:
                await capacity.serve("labels", len(items))
            except Full:
                return JSONResponse({"error": "queue full"}, status_code=503, headers={"Retry-After": "1"})
            body = {"values": values, "as_of_seconds": as_of}
            return Response(msgspec.json.encode(body), media_type="application/json")

        return answer

    registry = MetricRegistry()
    safety.export(registry, "safety")
    popularity.export(registry, "popularity")
    routes = [
        Route("/safety", serve(safety, world.is_safe)),
        Route("/popularity", serve(popularity, world.popularity)),
        *lab_routes(safety, popularity),
    ]
    return application(registry, routes)


def _items(text: str) -> list[int] | None:
    named = text.split(",", MAX_ITEMS)
    if not 1 <= len(named) <= MAX_ITEMS:
        return None
    if not all(each.isascii() and each.isdigit() and len(each) <= 9 for each in named):
        return None
    return [int(each) for each in named]


if __name__ == "__main__":
    main(argument_parser("The home feed's label service."), build)
