"""Who is asking, how urgent it is, and until when: carried beside the call, not through every signature.

The context lives in a ContextVar, so each asyncio task sees its own. A task started inside a request inherits it; work
that outlives the request (a background refresh) must run under a fresh one, or it would die of its starter's deadline.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import IntEnum

from fairlead.deadline import Deadline

__all__ = ["Priority", "RequestContext", "current", "detached", "request_context"]


class Priority(IntEnum):
    """Order in which work is refused under overload: the lowest first."""

    BACKGROUND = 0
    """Nobody waits: prefetch, batch, reports."""
    NORMAL = 1
    """A person waits and can do without: the default."""
    CRITICAL = 2
    """The product does not work without it: log-in, payment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestContext:
    """What every layer of one request may ask for."""

    request_id: str = ""
    """Correlation id of events, logs and traces; empty outside a request."""
    deadline: Deadline = field(default_factory=Deadline.never)
    """When the caller stops waiting; never, unless the edge set one."""
    priority: Priority = Priority.NORMAL
    targeting_key: str = ""
    """Stable id of the unit that flags are randomised by (user, device, shop); empty when unknown."""


_NOBODY = RequestContext()
_current: ContextVar[RequestContext] = ContextVar("fairlead_request", default=_NOBODY)

current = _current.get
"""The context of the running request, or an empty one that never expires."""


@contextmanager
def request_context(context: RequestContext) -> Iterator[RequestContext]:
    """Makes `context` current inside the block, in this task and in tasks started by it.

    Blocks of one task end innermost first; a generator that yields inside one shows its context to whoever iterates it.
    """
    token = _current.set(context)
    try:
        yield context
    finally:
        try:  # noqa: SIM105  # suppress() would add a third to the cost of the block
            _current.reset(token)
        except ValueError:
            # A generator may be closed by another task than it ran in (asyncio does so with those left unfinished).
            # What was set there is out of reach, and this error would take the place of a cancellation on its way out.
            pass


@contextmanager
def detached() -> Iterator[None]:
    """Drops the current request inside the block, for work that outlives it (a refresh others will share)."""
    with request_context(_NOBODY):
        yield
