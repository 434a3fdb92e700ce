"""The walk that `fairlead try` plays: the same load on each arm in turn, phase by phase, and what came of it.

Arms are interleaved in cycles within one run: control, treatment, treatment, control, … so that a slow
minute of the machine, or a warm one, falls on both. Within a cycle an arm meets all phases in order under
traffic that never stops, and every arm meets exactly the same requests at the same moments. Between two
turns the load stops until every answer is in.

Whatever ends a run early (a process that died, a full disk, Ctrl-C), what was recorded until then is kept:
the events on disk, and a result that says why it must not be used.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fairlead.clock import SYSTEM_CLOCK
from fairlead.errors import FairleadError
from fairlead.lab.load import Progress as LoadProgress
from fairlead.lab.load import drive
from fairlead.lab.samples import Outcome, Samples
from fairlead.lab.schedule import Schedule
from fairlead.telemetry import BufferedSink, LoadSample
from fairlead.telemetry import Outcome as Ending
from fairlead.telemetry.jsonl import JsonLinesSegments
from fairlead.trial.progress import Live, NoProgress, Progress
from fairlead.trial.system import Arm, Phase, Plan, Running, Settings, System

__all__ = ["HEADERS", "Recorded", "Turn", "play"]

HEADERS = {"degraded": "x-degraded", "staleness": "x-staleness-seconds", "age": "x-age-seconds"}
"""Response headers by which a system's service tells the load engine how an answer came about."""

_PAUSE = (
    0.3  # seconds of silence between two turns, for work that a downstream still does for callers who left
)
_OUTCOMES: dict[Outcome, Ending] = {Outcome.OK: "ok", Outcome.REFUSED: "refused", Outcome.TIMEOUT: "timeout"}

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One arm's way through one cycle."""

    arm: Arm
    cycle: int
    """From 0."""
    samples: Samples
    observed: dict[str, dict[str, float]]
    """Counters by phase, as the system reported them when the phase was over."""


@dataclass(kw_only=True, slots=True)
class Recorded:
    """All that a run has recorded, growing while it runs."""

    plan: Plan
    started_at: float
    """UTC seconds."""
    turns: list[Turn] = field(default_factory=list)
    schedules: list[Schedule] = field(default_factory=list)
    """By cycle."""

    def phase_bounds(self) -> Iterator[tuple[Phase, float, float]]:
        """Each phase with its first and last second within a cycle."""
        start = 0.0
        for phase in self.plan.phases:
            yield phase, start, start + phase.seconds
            start += phase.seconds

    def of_arm(self, arm: Arm) -> list[Turn]:
        return [turn for turn in self.turns if turn.arm.name == arm.name]


async def play(
    system: System,
    settings: Settings,
    directory: Path,
    recorded: Recorded,
    progress: Progress | None = None,
) -> None:
    """Runs the whole plan of `recorded` and fills it turn by turn; returns when all processes have ended.

    Raises ProcessDied when a process of the system ends by itself, NoSpace when events cannot be written.
    Cancellation ends the load and the processes; `recorded` keeps the turns that were complete.
    """
    progress = progress or NoProgress()
    plan = recorded.plan
    sink = BufferedSink(JsonLinesSegments(directory / "events" / "load", prefix="load"), capacity=200_000)
    try:
        progress.began(plan)
        async with system.start(plan, settings, directory) as running:
            watch = asyncio.create_task(running.failure())
            try:
                for cycle in range(plan.cycles):
                    schedule = running.schedule(cycle)
                    recorded.schedules.append(schedule)
                    # ABBA: a trend over the run weighs on both arms alike.
                    order = plan.arms if cycle % 2 == 0 else plan.arms[::-1]
                    for arm in order:
                        turn = _Turn(plan, running, arm, cycle, schedule, len(recorded.turns), progress)
                        recorded.turns.append(await _unless(watch, turn.run()))
                        await asyncio.to_thread(_record, sink, recorded.turns[-1], turn.began_at, plan)
                        progress.finished(arm, cycle, _sum_up(recorded.turns[-1].samples))
            finally:
                watch.cancel()
                with contextlib.suppress(asyncio.CancelledError, FairleadError):
                    await watch
    finally:
        await asyncio.to_thread(sink.close)
    if sink.failure is not None:
        raise sink.failure


