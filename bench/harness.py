"""Interleaved timing and the table of bars.

A number alone says more about the machine than about the code, so every figure here is one arm beside another in the
same run. Arms take turns in rounds, in an order reshuffled each round, so that a slow minute of the machine slows all
of them. The ratio is the median of the per-round ratios; its spread is their interquartile range.
"""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = [
    "Arm",
    "Bar",
    "Timing",
    "interleave",
    "interleave_async",
    "interleave_here",
    "processor_time",
    "ratio",
]

Arm = Callable[[int], object]
"""Runs its operation `n` times; an async arm returns an awaitable."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Seconds per operation of one arm, one figure per round."""

    name: str
    rounds: tuple[float, ...]
    per_round: int

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile, seconds."""
        return _quartiles(self.rounds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One line of the table: what was measured against what limit, and whether it holds."""

    what: str
    """What is measured, with its unit, as a reader would say it."""
    value: float
    limit: float
    at_most: bool = True
    """True: met when value <= limit; False: met when value >= limit."""
    unit: str = ""
    n: int = 1
    """Rounds, or requests, behind the value."""
    spread: tuple[float, float] | None = None
    """Interquartile range of the value over rounds, in its unit."""
    note: str = ""
    """Why a missed bar is missed, or what the figure leaves out."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """The raw figures behind the value, by name with unit."""

    @property
    def met(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit


def interleave(arms: Mapping[str, Arm], *, n: int, rounds: int = 15, seed: int = 1) -> dict[str, Timing]:
    """Seconds per operation of each synchronous arm over `rounds` rounds of `n` operations, after one warm-up round."""
    turns = _Turns(arms, n=n, rounds=rounds, seed=seed)
    for name in turns:
        with turns.timed(name):
            arms[name](n)
    return turns.timings()


def interleave_async(
    arms: Mapping[str, Callable[[int], Awaitable[object]]], *, n: int, rounds: int = 15, seed: int = 1
) -> dict[str, Timing]:
    """As `interleave`, for arms that are coroutine functions, all in one event loop."""
    return asyncio.run(interleave_here(arms, n=n, rounds=rounds, seed=seed))


async def interleave_here(
    arms: Mapping[str, Callable[[int], Awaitable[object]]], *, n: int, rounds: int = 15, seed: int = 1
) -> dict[str, Timing]:
    """As `interleave_async`, in the running loop, where the arms' connections are."""
    turns = _Turns(arms, n=n, rounds=rounds, seed=seed)
    for name in turns:
        with turns.timed(name):
            await arms[name](n)
    return turns.timings()


def _wall() -> float:
    return time.perf_counter()


_timer: Callable[[], float] = _wall


@contextmanager
def processor_time() -> Iterator[None]:
    """Times arms by the processor time of this thread, for arms that never wait.

    On a machine that is busy with something else the wall clock also counts what the scheduler gives to others, and
    that is more of a slow arm than of a fast one: ratios come out up to four times as large.
    """
    global _timer  # noqa: PLW0603 - one process measures one thing at a time
    before, _timer = _timer, time.thread_time
    try:
        yield
    finally:
        _timer = before


class _Turns:
    """The names of the arms in the order of their turns, and what each turn took."""

    def __init__(self, names: Iterable[str], *, n: int, rounds: int, seed: int) -> None:
        if n < 1 or rounds < 1:
            raise ValueError(f"n={n}, rounds={rounds}: both must be at least 1")
        self._names = list(names)
        self._n = n
        self._rounds = rounds
        self._rng = random.Random(seed)
        self._taken: dict[str, list[float]] = {name: [] for name in self._names}

    def __iter__(self) -> Iterator[str]:
        for _ in range(1 + self._rounds):
            yield from self._rng.sample(self._names, len(self._names))

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Times the block, with the collector at rest."""
        collecting = gc.isenabled()
        gc.collect()
        gc.disable()
        try:
            start = _timer()
            yield
            self._taken[name].append((_timer() - start) / self._n)
        finally:
            if collecting:
                gc.enable()

    def timings(self) -> dict[str, Timing]:
        return {
            name: Timing(name=name, rounds=tuple(warm), per_round=self._n)
            for name, (_warm_up, *warm) in self._taken.items()
        }


def ratio(slow: Timing, fast: Timing) -> tuple[float, tuple[float, float]]:
    """How many times `slow` takes what `fast` takes: median of the per-round ratios and their interquartile range."""
    each = [a / b for a, b in zip(slow.rounds, fast.rounds, strict=True)]
    return statistics.median(each), _quartiles(each)


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    # The exclusive method puts the quartiles of two rounds outside both, below zero if they lie far apart.
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
