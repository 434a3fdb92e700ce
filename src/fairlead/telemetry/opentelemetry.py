"""Traces by OpenTelemetry: its API alone, so that the application chooses the SDK, the sampler and the exporter.

Without an SDK the API records nothing, and this costs a look at the current span. Attributes of ours begin
with `fairlead.`; the others are those of the semantic conventions for HTTP server spans
(opentelemetry.io/docs/specs/semconv/http/http-spans). Names, routes and classes of errors are recorded; keys,
paths, queries and messages of errors are not, for they name people.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from fairlead.context import current
from fairlead.errors import MissingExtra
from fairlead.telemetry.asgi_types import Application, Message, Receive, Scope, Send
from fairlead.telemetry.event import Event, PolicyActed, StateChanged
from fairlead.telemetry.route_patterns import UNROUTED, RoutePatterns
from fairlead.telemetry.tracing import Attribute, Span

try:
    from opentelemetry import context as otel_context
    from opentelemetry import propagate, trace
except ImportError as missing:
    raise MissingExtra("opentelemetry-api", "otel") from missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import TracerProvider

__all__ = ["OpenTelemetryTracer", "TracingMiddleware", "trace_fields"]

_T = TypeVar("_T")

_MOST_LINKS = 64  # of one load; the SDK drops those beyond 128, without a word which


class _Work:
    """A `Span` of OpenTelemetry's."""

    __slots__ = ("_links", "_span")

    def __init__(self, span: OtelSpan) -> None:
        self._span = span
        self._links = 1

    async def around(self, work: Awaitable[_T]) -> _T:
        with _current(self._span):
            return await work

    def mark(self, **attributes: Attribute) -> None:
        self._span.set_attributes({f"fairlead.{name}": value for name, value in attributes.items()})


@contextmanager
def _current(span: OtelSpan) -> Iterator[None]:
    """Makes the span current, and ends it with the block; a failure leaves its class, not its message."""
    token = otel_context.attach(trace.set_span_in_context(span))
    try:
        yield
    except BaseException as error:
        _failed(span, type(error).__name__)
        raise
    finally:
        otel_context.detach(token)
        span.end()


def _failed(span: OtelSpan, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(trace.StatusCode.ERROR)


class OpenTelemetryTracer:
    """The `Tracer` to give to caches and policies: `Cache(tracer=tracer)`, `Policy(on_event=tracer.record)`."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        """provider: the application's; None takes the global one, also when it is set later."""
        self._tracer = trace.get_tracer("fairlead", tracer_provider=provider)

    def root(self, name: str, **attributes: Attribute) -> Span | None:
        """As the port says. A load is recorded if the request that began it is, or if there was none."""
        caller = trace.get_current_span()
        known = caller.get_span_context()
        if known.is_valid and not caller.is_recording():
            return None
        span = self._tracer.start_span(
            name,
            context=otel_context.Context(),
            attributes={f"fairlead.{key}": value for key, value in attributes.items()},
            links=[trace.Link(known)] if known.is_valid else [],
        )
        if not span.is_recording():
            return None
        if known.is_valid:
            caller.add_link(span.get_span_context())
        return _Work(span)

    def link(self, span: Span) -> None:
        """As the port says. Beyond 64 callers of one load, only they know of it."""
        caller = trace.get_current_span()
        if not isinstance(span, _Work) or not caller.is_recording():
            return
        caller.add_link(span._span.get_span_context())
        if span._links < _MOST_LINKS:
            span._links += 1
            span._span.add_link(caller.get_span_context())

    def mark(self, **attributes: Attribute) -> None:
        """As the port says."""
        caller = trace.get_current_span()
        if caller.is_recording():
            caller.set_attributes({f"fairlead.{name}": value for name, value in attributes.items()})

    def record(self, event: Event) -> None:
        """Adds a `PolicyActed` or `StateChanged` to the current span, as an event of it.

        A fallback also marks the span `fairlead.degraded`. Other events are left to their sink.
        """
        caller = trace.get_current_span()
        if not caller.is_recording():
            return
        if isinstance(event, PolicyActed):
            caller.add_event(
                f"fairlead.policy.{event.action}",
                {
                    "fairlead.policy": event.policy,
                    "fairlead.reason": event.reason,
                    "fairlead.attempt": event.attempt,
                },
            )
            if event.action == "fell_back":
                caller.set_attribute("fairlead.degraded", True)
        elif isinstance(event, StateChanged):
            caller.add_event(
                f"fairlead.{event.component}.{event.current}",
                {
                    "fairlead.name": event.name,
                    "fairlead.previous": event.previous,
                    "fairlead.reason": event.reason,
                },
            )


class TracingMiddleware:
    """ASGI middleware: one server span a request, child of the caller's by the propagators in use (W3C).

    Put it inside `AdmissionMiddleware`: refused requests then cost no span, and the span knows its request id.
    Leave it out where another instrumentation makes server spans already.
    """

    def __init__(self, app: Application, provider: TracerProvider | None = None) -> None:
        """provider: as for OpenTelemetryTracer."""
        self._app = app
        self._tracer = trace.get_tracer("fairlead", tracer_provider=provider)
        self._route = RoutePatterns().of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = _method(scope)
        span = self._tracer.start_span(
            method,
            context=propagate.extract(_Headers(scope)),
            kind=trace.SpanKind.SERVER,
            attributes={"http.request.method": method, "url.scheme": str(scope.get("scheme", "http"))},
        )
        if not span.is_recording():
            token = otel_context.attach(trace.set_span_in_context(span))
            try:
                await self._app(scope, receive, send)
            finally:
                otel_context.detach(token)
            return
        request_id = current().request_id
        if request_id:
            span.set_attribute("fairlead.request_id", request_id)

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = message["status"]
                span.set_attribute("http.response.status_code", status)
                if status >= 500:
                    _failed(span, str(status))
            await send(message)

        with _current(span):
            try:
                await self._app(scope, receive, observed)
            finally:
                # Routers write the route into the scope, so it is known afterwards.
                if (route := self._route(scope)) != UNROUTED:
                    span.update_name(f"{method} {route}")
                    span.set_attribute("http.route", route)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})


def _method(scope: Scope) -> str:
    # The convention's word for what a client made up: names of spans must stay few.
    method = str(scope.get("method", ""))
    return method if method in _METHODS else "_OTHER"


class _Headers(Mapping[str, str]):
    """ASGI headers as a propagator reads them: by lower-case name, bytes decoded when asked for."""

    def __init__(self, scope: Scope) -> None:
        self._headers = scope.get("headers", ())

    def __getitem__(self, name: str) -> str:
        wanted = name.lower().encode("latin-1")
        found = [value.decode("latin-1") for key, value in self._headers if key == wanted]
        if not found:
            raise KeyError(name)
        return ",".join(found)

    def __iter__(self) -> Iterator[str]:
        return iter({key.decode("latin-1") for key, _ in self._headers})

    def __len__(self) -> int:
        return len({key for key, _ in self._headers})


def trace_fields() -> dict[str, str]:
    """The current trace and span, for `JsonLogFormatter(context=trace_fields)`; empty outside a trace."""
    known = trace.get_current_span().get_span_context()
    if not known.is_valid:
        return {}
    return {"trace_id": trace.format_trace_id(known.trace_id), "span_id": trace.format_span_id(known.span_id)}
