"""Interleaved timing and the table of bars.

A number alone says more about the machine than about the code, so every figure here is one arm beside another in the same
run. Arms take turns in rounds, in an order reshuffled each round, so that a slow minute of the machine slows all of them.
The ratio is the median of the per-round ratios; its spread is their interquartile range.
"""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["Arm", "Bar", "Timing", "interleave", "interleave_async", "ratio"]

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
        if len(self.rounds) < 2:
            return self.rounds[0], self.rounds[0]
        low, _, high = statistics.quantiles(self.rounds, n=4)
        return low, high


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


def _shuffled(names: list[str], rng: random.Random) -> list[str]:
    order = names[:]
    rng.shuffle(order)
    return order


def interleave(arms: Mapping[str, Arm], *, n: int, rounds: int = 15, seed: int = 1) -> dict[str, Timing]:
    """Seconds per operation of each synchronous arm over `rounds` rounds of `n` operations, after one warm-up round."""
    rng = random.Random(seed)
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(-1, rounds):
        for name in _shuffled(list(arms), rng):
            gc.collect()
            gc.disable()
            try:
                start = time.perf_counter()
                arms[name](n)
                elapsed = time.perf_counter() - start
            finally:
                gc.enable()
            if number >= 0:
                taken[name].append(elapsed / n)
    return {name: Timing(name=name, rounds=tuple(values), per_round=n) for name, values in taken.items()}


def interleave_async(
    arms: Mapping[str, Callable[[int], Awaitable[object]]], *, n: int, rounds: int = 15, seed: int = 1
) -> dict[str, Timing]:
    """As `interleave`, for arms that are coroutine functions, all in one event loop."""

    async def run() -> dict[str, Timing]:
        rng = random.Random(seed)
        taken: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(-1, rounds):
            for name in _shuffled(list(arms), rng):
                gc.collect()
                gc.disable()
                try:
                    start = time.perf_counter()
                    await arms[name](n)
                    elapsed = time.perf_counter() - start
                finally:
                    gc.enable()
                if number >= 0:
                    taken[name].append(elapsed / n)
        return {name: Timing(name=name, rounds=tuple(values), per_round=n) for name, values in taken.items()}

    return asyncio.run(run())


def ratio(slow: Timing, fast: Timing) -> tuple[float, tuple[float, float]]:
    """How many times `slow` takes what `fast` takes: median of the per-round ratios and their interquartile range."""
    each = [a / b for a, b in zip(slow.rounds, fast.rounds, strict=True)]
    if len(each) < 2:
        return each[0], (each[0], each[0])
    low, middle, high = statistics.quantiles(each, n=4)
    return middle, (low, high)
