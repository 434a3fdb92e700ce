"""What metrics cost a request, beside none and beside prometheus_client, and what a page of many workers costs."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import prometheus_client
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from bench.harness import Bar, interleave_async, ratio
from fairlead.calls import Policy
from fairlead.telemetry import MetricRegistry, decode_snapshot, encode_snapshot, merge_snapshots
from fairlead.telemetry.asgi import MetricsMiddleware

__all__ = ["request_bars"]

Scope = MutableMapping[str, Any]
Application = Callable[[Scope, Any, Any], Awaitable[None]]


async def _hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def _starlette() -> Starlette:
    return Starlette(routes=[Route("/feed/{user}", _hello)])


def _with_prometheus_client(app: Application) -> Application:
    """The same metrics, as one writes them with prometheus_client: labels looked up at each request."""
    registry = prometheus_client.CollectorRegistry()
    requests = prometheus_client.Counter(
        "requests", "R.", ["route", "method", "status", "ending"], registry=registry
    )
    duration = prometheus_client.Histogram("duration_seconds", "D.", ["route", "method"], registry=registry)
    active = prometheus_client.Gauge("active", "A.", registry=registry)

    async def measured(scope: Scope, receive: Any, send: Any) -> None:
        status = 0

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        active.inc()
        began = time.perf_counter()
        try:
            await app(scope, receive, watched)
        finally:
            active.dec()
            route, method = scope["route"].path, scope["method"]
            duration.labels(route, method).observe(time.perf_counter() - began)
            requests.labels(route, method, f"{status // 100}xx", "answered").inc()

    return measured


async def _receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(message: object) -> None: ...


def _requests(app: Application) -> Callable[[int], Awaitable[None]]:
    async def run(n: int) -> None:
        for _ in range(n):
            scope = {
                "type": "http",
                "method": "GET",
                "path": "/feed/17",
                "root_path": "",
                "headers": [],
                "query_string": b"",
            }
            await app(scope, _receive, _send)

    return run


async def _nothing(scope: Scope, receive: Any, send: Any) -> None:
    """Answers without a framework, so that the middlewares' own cost is what is left."""
    scope["route"] = _ROUTE
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


_ROUTE = Route("/feed/{user}", _hello)


def _middleware(rounds: int) -> list[Bar]:
    arms: dict[str, Application] = {
        "starlette": _starlette(),
        "starlette, fairlead": MetricsMiddleware(_starlette(), registry=MetricRegistry()),
        "starlette, prometheus_client": _with_prometheus_client(_starlette()),
        "bare": _nothing,
        "bare, fairlead": MetricsMiddleware(_nothing, registry=MetricRegistry()),
        "bare, prometheus_client": _with_prometheus_client(_nothing),
    }
    timings = interleave_async({name: _requests(app) for name, app in arms.items()}, n=2_000, rounds=rounds)
    figures = {f"{name}_us": timing.median * 1e6 for name, timing in timings.items()}
    overall, spread = ratio(timings["starlette, fairlead"], timings["starlette"])
    ours = [a - b for a, b in zip(timings["bare, fairlead"].rounds, timings["bare"].rounds, strict=True)]
    theirs = [
        a - b for a, b in zip(timings["bare, prometheus_client"].rounds, timings["bare"].rounds, strict=True)
    ]
    times = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    return [
        Bar(
            what="a request of Starlette with metrics, against one without",
            value=overall,
            limit=1.25,
            unit="×",
            n=rounds,
            spread=spread,
            figures=figures,
            note="routing and a plain-text response, no server and no network: a real request is ten times as long",
        ),
        Bar(
            what="the same metrics by prometheus_client, against ours",
            value=times[len(times) // 2],
            limit=1.5,
            at_most=False,
            unit="×",
            n=rounds,
            spread=(times[len(times) // 4], times[3 * len(times) // 4]),
            note="each less the application alone",
        ),
    ]


def _policy(rounds: int) -> Bar:
    """What an exported policy adds to a call that succeeds."""
    plain, exported = Policy(name="plain", timeout=1.0), Policy(name="exported", timeout=1.0)
    exported.export(MetricRegistry())

    async def answer() -> int:
        return 42

    def calls(policy: Policy) -> Callable[[int], Awaitable[None]]:
        async def run(n: int) -> None:
            call = policy.call
            for _ in range(n):
                await call(answer)

        return run

    timings = interleave_async({"plain": calls(plain), "exported": calls(exported)}, n=20_000, rounds=rounds)
    added = sorted(a - b for a, b in zip(timings["exported"].rounds, timings["plain"].rounds, strict=True))
    return Bar(
        what="rate, errors and duration of a policy's call",
        value=added[len(added) // 2] * 1e6,
        limit=0.75,
        unit="µs",
        n=rounds,
        spread=(added[len(added) // 4] * 1e6, added[3 * len(added) // 4] * 1e6),
        figures={f"{name}_us": timing.median * 1e6 for name, timing in timings.items()},
        note="an absolute figure: it moves with the machine and its load. Not exported, a policy pays nothing",
    )


def _merge(rounds: int) -> Bar:
    """Eight workers of 1,000 histograms each, read and added up as for one page."""
    registry = MetricRegistry(max_label_sets=1_000)
    family = registry.histogram("wait_seconds", "Wait.", labels=("route",))
    for number in range(1_000):
        family.labels(route=f"/{number}").observe_many(0.001 * each for each in range(1, 60))
    encoded = encode_snapshot(registry.snapshot())
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        merge_snapshots(decode_snapshot(encoded) for _ in range(8))
        taken.append(1_000.0 * (time.perf_counter() - began))
    taken.sort()
    return Bar(
        what="8 workers of 1,000 histograms, read and added up",
        value=taken[len(taken) // 2],
        limit=250.0,
        unit="ms",
        n=rounds,
        spread=(taken[len(taken) // 4], taken[3 * len(taken) // 4]),
        figures={"snapshot_bytes": float(len(encoded))},
        note="in the aggregator's process, once a scrape; workers only send",
    )


def request_bars(rounds: int) -> list[Bar]:
    return [*_middleware(rounds), _policy(rounds), _merge(rounds)]
