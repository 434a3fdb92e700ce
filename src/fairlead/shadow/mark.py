"""How shadow work knows that it is shadow work, so that it changes nothing and counts for nobody.

A candidate that is asked beside the real service runs the real code: it would send the mail, take the money, log an
exposure. So everything that a mirror runs is marked, in a ContextVar of its own and not in the request's context: work
that a shadow starts and detaches from its request stays marked. Between processes the mark is a header.

It goes where context variables go: into tasks and `asyncio.to_thread`, not into `loop.run_in_executor`, other pools, or
a worker that takes its work from a queue. Ask before work is handed to one of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fairlead.telemetry.event import Event
    from fairlead.telemetry.sink import EventSink

__all__ = ["SHADOW_HEADER", "LiveSink", "is_shadow", "shadow_context"]

SHADOW_HEADER = "x-fairlead-shadow"
"""Carried by a mirrored request, with the value 1."""

_shadow: ContextVar[bool] = ContextVar("fairlead_shadow", default=False)

is_shadow = _shadow.get
"""Whether this code runs for a shadow: what it answers reaches no caller, so what it does must reach nobody either."""


@contextmanager
def shadow_context() -> Iterator[None]:
    """Marks the block, and tasks started by it, as shadow work; threads as the module says."""
    token = _shadow.set(True)
    try:
        yield
    finally:
        try:  # noqa: SIM105 - as in request_context: closed from another context, there is nothing to reset
            _shadow.reset(token)
        except ValueError:
            pass


class LiveSink:
    """An EventSink that passes on what happened to real requests; what a shadow tells of is only counted.

    Put it in front of the service's sink wherever a candidate runs in the same process: an exposure or an outcome
    that no user met would spoil an experiment.
    """

    def __init__(self, sink: EventSink) -> None:
        """sink: takes what is live; not closed here."""
        self._sink = sink
        self.withheld = 0
        """Events of shadows that were not passed on, in this process."""

    def emit(self, event: Event) -> None:
        if _shadow.get():
            self.withheld += 1
        else:
            self._sink.emit(event)
