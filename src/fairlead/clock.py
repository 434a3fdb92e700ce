"""Time as an argument.

Code that reads the clock by itself can only be tested by waiting. Everything in Fairlead that measures a span, sleeps
or sets a timer takes a `Clock`; production passes `SystemClock`, tests pass a `ManualClock` and move it by hand.

Two times, never mixed: `now()` is monotonic seconds, for spans and deadlines, and means nothing outside this machine;
`utc()` is seconds since the Unix epoch, for stamps that leave the process, and may jump when the wall clock is set.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Protocol

from fairlead.errors import InvalidInput

__all__ = ["SYSTEM_CLOCK", "Clock", "ManualClock", "SystemClock", "Timer", "settle"]


class Timer(Protocol):
    """A pending callback; `cancel()` is safe to call more than once and after it ran."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """The four things that time is asked for.

    Loops count in milliseconds: uvloop ends a sleep, or runs a timer, up to 2 ms before its moment. Whoever must not be
    early asks `now()` again.
    """

    def now(self) -> float:
        """Monotonic seconds; the zero point is arbitrary. On Linux all processes of one machine share it."""
        ...

    def utc(self) -> float:
        """Seconds since the Unix epoch, UTC."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Returns after `seconds`; zero or less still yields to other tasks once."""
        ...

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Runs `callback` in the running loop's thread once `now()` has reached `when`."""
        ...


@dataclass(frozen=True, slots=True)
class SystemClock:
    """The machine's clock; all are equal. `call_at` and `sleep` need a running asyncio loop, `now` and `utc` do not."""

    now = staticmethod(time.monotonic)
    utc = staticmethod(time.time)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        # Not loop.call_at: uvloop's clock counts whole milliseconds from its own last poll.
        return asyncio.get_running_loop().call_later(max(0.0, when - time.monotonic()), callback)


SYSTEM_CLOCK = SystemClock()


class _ManualTimer:
    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class ManualClock:
    """A clock that stands still until it is moved.

    `advance` runs every timer that falls due, in order of time and then of creation, with `now()` reading the timer's
    own moment while it runs. Sleepers are woken the same way, and continue when the test next awaits; `run_for` does
    both, so that a sleeper that sleeps again within the span wakes again.

    A callback may advance the clock itself, as one that blocks would. A callback that raises stops no other: once time
    has arrived, `advance` and `run_for` raise what it raised, or an ExceptionGroup if there were several.

    >>> clock = ManualClock()
    >>> fired = []
    >>> _ = clock.call_at(2.0, lambda: fired.append(clock.now()))
    >>> clock.advance(5.0); fired, clock.now()
    ([2.0], 5.0)
    """

    def __init__(self, now: float = 0.0, utc: float = 1_750_000_000.0) -> None:
        self._now = now
        self._utc = utc
        self._utc_set_at = now
        self._order = itertools.count()
        self._timers: list[tuple[float, int, _ManualTimer]] = []

    def now(self) -> float:
        return self._now

    def utc(self) -> float:
        return self._utc + (self._now - self._utc_set_at)

    def set_utc(self, utc: float) -> None:
        """Moves the wall clock, as an operator or NTP would; monotonic time stays."""
        self._utc = utc
        self._utc_set_at = self._now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():  # the sleeper was cancelled
                woken.set_result(None)

        self.call_at(self._now + seconds, wake)
        await woken

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        if when != when:
            raise InvalidInput("a timer at NaN would leave the order of all others undefined: pass a moment")
        timer = _ManualTimer(callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Moves time forward by `seconds` (finite, >= 0) and runs what falls due."""
        end = self._after(seconds)
        failures: list[Exception] = []
        while self._fire_next(end, failures):
            pass
        self._now = max(self._now, end)
        _raise(failures)

    async def run_for(self, seconds: float) -> None:
        """Moves time forward and lets the tasks that wake up run, as many times as they fall due."""
        end = self._after(seconds)
        failures: list[Exception] = []
        await settle()
        while self._fire_next(end, failures):
            await settle()
        self._now = max(self._now, end)
        await settle()
        _raise(failures)

    def _after(self, seconds: float) -> float:
        if not 0 <= seconds < inf:
            raise InvalidInput(f"monotonic time moves forward only, by finite spans: got {seconds} seconds")
        return self._now + seconds

    def _fire_next(self, end: float, failures: list[Exception]) -> bool:
        # A callback, or a task it woke, may have advanced past `end`.
        if not self._timers or self._timers[0][0] > max(end, self._now):
            return False
        when, _, timer = heapq.heappop(self._timers)
        self._now = max(self._now, when)
        callback, timer.callback = timer.callback, None
        if callback is not None:
            try:
                callback()
            except Exception as error:  # raised once time has arrived
                failures.append(error)
        return True


def _raise(failures: list[Exception]) -> None:
    if len(failures) > 1:
        raise ExceptionGroup(f"{len(failures)} callbacks raised", failures)
    if failures:
        raise failures[0]


async def settle(turns: int = 20) -> None:
    """Yields to the loop `turns` times, enough for woken tasks to reach their next wait."""
    for _ in range(turns):
        await asyncio.sleep(0)
