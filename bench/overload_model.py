"""A service whose dependency is the bottleneck, on virtual time: what a limit does over many minutes of overload.

The dependency has some workers and one queue, first in, first out. It does not learn that a caller has left, so
it works for those too; that is what makes overload last. Arrivals are Poisson, service times log-normal.

simulated: the dependency, its callers, time itself. Real: LoadShedder, ConcurrencyLimit and its rules.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from dataclasses import dataclass

from fairlead.admission import LoadShedder
from fairlead.calls import ConcurrencyLimit
from fairlead.clock import ManualClock
from fairlead.context import Priority
from fairlead.deadline import Deadline
from fairlead.errors import DeadlineExceeded, Overloaded

__all__ = ["FAST", "SLOW", "Outcomes", "Shape", "overload"]

SIGMA = 0.5
MIX = {Priority.BACKGROUND: 0.3, Priority.NORMAL: 0.5, Priority.CRITICAL: 0.2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A dependency, and how long callers wait for it."""

    workers: int
    service_time: float
    """Mean seconds of one call."""
    patience: float
    """Seconds that a caller waits."""

    @property
    def capacity(self) -> float:
        """Calls per second."""
        return self.workers / self.service_time


FAST = Shape(workers=8, service_time=0.05, patience=0.5)
SLOW = Shape(workers=16, service_time=1.0, patience=5.0)
"""A place comes free every 62 ms, ten times as seldom."""


@dataclass(kw_only=True, slots=True)
class Outcomes:
    """Counts by priority, indexed by it."""

    offered: list[int]
    in_time: list[int]
    latencies: list[float]
    """Seconds, of those in time."""
    limit: int = 0

    @property
    def total_in_time(self) -> int:
        return sum(self.in_time)


class _Dependency:
    def __init__(self, shape: Shape, clock: ManualClock, rng: random.Random) -> None:
        self._shape = shape
        self._clock = clock
        self._rng = rng
        self._busy = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    def call(self) -> asyncio.Future[None]:
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._busy < self._shape.workers:
            self._begin(answer)
        else:
            self._queue.append(answer)
        return answer

    def _begin(self, answer: asyncio.Future[None]) -> None:
        self._busy += 1
        seconds = self._rng.lognormvariate(math.log(self._shape.service_time) - SIGMA * SIGMA / 2, SIGMA)
        self._clock.call_at(self._clock.now() + seconds, lambda: self._end(answer))

    def _end(self, answer: asyncio.Future[None]) -> None:
        self._busy -= 1
        if not answer.done():
            answer.set_result(None)
        if self._queue:
            self._begin(self._queue.popleft())


async def overload(
    limit: ConcurrencyLimit | None,
    clock: ManualClock,
    *,
    times: float,
    seconds: float,
    deadlines: bool,
    seed: int,
    shape: Shape = FAST,
) -> Outcomes:
    """What becomes of `times` the capacity over `seconds`; limit None: without admission.

    deadlines: callers say their patience, and the service gives a request up when it has passed.
    """
    rng = random.Random(seed)
    dependency = _Dependency(shape, clock, random.Random(seed + 1))
    shedder = LoadShedder("model", limit=limit, clock=clock, rng=random.Random(seed + 2)) if limit else None
    outcomes = Outcomes(offered=[0, 0, 0], in_time=[0, 0, 0], latencies=[])
    tasks: set[asyncio.Task[None]] = set()

    async def work(deadline: Deadline) -> None:
        answer = dependency.call()
        if deadline.at == math.inf:
            await answer
            return
        timer = clock.call_at(deadline.at, lambda: _give_up(answer))
        try:
            await answer
        finally:
            timer.cancel()

    async def request(priority: Priority) -> None:
        began = clock.now()
        deadline = Deadline.after(shape.patience, clock) if deadlines else Deadline.never(clock)
        try:
            if shedder is None:
                await work(deadline)
            else:
                async with shedder.admit(priority, deadline):
                    await work(deadline)
        except (Overloaded, DeadlineExceeded, TimeoutError):
            return
        latency = clock.now() - began
        if latency <= shape.patience:
            outcomes.in_time[priority] += 1
            outcomes.latencies.append(latency)

    def arrive() -> None:
        priority = rng.choices(list(MIX), list(MIX.values()))[0]
        outcomes.offered[priority] += 1
        task = asyncio.create_task(request(priority))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        following = clock.now() + rng.expovariate(times * shape.capacity)
        if following < end:
            clock.call_at(following, arrive)

    end = clock.now() + seconds
    clock.call_at(clock.now(), arrive)
    await clock.run_for(seconds)
    outcomes.limit = limit.limit if limit else 0
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return outcomes


def _give_up(answer: asyncio.Future[None]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())
