"""Flights that one call of a batch loader brings home.

A page that misses twenty keys and loads them in one call needs one task, one timer and one context, not twenty. Each
key still has a flight of its own, with its slot, its waiters and its landing:

    add, add, ... --depart--> one task calls load_many --answers--> each flight lands by itself
                                                       --fails or is cancelled--> all that have not landed fail

Nothing suspends between the first `add` and `depart`. What a flight promises, it promises here: it is joined, unlisted
and given up key by key, and no caller's cancellation or deadline reaches the load.

Invariant: once departed, every flight lands, whatever becomes of the call or of another's landing.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from contextvars import Context
from typing import Any, NamedTuple

from fairlead.cache.single_flight import Flight, SingleFlight
from fairlead.calls.batch import by_key, outcome_of
from fairlead.context import RequestContext, _current
from fairlead.deadline import Deadline

__all__ = ["FlightGroup", "LoadMany", "Part"]

LoadMany = Callable[[list[Any]], Awaitable[Mapping[Any, Any] | Sequence[Any]]]


class Part(NamedTuple):
    """One key's place in a group, in the place of a load of its own."""

    group: FlightGroup
    argument: Hashable
    """What `load_many` knows the key by."""


class FlightGroup:
    """The loads that one caller begins in one turn of the loop and that one call answers."""

    def __init__(self, flights: SingleFlight, load_many: LoadMany, name: str) -> None:
        self.name = name
        """Of the call, in errors."""
        self._owner = flights
        self._load_many = load_many
        self._flights: dict[Any, Flight[Any]] = {}
        self._began_at = flights._clock.now()

    def part(self, argument: Hashable) -> Part:
        return Part(self, argument)

    def add(
        self,
        key: Hashable,
        argument: Hashable,
        on_landing: Callable[[Flight[Any], bool], object],
        tags: frozenset[str],
    ) -> Flight[Any]:
        """A flight in the place of any other under `key`; it begins with `depart`."""
        flight = self._owner.list_flight(key, self._began_at, on_landing, tags, None)
        self._flights[argument] = flight
        return flight

    def depart(self) -> None:
        """Begins the load of all that were added, if any were; to be called once, whatever happened in between."""
        if not self._flights:
            return
        owner = self._owner
        context = Context()
        context.run(self._board, owner.aboard())
        ends_at = self._began_at + owner.load_timeout
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._fly(), context=context)
        for flight in self._flights.values():
            flight.task = task
        owner.own(task, owner._clock.call_at(ends_at, self._give_up), self._ended)

    def _board(self, outer: tuple[object, ...]) -> None:
        """Puts the load outside every request, and known as a part of its flights."""
        owner = self._owner
        owner.board((*outer, *(flight.ticket for flight in self._flights.values())))
        _current.set(
            RequestContext(deadline=Deadline(self._began_at + owner.load_timeout, owner._clock)),
        )

    async def _fly(self) -> None:
        try:
            self._land(await self._outcomes(list(self._flights)))
        finally:
            del self  # a traceback that holds this frame, with the flights in it, would be a cycle

    async def _outcomes(self, keys: list[Any]) -> Mapping[Any, Any]:
        try:
            awaitable = self._load_many(keys)
            if not inspect.isawaitable(awaitable):
                raise TypeError(
                    f"{self.name}: the loader returned {type(awaitable).__qualname__}, "
                    "which cannot be awaited; pass a coroutine function"
                )
            return by_key(self.name, keys, await awaitable)
        except Exception as error:
            return dict.fromkeys(keys, error)
        finally:
            del self  # as above

    def _land(self, outcomes: Mapping[Any, Any]) -> None:
        defect: BaseException | None = None
        for argument, flight in self._flights.items():
            self._owner._count_out(flight)
            outcome = outcome_of(argument, outcomes, self.name)
            if outcome.error is None:
                flight.value = outcome.value
            try:
                self._owner._land(flight, outcome.error)
            except BaseException as error:  # of its landing: the others land all the same, then it is raised
                defect = defect or error
        if defect is not None:
            raise defect

    def _give_up(self) -> None:
        task: asyncio.Task[None] | None = None
        try:
            for flight in self._flights.values():
                task = flight.task
                self._owner.land_too_late(flight)
        finally:
            if task is not None:
                task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        for flight in self._flights.values():
            self._owner.account_for(flight, task)
