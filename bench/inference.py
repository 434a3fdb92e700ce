"""What ranking one page costs, and what it costs the others when it runs on the event loop."""

from __future__ import annotations

import asyncio
import random
import statistics
import threading
import time
from collections.abc import Awaitable, Callable

from bench.harness import Bar, interleave, interleave_async, ratio
from fairlead.inference import HeuristicScorer, Placement, Rows, Scheduler, SchedulerSettings
from fairlead.inference.onnx import OnnxScorer
from fairlead.inference.scorer import Scorer
from fairlead_systems.home_feed.model import DIRECTORY, HEURISTIC_WEIGHTS, SCHEMA

__all__ = ["bars"]

_CANDIDATES = 24
_CALLERS = 8
_RATE = 800.0
"""Pages a second over all callers."""


def bars(quick: bool) -> list[Bar]:
    """Cost of each scorer, gain of merging calls, and delay of the event loop while pages are ranked."""
    scorers = {
        precision: OnnxScorer.load(DIRECTORY, precision, schema=SCHEMA) for precision in ("fp32", "int8")
    }
    heuristic = HeuristicScorer(SCHEMA, HEURISTIC_WEIGHTS)
    golden = scorers["fp32"].manifest.golden.rows
    rows = (golden * 2)[:_CANDIDATES]
    return [
        *_costs({**scorers, "heuristic": heuristic}, rows, quick),
        _batching(scorers["int8"], rows, quick),
        _hop(heuristic, rows, quick),
        *(_loop_delay(precision, scorer, heuristic, rows, quick) for precision, scorer in scorers.items()),
    ]


def _costs(scorers: dict[str, Scorer], rows: Rows, quick: bool) -> list[Bar]:
    def arm(scorer: Scorer) -> Callable[[int], object]:
        return lambda n: [scorer.score(rows) for _ in range(n)]

    n, rounds = (50, 7) if quick else (300, 15)
    arms = {name: arm(scorer) for name, scorer in scorers.items()}
    timings = interleave(arms, n=n, rounds=rounds)
    figures = {f"{name}_us": timing.median * 1e6 for name, timing in timings.items()}
    quantised, quantised_spread = ratio(timings["int8"], timings["fp32"])
    by_hand, by_hand_spread = ratio(timings["heuristic"], timings["int8"])
    return [
        Bar(
            what="int8 model, 24 candidates, cost against fp32",
            value=quantised,
            limit=1.0,
            unit="×",
            n=rounds,
            spread=quantised_spread,
            figures=figures,
        ),
        Bar(
            what="heuristic, 24 candidates, cost against the int8 model",
            value=by_hand,
            limit=1.0,
            unit="×",
            n=rounds,
            spread=by_hand_spread,
            figures=figures,
        ),
    ]


def _batching(scorer: Scorer, rows: Rows, quick: bool) -> Bar:
    """Why concurrent calls are not merged: four pages in one run cost what four runs cost."""
    four = [row for _ in range(4) for row in rows]
    n, rounds = (20, 7) if quick else (100, 15)
    timings = interleave(
        {
            "one_by_one": lambda n: [scorer.score(rows) for _ in range(4 * n)],
            "merged": lambda n: [scorer.score(four) for _ in range(n)],
        },
        n=n,
        rounds=rounds,
    )
    value, spread = ratio(timings["one_by_one"], timings["merged"])
    return Bar(
        what="gain if four concurrent int8 calls were merged into one run",
        value=value,
        limit=1.5,
        unit="×",
        n=rounds,
        spread=spread,
        note="above the limit, merging calls in the scheduler would pay",
        figures={f"{name}_us": timing.median * 1e6 for name, timing in timings.items()},
    )


