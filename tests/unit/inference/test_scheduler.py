from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from fairlead.clock import ManualClock, Timer, settle
from fairlead.context import RequestContext, request_context
from fairlead.deadline import Deadline
from fairlead.errors import InvalidInput, ModelRejected
from fairlead.inference import (
    DegradedBy,
    FeatureSchema,
    HeuristicScorer,
    Placement,
    Rows,
    Scheduler,
    SchedulerSettings,
)
from fairlead.telemetry import MetricRegistry

SCHEMA = FeatureSchema(names=("a", "b"), version="1")
FALLBACK = HeuristicScorer(SCHEMA, {"a": 1.0, "b": 10.0}, version="by-hand")
ROWS = [(1.0, 2.0), (3.0, 4.0)]
BY_HAND = (21.0, 43.0)
BY_MODEL = (2.0, 12.0)
IN_LINE = SchedulerSettings(placement=Placement.IN_LINE)
OFF_LOOP = SchedulerSettings(placement=Placement.OFF_LOOP)


class Product:
    """Scores a row by a·b; does `behave` first once `behave` is set."""

    version = "product-1"
    schema = SCHEMA

    def __init__(self, behave: Callable[[Rows], Sequence[float] | None] | None = None) -> None:
        self.behave = behave
        self.threads: list[int] = []
        self.seen: list[Rows] = []

    def score(self, rows: Rows) -> Sequence[float]:
        self.threads.append(threading.get_ident())
        self.seen.append(rows)
        if self.behave is not None and (answer := self.behave(rows)) is not None:
            return answer
        return [a * b for a, b in rows]


