"""A candidate source: which videos could be shown. HTTP, JSON, finite capacity; one process per source.

`--source trending` answers `GET /candidates?topic=N` with what is popular under a topic, `in_network` answers
`?user=U` with items of the authors the user follows, and `nearest` with the items whose vectors lie nearest to the
user's, by a matrix product over all of them. All answer `{"key", "items", "as_of_seconds"}`, 404 for a topic or user
that does not exist, 503 when their queue is full.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fairlead.telemetry import MetricRegistry
from fairlead_systems.home_feed.capacity import Capacity, Full, ServiceTime
from fairlead_systems.home_feed.selection import SOURCES
from fairlead_systems.home_feed.serving import lab_routes
from fairlead_systems.home_feed.world import World
from fairlead_systems.serving import application, argument_parser, main

SERVICE_TIMES = {
    "trending": ServiceTime(median=0.055, sigma=0.45, stall_chance=0.004, stall=0.250),
    "in_network": ServiceTime(median=0.012, sigma=0.45, stall_chance=0.002, stall=0.250),
    "nearest": ServiceTime(median=0.010, sigma=0.40, stall_chance=0.002, stall=0.250),
}
"""On top of what the real work takes: the matrix product of `nearest` takes 0.2 ms."""
WORKERS = {"trending": 12, "in_network": 16, "nearest": 16}
QUEUE = 200
_LONGEST_KEY = 64


def build(arguments: argparse.Namespace) -> Starlette:
    world = World(arguments.seed)
    source: str = arguments.source
    capacity = Capacity(
        workers=WORKERS[source], queue=QUEUE, service_time=SERVICE_TIMES[source], seed=arguments.seed
    )
    parameter, find = _finder(world, source)

    async def candidates(request: Request) -> Response:
        key = request.query_params.get(parameter, "")
        if len(key) > _LONGEST_KEY:
            return JSONResponse({"error": f"{parameter}: longer than {_LONGEST_KEY}"}, status_code=404)
        items = find(key)
        as_of = time.monotonic()
        try:
            await capacity.serve(key)
        except Full:
            return JSONResponse({"error": "queue full"}, status_code=503, headers={"Retry-After": "1"})
        if items is None:  # only now: to find nothing takes as long
            return JSONResponse({"error": f"no {parameter} {key[:32]!r}"}, status_code=404)
        body = {"key": key, "items": items, "as_of_seconds": as_of}
        return Response(msgspec.json.encode(body), media_type="application/json")

    registry = MetricRegistry()
    capacity.export(registry, source)
    return application(registry, [Route("/candidates", candidates), *lab_routes(capacity)])


def _finder(world: World, source: str) -> tuple[str, Callable[[str], list[int] | None]]:
    """The parameter that a source asks for, and what it offers for one; None for what does not exist."""

    def trending(topic: str) -> list[int] | None:
        # int() alone would take "+7", "1_0" and digits of other scripts for topics.
        if not (topic.isascii() and topic.isdigit() and len(topic) <= 9):
            return None
        try:
            return world.candidates(int(topic))
        except IndexError:
            return None

    def in_network(name: str) -> list[int] | None:
        user = world.user(name)
        return None if user is None else world.in_network(user)

    def nearest(name: str) -> list[int] | None:
        user = world.user(name)
        return None if user is None else world.nearest(world.taste(user))

    if source == "trending":
        return "topic", trending
    return "user", in_network if source == "in_network" else nearest


def parser() -> argparse.ArgumentParser:
    arguments = argument_parser("A candidate source of the home feed.")
    arguments.add_argument("--source", choices=SOURCES, default="trending", help="which candidates it offers")
    return arguments


if __name__ == "__main__":
    main(parser(), build)
