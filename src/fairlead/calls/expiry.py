"""Ends a call at a moment, by cancelling it, and knows its own cancellation from everybody else's.

asyncio has one way to interrupt a task, and everyone uses it: the client that left, the server that shuts
down, the timeout. A timeout that takes a foreign cancellation for its own turns a shutdown into a retry;
one that misses its own turns a slow answer into a vanished request. So requests to cancel are counted, as
asyncio.timeout does: ours adds one, and only if no more than were outstanding before remain after we take
it back was it ours alone.

The count is compared with the one at the start (CPython 3.12; 3.11 compares with zero and so loses
timeouts in the clean-up of a cancelled task). If the coroutine swallows the cancellation, its result stands.

A loop that is closed with calls in flight leaves them suspended for ever, and with them their permits. The entries
here are what is known of them: `abandon` ends each as the garbage collector would, which gives the permits back.
"""

from __future__ import annotations

import asyncio
import logging
import types
from collections.abc import Awaitable, Coroutine, Generator
from contextvars import Context
from functools import partial
from heapq import heapify, heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from fairlead.clock import Clock, Timer

if TYPE_CHECKING:
    from fairlead.calls.circuit_breaker import CircuitBreaker

__all__ = ["Entry", "Expiries", "Expiry", "Suspended", "as_coroutine", "first_step", "resume"]

_log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Entry(Protocol):
    """Something that is due at a moment, on behalf of a task."""

    task: asyncio.Task[Any] | None
    """None once closed."""

    def expire(self, now: float) -> None: ...


class Expiry:
    """One call that is to be cancelled at a moment, unless it is closed before."""

    __slots__ = ("_before", "_breaker", "_call", "_generation", "_patience", "expired", "task")

    def __init__(
        self, breaker: CircuitBreaker | None, generation: int, call: object, patience: float
    ) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a timeout can only end a call that runs in an asyncio task")
        self.task: asyncio.Task[Any] | None = task
        """The task to cancel; None once closed."""
        self._before = task.cancelling()
        self._breaker = breaker
        self._generation = generation
        self._call = call
        self._patience = patience
        self.expired = False
        """Whether the moment came before the call ended; the breaker has then been told of a failure."""

    def expire(self, now: float) -> None:
        if self.task is not None:
            self.expired = True
            self.task.cancel()
            # Told now, not when the call ends: one that swallows the cancellation may never end.
            if self._breaker is not None and self._breaker.unwatch(self._call, self._patience):
                self._breaker.record(self._generation, False, now)

    def take_back(self, task: asyncio.Task[Any]) -> bool:
        """Takes our request to cancel back; True if nobody else has made one since the call began."""
        return task.uncancel() <= self._before


class Expiries:
    """The ends of all calls of one policy, with one timer among them: for the next that is due.

    A timer of the loop per call costs more than all the rest of the call, and nearly every one is
    cancelled. Here a call that ends only marks its entry. The timer that its entry set, if it set one,
    stays, and moves on to the next open entry when it fires: about one timer per timeout's span, however
    many calls.
    """

    __slots__ = ("__weakref__", "_armed_for", "_clock", "_closed", "_heap", "_loop", "_order", "_timer")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._forget(None)

    def _forget(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._loop = loop
        self._heap: list[tuple[float, int, Entry]] = []
        self._order = 0
        self._closed = 0
        self._armed_for = inf
        self._timer: Timer | None = None

    def add(
        self, when: float, breaker: CircuitBreaker | None, generation: int, call: object, patience: float
    ) -> Expiry:
        """Has the running task cancelled at `when`, and the breaker told; it is to be closed. A call without
        an end (`when` infinite) is known here, and has no timer.
        """
        expiry = Expiry(breaker, generation, call, patience)
        self.push(when, expiry)
        return expiry

    def push(self, when: float, entry: Entry) -> None:
        """Has the entry expire at `when` unless it is closed before."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self.abandon()
            self._forget(loop)  # the loop before was closed, and its timer with it
        self._order += 1
        heappush(self._heap, (when, self._order, entry))
        if when < self._armed_for:
            self._arm(when)

    def close(self, expiry: Expiry) -> bool:
        """Disarms it; True if it cancelled its task and nobody else did. To be called exactly once."""
        task, expiry.task = expiry.task, None
        if expiry.expired:
            return task is not None and expiry.take_back(task)
        self.drop()
        return False

    def drop(self) -> None:
        """Notes that an entry that has not expired was closed."""
        self._closed += 1
        if self._closed > 100 and self._closed * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].task is not None]
            heapify(self._heap)
            self._closed = 0

    def abandon(self) -> None:
        """Ends the calls that a closed loop left in flight, so that what they hold is free again."""
        if self._loop is None or not self._loop.is_closed():
            return
        heap = self._heap
        self._forget(None)
        for _, _, entry in heap:
            if entry.task is not None:
                _end(entry.task)

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = when
        # In a context of its own: what happens then belongs to another request than to the one that set the timer.
        self._timer = self._clock.call_at(when, partial(Context().run, self._fire))

    def _fire(self) -> None:
        # Loops count in milliseconds, so a timer may fire a little before its moment.
        now = max(self._clock.now(), self._armed_for)
        self._armed_for = inf
        self._timer = None
        heap = self._heap
        while heap and (heap[0][0] <= now or heap[0][2].task is None):
            _, _, expiry = heappop(heap)
            if expiry.task is None:
                self._closed -= 1
            expiry.expire(now)
        if heap:
            self._arm(heap[0][0])


def _end(task: asyncio.Task[Any]) -> None:
    """Runs the clean-up of a task whose loop is closed."""
    coroutine = task.get_coro()
    try:
        if isinstance(coroutine, Coroutine):
            coroutine.close()
    except Exception:  # the abandoned call's own clean-up; the calls of today must not fail for it
        _log.exception("the clean-up of %r, abandoned in a closed loop, failed", task)


class Suspended:
    """A coroutine's first step ended in a wait."""

    __slots__ = ("waits_for",)

    def __init__(self, waits_for: object) -> None:
        self.waits_for = waits_for


def first_step(coroutine: Coroutine[Any, Any, _T]) -> _T | Suspended:
    """Starts a coroutine by hand: its result if it ran to its end at once, else what it waits for.

    A function of its own because CPython 3.11 decodes the line table of the function that catches
    StopIteration from its beginning up to the call: in the middle of a long function that costs more than
    this call.
    """
    try:
        return Suspended(coroutine.send(None))
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


@types.coroutine
def resume(coroutine: Coroutine[Any, Any, _T], waits_for: Any) -> Generator[Any, Any, _T]:
    """Awaits a coroutine that has been started by hand and now waits for `waits_for`."""
    while True:
        try:
            yield waits_for  # the loop answers a wait with None, or with an exception
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:
            try:
                waits_for = coroutine.throw(error)
            except StopIteration as stop:
                return cast(_T, stop.value)
        else:
            return cast(_T, (yield from coroutine))


async def as_coroutine(awaitable: Awaitable[_T]) -> _T:
    """Any awaitable (a future, a gRPC call) in the shape that can be started by hand."""
    return await awaitable
