"""Rate, errors and duration of every route of any ASGI 3 application, and the page that a scraper reads.

A request is counted once, when the application is done with it, by the pattern of its route, its method, the class of
its status and how it ended:

    answered       the whole response was handed over
    raised         the application raised; without a response its status counts as 5xx
    cancelled      the server cancelled it
    disconnected   the client left before the end of the response
    incomplete     the application returned in the middle of its response

Its duration ends with the last byte of the response, so a stream counts until its end and a background task that runs
after the response does not count at all. A cancelled or abandoned request is counted, and not timed: how long a
client's patience lasted is no latency of ours.

Per process; `WorkerMetrics` adds processes up.
"""

from __future__ import annotations

import asyncio
import zlib
from asyncio import CancelledError
from collections.abc import Callable
from typing import TYPE_CHECKING

from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import FairleadError, InvalidInput
from fairlead.telemetry.asgi_types import Application, Message, Receive, Scope, Send
from fairlead.telemetry.histogram import Histogram
from fairlead.telemetry.metrics import Counter, Family, MetricRegistry
from fairlead.telemetry.prometheus import CONTENT_TYPE, render
from fairlead.telemetry.queries import QueryCount, current_count
from fairlead.telemetry.route_patterns import RoutePatterns

if TYPE_CHECKING:
    from fairlead.telemetry.worker import WorkerMetrics

__all__ = ["MetricsEndpoint", "MetricsMiddleware"]


_METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE", "QUERY", "WEBSOCKET"}
)
_MOST_REMEMBERED = 4_096
_LARGE = 1_024  # bytes from which a page is worth compressing


