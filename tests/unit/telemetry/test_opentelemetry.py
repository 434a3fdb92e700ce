"""What the tracing of a cached service shows: loads as traces of their own, and no span for a hit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

from fairlead.cache import Cache, Freshness
from fairlead.calls import Fallback, Policy
from fairlead.clock import ManualClock
from fairlead.context import RequestContext, request_context
from fairlead.telemetry import JsonLogFormatter
from fairlead.telemetry.opentelemetry import OpenTelemetryTracer, TracingMiddleware, trace_fields

FRESHNESS = Freshness(ttl=10, jitter=0, stale_while_revalidate=60)


class Traces:
    """A provider that keeps its spans, and what the tests ask of them."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = OpenTelemetryTracer(self.provider)
        self.outer = self.provider.get_tracer("test")

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


@pytest.fixture
def traces() -> Iterator[Traces]:
    made = Traces()
    yield made
    made.provider.shutdown()


def linked(span: ReadableSpan) -> set[int]:
    return {link.context.span_id for link in span.links}


def identity(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


async def test_a_hit_makes_no_span_and_a_load_one(traces: Traces) -> None:
    cache = Cache(tracer=traces.tracer)

    async def load() -> int:
        return 7

    for _ in range(5):
        await cache.get_or_load(("user", "ann"), load, FRESHNESS)
    [span] = traces.exporter.get_finished_spans()
    assert span.name == "cache.load"
    assert span.attributes == {
        "fairlead.cache": "cache", "fairlead.key_class": "user", "fairlead.refresh": False
    }  # fmt: skip


async def test_a_coalesced_load_is_a_root_linked_with_everyone_who_waits_both_ways(traces: Traces) -> None:
    cache = Cache(tracer=traces.tracer)

    async def load() -> int:
        with traces.outer.start_as_current_span("origin"):
            await asyncio.sleep(0)
        return 7

    async def ask(number: int) -> None:
        with traces.outer.start_as_current_span(f"request-{number}"):
            await cache.get_or_load("key", load, FRESHNESS)

    await asyncio.gather(*(ask(number) for number in range(3)))
    [span] = traces.named("cache.load")
    requests = [traces.named(f"request-{number}")[0] for number in range(3)]
    assert span.parent is None
    assert linked(span) == {identity(request) for request in requests}
    for request in requests:
        assert linked(request) == {identity(span)}
        assert request.context is not None
        assert span.context is not None
        assert request.context.trace_id != span.context.trace_id
    [origin] = traces.named("origin")
    assert origin.parent is not None
    assert origin.parent.span_id == identity(span)


async def test_of_a_thousand_waiters_the_load_is_linked_with_some_and_each_of_them_with_the_load(
    traces: Traces,
) -> None:
    cache = Cache(tracer=traces.tracer)

    async def load() -> int:
        await asyncio.sleep(0)
        return 7

    async def ask() -> None:
        with traces.outer.start_as_current_span("request"):
            await cache.get_or_load("key", load, FRESHNESS)

    await asyncio.gather(*(ask() for _ in range(1_000)))
    [span] = traces.named("cache.load")
    assert len(span.links) == 64
    assert all(linked(request) == {identity(span)} for request in traces.named("request"))


async def test_a_failed_load_shows_the_class_of_its_error_and_not_its_message(traces: Traces) -> None:
    cache = Cache(tracer=traces.tracer)

    async def load() -> int:
        raise ValueError("no mailbox ann@example.com")

    with pytest.raises(ValueError, match="ann@"):
        await cache.get_or_load("key", load, FRESHNESS)
    [span] = traces.named("cache.load")
    assert span.attributes is not None
    assert span.attributes["error.type"] == "ValueError"
    assert not span.status.is_ok
    assert "ann@" not in span.to_json()


async def test_a_load_that_is_cancelled_ends_its_span(traces: Traces) -> None:
    cache = Cache(tracer=traces.tracer)

    async def load() -> int:
        await asyncio.sleep(60)
        return 7

    waiting = asyncio.ensure_future(cache.get_or_load("key", load, FRESHNESS))
    await asyncio.sleep(0)
    await cache.close()
    await asyncio.gather(waiting, return_exceptions=True)
    [span] = traces.named("cache.load")
    assert span.attributes is not None
    assert span.attributes["error.type"] == "CancelledError"


async def test_a_stale_answer_marks_the_request_and_its_refresh_says_what_it_is(traces: Traces) -> None:
    clock = ManualClock()
    cache = Cache(tracer=traces.tracer, clock=clock)

    async def load() -> int:
        return 7

    await cache.get_or_load("key", load, FRESHNESS)
    clock.advance(12)
    with traces.outer.start_as_current_span("request"):
        await cache.get_or_load("key", load, FRESHNESS)
    await asyncio.sleep(0.01)
    [request] = traces.named("request")
    assert request.attributes is not None
    assert request.attributes["fairlead.stale"] is True
    assert request.attributes["fairlead.staleness_seconds"] == pytest.approx(2)
    assert [span.attributes["fairlead.refresh"] for span in traces.named("cache.load") if span.attributes] == [
        False, True
    ]  # fmt: skip


async def test_a_load_of_a_request_that_nobody_records_is_not_recorded_either() -> None:
    traces = Traces(sampler=ParentBased(ALWAYS_OFF))
    cache = Cache(tracer=traces.tracer)

    async def load() -> int:
        return 7

    with traces.outer.start_as_current_span("request"):
        assert await cache.get_or_load("key", load, FRESHNESS) == 7
    assert traces.exporter.get_finished_spans() == ()


async def test_without_an_sdk_everything_works_and_nothing_is_recorded() -> None:
    cache = Cache(tracer=OpenTelemetryTracer())

    async def load() -> int:
        return 7

    assert await cache.get_or_load("key", load, FRESHNESS) == 7
    assert trace_fields() == {}


async def test_what_a_policy_did_is_an_event_of_the_request_and_a_fallback_an_attribute(
    traces: Traces,
) -> None:
    policy = Policy(
        timeout=1.0, retry=None, fallback=Fallback(answer=[]), name="features", on_event=traces.tracer.record
    )

    async def fail() -> list[int]:
        raise OSError("refused")

    with traces.outer.start_as_current_span("request"):
        assert await policy.call(fail) == []
    [request] = traces.named("request")
    assert request.attributes is not None
    assert request.attributes["fairlead.degraded"] is True
    assert [event.name for event in request.events] == ["fairlead.policy.fell_back"]
    assert dict(request.events[0].attributes or {})["fairlead.reason"] == "OSError"


async def serve(
    traces: Traces, *, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None, route: str = "",
    method: str = "GET", error: Exception | None = None,
) -> None:  # fmt: skip
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if route:
            scope["path_template"] = route
        if error is not None:
            raise error
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Any) -> None:
        pass

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    scope = {
        "type": "http", "method": method, "scheme": "http", "path": "/feed/ann@example.com", "headers": headers or []
    }  # fmt: skip
    await TracingMiddleware(app, traces.provider)(scope, receive, send)


