"""Where a controller's figures come from: the events of units, and live readings.

    beside control    events that name their unit, from a sink's folder             counted by the `Tally`
    absolute          the same events of the last seconds, or a reading             from a Prometheus, say

A reading is taken in a thread and never waited for longer than its own timeout allows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec

from fairlead.metrics import Reading
from fairlead.rollout.plan import Guardrail
from fairlead.rollout.tally import Tally
from fairlead.telemetry import Event, EventTail

__all__ = ["EventFacts", "Facts", "ReadingFacts"]


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
        self._readings = ReadingFacts(readings or {})

    async def gather(self, tally: Tally) -> None:
        """Exposures first, as they say which arm the unit of an event is in."""
        events = await asyncio.to_thread(lambda: list(self._tail.read()))
        show(tally, events)

    async def read(self, guardrail: Guardrail) -> Reading | None:
        return await self._readings.read(guardrail)


class ReadingFacts:
    """Live readings only: what a proxy or a Prometheus counts, without units."""

    names_units = False

    def __init__(self, readings: Mapping[str, Callable[[], Reading]]) -> None:
        self._readings = dict(readings)

    async def gather(self, tally: Tally) -> None:
        return None

    async def read(self, guardrail: Guardrail) -> Reading | None:
        reading = self._readings.get(guardrail.name)
        return None if reading is None else await asyncio.to_thread(reading)


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
