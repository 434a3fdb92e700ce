"""Where a controller's figures come from: the events of units, and live readings.

    beside control    events that name their unit, from a sink's folder             counted by the `Tally`
    absolute          the same events of the last seconds, or a reading             from a Prometheus, say

Both are asked in threads of their own: one that hangs takes no thread from what moves traffic, nor from the journal,
and is not asked again while it hangs.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

import msgspec

from fairlead.metrics import Reading
from fairlead.rollout.plan import Guardrail
from fairlead.rollout.tally import Tally
from fairlead.telemetry import Event, EventTail

__all__ = ["EventFacts", "Facts", "ReadingFacts"]

_Answer = TypeVar("_Answer")
_AT_ONCE = 20_000
"""Events shown before others get their turn: some tenths of a second."""


class Facts(Protocol):
    """What a controller asks at each look."""

    names_units: bool
    """Whether it counts events by unit. Without, guardrails beside control have no data."""

    async def gather(self, tally: Tally) -> None:
        """Shows the tally what has happened since the last call, or since the beginning. May raise FairleadError."""
        ...

    async def read(self, guardrail: Guardrail) -> Reading | None:
        """Treatment's figure for an absolute limit; None: take it from the tally."""
        ...


class EventFacts:
    """Events of a sink's folder, and readings for those guardrails that name one."""

    names_units = True

    def __init__(
        self, tail: EventTail, *, readings: Mapping[str, Callable[[], Reading]] | None = None
    ) -> None:
        """readings: by the guardrail's name; called in a thread."""
        self._tail = tail
        self._unread: Iterator[Event] | None = None
        self._next = _InThread(self._read_some)
        self._readings = ReadingFacts(readings or {})

    async def gather(self, tally: Tally) -> None:
        """Exposures first, as they say which arm the unit of an event is in. Cancelled, it goes on where it was."""
        more = True
        while more:
            events, more, problem = await self._next.answer()
            show(tally, events)
            if problem is not None:
                raise problem

    async def read(self, guardrail: Guardrail) -> Reading | None:
        return await self._readings.read(guardrail)

    def _read_some(self) -> tuple[list[Event], bool, Exception | None]:
        """Some events, whether there may be more, and what went wrong behind them."""
        if self._unread is None:
            self._unread = self._tail.read()
        events: list[Event] = []
        try:
            for event in self._unread:
                events.append(event)
                if len(events) == _AT_ONCE:
                    return events, True, None
        except Exception as error:  # carried to who asked, with what was read before
            self._unread = None
            return events, False, error
        self._unread = None
        return events, False, None


class ReadingFacts:
    """Live readings only: what a proxy or a Prometheus counts, without units."""

    names_units = False

    def __init__(self, readings: Mapping[str, Callable[[], Reading]]) -> None:
        """readings: by the metric's name; called in a thread."""
        self._readings = {name: _InThread(reading) for name, reading in readings.items()}

    async def gather(self, tally: Tally) -> None:
        return None

    async def read(self, guardrail: Guardrail) -> Reading | None:
        reading = self._readings.get(guardrail.name)
        return None if reading is None else await reading.answer()


class _InThread(Generic[_Answer]):
    """Something to ask that may hang, in a thread of its own. Who stops waiting gets its answer the next time."""

    def __init__(self, ask: Callable[[], _Answer]) -> None:
        self._ask = ask
        self._running: Future[_Answer] | None = None

    async def answer(self) -> _Answer:
        if self._running is None:
            running: Future[_Answer] = Future()
            self._running = running
            # A daemon: a source that hangs for ever must not keep the process from its end.
            threading.Thread(target=self._run, args=(running,), name="rollout-facts", daemon=True).start()
        running = self._running
        try:
            return await asyncio.shield(asyncio.wrap_future(running))
        finally:
            if running.done():
                self._running = None

    def _run(self, running: Future[_Answer]) -> None:
        try:
            running.set_result(self._ask())
        except BaseException as error:  # carried to who asked
            running.set_exception(error)


def show(tally: Tally, events: Iterable[Event]) -> None:
    """Shows events to a tally, exposures first."""
    others = []
    for event in events:
        kind = str(event.__struct_config__.tag)
        if kind == "exposure":
            tally.see(kind, msgspec.structs.asdict(event))
        else:
            others.append((kind, event))
    for kind, event in others:
        tally.see(kind, msgspec.structs.asdict(event))
