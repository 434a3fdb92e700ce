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
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import numpy as np

from fairlead.clock import SYSTEM_CLOCK
from fairlead.errors import RunInvalid
from fairlead.lab.load import Progress as LoadProgress
from fairlead.lab.load import drive
from fairlead.lab.samples import Ending, Samples
from fairlead.lab.schedule import Schedule
from fairlead.telemetry import BufferedSink, LoadSample, LoadWindow, RequestEnding
from fairlead.telemetry.jsonl import JsonLinesSegments
from fairlead.trial.live import LiveRecord, play_live
from fairlead.trial.pages import MetricsPage, fetch_page, write_pages
from fairlead.trial.progress import Live, NoProgress, Progress
from fairlead.trial.system import Arm, Phase, Plan, Running, Settings, System

__all__ = ["HEADERS", "Recorded", "Turn", "play"]

HEADERS = {"degraded": "x-degraded", "staleness": "x-staleness-seconds", "age": "x-age-seconds"}
"""Response headers by which a system's service tells the load engine how an answer came about."""

# Seconds of silence between two turns, for work that a downstream still does for callers who left.
_MAX_IN_FLIGHT = 20_000  # above what the highest rate keeps waiting: 5,000/s, 2.5 times that, for seconds
_PAUSE = 0.3
_ENDINGS: dict[Ending, RequestEnding] = {
    Ending.OK: "ok",
    Ending.REFUSED: "refused",
    Ending.TIMEOUT: "timeout",
}

_DEATH_NOTICED_WITHIN = 0.5  # seconds; the guard tells of a death within milliseconds
_EVENTS_AT_ONCE = 50_000
_WRITTEN_WITHIN = 30.0  # seconds for as many events

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
    began_at: float = 0.0
    """UTC seconds of the moment from which its schedule counts."""


@dataclass(kw_only=True, slots=True)
class Recorded:
    """All that a run has recorded, growing while it runs."""

    plan: Plan
    started_at: float
    """UTC seconds."""
    began: float = field(default_factory=SYSTEM_CLOCK.now)
    """The same moment on the monotonic clock: somebody may set the other one during the run."""
    turns: list[Turn] = field(default_factory=list)
    live: LiveRecord | None = None
    """What came of letting the change out in live traffic; None where that was not begun."""

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
                    # ABBA: a trend over the run weighs on both arms alike.
                    order = plan.arms if cycle % 2 == 0 else plan.arms[::-1]
                    for arm in order:
                        turn = _Turn(plan, running, arm, cycle, schedule, len(recorded.turns), progress)
                        try:
                            recorded.turns.append(await _unless(watch, turn.run()))
                        except BaseException:
                            # No await here: this may be a cancellation. The sink's close writes what it was given.
                            _emit(sink, turn.samples_so_far(), turn, plan)
                            raise
                        await asyncio.to_thread(_record, sink, recorded.turns[-1], turn, plan)
                        await asyncio.to_thread(write_pages, directory, turn.pages)
                        progress.finished(arm, cycle, _sum_up(recorded.turns[-1].samples))
                if plan.let_out is not None and system.change is not None:  # `run_trial` has checked it
                    service = running.one_service
                    recorded.live = LiveRecord(events=service.events)
                    live = play_live(
                        recorded.live,
                        service,
                        plan.let_out,
                        plan.patience,
                        system.change,
                        directory,
                        progress.said,
                    )
                    await _unless(watch, live)
            finally:
                await _end(watch)
    finally:
        await asyncio.to_thread(sink.close)
    if sink.failure is not None:
        raise sink.failure