async def test_a_request_is_named_by_its_route_and_never_by_its_path(traces: Traces) -> None:
    with request_context(RequestContext(request_id="r-17")):
        await serve(traces, route="/feed/{user}")
    [span] = traces.exporter.get_finished_spans()
    assert span.name == "GET /feed/{user}"
    assert span.attributes == {
        "http.request.method": "GET", "url.scheme": "http", "http.route": "/feed/{user}",
        "http.response.status_code": 200, "fairlead.request_id": "r-17",
    }  # fmt: skip
    assert "ann@" not in span.to_json()


async def test_a_request_without_a_route_is_named_by_its_method_and_an_odd_method_is_other(
    traces: Traces,
) -> None:
    await serve(traces)
    await serve(traces, method="BREW")
    assert [span.name for span in traces.exporter.get_finished_spans()] == ["GET", "_OTHER"]


async def test_a_request_goes_on_with_its_callers_trace(traces: Traces) -> None:
    parent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await serve(traces, headers=[(b"traceparent", parent)])
    await serve(traces, headers=[(b"traceparent", b"\xff broken")])
    first, second = traces.exporter.get_finished_spans()
    assert first.context is not None
    assert f"{first.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert second.parent is None


@pytest.mark.parametrize(("status", "failed"), [(200, False), (404, False), (500, True), (503, True)])
async def test_a_server_error_fails_the_span_and_a_clients_does_not(
    traces: Traces, status: int, failed: bool
) -> None:
    await serve(traces, status=status)
    [span] = traces.exporter.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes.get("error.type") == (str(status) if failed else None)


async def test_an_error_of_the_handler_is_raised_on_and_named(traces: Traces) -> None:
    with pytest.raises(RuntimeError):
        await serve(traces, error=RuntimeError("ann@example.com"))
    [span] = traces.exporter.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["error.type"] == "RuntimeError"
    assert "ann@" not in span.to_json()


async def test_what_is_no_request_passes_untouched(traces: Traces) -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    await TracingMiddleware(app, traces.provider)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert seen == ["lifespan"]
    assert traces.exporter.get_finished_spans() == ()


def test_log_lines_carry_the_trace_they_belong_to(traces: Traces) -> None:
    import logging

    import msgspec

    formatter = JsonLogFormatter(None, context=trace_fields)
    with traces.outer.start_as_current_span("request") as span:
        line = msgspec.json.decode(formatter.format(logging.makeLogRecord({"msg": "m"})))
    assert line["trace_id"] == f"{span.get_span_context().trace_id:032x}"
    assert line["span_id"] == f"{span.get_span_context().span_id:016x}"
