"""Every request is counted once, by the pattern of its route, whatever becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import MutableMapping
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from litestar import Litestar, Router, get
from litestar.params import FromPath
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from fairlead.clock import ManualClock
from fairlead.errors import InvalidInput, StoreUnavailable
from fairlead.telemetry import MetricRegistry, RegistrySnapshot, count_query
from fairlead.telemetry.asgi import MetricsEndpoint, MetricsMiddleware
from fairlead.telemetry.prometheus import render

Scope = MutableMapping[str, Any]
Counts = dict[tuple[str, ...], float]


def counts(registry: MetricRegistry, name: str = "http_server_requests_total") -> Counts:
    [family] = [each for each in registry.snapshot().families if each.name == name]
    return {labels: value for labels, value in family.values.items() if value}


def durations(
    snapshot: RegistrySnapshot, name: str = "http_server_request_duration_seconds"
) -> dict[str, tuple[int, float]]:
    [family] = [each for each in snapshot.families if each.name == name]
    return {
        labels[0]: (sum(each.buckets.values()) + each.zero_count, each.sum)
        for labels, each in family.histograms.items()
    }


async def visit(app: Any, *paths: str, method: str = "GET") -> MetricRegistry:
    registry = MetricRegistry()
    transport = httpx.ASGITransport(MetricsMiddleware(app, registry=registry), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        for path in paths:
            await client.request(method, path)
    return registry


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def scope(**changes: Any) -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": "/x", "headers": [], **changes}


async def nothing() -> dict[str, Any]:
    return {"type": "http.request"}


async def drop(message: Any) -> None: ...


START = {"type": "http.response.start", "status": 200}
END = {"type": "http.response.body", "body": b"x"}


async def call(app: Any, registry: MetricRegistry, clock: ManualClock | None = None, **options: Any) -> None:
    given = {"receive": nothing, "send": drop, **options}
    request = scope(**given.pop("scope", {}))
    await MetricsMiddleware(app, registry=registry, clock=clock or ManualClock())(
        request, given["receive"], given["send"]
    )


async def test_starlette_routes_are_named_by_their_whole_pattern(tmp_path: Any) -> None:
    tenant = Starlette(routes=[Route("/x/{n:int}", hello), Route("/", hello)])
    app = Starlette(
        routes=[
            Route("/users/{id}", hello),
            Route("/users/{id}/{kind}", hello),
            Mount("/t/{tenant}", app=tenant),
            Mount("/static", StaticFiles(directory=tmp_path)),
            Mount("/m", routes=[Route("/deep/{a}", hello)]),
        ]
    )
    registry = await visit(
        app, "/users/1", "/users/2", "/users/1/k", "/t/a/x/3", "/static/no", "/m/deep/1", "/no"
    )
    assert counts(registry) == {
        ("/users/{id}", "GET", "2xx", "answered"): 2,
        ("/users/{id}/{kind}", "GET", "2xx", "answered"): 1,
        ("/t/{tenant}/x/{n:int}", "GET", "2xx", "answered"): 1,
        ("/static/*", "GET", "4xx", "answered"): 1,
        ("/m/deep/{a}", "GET", "2xx", "answered"): 1,
        ("_unrouted", "GET", "4xx", "answered"): 1,
    }


async def test_an_older_starlette_that_leaves_only_the_endpoint_is_understood() -> None:
    inner = Starlette(
        routes=[Route("/users/{id}", hello), Route("/users/{id}/{kind}", hello), Route("/b", hello)]
    )

    async def older(request: Scope, receive: Any, send: Any) -> None:
        await inner(request, receive, send)
        request.pop("route", None)

    registry = await visit(older, "/users/1", "/users/1/k", "/b", "/b", "/no")
    assert {labels[0]: value for labels, value in counts(registry).items()} == {
        "/users/{id}": 1,
        "/users/{id}/{kind}": 1,
        "/b": 2,
        "_unrouted": 1,
    }


async def test_fastapi_routers_under_prefixes_are_named_by_their_whole_pattern() -> None:
    router, inner, app, mounted = APIRouter(prefix="/r"), APIRouter(prefix="/inner"), FastAPI(), FastAPI()

    @router.get("/items/{item}")
    async def item(item: int) -> int:
        return item

    @inner.get("/z/{q}")
    async def z(q: int) -> int:
        return q

    @mounted.get("/s/{a}")
    async def s(a: str) -> None:
        raise ValueError

    router.include_router(inner)
    app.include_router(router, prefix="/v1")
    app.include_router(router, prefix="/v2")
    mounted.include_router(router, prefix="/v3")
    app.mount("/sub", mounted)
    registry = await visit(
        app,
        "/v1/r/items/3",
        "/v1/r/items/x",
        "/v2/r/items/3",
        "/v1/r/inner/z/1",
        "/sub/s/1",
        "/sub/v3/r/items/1",
    )
    assert counts(registry) == {
        ("/v1/r/items/{item}", "GET", "2xx", "answered"): 1,
        ("/v1/r/items/{item}", "GET", "4xx", "answered"): 1,
        ("/v2/r/items/{item}", "GET", "2xx", "answered"): 1,
        ("/v1/r/inner/z/{q}", "GET", "2xx", "answered"): 1,
        ("/sub/s/{a}", "GET", "5xx", "raised"): 1,
        ("/sub/v3/r/items/{item}", "GET", "2xx", "answered"): 1,
    }


async def test_litestar_routes_are_named_by_their_template() -> None:
    @get("/l/{a:int}")
    async def show(a: FromPath[int]) -> int:
        return a

    registry = await visit(
        Litestar([Router("/p/{b:str}", route_handlers=[show])], openapi_config=None), "/p/x/l/3", "/no"
    )
    assert counts(registry) == {
        ("/p/{b}/l/{a}", "GET", "2xx", "answered"): 1,
        ("_unrouted", "GET", "4xx", "answered"): 1,
    }


async def test_a_bare_application_names_its_routes_itself() -> None:
    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send({**START, "status": 302})
        await send(END)

    registry = MetricRegistry()
    middleware = MetricsMiddleware(app, registry=registry, route=lambda scope: "/bare")
    await middleware(scope(), nothing, drop)
    assert counts(registry) == {("/bare", "GET", "3xx", "answered"): 1}


async def test_a_method_that_somebody_made_up_makes_no_series_of_its_own() -> None:
    registry = await visit(Starlette(), "/", "/", method="X-TEAPOT")
    assert counts(registry) == {("_unrouted", "OTHER", "4xx", "answered"): 2}


async def test_an_exception_counts_as_5xx_and_goes_on() -> None:
    async def app(scope: Scope, receive: Any, send: Any) -> None:
        raise LookupError("broken")

    registry = MetricRegistry()
    with pytest.raises(LookupError):
        await call(app, registry)
    assert counts(registry) == {("_unrouted", "GET", "5xx", "raised"): 1}
    assert durations(registry.snapshot()) == {"_unrouted": (1, 0.0)}
    assert counts(registry, "http_server_active_requests") == {}


async def test_an_exception_after_the_response_keeps_its_status_and_counts_as_raised() -> None:
    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send(START)
        await send(END)
        raise LookupError("in a background task")

    registry = MetricRegistry()
    with pytest.raises(LookupError):
        await call(app, registry)
    assert counts(registry) == {("_unrouted", "GET", "2xx", "raised"): 1}


async def test_a_cancelled_request_is_counted_and_not_timed_and_the_cancellation_goes_on() -> None:
    started = asyncio.Event()

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        started.set()
        await asyncio.Event().wait()

    registry = MetricRegistry()
    task = asyncio.create_task(call(app, registry))
    await started.wait()
    assert counts(registry, "http_server_active_requests") == {(): 1.0}
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert counts(registry) == {("_unrouted", "GET", "none", "cancelled"): 1}
    assert durations(registry.snapshot()) == {"_unrouted": (0, 0.0)}
    assert counts(registry, "http_server_active_requests") == {}


async def test_a_client_that_leaves_in_the_middle_of_a_stream_is_counted_apart() -> None:
    async def left() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send(START)
        await send({**END, "more_body": True})
        await receive()

    registry = MetricRegistry()
    await call(app, registry, receive=left)
    assert counts(registry) == {("_unrouted", "GET", "2xx", "disconnected"): 1}
    assert durations(registry.snapshot()) == {"_unrouted": (0, 0.0)}


async def test_a_send_that_fails_because_the_client_left_is_no_error_of_the_application() -> None:
    async def gone(message: Any) -> None:
        raise OSError("client disconnected")

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send(START)

    registry = MetricRegistry()
    with pytest.raises(OSError, match="client disconnected"):
        await call(app, registry, send=gone)
    assert counts(registry) == {("_unrouted", "GET", "none", "disconnected"): 1}


async def test_a_disconnect_that_is_asked_for_after_the_response_changes_nothing() -> None:
    async def left() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send(START)
        await send(END)
        await receive()

    registry = MetricRegistry()
    await call(app, registry, receive=left)
    assert counts(registry) == {("_unrouted", "GET", "2xx", "answered"): 1}


async def test_a_response_that_the_application_never_ended_is_incomplete() -> None:
    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send(START)

    registry = MetricRegistry()
    await call(app, registry)
    assert counts(registry) == {("_unrouted", "GET", "2xx", "incomplete"): 1}


async def test_a_stream_takes_until_its_last_byte_and_a_background_task_takes_nothing() -> None:
    clock = ManualClock()

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send(START)
        for more in (True, True, False):
            clock.advance(1.0)
            await send({**END, "more_body": more})
        clock.advance(100.0)

    registry = MetricRegistry()
    await call(app, registry, clock)
    assert durations(registry.snapshot()) == {"_unrouted": (1, 3.0)}


@pytest.mark.parametrize("kind", ["http.response.trailers", "http.response.pathsend"])
async def test_a_response_also_ends_with_what_the_extensions_of_asgi_send(kind: str) -> None:
    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": kind})

    registry = MetricRegistry()
    await call(app, registry)
    assert counts(registry) == {("_unrouted", "GET", "2xx", "answered"): 1}


async def test_a_status_that_is_none_makes_no_series_of_its_own() -> None:
    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send({**START, "status": 999})
        await send(END)

    registry = MetricRegistry()
    await call(app, registry)
    assert counts(registry) == {("_unrouted", "GET", "none", "answered"): 1}


async def test_routes_beyond_the_bound_are_counted_under_overflow() -> None:
    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send(START)
        await send(END)

    registry = MetricRegistry(max_label_sets=3)
    middleware = MetricsMiddleware(app, registry=registry, route=lambda scope: str(scope["path"]))
    for number in range(5_000):
        await middleware(scope(path=f"/{number}"), nothing, drop)
    found = counts(registry)
    assert len(found) == 4
    assert found[("_overflow",) * 4] == 4_997
    assert len(middleware._remembered) <= 4_096


async def test_lifespan_passes_untouched() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    registry = MetricRegistry()
    await call(app, registry, scope={"type": "lifespan"})
    assert seen == ["lifespan"]
    assert counts(registry) == {}


async def test_websockets_are_counted_by_route_with_the_time_that_they_were_open() -> None:
    clock, registry = ManualClock(), MetricRegistry()

    async def chat(socket: WebSocket) -> None:
        await socket.accept()
        assert counts(registry, "websocket_active_connections") == {(): 1.0}
        clock.advance(60.0)
        if socket.path_params["room"] == "broken":
            raise LookupError("broken")
        await socket.close()

    async def refuse(socket: WebSocket) -> None:
        await socket.close()

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    app = Starlette(routes=[WebSocketRoute("/chat/{room}", chat), WebSocketRoute("/refuse", refuse)])
    middleware = MetricsMiddleware(app, registry=registry, clock=clock)
    for path in ("/chat/1", "/chat/broken", "/refuse"):
        with contextlib.suppress(LookupError):
            await middleware(scope(type="websocket", path=path), receive, drop)
    assert counts(registry, "websocket_connections_total") == {
        ("/chat/{room}", "closed"): 1,
        ("/chat/{room}", "raised"): 1,
        ("/refuse", "rejected"): 1,
    }
    assert durations(registry.snapshot(), "websocket_connection_duration_seconds") == {
        "/chat/{room}": (2, 120.0)
    }
    assert counts(registry, "websocket_active_connections") == {}
    assert counts(registry) == {}


async def test_queries_are_counted_per_request_also_from_tasks_and_threads() -> None:
    async def app(scope: Scope, receive: Any, send: Any) -> None:
        for _ in range(scope["queries"]):
            count_query()
        await asyncio.gather(*(asyncio.to_thread(count_query) for _ in range(scope["queries"])))
        await send(START)
        await send(END)

    registry = MetricRegistry()
    middleware = MetricsMiddleware(app, registry=registry, count_queries=True)
    await asyncio.gather(*(middleware(scope(queries=n), nothing, drop) for n in (0, 1, 5)))
    count_query()  # outside a request: counted for nobody
    assert durations(registry.snapshot(), "http_server_request_queries") == {"_unrouted": (3, 12.0)}


async def scraped(
    source: Any, method: str = "GET", headers: list[tuple[bytes, bytes]] | None = None
) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await MetricsEndpoint(source)(scope(method=method, headers=headers or []), nothing, send)
    return sent


async def test_the_endpoint_serves_what_render_makes() -> None:
    registry = MetricRegistry()
    registry.counter("loads_total", "Loads.").add()
    start, body = await scraped(registry)
    assert start["status"] == 200
    assert dict(start["headers"])[b"content-type"] == b"text/plain; version=0.0.4; charset=utf-8"
    assert body["body"].decode() == render(registry)
    assert (await scraped(registry, "HEAD"))[1]["body"] == b""
    assert (await scraped(registry, "POST"))[0]["status"] == 405


async def test_a_long_page_is_compressed_for_who_accepts_it() -> None:
    registry = MetricRegistry()
    registry.histogram("wait_seconds", "Wait.").observe(1.0)
    accept = [(b"accept-encoding", b"gzip")]
    start, body = await scraped(registry, headers=accept)
    assert (b"content-encoding", b"gzip") in start["headers"]
    assert gzip.decompress(body["body"]).decode() == render(registry)
    start, _ = await scraped(MetricRegistry(), headers=accept)
    assert (b"content-encoding", b"gzip") not in start["headers"]


async def test_a_scrape_that_cannot_be_whole_is_a_503_that_says_why() -> None:
    class Broken:
        async def scrape(self) -> str:
            raise StoreUnavailable("the aggregator did not answer")

    start, body = await scraped(Broken())
    assert start["status"] == 503
    assert b"did not answer" in body["body"]


async def test_the_endpoint_is_for_http_only() -> None:
    with pytest.raises(InvalidInput, match="websocket"):
        await MetricsEndpoint(MetricRegistry())(scope(type="websocket"), nothing, drop)


async def test_a_real_stream_of_starlette_is_answered_when_it_ends() -> None:
    async def stream(request: Request) -> StreamingResponse:
        async def parts() -> Any:
            for _ in range(3):
                yield b"x"

        return StreamingResponse(parts())

    registry = await visit(Starlette(routes=[Route("/stream", stream)]), "/stream")
    assert counts(registry) == {("/stream", "GET", "2xx", "answered"): 1}


async def test_as_starlettes_own_middleware_it_sees_the_same() -> None:
    registry = MetricRegistry()
    app = Starlette(routes=[Route("/users/{id}", hello)])
    app.add_middleware(MetricsMiddleware, registry=registry)
    app.add_route("/metrics", MetricsEndpoint(registry))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        await client.get("/users/1")
        page = (await client.get("/metrics")).text
    assert (
        'http_server_requests_total{route="/users/{id}",method="GET",status="2xx",ending="answered"} 1.0'
        in page
    )
