"""Traces leave a real service by OTLP over HTTP, and are read back from what was sent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import uvicorn
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from fairlead.admission.asgi import AdmissionMiddleware
from fairlead.cache import Cache, Freshness
from fairlead.telemetry.opentelemetry import OpenTelemetryTracer, TracingMiddleware


class Receiver:
    """Takes OTLP/HTTP as a collector does, and keeps the spans."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                message = ExportTraceServiceRequest.FromString(
                    self.rfile.read(int(self.headers["content-length"]))
                )
                for resource in message.resource_spans:
                    for scope in resource.scope_spans:
                        receiver.spans.extend(scope.spans)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def attributes(span: Span) -> dict[str, object]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


async def test_what_a_collector_receives_of_a_stampede(receiver: Receiver):
    provider = TracerProvider(resource=Resource.create({"service.name": "feed"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=receiver.url)))
    cache = Cache(name="feeds", tracer=OpenTelemetryTracer(provider))
    opened = asyncio.Event()

    async def feed(request: Request) -> JSONResponse:
        async def load() -> list[int]:
            await opened.wait()
            return [1, 2, 3]

        key = ("feed", request.path_params["user"])
        return JSONResponse(await cache.get_or_load(key, load, Freshness(ttl=60)))

    app = Starlette(routes=[Route("/feed/{user}", feed)])
    server = uvicorn.Server(
        uvicorn.Config(
            AdmissionMiddleware(TracingMiddleware(app, provider)),
            port=0,
            log_level="critical",
            lifespan="off",
        )
    )
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            asking = [
                asyncio.create_task(client.get("/feed/ann", headers={"x-request-id": f"r-{number}"}))
                for number in range(20)
            ]
            while cache.stats.misses < 20:  # noqa: ASYNC110  # a counter, and no event
                await asyncio.sleep(0.01)
            opened.set()
            answers = await asyncio.gather(*asking)
            for _ in range(50):  # hits
                answers.append(await client.get("/feed/ann"))
        assert {answer.status_code for answer in answers} == {200}
    finally:
        server.should_exit = True
        await serving
        await asyncio.to_thread(provider.shutdown)  # flushes

    requests = receiver.named("GET /feed/{user}")
    [load] = receiver.named("cache.load")
    assert len(requests) == 70
    assert len(receiver.spans) == 71  # no span for a hit
    assert not load.parent_span_id
    waiting = [span for span in requests if span.links]
    assert {link.span_id for link in load.links} == {span.span_id for span in waiting}
    assert all(link.span_id == load.span_id for span in waiting for link in span.links)
    assert {attributes(span)["fairlead.request_id"] for span in waiting} == {
        f"r-{number}" for number in range(20)
    }
    assert attributes(load) == {
        "fairlead.cache": "feeds", "fairlead.key_class": "feed", "fairlead.refresh": False
    }  # fmt: skip
    assert {span.kind for span in requests} == {Span.SpanKind.SPAN_KIND_SERVER}
    assert b"ann" not in b"".join(span.SerializeToString() for span in receiver.spans)