async def _unless(watch: asyncio.Task[None], work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, or the exception of `watch` if that comes first; nothing is left running."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({watch, task}, return_when=asyncio.FIRST_COMPLETED)
        if task.done() and not task.cancelled() and isinstance(task.exception(), Exception):
            # A call to a process that has just died fails before its death is noticed; the death is the news.
            await asyncio.wait({watch}, timeout=_DEATH_NOTICED_WITHIN)
        if watch.done() and not watch.cancelled():
            watch.result()  # raises what ended the system
        return await task
    finally:
        await _end(task)


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancels the tasks and waits until they have ended, how ever they end and whoever cancels the wait."""
    interrupted: asyncio.CancelledError | None = None
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        try:
            await asyncio.wait(left)
        except asyncio.CancelledError as error:
            interrupted = error  # the tasks are ours: leave only when they have ended
    for task in tasks:
        if not task.cancelled():
            task.exception()  # retrieved: whoever ended them has a reason of their own
    if interrupted is not None:
        raise interrupted


async def _ended(scrapes: Sequence[asyncio.Task[MetricsPage | None]]) -> list[MetricsPage | None]:
    """What they found; those that are still at it, because the turn was cut short, are ended."""
    await _end(*(task for task in scrapes if not task.done()))
    return [task.result() for task in scrapes if not task.cancelled() and task.exception() is None]


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
        self.arm = arm
        self.cycle = cycle
        self._schedule = schedule
        self._turns_before = turns_before
        self._progress = progress
        self._phase = plan.phases[0]
        self._load: LoadProgress | None = None
        self._zero: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.pages: list[MetricsPage | None] = []
        """What the arm's own metrics said whenever a phase began, and at the end."""
        self.began_at = 0.0
        """UTC seconds of the moment from which the schedule counts."""

    async def run(self) -> Turn:
        async with aiohttp.ClientSession() as session:
            return await self._run(session)

    async def _run(self, session: aiohttp.ClientSession) -> Turn:
        await self._running.observe(self.arm)
        observed: dict[str, dict[str, float]] = {}
        load = asyncio.create_task(
            drive(
                self._schedule,
                self._running.paths(self._schedule).__getitem__,
                base_url=self._running.url(self.arm),
                timeout=self._plan.patience,
                max_in_flight=_MAX_IN_FLIGHT,
                read_headers=HEADERS,
                on_start=self._started,
                on_progress=self._moved,
            )
        )
        scrapes: list[asyncio.Task[MetricsPage | None]] = []
        phases = asyncio.create_task(self._phases(observed, session, scrapes))
        try:
            # The first failure of either ends both: load without its phases measures nothing.
            await asyncio.wait({load, phases}, return_when=asyncio.FIRST_EXCEPTION)
            for task in (phases, load):
                if task.done():
                    task.result()
            samples = load.result()
        finally:
            await _end(load, phases)
            # Asked for when a phase began, and not waited for then: a slow page must not hold a fault up.
            self.pages += await _ended(scrapes)
        self.pages.append(await self._scrape(session, ""))
        await asyncio.sleep(_PAUSE)
        observed[self._phase.name] = dict(await self._running.observe(self.arm))
        return Turn(
            arm=self.arm, cycle=self.cycle, samples=samples, observed=observed, began_at=self.began_at
        )

    async def _scrape(self, session: aiohttp.ClientSession, phase: str) -> MetricsPage | None:
        return await fetch_page(session, self._running.url(self.arm), self.arm.name, self.cycle, phase)

    async def _phases(
        self,
        observed: dict[str, dict[str, float]],
        session: aiohttp.ClientSession,
        scrapes: list[asyncio.Task[MetricsPage | None]],
    ) -> None:
        boundary = await self._zero
        for number, phase in enumerate(self._plan.phases):
            await asyncio.sleep(max(0.0, boundary - SYSTEM_CLOCK.now()))
            if number:
                observed[self._phase.name] = dict(await self._running.observe(self.arm))
            self._phase = phase
            scrapes.append(asyncio.create_task(self._scrape(session, phase.name)))
            await self._running.enter(self.arm, phase)
            boundary += phase.seconds

    def samples_so_far(self) -> Samples | None:
        """What was answered, failed or given up until now; None before the load's first news of itself."""
        if self._load is None:
            return None
        samples = self._load.samples()
        return samples.select(samples.ending != Ending.UNFINISHED)

    def _started(self, zero: float) -> None:
        self.began_at = SYSTEM_CLOCK.utc() + zero - SYSTEM_CLOCK.now()
        self._zero.set_result(zero)

    def _moved(self, load: LoadProgress) -> None:
        self._load = load
        samples = load.samples()
        answered = samples.count(Ending.OK)
        cycle_seconds = self._plan.cycle_seconds
        self._progress.moved(
            Live(
                arm=self.arm.name,
                phase=self._phase.title,
                cycle=self.cycle + 1,
                elapsed=self._turns_before * cycle_seconds + min(load.elapsed, cycle_seconds),
                total=self._plan.seconds,
                due=load.due,
                answered=answered,
                failed=len(samples) - answered - samples.count(Ending.UNFINISHED),
            )
        )


def _record(sink: BufferedSink, done: Turn, turn: _Turn, plan: Plan) -> None:
    """Writes one event per request and one per phase; runs in a thread, so that encoding delays nothing.

    Raises what stopped the writer, NoSpace for a full disk: a record with holes is no evidence.
    """
    samples = done.samples
    for phase, values in done.observed.items():
        at = SYSTEM_CLOCK.utc()
        sink.emit(
            LoadWindow(at_utc_seconds=at, phase=phase, arm=done.arm.name, cycle=done.cycle, values=values)
        )
    for first in range(0, len(samples), _EVENTS_AT_ONCE):
        rows = np.arange(first, min(first + _EVENTS_AT_ONCE, len(samples)))
        _emit(sink, samples.select(rows), turn, plan, first)
        if not sink.flush(_WRITTEN_WITHIN):
            raise RunInvalid(
                f"events of {turn.arm.name} were not written within {_WRITTEN_WITHIN:g} s: the disk hangs; "
                "choose another --out"
            )
        if sink.failure is not None:
            raise sink.failure


def _emit(sink: BufferedSink, samples: Samples | None, turn: _Turn, plan: Plan, first: int = 0) -> None:
    if samples is None:
        return
    headers = {
        name: [None if value != value else value for value in column.tolist()]
        for name, column in samples.headers.items()
    }
    bounds: list[tuple[float, str]] = []
    end = 0.0
    for phase in plan.phases:
        end += phase.seconds
        bounds.append((end, phase.name))
    last = bounds[-1][1]
    for row in range(len(samples)):
        offset = float(samples.offset[row])
        degraded = bool(headers["degraded"][row])
        ending: RequestEnding = _ENDINGS.get(Ending(samples.ending[row]), "error")
        sink.emit(
            LoadSample(
                at_utc_seconds=turn.began_at + offset,
                request_id=f"{turn.arm.name}-{turn.cycle}-{first + row}",
                phase=next((name for end, name in bounds if offset < end), last),
                arm=turn.arm.name,
                cycle=turn.cycle,
                key=str(samples.key[row]),
                intended_seconds=offset,
                send_lag_seconds=float(samples.lag[row]),
                latency_seconds=float(samples.latency[row]),
                status=int(samples.status[row]),
                degraded=degraded,
                staleness_seconds=headers["staleness"][row],
                age_seconds=headers["age"][row],
                ending="degraded" if ending == "ok" and degraded else ending,
            )
        )


def _sum_up(samples: Samples) -> str:
    answered, timed_out = samples.count(Ending.OK), samples.count(Ending.TIMEOUT)
    return (
        f"{len(samples)} requests, {answered} answered, {timed_out} timed out, "
        f"{len(samples) - answered - timed_out} failed; send lag p99 {samples.lag_p99 * 1000:.1f} ms"
    )
