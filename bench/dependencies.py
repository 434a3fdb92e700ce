"""What a policy does about a dependency in trouble: a retry storm, a slow dependency, one slow replica.

simulated: time, arrivals (Poisson) and service times (exponential), over three seeds, of which the median is shown;
the calls and their policies are real. The dependency is a queue before a few workers, and works off what its callers
have given up on, because a server does not learn of that. Nothing here depends on the speed of the machine.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from math import ceil

from bench.harness import Bar
from fairlead.calls import CircuitBreaker, ConcurrencyLimit, Hedge, Policy, Retry, RetryBudget
from fairlead.clock import ManualClock

__all__ = ["bars"]

_Call = Callable[[], Awaitable[object]]
_Figures = dict[str, dict[str, float]]

RATE = 160.0
"""Calls per second, all the time."""
WORKERS = 4
SERVICE = 0.02
"""Mean seconds; so the dependency can serve 200 calls a second."""
TROUBLE = (5.0, 7.0)
"""Seconds between which it is stalled, or slow."""


class Dependency:
    """`WORKERS` workers behind one queue."""

    def __init__(self, clock: ManualClock, rng: random.Random, *, stalls: bool, factor: float = 1.0) -> None:
        self.clock = clock
        self.rng = rng
        self.stalls = stalls
        self.factor = factor
        self.queue: deque[asyncio.Future[None]] = deque()
        self.busy = 0
        self.attempts: list[float] = []

    async def __call__(self) -> None:
        self.attempts.append(self.clock.now())
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.queue.append(answer)
        self._begin()
        await answer

    def _begin(self) -> None:
        while self.queue and self.busy < WORKERS:
            self.busy += 1
            answer = self.queue.popleft()
            now = self.clock.now()
            seconds = self.rng.expovariate(1 / SERVICE)
            if TROUBLE[0] <= now < TROUBLE[1]:
                seconds = TROUBLE[1] - now + seconds if self.stalls else seconds * self.factor
            self.clock.call_at(now + seconds, partial(self._end, answer))

    def _end(self, answer: asyncio.Future[None]) -> None:
        self.busy -= 1
        if not answer.done():
            answer.set_result(None)
        self._begin()


class Replicas:
    """As many as it takes, of which one in fifty answers is slow."""

    def __init__(self, clock: ManualClock, rng: random.Random) -> None:
        self.clock = clock
        self.rng = rng
        self.attempts: list[float] = []

    async def __call__(self) -> None:
        self.attempts.append(self.clock.now())
        slow = self.rng.random() < 0.02
        await self.clock.sleep(1.0 if slow else self.rng.uniform(0.5, 1.5) * SERVICE)


@dataclass
class Seen:
    """What the callers saw."""

    clock: ManualClock
    begun: list[float] = field(default_factory=list)
    waits: list[tuple[float, float, bool]] = field(default_factory=list)
    """When each call began, how long its caller waited, and whether there was an answer."""
    in_flight: int = 0
    peak: int = 0

    async def one(self, call: _Call) -> None:
        began = self.clock.now()
        self.begun.append(began)
        self.in_flight += 1
        if TROUBLE[0] <= began < TROUBLE[1] + 10.0:
            self.peak = max(self.peak, self.in_flight)
        answered = False
        try:
            with suppress(Exception):  # whatever it is, the caller has no answer
                await call()
                answered = True
        finally:
            self.in_flight -= 1
            self.waits.append((began, self.clock.now() - began, answered))

    def answered(self, start: float, end: float) -> float:
        """Share of the calls begun in the span that got an answer."""
        within = [answered for began, _, answered in self.waits if start <= began < end]
        return sum(within) / len(within)

    def quantile(self, q: float, start: float, end: float) -> float:
        """Seconds that callers waited, answer or not."""
        within = sorted(wait for began, wait, _ in self.waits if start <= began < end)
        return within[ceil(q * len(within)) - 1]

    def recovered(self, length: float) -> float:
        """Seconds after the trouble until 95 % of the calls are answered again, in five seconds running; the
        rest of the run if that never happens.
        """
        running = 0
        for second in range(int(TROUBLE[1]), int(length)):
            running = running + 1 if self.answered(second, second + 1) >= 0.95 else 0
            if running == 5:
                return second - 4 - TROUBLE[1]
        return length - TROUBLE[1]


_Make = Callable[[ManualClock, random.Random, Callable[[], Awaitable[None]]], _Call]
_Target = Callable[[ManualClock, random.Random], Dependency | Replicas]


def _play(target: _Target, make: _Make, *, rate: float, length: float, seed: int) -> tuple[Seen, list[float]]:
    async def run() -> tuple[Seen, list[float]]:
        clock = ManualClock()
        rng = random.Random(seed)
        arrivals = random.Random(seed + 1)
        dependency = target(clock, rng)
        seen = Seen(clock)
        call = make(clock, random.Random(seed + 2), dependency)
        tasks = set()
        at = arrivals.expovariate(rate)
        while at < length:
            await clock.run_for(at - clock.now())
            task = asyncio.create_task(seen.one(call))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            at += arrivals.expovariate(rate)
        await clock.run_for(30.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return seen, dependency.attempts

    return asyncio.run(run())


def _policy(
    *,
    timeout: float,
    attempt_timeout: float | None = None,
    attempts: int = 1,
    budget: bool = False,
    breaker: bool = False,
    limit: bool = False,
    hedge: bool = False,
) -> _Make:
    def make(clock: ManualClock, rng: random.Random, dependency: Callable[[], Awaitable[None]]) -> _Call:
        policy = Policy(
            name="dependency",
            timeout=timeout,
            attempt_timeout=attempt_timeout,
            idempotent=True,
            retry=Retry(
                on=TimeoutError,
                attempts=attempts,
                base=0.05 if budget else 0.0,
                cap=1.0 if budget else 0.0,
                budget=RetryBudget(ratio=0.1, clock=clock) if budget else None,
            ),
            breaker=CircuitBreaker("dependency", open_for=0.5, slow_call=0.15, clock=clock, rng=rng)
            if breaker
            else None,
            limit=ConcurrencyLimit("dependency", clock=clock) if limit else None,
            hedge=Hedge() if hedge else None,
            clock=clock,
            rng=rng,
        )
        return lambda: policy.call(dependency)

    return make


def _amplification(seen: Seen, attempts: list[float]) -> tuple[float, float]:
    """Attempts per call from the start of the trouble to ten seconds after it, and the most a budget allows.

    The calls of the window before have earned too, so over a span as short as this the most is above 1 + ratio.
    """
    budget = RetryBudget(ratio=0.1)
    start, end = TROUBLE[0], TROUBLE[1] + 10.0
    calls = sum(start <= at < end for at in seen.begun)
    earned = sum(start - budget.window <= at < end for at in seen.begun)
    most = 1.0 + (budget.ratio * earned + budget.floor_per_second * (end - start + budget.window)) / calls
    return sum(start <= at < end for at in attempts) / calls, most


def _over(seeds: Sequence[int], play: Callable[[int], tuple[_Figures, int]]) -> tuple[_Figures, int]:
    """The median of each figure over the seeds, and the calls of all of them."""
    played = [play(seed) for seed in seeds]
    first = played[0][0]
    middle = {
        arm: {name: statistics.median(figures[arm][name] for figures, _ in played) for name in first[arm]}
        for arm in first
    }
    return middle, sum(n for _, n in played)


def _storm(length: float, seed: int) -> tuple[_Figures, int]:
    arms = {
        "one attempt": _policy(timeout=1.0, attempt_timeout=0.2),
        "three attempts": _policy(timeout=1.0, attempt_timeout=0.2, attempts=3),
        "three, on a budget": _policy(timeout=1.0, attempt_timeout=0.2, attempts=3, budget=True),
        "budget, breaker, limit": _policy(
            timeout=1.0, attempt_timeout=0.2, attempts=3, budget=True, breaker=True, limit=True
        ),
    }
    figures = {}
    n = 0
    for name, make in arms.items():
        seen, attempts = _play(
            lambda clock, rng: Dependency(clock, rng, stalls=True), make, rate=RATE, length=length, seed=seed
        )
        n = len(seen.begun)
        amplification, most = _amplification(seen, attempts)
        figures[name] = {
            "attempts_per_call": amplification,
            "most_on_a_budget": most,
            "answered_10_s_after": seen.answered(TROUBLE[1], TROUBLE[1] + 10.0),
            "recovered_seconds": seen.recovered(length),
        }
    return figures, n


def _slow(length: float, seed: int) -> tuple[_Figures, int]:
    arms = {
        "timeout of 5 s": _policy(timeout=5.0),
        "deadline of 0.3 s": _policy(timeout=0.3),
        "deadline, breaker": _policy(timeout=0.3, breaker=True),
        "deadline, limit": _policy(timeout=0.3, limit=True),
        "deadline, limit, breaker": _policy(timeout=0.3, limit=True, breaker=True),
    }
    figures = {}
    n = 0
    for name, make in arms.items():
        seen, _ = _play(
            lambda clock, rng: Dependency(clock, rng, stalls=False, factor=20.0),
            make,
            rate=RATE,
            length=length,
            seed=seed,
        )
        n = len(seen.begun)
        figures[name] = {
            "peak_in_flight": float(seen.peak),
            "p99_seconds": seen.quantile(0.99, TROUBLE[0], TROUBLE[1] + 10.0),
            "answered_10_s_after": seen.answered(TROUBLE[1], TROUBLE[1] + 10.0),
            "recovered_seconds": seen.recovered(length),
        }
    return figures, n


def _tail(length: float, seed: int) -> tuple[_Figures, int]:
    figures = {}
    n = 0
    for name, hedge in (("without", False), ("with a hedge", True)):
        seen, attempts = _play(
            Replicas, _policy(timeout=2.0, hedge=hedge), rate=RATE, length=length, seed=seed
        )
        n = len(seen.begun)
        figures[name] = {
            "p50_seconds": seen.quantile(0.5, 5.0, length),
            "p99_seconds": seen.quantile(0.99, 5.0, length),
            "p999_seconds": seen.quantile(0.999, 5.0, length),
            "attempts_per_call": len(attempts) / n,
        }
    return figures, n


def _flat(figures: _Figures) -> dict[str, float]:
    return {f"{arm}: {name}": value for arm, values in figures.items() for name, value in values.items()}


def _row(figures: _Figures, name: str) -> str:
    return " · ".join(f"{arm} {values[name]:.3g}" for arm, values in figures.items())


def bars(quick: bool) -> list[Bar]:
    length = 25.0 if quick else 40.0
    seeds = (7,) if quick else (7, 8, 9)
    storm, storm_n = _over(seeds, partial(_storm, length))
    slow, slow_n = _over(seeds, partial(_slow, length))
    tail, tail_n = _over(seeds, partial(_tail, length))
    whole = storm["budget, breaker, limit"]
    return [
        Bar(
            what="retry storm: attempts per call, on a budget of 10 %",
            value=storm["three, on a budget"]["attempts_per_call"],
            limit=storm["three, on a budget"]["most_on_a_budget"],
            unit="×",
            n=storm_n,
            note="attempts per call: " + _row(storm, "attempts_per_call"),
            figures=_flat(storm),
        ),
        Bar(
            what="retry storm: seconds from the end of a stall of 2 s to 95 % answered, whole policy",
            value=whole["recovered_seconds"],
            limit=2.0,
            unit="s",
            n=storm_n,
            note="seconds: " + _row(storm, "recovered_seconds"),
        ),
        Bar(
            what="retry storm: calls answered in the 10 s after the stall, whole policy",
            value=whole["answered_10_s_after"],
            limit=0.9,
            at_most=False,
            n=storm_n,
            note="share: " + _row(storm, "answered_10_s_after"),
        ),
        Bar(
            what="slow dependency: calls in flight at the peak, timeout of 5 s beside deadline, limit and breaker",
            value=slow["timeout of 5 s"]["peak_in_flight"]
            / slow["deadline, limit, breaker"]["peak_in_flight"],
            limit=10.0,
            at_most=False,
            unit="×",
            n=slow_n,
            note="in flight: " + _row(slow, "peak_in_flight"),
            figures=_flat(slow),
        ),
        Bar(
            what="slow dependency: p99 that a caller waits, trouble and 10 s after, with all three",
            value=slow["deadline, limit, breaker"]["p99_seconds"],
            limit=0.3,
            unit="s",
            n=slow_n,
            note="seconds: " + _row(slow, "p99_seconds"),
        ),
        Bar(
            what="slow dependency: calls answered in the 10 s after, with all three",
            value=slow["deadline, limit, breaker"]["answered_10_s_after"],
            limit=0.9,
            at_most=False,
            n=slow_n,
            note="share: " + _row(slow, "answered_10_s_after"),
        ),
        Bar(
            what="slow replica, 2 % of answers take 1 s: p99 with a hedge",
            value=tail["with a hedge"]["p99_seconds"],
            limit=0.1,
            unit="s",
            n=tail_n,
            note="p99, seconds: "
            + _row(tail, "p99_seconds")
            + "; attempts per call: "
            + _row(tail, "attempts_per_call"),
            figures=_flat(tail),
        ),
    ]
