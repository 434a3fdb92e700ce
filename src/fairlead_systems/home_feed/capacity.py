"""A downstream that can be overloaded: so many workers, a queue of bounded length, and refusal behind it.

Latency under load is not drawn from a table, it arises: each call takes a worker for its service time,
waits in the queue while none is free, and is refused when the queue is full. The service time itself is
simulated, a seeded log-normal with rare stalls; a worker sleeps through it. A call whose caller has gone
keeps its worker until it is done, as a database query does: this is why retries after a timeout make an
overload worse.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from dataclasses import dataclass

import msgspec

from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.telemetry import MetricRegistry

__all__ = ["Capacity", "Full", "KeyWindow", "ServiceTime", "Window"]


class Full(Exception):
    """Every worker is busy and the queue is full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceTime:
    """How long one call holds a worker, seconds."""

    median: float
    sigma: float
    """Standard deviation of the logarithm: 0.5 puts p99 at 3.2 times the median."""
    per_item: float = 0.0
    """Added for each item of the call beyond the first."""
    stall_chance: float = 0.0
    """Share of calls that stall."""
    stall: float = 0.0
    """Added to a call that stalls."""

    def draw(self, rng: random.Random, items: int = 1) -> float:
        seconds = self.median * math.exp(rng.gauss(0.0, self.sigma)) + self.per_item * (items - 1)
        return seconds + (self.stall if rng.random() < self.stall_chance else 0.0)


class KeyWindow(msgspec.Struct):
    """What one key cost the origin within a window."""

    calls: int = 0
    peak: int = 0
    """Most calls for this key in flight at once."""
    episodes: int = 0
    """Times the key went from idle to in flight: one per expiry, however many calls the expiry set off."""
    first_seconds: float = 0.0
    """Summed time from the beginning of an episode to its first answer, which fills a cache: the L of the
    herd law."""


class Window(msgspec.Struct):
    """Counters since they were last taken."""

    calls: int = 0
    items: int = 0
    refused: int = 0
    busy_seconds: float = 0.0
    """Worker-seconds of the calls that ended in the window."""
    queue_peak: int = 0
    workers: int = 0
    keys: dict[str, KeyWindow] = {}

    def add(self, other: Window) -> Window:
        """Both together, as of two parts of one service."""
        return Window(
            calls=self.calls + other.calls,
            items=self.items + other.items,
            refused=self.refused + other.refused,
            busy_seconds=self.busy_seconds + other.busy_seconds,
            queue_peak=max(self.queue_peak, other.queue_peak),
            workers=self.workers + other.workers,
            keys=self.keys | other.keys,
        )


class Capacity:
    """`workers` calls at a time, `queue` more waiting."""

    def __init__(
        self, *, workers: int, queue: int, service_time: ServiceTime, seed: int, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._workers = workers
        self._queue_limit = queue
        self._service_time = service_time
        self._rng = random.Random(seed)
        self._clock = clock
        self._busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._in_flight: dict[str, int] = {}
        self._unfilled: dict[str, float] = {}  # when the episode of a key began that has had no answer yet
        self._stalled_until = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._window = Window(workers=workers)

    def stall(self, seconds: float) -> None:
        """Every worker hangs until `seconds` from now; ends by itself, whoever asked for it may be gone by
        then.
        """
        self._stalled_until = self._clock.now() + seconds

    def export(self, registry: MetricRegistry, pool: str) -> None:
        """Shows how busy it is in `registry`, under the label `pool`."""
        for name, meaning, read in (
            ("service_busy_workers", "Workers that serve a call.", lambda: float(self._busy)),
            ("service_queue_length", "Calls that wait for a worker.", lambda: float(len(self._waiting))),
        ):
            registry.gauge(name, meaning, labels=("pool",)).labels(pool=pool).track(read)

    def take_window(self) -> Window:
        """The counters since the last call; keys still in flight carry over into the next window."""
        taken = self._window
        self._window = Window(workers=self._workers, queue_peak=len(self._waiting))
        for key, count in self._in_flight.items():
            self._window.keys[key] = KeyWindow(peak=count)
        return taken

    async def serve(self, key: str, items: int = 1) -> None:
        """Returns when the work is done. Raises Full at once when there is no room for it."""
        window = self._window
        window.calls += 1
        window.items += items
        if self._busy >= self._workers and len(self._waiting) >= self._queue_limit:
            window.refused += 1
            raise Full
        # Room is taken here, not in the task: calls that come within one turn of the loop must see each other.
        turn: asyncio.Future[None] | None = None
        if self._busy < self._workers:
            self._busy += 1
        else:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            window.queue_peak = max(window.queue_peak, len(self._waiting))
        in_flight = self._in_flight.get(key, 0) + 1
        self._in_flight[key] = in_flight
        seen = window.keys.setdefault(key, KeyWindow())
        seen.calls += 1
        seen.peak = max(seen.peak, in_flight)
        if in_flight == 1:
            seen.episodes += 1
            self._unfilled[key] = self._clock.now()
        task = asyncio.create_task(self._work(key, items, turn))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    async def _work(self, key: str, items: int, turn: asyncio.Future[None] | None) -> None:
        try:
            if turn is not None:
                await turn  # the worker that wakes us hands its place over, so _busy stays as it is
            began = self._clock.now()
            ends = began + self._service_time.draw(self._rng, items)
            while (now := self._clock.now()) < max(ends, self._stalled_until):
                if self._stalled_until > now:
                    ends += self._stalled_until - now
                    await self._clock.sleep(self._stalled_until - now)
                else:
                    await self._clock.sleep(ends - now)
            self._window.busy_seconds += self._clock.now() - began
            if self._waiting:
                self._waiting.popleft().set_result(None)
            else:
                self._busy -= 1
        finally:
            left = self._in_flight[key] - 1
            if left:
                self._in_flight[key] = left
            else:
                del self._in_flight[key]
            if key in self._unfilled:
                seen = self._window.keys.setdefault(key, KeyWindow())
                seen.first_seconds += self._clock.now() - self._unfilled.pop(key)
