"""How many calls may be in flight at a dependency at once, found out rather than guessed.

A dependency that is offered more than it can serve serves less (Welsh and Culler, "Adaptive Overload
Control for Busy Internet Servers", 2003). By Little's law the calls in flight are its rate times its
latency, so bounding them bounds its queue. The limit moves by one of the rules in `limit_algorithm`; a
call above it is refused at once, which costs the caller nothing and leaves it time for something else.

Invariant: a call is counted from its start to its end, whatever its end, so in_flight never exceeds the
limit that held when the last call began. A cancelled call moves nothing but the count. A call that never
suspended did not wait for the dependency and is no measurement. Permits that calls of a policy hold in a loop that
was closed are taken back when the limit is first found full in another loop; those of `permit()` when the abandoned
task is collected.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING
from weakref import ReferenceType, WeakSet, ref

from fairlead.calls.bounds import check_number, check_whole
from fairlead.calls.limit_algorithm import Aimd, LimitAlgorithm
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import InvalidInput, Overloaded, Refused
from fairlead.telemetry.metrics import MetricRegistry

if TYPE_CHECKING:
    from fairlead.calls.expiry import Expiries

__all__ = ["ConcurrencyLimit", "LimitPermit", "is_drop"]


class ConcurrencyLimit:
    """Bounds the calls in flight. One per dependency and process; not thread-safe.

    name: of the dependency, in errors.
    algorithm: Aimd() or Gradient().
    initial, minimum, maximum: calls in flight. The minimum must be able to carry a probe of the breaker.
    max_wait: seconds a call may queue for a permit. 0: none; a full limit refuses at once. The queue is
        first in, first out, and never longer than the limit.
    """

    def __init__(
        self,
        name: str,
        *,
        algorithm: LimitAlgorithm | None = None,
        initial: int = 20,
        minimum: int = 4,
        maximum: int = 1000,
        max_wait: float = 0.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        check_whole("ConcurrencyLimit.minimum", minimum, low=1, high=1_000_000)
        check_whole("ConcurrencyLimit.maximum", maximum, low=minimum, high=1_000_000)
        check_whole("ConcurrencyLimit.initial", initial, low=minimum, high=maximum)
        check_number("ConcurrencyLimit.max_wait", max_wait, low=0.0, high=86_400.0)
        self.name = name
        self.clock = clock
        self.max_wait = max_wait
        self._minimum = minimum
        self._maximum = maximum
        self._rule = (algorithm or Aimd()).begin()
        self._estimate = float(initial)
        self.waiters: deque[asyncio.Future[bool]] = deque()
        self.holders: WeakSet[Expiries] = WeakSet()
        """Where the calls in flight of each policy with this limit are known."""
        self._sole_user: ReferenceType[object] | None = None
        self.refused = 0
        """Calls refused since the start."""
        self._loop: asyncio.AbstractEventLoop | None = None
        # Policy reads and writes these on its hot path.
        self.limit = initial
        """Calls that may be in flight now."""
        self.in_flight = 0
        """Calls that are in flight."""

    @property
    def waiting(self) -> int:
        """Calls that queue for a permit; 0 unless max_wait is set."""
        return len(self.waiters)

    def export(self, registry: MetricRegistry) -> None:
        """Shows itself in `registry`, for use without a Policy."""
        refused = registry.counter("fairlead_limit_refused_total", "Calls refused.", labels=("limit",))
        refused.labels(limit=self.name).track(lambda: self.refused)
        gauges: tuple[tuple[str, str, Callable[[], float]], ...] = (
            ("fairlead_limit_allowed", "Calls that may be in flight.", lambda: self.limit),
            ("fairlead_limit_in_flight", "Calls in flight.", lambda: self.in_flight),
            ("fairlead_limit_waiting", "Calls in the queue.", lambda: self.waiting),
        )
        for name, meaning, read in gauges:
            registry.gauge(name, meaning, labels=("limit",)).labels(limit=self.name).track(read)

    def share(self, holder: Expiries) -> None:
        """Lets a policy take places, which any number of policies may."""
        self._check_free("a Policy")
        self.holders.add(holder)

    def reserve(self, user: object, who: str) -> None:
        """Gives the limit to one user, as long as that lives, who hands its places out from a queue of its own.

        A place that anyone else gave back would not reach that queue: requests would wait while places are free.
        """
        self._check_free(who)
        if self.holders:
            raise InvalidInput(f"{self.name}: a Policy uses this limit already; give {who} one of its own")
        self._sole_user = ref(user)

    def _check_free(self, who: str) -> None:
        if self._sole_user is not None and self._sole_user() is not None:
            raise InvalidInput(
                f"{self.name}: a LoadShedder uses this limit already; give {who} one of its own"
            )

    def permit(self) -> LimitPermit:
        """For use without a Policy: `async with limit.permit(): await call()`; raises Overloaded on entry.

        A TimeoutError or a Refused from the block counts as a drop, a success is measured, anything else
        is neither.
        """
        self._check_free("permit()")
        return LimitPermit(self)

    async def wait_for_permit(self, now: float, until: float = inf) -> None:
        """Takes a permit, queueing for it at most `max_wait` and not beyond the moment `until`.

        Raises Overloaded when none is free in time, or the queue is full. Cancellation leaves no permit
        taken.
        """
        if self.in_flight < self.limit and not self.waiters:
            self.in_flight += 1
            return
        if (loop := asyncio.get_running_loop()) is not self._loop:
            self._loop = loop
            self._leave_closed_loops()
            if self.in_flight < self.limit and not self.waiters:
                self.in_flight += 1
                return
        if self.max_wait == 0.0 or len(self.waiters) >= self.limit:
            raise self._overloaded(0.0)
        granted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.waiters.append(granted)
        timer = self.clock.call_at(min(now + self.max_wait, until), partial(_refuse, granted))
        try:
            taken = await granted
        except BaseException:
            if granted.done() and not granted.cancelled() and granted.result():
                self.in_flight -= 1  # granted and cancelled in one turn of the loop
            self._leave_queue(granted)
            raise
        finally:
            timer.cancel()
        if not taken:
            self._leave_queue(granted)
            raise self._overloaded(self.clock.now() - now)

    def give_back(self) -> None:
        """Ends a call and lets those who wait for its place go on."""
        self.in_flight -= 1
        if self.waiters:
            self.wake()

    def _leave_closed_loops(self) -> None:
        self.waiters = deque(each for each in self.waiters if not each.get_loop().is_closed())
        for holder in list(self.holders):
            holder.abandon()

    def _leave_queue(self, granted: asyncio.Future[bool]) -> None:
        if granted in self.waiters:
            self.waiters.remove(granted)
        self.wake()

    def wake(self) -> None:
        """Hands free places to those who wait longest."""
        while self.waiters and self.in_flight < self.limit:
            granted = self.waiters.popleft()
            if not granted.done() and not granted.get_loop().is_closed():
                self.in_flight += 1
                granted.set_result(True)

    def succeeded(self, began: float, in_flight: int, now: float) -> None:
        """Measures a call that began at `began` as the `in_flight`-th."""
        estimate = self._rule.succeeded(self._estimate, now - began, in_flight, now)
        if estimate != self._estimate:
            self._move(estimate)

    def dropped(self, began: float, now: float) -> None:
        """Notes that a call timed out, or was refused by the dependency."""
        self._move(self._rule.dropped(self._estimate, began, now))

    def _move(self, estimate: float) -> None:
        self._estimate = min(max(estimate, float(self._minimum)), float(self._maximum))
        self.limit = int(self._estimate)

    def _overloaded(self, waited: float) -> Overloaded:
        self.refused += 1
        after = f" after {waited:.3f} s in the queue" if waited else ""
        return Overloaded(
            f"{self.name}: {self.in_flight} of {self.limit} calls are in flight; refused{after}"
        )


def _refuse(granted: asyncio.Future[bool]) -> None:
    if not granted.done():
        granted.set_result(False)


class LimitPermit:
    """One call's place under a limit, as an async context manager; the block's exception is its outcome.

    One block at a time, so that each call is measured from its own beginning.
    """

    __slots__ = ("_began", "_entered", "_found", "_limit")

    def __init__(self, limit: ConcurrencyLimit) -> None:
        self._limit = limit
        self._entered = False

    async def __aenter__(self) -> LimitPermit:
        limit = self._limit
        if self._entered:
            raise InvalidInput(f"{limit.name}: a permit is for one block at a time; call permit() for each")
        self._entered = True
        try:
            await limit.wait_for_permit(limit.clock.now())
        except BaseException:
            self._entered = False
            raise
        self._began = limit.clock.now()
        self._found = limit.in_flight
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        limit = self._limit
        self._entered = False
        if error is None:
            limit.succeeded(self._began, self._found, limit.clock.now())
        elif is_drop(error):
            limit.dropped(self._began, limit.clock.now())
        limit.give_back()


def is_drop(error: BaseException | None) -> bool:
    """Whether a failure says that the dependency had no room or no time: what makes a limit smaller.

    A timeout, a refusal, or what a transport marked as `overloaded` (a 503, RESOURCE_EXHAUSTED).
    """
    return isinstance(error, TimeoutError | Refused) or getattr(error, "overloaded", False) is True