class Gate:
    """Holds the model inside a run until opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, rows: Rows) -> None:
        self.entered.set()
        assert self.opened.wait(10)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 10)


@contextmanager
def scheduling(
    scorer: Product, settings: SchedulerSettings = OFF_LOOP, clock: ManualClock | None = None
) -> Iterator[Scheduler]:
    scheduler = Scheduler(scorer, fallback=FALLBACK, settings=settings, clock=clock or ManualClock())
    try:
        yield scheduler
    finally:
        if isinstance(scorer.behave, Gate):
            scorer.behave.opened.set()
        assert scheduler.close(10), "a thread outlived its scheduler"


def fairlead_threads() -> int:
    return sum(thread.name.startswith("fairlead-inference") for thread in threading.enumerate())


@pytest.mark.parametrize("settings", [IN_LINE, OFF_LOOP])
async def test_scores_come_from_the_model_in_the_order_of_the_rows(settings: SchedulerSettings) -> None:
    with scheduling(Product(), settings) as scheduler:
        scored = await scheduler.score(ROWS)
        assert (scored.scores, scored.model_version, scored.reason) == (BY_MODEL, "product-1", None)
        assert not scored.degraded
        assert scheduler.stats.scored == 1


@pytest.mark.parametrize(
    ("cost", "placement"),
    [(50e-6, Placement.IN_LINE), (100e-6, Placement.OFF_LOOP), (300e-6, Placement.OFF_LOOP)],
)
async def test_the_measured_cost_decides_where_the_model_runs(cost: float, placement: Placement) -> None:
    clock = ManualClock()
    scorer = Product(lambda rows: clock.advance(cost))
    with scheduling(scorer, SchedulerSettings(), clock) as scheduler:
        assert scheduler.stats.placement is placement
        assert scheduler.stats.warm_up_seconds == pytest.approx(cost)
        scorer.behave = None
        await scheduler.score(ROWS)
        assert (scorer.threads[-1] == threading.get_ident()) == (placement is Placement.IN_LINE)


async def test_a_batch_too_large_for_the_loop_leaves_it_though_the_model_is_cheap() -> None:
    clock = ManualClock()
    scorer = Product(lambda rows: clock.advance(50e-6))
    with scheduling(scorer, SchedulerSettings(), clock) as scheduler:
        scorer.behave = None
        await scheduler.score(ROWS * 100)
        assert scorer.threads[-1] != threading.get_ident()


def raises(rows: Rows) -> Sequence[float]:
    raise RuntimeError("out of\nmemory")


def lazily_raises(rows: Rows) -> Iterator[float]:
    raise RuntimeError("out of memory")
    yield 1.0


class Unprintable(Exception):
    def __str__(self) -> str:
        raise Unprintable


def raises_unprintable(rows: Rows) -> Sequence[float]:
    raise Unprintable


@pytest.mark.parametrize("settings", [IN_LINE, OFF_LOOP])
@pytest.mark.parametrize(
    ("behave", "reason", "detail"),
    [
        (raises, DegradedBy.SCORER_FAILED, "RuntimeError: out of memory"),
        (
            lazily_raises,
            DegradedBy.INVALID_SCORES,
            "product-1: not a sequence of numbers: RuntimeError: out of memory",
        ),
        (raises_unprintable, DegradedBy.SCORER_FAILED, "Unprintable"),
        (
            lambda rows: [1.0, float("nan")],
            DegradedBy.INVALID_SCORES,
            "product-1: a score is NaN or infinite",
        ),
        (
            lambda rows: [1.0, float("inf")],
            DegradedBy.INVALID_SCORES,
            "product-1: a score is NaN or infinite",
        ),
        (lambda rows: [1.0], DegradedBy.INVALID_SCORES, "product-1: 1 scores for 2 rows"),
        (lambda rows: [[1.0], [2.0]], DegradedBy.INVALID_SCORES, "product-1: not a sequence of numbers"),
        (lambda rows: 7, DegradedBy.INVALID_SCORES, "product-1: not a sequence of numbers"),
    ],
)
async def test_the_fallback_answers_and_is_counted_when_the_model_does_not(
    settings: SchedulerSettings, behave: Callable[[Rows], Sequence[float]], reason: DegradedBy, detail: str
) -> None:
    scorer = Product()
    with scheduling(scorer, settings) as scheduler:
        scorer.behave = behave
        scored = await scheduler.score(ROWS)
        assert (scored.scores, scored.model_version, scored.reason) == (BY_HAND, "by-hand", reason)
        assert scored.degraded
        assert scheduler.stats.degraded == {reason: 1}
        assert scheduler.stats.last_failure.startswith(detail)
        scorer.behave = None
        assert not (await scheduler.score(ROWS)).degraded


async def test_an_exit_raised_by_the_model_does_not_cost_a_thread() -> None:
    scorer = Product()
    with scheduling(scorer) as scheduler:

        def leave(rows: Rows) -> None:
            raise SystemExit(3)

        scorer.behave = leave
        assert (await scheduler.score(ROWS)).reason is DegradedBy.SCORER_FAILED
        scorer.behave = None
        assert not (await scheduler.score(ROWS)).degraded


async def test_a_hanging_model_costs_one_timeout_then_nothing_until_it_returns() -> None:
    clock, scorer, gate = ManualClock(), Product(), Gate()
    with scheduling(scorer, clock=clock) as scheduler:
        scorer.behave = gate
        first = asyncio.create_task(scheduler.score(ROWS))
        await gate.reached()
        clock.advance(0.048)
        await settle()
        assert not first.done()
        clock.advance(0.002)
        assert (await first).reason is DegradedBy.TIMED_OUT
        clock.advance(0.06)
        assert (await scheduler.score(ROWS)).reason is DegradedBy.STALLED
        assert len(scorer.seen) == 36
        gate.opened.set()
        while (await scheduler.score(ROWS)).degraded:
            clock.advance(11.0)  # the hang itself was measured and is forgotten with time
        assert scheduler.stats.scored == 1


async def test_answers_that_come_after_their_caller_left_are_ignored() -> None:
    troubles: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble))
    clock, scorer, gate = ManualClock(), Product(), Gate()
    with scheduling(scorer, clock=clock) as scheduler:
        scorer.behave = gate
        late = asyncio.create_task(scheduler.score(ROWS))
        await gate.reached()
        clock.advance(0.05)
        assert (await late).reason is DegradedBy.TIMED_OUT
        gate.opened.set()
        assert scheduler.close(10)
    await settle()
    assert troubles == []


async def test_an_answered_call_leaves_no_timer_behind() -> None:
    timers: list[Timer] = []

    class WatchedClock(ManualClock):
        def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
            timers.append(super().call_at(when, callback))
            return timers[-1]

    with scheduling(Product(), clock=WatchedClock()) as scheduler:
        await scheduler.score(ROWS)
    assert [getattr(timer, "callback", "pending") for timer in timers] == [None]


async def test_the_callers_deadline_ends_the_wait_with_time_left_for_the_fallback() -> None:
    clock, scorer, gate = ManualClock(), Product(), Gate()
    with scheduling(scorer, clock=clock) as scheduler:
        scorer.behave = gate
        deadline = Deadline.after(0.02, clock)
        with request_context(RequestContext(deadline=deadline)):
            call = asyncio.create_task(scheduler.score(ROWS))
        await gate.reached()
        clock.advance(0.0195)
        assert (await call).reason is DegradedBy.TIMED_OUT
        assert deadline.remaining() > 0


async def test_a_deadline_nearer_than_the_models_p99_is_not_spent_on_trying() -> None:
    clock = ManualClock()
    scorer = Product(lambda rows: clock.advance(0.010))
    with scheduling(scorer, clock=clock) as scheduler:
        runs = len(scorer.seen)
        with request_context(RequestContext(deadline=Deadline.after(0.010, clock))):
            scored = await scheduler.score(ROWS)
        assert (scored.scores, scored.reason) == (BY_HAND, DegradedBy.DEADLINE_NEAR)
        assert len(scorer.seen) == runs
        scorer.behave = None
        with request_context(RequestContext(deadline=Deadline.after(0.020, clock))):
            assert not (await scheduler.score(ROWS)).degraded


async def test_the_queue_in_front_counts_against_the_deadline() -> None:
    clock = ManualClock()
    scorer, gate = Product(lambda rows: clock.advance(0.010)), Gate()
    with scheduling(scorer, clock=clock) as scheduler:
        scorer.behave = gate
        ahead = [asyncio.create_task(scheduler.score(ROWS)) for _ in range(3)]
        await gate.reached()
        with request_context(RequestContext(deadline=Deadline.after(0.030, clock))):
            assert (await scheduler.score(ROWS)).reason is DegradedBy.DEADLINE_NEAR
        scorer.behave = None
        gate.opened.set()
        assert not any(scored.degraded for scored in await asyncio.gather(*ahead))


async def test_a_slow_spell_is_forgotten_by_probes_that_no_caller_waits_for() -> None:
    clock = ManualClock()
    scorer = Product(lambda rows: clock.advance(0.2))
    with scheduling(scorer, clock=clock) as scheduler:
        scorer.behave = None
        assert (await scheduler.score(ROWS)).reason is DegradedBy.DEADLINE_NEAR
        runs = len(scorer.seen)
        clock.advance(12.0)
        assert (await scheduler.score(ROWS)).reason is DegradedBy.DEADLINE_NEAR
        while scheduler.stats.p99_seconds > 0.1:
            await settle(1)
        assert len(scorer.seen) == runs + 1
        assert not (await scheduler.score(ROWS)).degraded


async def test_a_full_queue_answers_at_once() -> None:
    scorer, gate = Product(), Gate()
    settings = SchedulerSettings(placement=Placement.OFF_LOOP, capacity=2)
    with scheduling(scorer, settings) as scheduler:
        scorer.behave = gate
        running = asyncio.create_task(scheduler.score(ROWS))
        await gate.reached()
        waiting = [asyncio.create_task(scheduler.score(ROWS)) for _ in range(2)]
        await settle()
        assert scheduler.stats.waiting == 2
        assert (await scheduler.score(ROWS)).reason is DegradedBy.QUEUE_FULL
        gate.opened.set()
        assert not any(scored.degraded for scored in await asyncio.gather(running, *waiting))


async def test_a_cancelled_caller_harms_no_other_and_its_run_is_skipped() -> None:
    scorer, gate = Product(), Gate()
    with scheduling(scorer) as scheduler:
        scorer.behave = gate
        running = asyncio.create_task(scheduler.score(ROWS))
        await gate.reached()
        left = asyncio.create_task(scheduler.score([(7.0, 7.0)]))
        stays = asyncio.create_task(scheduler.score([(5.0, 6.0)]))
        await settle()
        running.cancel()
        left.cancel()
        await settle()
        assert running.cancelled()
        assert left.cancelled()
        gate.opened.set()
        assert (await stays).scores == (30.0,)
        assert [(7.0, 7.0)] not in scorer.seen


async def test_close_answers_who_waits_and_lets_the_running_call_finish() -> None:
    scorer, gate = Product(), Gate()
    with scheduling(scorer) as scheduler:
        scorer.behave = gate
        running = asyncio.create_task(scheduler.score(ROWS))
        await gate.reached()
        waiting = asyncio.create_task(scheduler.score(ROWS))
        await settle()
        assert scheduler.close(0.0) is False
        assert (await waiting).reason is DegradedBy.CLOSED
        gate.opened.set()
        assert (await running).scores == BY_MODEL
        assert scheduler.close(10) is True
        assert (await scheduler.score(ROWS)).reason is DegradedBy.CLOSED


async def test_an_idle_thread_does_not_keep_the_last_rows_alive() -> None:
    class Page(list[tuple[float, float]]):
        pass

    scorer = Product()
    with scheduling(scorer) as scheduler:
        page = Page(ROWS)
        gone = threading.Event()
        weakref.finalize(page, gone.set)
        await scheduler.score(page)
        scorer.seen.clear()
        del page
        assert await asyncio.to_thread(gone.wait, 5)


async def test_two_schedulers_do_not_share_a_fate() -> None:
    stuck, gate, sound = Product(), Gate(), Product()
    with scheduling(stuck) as first, scheduling(sound) as second:
        stuck.behave = gate
        hanging = asyncio.create_task(first.score(ROWS))
        await gate.reached()
        assert not (await second.score(ROWS)).degraded
        gate.opened.set()
        assert not (await hanging).degraded


def test_a_run_whose_event_loop_is_gone_ends_quietly() -> None:
    scorer, gate = Product(), Gate()

    async def leave() -> None:
        scorer.behave = gate
        call = asyncio.create_task(scheduler.score(ROWS))
        await gate.reached()
        call.cancel()

    with scheduling(scorer) as scheduler:
        asyncio.run(leave())
        gate.opened.set()
        scorer.behave = None
        assert asyncio.run(scheduler.score(ROWS)).scores == BY_MODEL


def test_a_dropped_scheduler_leaves_no_thread() -> None:
    before = fairlead_threads()
    scheduler = Scheduler(Product(), fallback=FALLBACK)
    assert fairlead_threads() == before + 1
    del scheduler
    gc.collect()
    assert fairlead_threads() == before


async def test_a_forked_child_gets_the_fallback_instead_of_waiting_for_threads_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with scheduling(Product()) as scheduler:
        parent = os.getpid()
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: parent + 1)
            assert (await scheduler.score(ROWS)).reason is DegradedBy.FORKED
            assert scheduler.stats.waiting == 0


async def test_no_rows_are_no_work() -> None:
    scorer = Product()
    with scheduling(scorer) as scheduler:
        runs = len(scorer.seen)
        assert (await scheduler.score([])).scores == ()
        assert len(scorer.seen) == runs


async def test_rows_that_do_not_fit_are_the_callers_mistake_and_not_degraded() -> None:
    with scheduling(Product()) as scheduler:
        with pytest.raises(InvalidInput, match="row 0: b is nan"):
            await scheduler.score([(1.0, float("nan"))])
        assert scheduler.stats.degraded == {}


@pytest.mark.parametrize(
    ("behave", "words"),
    [(raises, "failed at start: RuntimeError"), (lambda rows: [], "0 scores for 24 rows")],
)
def test_a_model_that_never_worked_stops_the_start(
    behave: Callable[[Rows], Sequence[float]], words: str
) -> None:
    before = fairlead_threads()
    with pytest.raises(ModelRejected, match=words):
        Scheduler(Product(behave), fallback=FALLBACK)
    for thread in threading.enumerate():
        if thread.name.startswith("fairlead-inference"):
            thread.join(10)
    assert fairlead_threads() == before


def test_a_model_that_hangs_at_start_stops_the_start() -> None:
    gate = Gate()
    with pytest.raises(ModelRejected, match=r"24 rows were not scored .* within 0.001 s"):
        Scheduler(Product(gate), fallback=FALLBACK, settings=SchedulerSettings(warm_up_timeout=0.001))
    gate.opened.set()


def test_a_fallback_for_other_columns_is_refused() -> None:
    other = HeuristicScorer(FeatureSchema(names=("b", "a"), version="1"), {"a": 1.0})
    with pytest.raises(InvalidInput, match="reads other columns"):
        Scheduler(Product(), fallback=other)


def test_a_reserve_that_leaves_the_model_no_time_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"^reserve: 0.05 s leaves nothing"):
        SchedulerSettings(reserve=0.05)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, True, 10**9, "1", None])
@pytest.mark.parametrize(
    "field",
    [
        "threads",
        "capacity",
        "timeout",
        "reserve",
        "inline_below",
        "placement",
        "stalled_after",
        "warm_up_timeout",
    ],
)
def test_settings_outside_their_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=rf"^{field}: "):
        SchedulerSettings(**{field: value})  # type: ignore[arg-type]


async def test_an_exported_scheduler_shows_who_answered_and_what_waits() -> None:
    broken = Product()
    registry = MetricRegistry()
    with Scheduler(broken, fallback=FALLBACK, settings=IN_LINE) as scheduler:
        scheduler.export(registry, name="ranking")
        await scheduler.score(ROWS)
        broken.behave = lambda rows: [float("nan")] * len(rows)
        await scheduler.score(ROWS)
        families = {family.name: family.values for family in registry.snapshot().families}
    assert {
        labels[1]: value for labels, value in families["fairlead_inference_calls_total"].items() if value
    } == {
        "model": 1,
        "invalid_scores": 1,
    }
    assert families["fairlead_inference_waiting"] == {("ranking",): 0}
    assert families["fairlead_inference_stalled_seconds"] == {("ranking",): 0}
    assert families["fairlead_inference_run_p99_seconds"][("ranking",)] > 0