async def _unless(watch: asyncio.Task[None], work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, or the exception of `watch` if that comes first; nothing is left running."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({watch, task}, return_when=asyncio.FIRST_COMPLETED)
        if watch.done() and not watch.cancelled():
            watch.result()  # raises what ended the system
        return await task
    finally:
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, FairleadError):
                await task


class _Turn:
    """Drives one cycle of load at one arm while it tells the system which phase begins."""

    def __init__(
        self,
        plan: Plan,
        running: Running,
        arm: Arm,
        cycle: int,
        schedule: Schedule,
        turns_before: int,
        progress: Progress,
    ) -> None:
        self._plan = plan
        self._running = running
        self._arm = arm
        self._cycle = cycle
        self._schedule = schedule
        self._turns_before = turns_before
        self._progress = progress
        self._phase = plan.phases[0]
        self.began_at = 0.0

    async def run(self) -> Turn:
        await self._running.observe(self._arm)
        self.began_at = SYSTEM_CLOCK.utc()
        observed: dict[str, dict[str, float]] = {}
        phases = asyncio.create_task(self._phases(observed))
        try:
            samples = await drive(
                self._schedule,
                self._running.paths(self._schedule).__getitem__,
                base_url=self._running.url(self._arm),
                timeout=self._plan.patience,
                read_headers=HEADERS,
                on_progress=self._moved,
            )
            await phases
        finally:
            phases.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await phases
        await asyncio.sleep(_PAUSE)
        observed[self._phase.name] = dict(await self._running.observe(self._arm))
        return Turn(arm=self._arm, cycle=self._cycle, samples=samples, observed=observed)

    async def _phases(self, observed: dict[str, dict[str, float]]) -> None:
        began = time.monotonic()
        boundary = 0.0
        for number, phase in enumerate(self._plan.phases):
            await asyncio.sleep(max(0.0, began + boundary - time.monotonic()))
            if number:
                observed[self._phase.name] = dict(await self._running.observe(self._arm))
            self._phase = phase
            await self._running.enter(self._arm, phase)
            boundary += phase.seconds

    def _moved(self, load: LoadProgress) -> None:
        samples = load.samples()
        answered = samples.count(Outcome.OK)
        cycle_seconds = self._plan.cycle_seconds
        self._progress.moved(
            Live(
                arm=self._arm.name,
                phase=self._phase.title,
                cycle=self._cycle + 1,
                elapsed=self._turns_before * cycle_seconds + min(load.elapsed, cycle_seconds),
                total=self._plan.seconds,
                due=load.due,
                answered=answered,
                failed=len(samples) - answered - samples.count(Outcome.UNFINISHED),
            )
        )


def _record(sink: BufferedSink, turn: Turn, began_at: float, plan: Plan) -> None:
    """Writes one event per request; runs in a thread, so that encoding does not delay anything."""
    samples = turn.samples
    degraded = samples.headers["degraded"] > 0
    bounds: list[tuple[float, str]] = []
    end = 0.0
    for phase in plan.phases:
        end += phase.seconds
        bounds.append((end, phase.name))
    last = bounds[-1][1]
    for row in range(len(samples)):
        offset = float(samples.offset[row])
        staleness = float(samples.headers["staleness"][row])
        outcome: Ending = _OUTCOMES.get(Outcome(samples.outcome[row]), "error")
        sink.emit(
            LoadSample(
                at_utc_seconds=began_at + offset,
                request_id=f"{turn.arm.name}-{turn.cycle}-{row}",
                phase=next((name for end, name in bounds if offset < end), last),
                arm=turn.arm.name,
                block=turn.cycle,
                key=str(samples.key[row]),
                intended_seconds=offset,
                send_lag_seconds=float(samples.lag[row]),
                latency_seconds=float(samples.latency[row]),
                status=int(samples.status[row]),
                degraded=bool(degraded[row]),
                staleness_seconds=0.0 if staleness != staleness else staleness,
                outcome="degraded" if outcome == "ok" and degraded[row] else outcome,
            )
        )
    sink.flush(30.0)
    if sink.failure is not None:
        raise sink.failure


def _sum_up(samples: Samples) -> str:
    answered = samples.count(Outcome.OK)
    return (
        f"{len(samples)} requests, {answered} answered, {samples.count(Outcome.TIMEOUT)} timed out, "
        f"{len(samples) - answered - samples.count(Outcome.TIMEOUT)} failed; send lag p99 {samples.lag_p99 * 1000:.1f} ms"
    )