def _hop(scorer: Scorer, rows: Rows, quick: bool) -> Bar:
    """What running off the loop adds to one call that finds the thread idle."""
    schedulers = {
        placement.value: Scheduler(scorer, fallback=scorer, settings=SchedulerSettings(placement=placement))
        for placement in (Placement.IN_LINE, Placement.OFF_LOOP)
    }

    def arm(name: str) -> Callable[[int], Awaitable[object]]:
        async def run(n: int) -> None:
            for _ in range(n):
                await schedulers[name].score(rows)

        return run

    rounds = 7 if quick else 15
    try:
        timings = interleave_async(
            {name: arm(name) for name in schedulers}, n=200 if quick else 1_000, rounds=rounds
        )
    finally:
        for scheduler in schedulers.values():
            scheduler.close()
    each = [
        (off - on) * 1e6
        for off, on in zip(timings["off_loop"].rounds, timings["in_line"].rounds, strict=True)
    ]
    low, middle, high = statistics.quantiles(each, n=4)
    return Bar(
        what="hop to a thread and back, against the cost below which a model stays in line",
        value=middle,
        limit=SchedulerSettings().inline_below * 1e6,
        unit="µs",
        n=rounds,
        spread=(low, high),
        note="two thread wake-ups: grows several times over when other processes want the same cores",
        figures={f"{name}_us": timing.median * 1e6 for name, timing in timings.items()},
    )


def _loop_delay(precision: str, scorer: Scorer, heuristic: Scorer, rows: Rows, quick: bool) -> Bar:
    """How late a callback runs while pages are ranked, in line and off the loop."""
    late: dict[str, list[list[float]]] = {"in_line": [], "off_loop": []}
    schedulers = {
        placement.value: Scheduler(
            scorer, fallback=heuristic, settings=SchedulerSettings(placement=placement, timeout=1.0)
        )
        for placement in (Placement.IN_LINE, Placement.OFF_LOOP)
    }

    def arm(name: str) -> Callable[[int], Awaitable[object]]:
        async def rank(number: int, calls: int) -> None:
            rng = random.Random(number)
            for _ in range(calls):
                await asyncio.sleep(rng.expovariate(_RATE / _CALLERS))
                await schedulers[name].score(rows)

        async def run(n: int) -> None:
            late[name].append([])
            watch = _Watch(asyncio.get_running_loop(), late[name][-1])
            await asyncio.gather(*(rank(number, n // _CALLERS) for number in range(_CALLERS)))
            watch.end()

        return run

    n, rounds = (400, 3) if quick else (800, 7)
    try:
        interleave_async({name: arm(name) for name in schedulers}, n=n, rounds=rounds)
        answers = {name: scheduler.stats for name, scheduler in schedulers.items()}
    finally:
        for scheduler in schedulers.values():
            scheduler.close()
    # One figure per round, the warm-up left out: a neighbour's burst then spoils a round and not the whole tail.
    p90, p99 = (
        {name: [statistics.quantiles(each, n=100)[cut] for each in lists[1:]] for name, lists in late.items()}
        for cut in (89, 98)
    )
    low, middle, high = statistics.quantiles(
        [off / on for off, on in zip(p90["off_loop"], p90["in_line"], strict=True)], n=4
    )
    return Bar(
        what=f"{precision}, 800 pages a second: p90 delay of the event loop, off the loop against in line",
        value=middle,
        limit=1.0,
        unit="×",
        n=rounds,
        spread=(low, high),
        note="p99 stands in the figures: ten callbacks a round, which on a shared machine follow the neighbours",
        figures={
            **{f"{name}_delay_p90_us": statistics.median(each) * 1e6 for name, each in p90.items()},
            **{f"{name}_delay_p99_us": statistics.median(each) * 1e6 for name, each in p99.items()},
            **{f"{name}_degraded": float(sum(stats.degraded.values())) for name, stats in answers.items()},
        },
    )


class _Watch:
    """Posts callbacks to the loop from a thread, as a socket would, and notes how long each waits to run."""

    def __init__(self, loop: asyncio.AbstractEventLoop, late: list[float]) -> None:
        self._loop = loop
        self._late = late
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._post)
        self._thread.start()

    def _post(self) -> None:
        rng = random.Random(1)
        while not self._ended.wait(rng.expovariate(1_000.0)):
            self._loop.call_soon_threadsafe(self._ran, time.perf_counter())

    def _ran(self, posted: float) -> None:
        self._late.append(time.perf_counter() - posted)

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