class MetricsMiddleware:
    """Counts and times what `app` answers. Put it outside everything whose work is to be seen, admission included.

    With Starlette and FastAPI: `app.add_middleware(MetricsMiddleware, registry=registry)`, last, since the last added
    is the outermost. With any other: `app = MetricsMiddleware(app, registry=registry)`.

    registry: where the metrics are kept. A family holds 100 label sets by default; give it more
        (`MetricRegistry(max_label_sets=1_000)`) if routes × methods × statuses exceed that.
    route: the pattern of a request's route, by its scope, asked when the request ends; never the path. None: as
        Starlette, FastAPI and Litestar leave it there.
    count_queries: also counts the queries of each request (`count_query`, `fairlead.telemetry.sqlalchemy`).
    """

    def __init__(
        self,
        app: Application,
        *,
        registry: MetricRegistry,
        route: Callable[[Scope], str] | None = None,
        count_queries: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.app = app
        self._now = clock.now
        self._route = route or RoutePatterns().of
        self._requests = registry.counter(
            "http_server_requests_total",
            "Requests that ended, by route pattern, method, class of status and way they ended.",
            labels=("route", "method", "status", "ending"),
        )
        self._durations = registry.histogram(
            "http_server_request_duration_seconds",
            "Time from a request's arrival to the last byte of its response.",
            labels=("route", "method"),
        )
        self._active = registry.gauge(
            "http_server_active_requests", "Requests that the application works on."
        )
        self._connections = registry.counter(
            "websocket_connections_total",
            "Websockets that ended, by route pattern and way they ended.",
            labels=("route", "ending"),
        )
        self._connection_durations = registry.histogram(
            "websocket_connection_duration_seconds",
            "Time that a websocket was open.",
            labels=("route",),
            smallest=0.1,
            largest=86_400.0,
        )
        self._open = registry.gauge("websocket_active_connections", "Websockets that are open.")
        self._queries = (
            registry.histogram(
                "http_server_request_queries",
                "Database queries that a request made.",
                labels=("route",),
                smallest=1.0,
                largest=1024.0,
            )
            if count_queries
            else None
        )
        # Looked up once: a family builds a key and checks it, which costs as much as all the rest.
        self._remembered: dict[tuple[str, str, int, str], tuple[Counter, Histogram]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await (self._connect if scope["type"] == "websocket" else self.app)(scope, receive, send)
            return
        if self._queries is not None and current_count.get() is None:
            await self._count_queries(scope, receive, send, self._queries)
            return
        exchange = _Exchange(receive, send, self._now)
        active = self._active
        active._value += 1.0
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except BaseException as error:
            self._count_failed(scope, exchange, error)
            raise
        else:
            ended_at = exchange.ended_at
            if ended_at >= 0.0:  # as _count does, written out for the way that most requests take
                key = (self._route(scope), scope["method"], exchange.status // 100, "answered")
                counter, histogram = self._remembered.get(key) or self._look_up(key)
                counter._value += 1.0
                histogram.observe(ended_at - exchange.began_at)
            else:
                self._count(scope, exchange, "disconnected" if exchange.client_left else "incomplete")
        finally:
            active._value -= 1.0

    async def _count_queries(
        self, scope: Scope, receive: Receive, send: Send, queries: Family[Histogram]
    ) -> None:
        count = QueryCount()
        token = current_count.set(count)
        try:
            await self(scope, receive, send)
        finally:
            try:  # noqa: SIM105 - closed by the garbage collector, in a context that is not ours
                current_count.reset(token)
            except ValueError:
                pass
            queries.labels(route=self._route(scope)).observe(count.made)

    def _count_failed(self, scope: Scope, exchange: _Exchange, error: BaseException) -> None:
        if isinstance(error, CancelledError | GeneratorExit):
            self._count(scope, exchange, "cancelled")
        elif exchange.client_left and exchange.ended_at < 0.0:
            self._count(scope, exchange, "disconnected")
        else:
            exchange.status = exchange.status or 500
            if exchange.ended_at < 0.0:
                exchange.ended_at = self._now()
            self._count(scope, exchange, "raised")

    def _count(self, scope: Scope, exchange: _Exchange, ending: str) -> None:
        key = (self._route(scope), scope["method"], exchange.status // 100, ending)
        counter, histogram = self._remembered.get(key) or self._look_up(key)
        counter._value += 1.0  # add() checks what cannot be wrong here, at twice the cost
        if exchange.ended_at >= 0.0:
            histogram.observe(exchange.ended_at - exchange.began_at)

    def _look_up(self, key: tuple[str, str, int, str]) -> tuple[Counter, Histogram]:
        route, method, status, ending = key
        known = method in _METHODS
        if not known:
            method = "OTHER"
        shown = f"{status}xx" if 0 < status < 6 else "none"
        found = (
            self._requests.labels(route=route, method=method, status=shown, ending=ending),
            self._durations.labels(route=route, method=method),
        )
        if known and len(self._remembered) < _MOST_REMEMBERED:
            self._remembered[key] = found
        return found

    async def _connect(self, scope: Scope, receive: Receive, send: Send) -> None:
        accepted_at = -1.0
        ending = "closed"

        async def watched(message: Message) -> None:
            nonlocal accepted_at
            await send(message)
            if message["type"] == "websocket.accept" and accepted_at < 0.0:
                accepted_at = self._now()
                self._open.add(1.0)

        try:
            await self.app(scope, receive, watched)
        except BaseException as error:
            ending = "cancelled" if isinstance(error, CancelledError | GeneratorExit) else "raised"
            raise
        finally:
            route = self._route(scope)
            if accepted_at >= 0.0:
                self._open.add(-1.0)
                self._connection_durations.labels(route=route).observe(self._now() - accepted_at)
            elif ending == "closed":
                ending = "rejected"
            self._connections.labels(route=route, ending=ending).add()


class _Exchange:
    """One request's `receive` and `send`, watched for the begin and the end of the response."""

    __slots__ = ("_now", "_receive", "_send", "began_at", "client_left", "ended_at", "status")

    def __init__(self, receive: Receive, send: Send, now: Callable[[], float]) -> None:
        self._receive = receive
        self._send = send
        self._now = now
        self.status = 0
        self.ended_at = -1.0
        self.client_left = False
        self.began_at = now()

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and self.ended_at < 0.0:
            self.client_left = True
        return message

    async def send(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:  # ASGI 2.4: the client has left
            self.client_left = True
            raise
        kind = message["type"]
        if kind == "http.response.body":
            if "more_body" not in message or not message["more_body"]:
                self.ended_at = self._now()
        elif kind == "http.response.start":
            self.status = message["status"]
        elif kind in ("http.response.trailers", "http.response.pathsend"):
            self.ended_at = self._now()


class MetricsEndpoint:
    """An ASGI application that answers a scrape: `app.add_route("/metrics", MetricsEndpoint(registry))`.

    source: the registry of this process, or the WorkerMetrics of all. The text is made in a thread. An answer that
    could not be whole is a 503: to a scraper, totals without one worker would look like a restart.

    It asks nobody who they are: keep it off the public address, or behind your own check.
    """

    def __init__(self, source: MetricRegistry | WorkerMetrics) -> None:
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise InvalidInput(f"MetricsEndpoint answers http, not {scope['type']}")
        if scope["method"] not in ("GET", "HEAD"):
            await self._respond(scope, send, 405, b"", [(b"allow", b"GET, HEAD")])
            return
        try:
            body, headers = await self._page(scope)
        except FairleadError as error:
            await self._respond(scope, send, 503, f"{error}\n".encode(), [])
            return
        await self._respond(scope, send, 200, body, headers)

    async def _page(self, scope: Scope) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        zipped = any(name == b"accept-encoding" and b"gzip" in value for name, value in scope["headers"])
        in_thread = asyncio.get_running_loop().run_in_executor
        source = self._source
        if isinstance(source, MetricRegistry):
            text = await in_thread(None, render, source)
        else:
            text = await source.scrape()
        headers = [(b"content-type", CONTENT_TYPE.encode()), (b"vary", b"accept-encoding")]
        body = text.encode()
        if zipped and len(body) >= _LARGE:
            body = await in_thread(None, _gzip, body)
            headers.append((b"content-encoding", b"gzip"))
        return body, headers

    async def _respond(
        self, scope: Scope, send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]
    ) -> None:
        if not any(name == b"content-type" for name, _ in headers):
            headers = [*headers, (b"content-type", b"text/plain; charset=utf-8")]
        headers = [*headers, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _gzip(body: bytes) -> bytes:
    squeeze = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return squeeze.compress(body) + squeeze.flush()
