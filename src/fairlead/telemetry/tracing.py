"""What rooms of the request path tell a tracing system, whichever it is.

Two habits make traces of a cached service useless: a span for each cache hit, which costs more than the hit
and buries the rest, and a shared load as a child of whoever came first, so that ninety-nine slow requests show
no reason. Here a hit says nothing. A coalesced load is a trace of its own, linked with each caller that waits
for it, both ways. Stale and degraded answers are attributes of the caller's span.

This is the port; `fairlead.telemetry.opentelemetry` is the driver.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol, TypeVar

__all__ = ["Attribute", "Span", "Tracer"]

Attribute = bool | int | float | str
"""A value that a span may carry."""

_T = TypeVar("_T")


class Span(Protocol):
    """A piece of work that a `Tracer` has begun."""

    async def around(self, work: Awaitable[_T]) -> _T:
        """Awaits `work` with this span current, and ends the span with it; what work raises ends it as failed."""
        ...

    def mark(self, **attributes: Attribute) -> None:
        """Adds attributes. Nothing, once it has ended."""
        ...


class Tracer(Protocol):
    """Called on the event loop, from inside the caller's context. No method blocks or raises."""

    def root(self, name: str, **attributes: Attribute) -> Span | None:
        """Begins a trace of its own, linked with the current span; None when nobody records this."""
        ...

    def link(self, span: Span) -> None:
        """Links the current span with `span`, both ways: its work is what the caller waits for."""
        ...

    def mark(self, **attributes: Attribute) -> None:
        """Adds attributes to the current span."""
        ...
