"""Scores without holding up the event loop, and always answers.

A model run of 200 µs is nothing to one request and everything to the loop: 1,000 of them a second leave a
fifth of every second in which no other request moves. Runs above `inline_below` therefore go to a thread of
their own; cheaper ones stay in line, since the hop to a thread and back would cost a good part of what they
do. The choice is measured at start.

Each call ends in one of two ways: the model's scores, or the fallback's, marked with the reason. The fallback
answers at once when the queue is full, the model is stalled, or the deadline is nearer than the model's p99;
and late when the model ran out of time, raised, or answered with something that is not one finite number per
row. A cancelled caller leaves; its run is skipped if it has not begun, and ignored if it has.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from types import TracebackType
from typing import Literal

from fairlead import context
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import InvalidInput, ModelRejected
from fairlead.inference.cost import CostWindow
from fairlead.inference.executor import BoundedExecutor
from fairlead.inference.feature_schema import Rows
from fairlead.inference.model_run import WARM_UP_RUNS, Failure, Outcome, Run, WarmUp, attempt, resolve
from fairlead.inference.scored import DegradedBy, Scored
from fairlead.inference.scorer import Scorer
from fairlead.telemetry.metrics import MetricRegistry

__all__ = ["Placement", "Scheduler", "SchedulerSettings", "SchedulerStats"]

_WARM_UP_ROWS = 24


class Placement(StrEnum):
    """Where the model runs."""

    MEASURED = "measured"
    """Decide at start by the measured cost."""
    IN_LINE = "in_line"
    """On the event loop."""
    OFF_LOOP = "off_loop"
    """On the scheduler's own threads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerSettings:
    """Bounds of a scheduler."""

    threads: int = 1
    """Model runs at a time, 1–64. 1: on a server the other cores belong to other processes."""
    capacity: int = 64
    """Calls that may wait for a thread, 1–100,000. 64 runs of 300 µs are 20 ms, about what a ranking may
    cost.
    """
    timeout: float = 0.05
    """Seconds a caller waits at most, 0.001–60, also when its own deadline is later or absent."""
    reserve: float = 0.001
    """Seconds kept back from the deadline so that the fallback's answer is still in time, 0–1."""
    inline_below: float = 100e-6
    """Seconds of model cost below which it runs on the event loop, 0–1. 100 µs: a hop to a thread and back
    takes tens of microseconds, more under load, and would double the price of anything much cheaper."""
    placement: Placement = Placement.MEASURED
    """Forces the choice; for tests and for comparing both."""
    stalled_after: float = 0.1
    """Seconds that one run may take before nobody waits behind it any more, 0.001–60."""
    warm_up_timeout: float = 5.0
    """Seconds within which the model must have finished its runs at start, 0.001–600."""

    def __post_init__(self) -> None:
        for name, low, high in (("threads", 1, 64), ("capacity", 1, 100_000)):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or not low <= count <= high:
                raise InvalidInput(f"{name}: {count!r} is not a whole number from {low} to {high}")
        for name, low_s, high_s in (
            ("timeout", 0.001, 60.0),
            ("reserve", 0.0, 1.0),
            ("inline_below", 0.0, 1.0),
            ("stalled_after", 0.001, 60.0),
            ("warm_up_timeout", 0.001, 600.0),
        ):
            seconds = getattr(self, name)
            if (
                isinstance(seconds, bool)
                or not isinstance(seconds, int | float)
                or not low_s <= seconds <= high_s
            ):
                raise InvalidInput(
                    f"{name}: {seconds!r} is not a number of seconds from {low_s:g} to {high_s:g}"
                )
        if self.reserve >= self.timeout:
            raise InvalidInput(
                f"reserve: {self.reserve!r} s leaves nothing of timeout = {self.timeout!r} s for the model"
            )
        if not isinstance(self.placement, Placement):
            raise InvalidInput(
                f"placement: {self.placement!r:.40} is no Placement: use {', '.join(Placement)}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerStats:
    """A snapshot, per process."""

    placement: Placement
    """Where runs of the warm-up's size take place."""
    warm_up_seconds: float
    """Median cost of one run of the warm-up batch at start, on which the placement was decided."""
    median_seconds: float
    p99_seconds: float
    """Cost of one run over the last 10 seconds, without waiting."""
    scored: int
    """Calls that the model answered."""
    degraded: Mapping[DegradedBy, int]
    """Calls that the fallback answered, by reason; a reason that never occurred is absent."""
    waiting: int
    """Calls queued for a thread now."""
    last_failure: str
    """The latest exception or invalid answer of the model, one line; empty if there was none."""


class Scheduler:
    """Puts `scorer` behind a bounded queue and `fallback` behind that.

    Building one blocks for the warm-up, usually some tens of milliseconds: do it at start, after any fork. It
    raises ModelRejected if the model fails or hangs there, since a model that never worked is a deployment to
    stop, not a request to degrade. One scheduler serves all tasks, and all event loops, of its process.

    warm_up: rows to measure with, of the size that requests will have; 24 rows of small numbers by default.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        fallback: Scorer,
        settings: SchedulerSettings = SchedulerSettings(),
        warm_up: Rows | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if fallback.schema.hash != scorer.schema.hash:
            raise InvalidInput(
                f"fallback: {fallback.version} reads other columns than {scorer.version}: "
                "build both from one schema"
            )
        self._scorer = scorer
        self._fallback = fallback
        self._settings = settings
        self._clock = clock
        self._costs = CostWindow(clock)
        self._process = os.getpid()
        self._scored = 0
        self._degraded: dict[DegradedBy, int] = {}
        self._last_failure = ""
        self._probed_at = clock.now()
        width = len(scorer.schema.names)
        rows = warm_up or [
            [((row + column) % 7) / 7 for column in range(width)] for row in range(_WARM_UP_ROWS)
        ]
        scorer.schema.validate(rows)
        self._warm_up_rows = len(rows)
        self._executor = BoundedExecutor(
            threads=settings.threads, capacity=settings.capacity, name="fairlead-inference", clock=clock
        )
        try:
            self._warm_up_seconds = self._warm_up(rows)
        except BaseException:
            self._executor.close(0.0)
            raise
        self._placement = settings.placement
        if self._placement is Placement.MEASURED:
            cheap = self._warm_up_seconds < settings.inline_below
            self._placement = Placement.IN_LINE if cheap else Placement.OFF_LOOP

    @property
    def stats(self) -> SchedulerStats:
        return SchedulerStats(
            placement=self._placement,
            warm_up_seconds=self._warm_up_seconds,
            median_seconds=self._costs.median,
            p99_seconds=self._costs.p99,
            scored=self._scored,
            degraded=dict(self._degraded),
            waiting=self._executor.waiting,
            last_failure=self._last_failure,
        )

    def export(self, registry: MetricRegistry, *, name: str = "default") -> None:
        """Shows in `registry`, under the label `scheduler`, what it counts; read at each scrape."""
        calls = registry.counter(
            "fairlead_inference_calls_total",
            "Calls by who answered them: the model, or the fallback for a reason.",
            labels=("scheduler", "answered_by"),
        )
        calls.labels(scheduler=name, answered_by="model").track(lambda: self._scored)
        for reason in DegradedBy:
            calls.labels(scheduler=name, answered_by=reason.value).track(partial(self._degraded_by, reason))
        gauges: tuple[tuple[str, str, Literal["sum", "max"], Callable[[], float]], ...] = (
            ("waiting", "Calls that wait for a thread.", "sum", lambda: self._executor.waiting),
            (
                "stalled_seconds",
                "Time for which all threads have been busy with one run each.",
                "max",
                self._executor.stalled_for,
            ),
            (
                "run_p99_seconds",
                "p99 of a model run over the last 10 seconds.",
                "max",
                lambda: self._costs.p99,
            ),
        )
        for gauge, meaning, merge, read in gauges:
            family = registry.gauge(
                f"fairlead_inference_{gauge}", meaning, labels=("scheduler",), merge=merge
            )
            family.labels(scheduler=name).track(read)

    def _degraded_by(self, reason: DegradedBy) -> int:
        return self._degraded.get(reason, 0)

    async def score(self, rows: Rows) -> Scored:
        """One score per row, from the model or, marked, from the fallback; in time for the current deadline.

        rows: shape (n, k), n may be 0. Raises InvalidInput if they do not fit the schema, and nothing else of
        its own.
        """
        self._scorer.schema.validate(rows)
        if not rows:
            return Scored(scores=(), model_version=self._scorer.version)
        if self._executor.closed:
            return self._degrade(rows, Failure(DegradedBy.CLOSED))
        budget = min(context.current().deadline.remaining(), self._settings.timeout) - self._settings.reserve
        in_line = self._runs_in_line(len(rows))
        refusal = self._refusal(budget, in_line)
        if refusal is not None:
            return self._degrade(rows, Failure(refusal))
        outcome = attempt(self._scorer, self._costs, rows) if in_line else await self._off_loop(rows, budget)
        if isinstance(outcome, Failure):
            return self._degrade(rows, outcome)
        self._scored += 1
        return Scored(scores=outcome, model_version=self._scorer.version)

    def close(self, timeout: float = 1.0) -> bool:
        """Ends the threads; blocks for the run in progress, at most `timeout` seconds. Later calls get the
        fallback.

        Callers that wait in the queue get the fallback, the one being scored gets its scores. False if a run
        still
        hangs: its thread is a daemon and ends with the process. Safe to call again.
        """
        return self._executor.close(timeout)

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _off_loop(self, rows: Rows, budget: float) -> Outcome:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Outcome] = loop.create_future()
        run = Run(self._scorer, self._costs, rows, loop, answer)
        if not self._executor.submit(run):
            return Failure(DegradedBy.CLOSED if self._executor.closed else DegradedBy.QUEUE_FULL)
        timer = self._clock.call_at(
            self._clock.now() + budget, lambda: resolve(answer, Failure(DegradedBy.TIMED_OUT))
        )
        try:
            return await answer
        finally:
            timer.cancel()
            run.left = True

    def _runs_in_line(self, count: int) -> bool:
        if self._settings.placement is not Placement.MEASURED or self._placement is Placement.OFF_LOOP:
            return self._placement is Placement.IN_LINE
        # Cheap was measured on the warm-up's size; a batch ten times as large must not hold the loop ten
        # times as long.
        return self._warm_up_seconds * max(1.0, count / self._warm_up_rows) < self._settings.inline_below

    def _refusal(self, budget: float, in_line: bool) -> DegradedBy | None:
        if os.getpid() != self._process:
            return DegradedBy.FORKED
        ahead = 0 if in_line else self._executor.ahead
        if not in_line and self._executor.stalled_for() > self._settings.stalled_after:
            return DegradedBy.STALLED
        if self._costs.p99 + self._costs.median * (ahead // self._settings.threads) > budget:
            self._probe()
            return DegradedBy.DEADLINE_NEAR
        return None

    def _probe(self) -> None:
        """Measures the model once a second with nobody waiting, or a slow spell would be never forgotten."""
        now = self._clock.now()
        if min(self._costs.age(), now - self._probed_at) < 1.0 or self._executor.ahead:
            return
        self._probed_at = now
        width = len(self._scorer.schema.names)
        rows = [[0.0] * width] * self._warm_up_rows
        self._executor.submit(Run(self._scorer, self._costs, rows, asyncio.get_running_loop(), None))

    def _degrade(self, rows: Rows, failure: Failure) -> Scored:
        self._degraded[failure.reason] = self._degraded.get(failure.reason, 0) + 1
        if failure.detail:
            self._last_failure = failure.detail
        return Scored(
            scores=tuple(self._fallback.score(rows)),
            model_version=self._fallback.version,
            reason=failure.reason,
        )

    def _warm_up(self, rows: Rows) -> float:
        """Median seconds of one run, measured on the thread that will serve."""
        warm_up = WarmUp(self._scorer, self._costs, rows)
        self._executor.submit(warm_up)
        if not warm_up.done.wait(self._settings.warm_up_timeout):
            raise ModelRejected(
                f"{self._scorer.version}: {len(rows)} rows were not scored {WARM_UP_RUNS} times within "
                f"{self._settings.warm_up_timeout:g} s at start: use a smaller model or raise warm_up_timeout"
            )
        if warm_up.failure is not None:
            detail = warm_up.failure.detail
            raise ModelRejected(
                f"{self._scorer.version}: failed at start: {detail}: restore a model that works"
            )
        return self._costs.median
