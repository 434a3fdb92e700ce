"""One load for many callers (request coalescing), and no caller's fate tied to another's.

A hot key that is not in the cache is asked for by every request at once; without coalescing each of them asks
the origin. The usual cure, awaiting the first caller's own coroutine, makes a hundred requests fail because
one client hung up.

Here a load runs in a task that the library owns. Callers wait beside it, each on a future of its own:

    absent --first caller--> flying --lands--> absent  outcome set, slot cleared, then the waiters wake
                                |--forget--> unlisted  who waits gets its answer, who comes later starts anew

Invariant: a load that was forgotten never lands in the cache, so a write made while it flew is not undone by
it. Whether a flight still holds its slot is that key's generation.

Per process, one event loop at a time. A flight of another loop (closed, or left behind by a fork) is never
joined.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Hashable
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fairlead.cache.entry import Entry
from fairlead.cache.keys import shown
from fairlead.calls.exception_copy import own_instance
from fairlead.clock import SYSTEM_CLOCK, Clock, Timer
from fairlead.context import Priority, RequestContext, current, request_context
from fairlead.deadline import Deadline
from fairlead.errors import DeadlineExceeded, InvalidInput, LoadCancelled

if TYPE_CHECKING:
    from fairlead.telemetry.tracing import Span

__all__ = ["Flight", "SingleFlight"]

_T = TypeVar("_T")
_K = TypeVar("_K", bound=Hashable)

_LONGEST_LOAD = 86_400.0
_NO_TAGS: frozenset[str] = frozenset()

# Tickets, not flights: a connection that a load opens keeps its context, and would keep the value for good.
_aboard: ContextVar[tuple[object, ...]] = ContextVar("fairlead_flights", default=())


class Flight(Generic[_T]):
    """One load under way, and those who wait for it."""

    __slots__ = (
        "_on_landing",
        "_waiters",
        "began_at",
        "entry",
        "error",
        "key",
        "landed",
        "loop",
        "running",
        "span",
        "tags",
        "task",
        "ticket",
        "value",
    )

    def __init__(
        self,
        key: Hashable,
        loop: asyncio.AbstractEventLoop,
        began_at: float,
        on_landing: Callable[[Flight[_T], bool], object] | None,
        tags: frozenset[str],
        span: Span | None,
    ) -> None:
        self.key = key
        self.span = span
        """What a tracer knows the load by."""
        self.tags = tags
        self.loop = loop
        self.began_at = began_at
        self.ticket = object()
        """Stands for this flight in the context of its load."""
        self.landed = False
        """The outcome is known: `error`, or `value` when that is None."""
        self.running = True
        """Its task may still work, even for nobody: a load that was given up can take its time to end."""
        self.value: _T
        self.entry: Entry[Any] | None = None
        """Where the value was found, when it was not loaded."""
        self.error: BaseException | None = None
        """Why the load failed. Not to be raised: `wait` hands out an instance for each caller."""
        self.task: asyncio.Task[None] | None = None
        self._on_landing = on_landing
        self._waiters: dict[asyncio.Future[None], None] = {}

    async def wait(self, deadline: Deadline) -> _T:
        """The loaded value, or the load's error in an instance of this caller's own.

        Raises DeadlineExceeded at `deadline`, for this caller alone. Cancelling the caller leaves the load
        and everybody else alone.
        """
        if not self.landed:
            waiter = self.loop.create_future()
            self._waiters[waiter] = None
            timer = None
            if deadline.at != math.inf:
                timer = deadline.clock.call_at(deadline.at, partial(_wake, waiter))
            try:
                await waiter
            finally:
                if timer is not None:
                    timer.cancel()
                self._waiters.pop(waiter, None)
            if not self.landed:
                raise DeadlineExceeded(
                    f"cache load of {shown(self.key)}: this caller's deadline passed while it ran; "
                    "it goes on for later callers"
                )
        if self.error is not None:
            raise own_instance(self.error)
        return self.value


def _wake(waiter: asyncio.Future[None]) -> None:
    # Woken without a value: an exception on a future that its waiter abandoned is reported as never read.
    if not waiter.done():
        waiter.set_result(None)


class SingleFlight:
    """Runs at most one load per key at a time, for any number of callers.

    >>> async def main():
    ...     flights = SingleFlight()
    ...     async def load(): return "answer"
    ...     return await asyncio.gather(*(flights.do("key", load) for _ in range(3))), flights.started
    >>> asyncio.run(main())
    (['answer', 'answer', 'answer'], 1)
    """

    def __init__(self, *, load_timeout: float = 30.0, clock: Clock = SYSTEM_CLOCK) -> None:
        """load_timeout: seconds after which a load is given up: its waiters get DeadlineExceeded and its task
        is cancelled. 30: longer than any caller should wait, short enough that a hung origin lets go of a
        key.
        """
        number = isinstance(load_timeout, int | float) and not isinstance(load_timeout, bool)
        if not (number and 0 < load_timeout <= _LONGEST_LOAD):
            raise InvalidInput(
                f"load_timeout: {load_timeout!r} is not a number of seconds above 0, "
                f"at most {_LONGEST_LOAD:.0f}"
            )
        self.load_timeout = load_timeout
        self.started = 0
        """Loads started."""
        self.peak_per_key = 0
        """Most loads of one key that ever ran at once. Above 1 only when one was forgotten or timed out while
        it ran."""
        self.forgotten = 0
        """Times that something was unlisted, whether or not it was being loaded."""
        self._clock = clock
        self._flights: dict[Hashable, Flight[Any]] = {}
        self._running: dict[Hashable, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds its tasks weakly
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def in_flight(self) -> int:
        """Keys that have a load which a new caller would join."""
        return len(self._flights)

    async def do(self, key: Hashable, load: Callable[[], Awaitable[_T]]) -> _T:
        """What `load()` returns, called once for all who ask for `key` while it runs.

        The load runs outside the caller's request: the deadline it sees is `load_timeout` from its start, and
        nobody's cancellation reaches it. It keeps the starter's request id, priority and other context
        variables. Each caller honours its own deadline: DeadlineExceeded before a load starts if it has
        passed, or while waiting, when it passes; the load goes on and the next caller profits.

        Raises what the load raised, in an instance of its own per caller; DeadlineExceeded when it outlived
        `load_timeout`; LoadCancelled when it was cancelled, or raised SystemExit or KeyboardInterrupt (which
        also end the loop, as from any task); TypeError when `load()` is not awaitable.
        """
        deadline = current().deadline
        flight: Flight[_T] | None = self.joinable(key)
        if flight is None:
            if deadline.at != math.inf:
                deadline.check(f"cache load of {shown(key)}")
            flight = self.start(key, load)
        return await flight.wait(deadline)

    def joinable(self, key: Hashable) -> Flight[Any] | None:
        """The flight that a caller of this loop may wait for, or None.

        Raises InvalidInput when the caller is that very load: it would wait for itself until its timeout.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._move_to(loop)
        flight = self._flights.get(key)
        if flight is not None and flight.ticket in _aboard.get():
            raise InvalidInput(
                f"cache load of {shown(key)} asks the cache for {shown(key)}: it would wait for itself"
            )
        return flight

    def start(
        self,
        key: Hashable,
        load: Callable[[], Awaitable[_T]],
        *,
        on_landing: Callable[[Flight[_T], bool], object] | None = None,
        priority: Priority | None = None,
        tags: frozenset[str] = _NO_TAGS,
        span: Span | None = None,
    ) -> Flight[_T]:
        """Starts a load now, in the place of any other under `key`, and returns without waiting.

        on_landing: called with the flight, and whether it still held its slot, once the outcome is set and
        before anybody wakes, in one step of the loop. priority: the load's; None takes the caller's. tags: by
        which `forget_tag` finds it. span: current while it runs, and ended with it.
        """
        began_at = self._clock.now()
        flight: Flight[_T] = self.list_flight(key, began_at, on_landing, tags, span)
        caller = current()
        context = RequestContext(
            request_id=caller.request_id,
            deadline=Deadline(began_at + self.load_timeout, self._clock),
            priority=caller.priority if priority is None else priority,
        )
        boarded = _aboard.set((*_aboard.get(), flight.ticket))
        try:
            with request_context(context):
                flight.task = flight.loop.create_task(self._fly(flight, load))
        finally:
            _aboard.reset(boarded)
        timer = self._clock.call_at(began_at + self.load_timeout, partial(self._give_up, flight))
        self.own(flight.task, timer, partial(self.account_for, flight))
        return flight

    def list_flight(
        self,
        key: Hashable,
        began_at: float,
        on_landing: Callable[[Flight[_T], bool], object] | None,
        tags: frozenset[str],
        span: Span | None,
    ) -> Flight[_T]:
        """A flight that now holds the slot of `key`, and has no task yet."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._move_to(loop)
        flight: Flight[_T] = Flight(key, loop, began_at, on_landing, tags, span)
        self._flights[key] = flight
        self.started += 1
        running = self._running[key] = self._running.get(key, 0) + 1
        if running > self.peak_per_key:
            self.peak_per_key = running
        return flight

    def own(
        self, task: asyncio.Task[None], timer: Timer, ended: Callable[[asyncio.Task[None]], object]
    ) -> None:
        """Keeps `task` until it ends; then cancels `timer` and calls `ended`."""

        def end(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            timer.cancel()
            ended(task)

        self._tasks.add(task)
        task.add_done_callback(end)

    def as_part_of_loads(
        self,
        load_many: Callable[[list[_K]], Awaitable[_T]],
        key_of: Callable[[_K], Hashable] | None = None,
    ) -> Callable[[list[_K]], Awaitable[_T]]:
        """`load_many`, which answers the flights of its keys from a task of its own, known as a part of them.

        Asking for one of those keys from inside is then refused, as in any load, instead of waiting for
        itself. key_of: the key of a flight, where `load_many` knows it by another.
        """
        outer = _aboard.get()

        async def load_aboard(keys: list[_K]) -> _T:
            listed = keys if key_of is None else map(key_of, keys)
            tickets = [flight.ticket for key in listed if (flight := self._flights.get(key)) is not None]
            _aboard.set((*outer, *tickets))
            return await load_many(keys)

        return load_aboard

    def aboard(self) -> tuple[object, ...]:
        """The tickets of the loads that the caller is a part of."""
        return _aboard.get()

    def board(self, tickets: tuple[object, ...]) -> None:
        """Makes the current context a part of these loads."""
        _aboard.set(tickets)

    def is_here(self, flight: Flight[Any]) -> bool:
        """Whether `flight` runs in the loop that was last used: another loop may never run again."""
        return flight.loop is self._loop

    def forget(self, key: Hashable) -> None:
        """Unlists the load of `key`: who waits still gets its answer, who comes later starts a new one."""
        self.forgotten += 1
        self._flights.pop(key, None)

    def forget_tag(self, tag: str) -> None:
        """Unlists the loads that were started with `tag`."""
        self.forgotten += 1
        for key in [key for key, flight in self._flights.items() if tag in flight.tags]:
            del self._flights[key]

    def forget_all(self) -> None:
        """Unlists every load."""
        self.forgotten += 1
        self._flights.clear()

    async def close(self, timeout: float = 5.0) -> None:
        """Cancels this loop's loads and waits for them, at most `timeout` seconds.

        Their waiters get LoadCancelled. Later calls start new loads.
        """
        loop = asyncio.get_running_loop()
        self._flights.clear()
        me = asyncio.current_task()
        mine = [task for task in self._tasks if task.get_loop() is loop and task is not me]
        for task in mine:
            task.cancel()
        if mine:
            await asyncio.wait(mine, timeout=timeout)

    async def _fly(self, flight: Flight[_T], load: Callable[[], Awaitable[_T]]) -> None:
        try:
            awaitable = load()
            if not inspect.isawaitable(awaitable):
                raise TypeError(
                    f"cache load of {shown(flight.key)}: the loader returned {type(awaitable).__qualname__}, "
                    "which cannot be awaited; pass a coroutine function"
                )
            value = await (awaitable if flight.span is None else flight.span.around(awaitable))
        except Exception as error:
            self._count_out(flight)
            self._land(flight, error)
        else:
            self._count_out(flight)
            flight.value = value
            self._land(flight, None)
        finally:
            del flight  # the error's traceback holds this frame: with the flight in it, they would be a cycle

    def _land(self, flight: Flight[Any], error: BaseException | None) -> None:
        if flight.landed:
            return  # it was given up, and its callers have left with that answer
        flight.landed = True
        flight.error = error
        listed = self._flights.get(flight.key) is flight
        if listed:
            del self._flights[flight.key]
        on_landing, flight._on_landing = flight._on_landing, None
        try:
            if on_landing is not None:
                on_landing(flight, listed)
        finally:
            for waiter in flight._waiters:
                _wake(waiter)

    def _give_up(self, flight: Flight[Any]) -> None:
        self.land_too_late(flight)
        if flight.task is not None:
            flight.task.cancel()

    def land_too_late(self, flight: Flight[Any]) -> None:
        """Lands it with the error of a load that outlived `load_timeout`."""
        what = f"cache load of {shown(flight.key)} ran longer than load_timeout={self.load_timeout:g} s"
        self._land(flight, DeadlineExceeded(what))

    def account_for(self, flight: Flight[Any], task: asyncio.Task[None]) -> None:
        """Its task has ended: whoever still waits for it learns that it was cancelled."""
        self._count_out(flight)
        cause = None if task.cancelled() else task.exception()
        if not flight.landed:
            # Whatever is no Exception ends here, and so does a task that was cancelled before its first step.
            how = "was cancelled" if cause is None else f"raised {type(cause).__name__}"
            error = LoadCancelled(f"cache load of {shown(flight.key)} {how}; its callers may try again")
            error.__cause__ = cause
            self._land(flight, error)

    def _count_out(self, flight: Flight[Any]) -> None:
        if not flight.running or flight.loop is not self._loop:
            return
        flight.running = False
        left = self._running.pop(flight.key, 1) - 1
        if left:
            self._running[flight.key] = left

    def _move_to(self, loop: asyncio.AbstractEventLoop) -> None:
        self._flights.clear()
        self._running.clear()
        # A closed loop never runs its tasks again; those of a loop that is merely elsewhere keep their owner.
        self._tasks = {task for task in self._tasks if not task.get_loop().is_closed()}
        self._loop = loop
