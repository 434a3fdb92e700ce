"""A candidate asked beside control, on a clock that the test moves."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

from fairlead.calls import CircuitBreaker, degraded_calls
from fairlead.calls.fallback import mark_degraded
from fairlead.clock import ManualClock, settle
from fairlead.context import Priority, RequestContext, current, request_context
from fairlead.deadline import Deadline
from fairlead.errors import InvalidInput
from fairlead.shadow import (
    Answer,
    FieldDiff,
    LiveSink,
    Mirror,
    Tolerance,
    is_shadow,
    shadow_context,
)
from fairlead.telemetry import Exposure, MemorySink, MetricRegistry, Redactor, ShadowCompared, count_query
from fairlead.telemetry.queries import QueryCount, current_count


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now=1000.0)


def mirror(clock: ManualClock, **settings: Any) -> Mirror:
    return Mirror("feed", clock=clock, rng=random.Random(7), **{"noise_share": 0.0, **settings})


async def old(x: int = 1) -> dict[str, int]:
    return {"sum": x}


async def new(x: int = 1) -> dict[str, int]:
    return {"sum": x + 1}


async def hangs(*_: object) -> None:
    await asyncio.get_running_loop().create_future()


async def test_the_callers_answer_is_controls_and_comes_before_the_candidate_is_asked(clock: ManualClock):
    asked: list[int] = []

    async def candidate(x: int) -> dict[str, int]:
        asked.append(x)
        return {"sum": x}

    compared = mirror(clock)
    assert await compared.call(old, candidate, 5) == {"sum": 5}
    assert asked == []
    await settle()
    assert asked == [5]
    assert compared.report().outcomes == {"same": 1}


async def test_the_candidate_does_not_go_first_on_a_loop_that_runs_tasks_at_once(clock: ManualClock):
    ran: list[str] = []
    loop = asyncio.get_running_loop()
    real = loop.get_task_factory()

    def eager(loop: asyncio.AbstractEventLoop, coroutine: Any, **kwargs: Any) -> asyncio.Task[Any]:
        # As Python 3.12's eager tasks do: the first step is run by whoever makes the task.
        first = coroutine.send(None)
        assert first is None

        async def rest() -> Any:
            await asyncio.sleep(0)
            while True:
                try:
                    coroutine.send(None)
                except StopIteration as stop:
                    return stop.value

        return asyncio.Task(rest(), loop=loop, **kwargs)

    async def candidate() -> dict[str, int]:
        ran.append("candidate")
        return {"sum": 1}

    loop.set_task_factory(eager)
    try:
        await mirror(clock).call(old, candidate)
        ran.append("caller")
    finally:
        loop.set_task_factory(real)
    await settle()
    assert ran == ["caller", "candidate"]


async def test_fields_are_counted_beside_the_noise_of_control(clock: ManualClock):
    stamps = iter(range(1000))

    async def control() -> dict[str, int]:
        return {"price": 1, "at": next(stamps)}

    async def candidate() -> dict[str, int]:
        return {"price": 2, "at": next(stamps)}

    compared = mirror(clock, noise_share=1.0)
    for _ in range(10):
        await compared.call(control, candidate)
        await settle()
    report = compared.report()
    assert (report.compared, report.compared_twice) == (10, 10)
    assert report.discordant() == {"price": (0, 10)}
    assert (report.fields["at"].both, report.fields["at"].differed) == (10, 10)


async def test_control_is_asked_again_for_the_noise_share_only_in_an_order_by_lot(clock: ManualClock):
    order: list[str] = []

    async def control() -> int:
        if is_shadow():
            order.append("control")
        return 1

    async def candidate() -> int:
        order.append("candidate")
        return 1

    compared = mirror(clock, noise_share=0.5)
    for _ in range(200):
        await compared.call(control, candidate)
        await settle()
    assert order.count("candidate") == 200
    assert 70 <= order.count("control") <= 130
    assert compared.report().compared_twice == order.count("control")
    firsts = mirror(clock, noise_share=1.0)
    order.clear()
    for _ in range(100):
        await firsts.call(control, candidate)
        await settle()
    assert 30 <= order[::2].count("control") <= 70


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError("no"), "failed"),
        (SystemExit(3), "failed"),
        (asyncio.CancelledError(), "failed"),
        (RecursionError(), "failed"),
        (TimeoutError(), "timeout"),
    ],
)
async def test_what_a_candidate_raises_is_counted_and_reaches_no_caller(
    clock: ManualClock, error: BaseException, outcome: str
):
    async def candidate(x: int) -> None:
        raise error

    compared = mirror(clock)
    assert await compared.call(old, candidate, 1) == {"sum": 1}
    await settle()
    assert compared.report().outcomes == {outcome: 1}
    assert compared.in_flight == 0


async def test_a_candidate_that_is_no_coroutine_function_or_answers_the_unanswerable_is_counted(
    clock: ManualClock,
):
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise ValueError("no")

        __hash__ = None

    async def odd() -> Odd:
        return Odd()

    compared = mirror(clock)
    assert await compared.call(old, lambda: 5) == {"sum": 1}
    await settle()
    await compared.call(odd, odd)
    await settle()
    assert compared.report().outcomes == {"failed": 1, "unreadable": 1}


async def test_an_answer_that_ends_the_program_when_it_is_compared_does_not(clock: ManualClock):
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise SystemExit(3)

        __hash__ = None

    async def odd() -> Odd:
        return Odd()

    compared = mirror(clock)
    await compared.call(odd, odd)
    await settle()
    report = compared.report()
    assert (report.outcomes, report.dropped) == ({}, {"broken": 1})


async def test_controls_own_error_is_raised_and_compared(clock: ManualClock):
    async def control() -> None:
        raise KeyError("x")

    async def candidate_raises() -> None:
        raise KeyError("y")

    async def candidate_answers() -> int:
        return 1

    compared = mirror(clock)
    for candidate in (candidate_raises, candidate_answers):
        with pytest.raises(KeyError):
            await compared.call(control, candidate)
        await settle()
    report = compared.report()
    assert report.outcomes == {"same": 1, "different": 1}
    assert report.fields["error"].differed == 1
    assert report.seconds == {}


async def test_a_candidate_that_hangs_is_ended_at_its_timeout_and_piles_nothing_up(clock: ManualClock):
    compared = mirror(clock, concurrency=3, timeout=2.0)
    for x in range(10):
        assert await compared.call(old, hangs, x) == {"sum": x}
    await settle()
    assert compared.in_flight == 3
    assert compared.report().dropped == {"full": 7}
    await clock.run_for(2.1)
    assert compared.in_flight == 0
    assert compared.report().outcomes == {"timeout": 3}


async def test_a_candidate_that_keeps_failing_is_left_alone_and_tried_again(clock: ManualClock):
    broken = True

    async def candidate() -> dict[str, int]:
        if broken:
            raise ConnectionError
        return {"sum": 1}

    breaker = CircuitBreaker(
        "candidate", minimum_calls=5, open_for=10.0, half_open_permits=1, clock=clock, rng=random.Random(1)
    )
    again = 0

    async def control() -> dict[str, int]:
        nonlocal again
        again += is_shadow()
        return {"sum": 1}

    compared = mirror(clock, breaker=breaker, noise_share=1.0)
    for _ in range(12):
        await compared.call(control, candidate)
        await settle()
    assert compared.report().outcomes == {"failed": 5}
    assert compared.report().dropped == {"circuit_open": 7}
    assert again == 5  # a candidate that is not asked costs control nothing either
    broken = False
    await clock.run_for(13.0)
    for _ in range(2):
        await compared.call(control, candidate)
        await settle()
    assert compared.report().outcomes == {"failed": 5, "same": 2}


async def test_an_answer_that_was_not_kept_whole_is_cut_and_nobodys_failure(clock: ManualClock):
    async def candidate() -> Answer:
        return Answer(whole=False)

    compared = mirror(clock, breaker=CircuitBreaker("candidate", minimum_calls=1, clock=clock))
    for _ in range(3):
        await compared.call(old, candidate)
        await settle()
    report = compared.report()
    assert (report.outcomes, report.dropped, report.fields) == ({"cut": 3}, {}, {})


async def test_an_answer_that_speaks_against_the_candidate_counts_for_its_circuit(clock: ManualClock):
    async def candidate() -> Answer:
        return Answer(value={"sum": 1}, failed=True)

    breaker = CircuitBreaker("candidate", minimum_calls=5, clock=clock)
    compared = mirror(clock, breaker=breaker)
    for _ in range(7):
        await compared.call(old, candidate)
        await settle()
    assert compared.report().dropped == {"circuit_open": 2}


async def test_shadow_work_is_marked_background_with_a_deadline_of_its_own(clock: ManualClock):
    seen: list[tuple[bool, RequestContext]] = []

    async def detached_work() -> None:
        seen.append((is_shadow(), current()))

    async def candidate() -> int:
        seen.append((is_shadow(), current()))
        await asyncio.get_running_loop().create_task(detached_work())
        return 1

    context = RequestContext(
        request_id="r-1",
        deadline=Deadline.after(0.01, clock),
        priority=Priority.CRITICAL,
        targeting_key="u-1",
    )
    with request_context(context):
        await mirror(clock, timeout=3.0).call(old, candidate)
    clock.advance(0.05)  # past the caller's own deadline
    assert not is_shadow()
    await settle()
    (marked, inside), (still_marked, _) = seen
    assert marked
    assert still_marked
    assert (inside.request_id, inside.targeting_key, inside.priority) == ("r-1", "u-1", Priority.BACKGROUND)
    assert inside.deadline.remaining() == pytest.approx(3.0)


async def test_a_shadow_adds_nothing_to_what_is_counted_for_its_request(clock: ManualClock):
    tenant: ContextVar[str] = ContextVar("tenant")
    seen: list[str] = []

    async def answers() -> int:
        count_query()
        mark_degraded("profiles", ConnectionError())
        seen.append(tenant.get())
        return 1

    count = QueryCount()
    counting, named = current_count.set(count), tenant.set("acme")
    with degraded_calls() as degraded:
        await mirror(clock).call(old, answers)
        await settle()
        assert dict(degraded) == {}
    current_count.reset(counting)
    tenant.reset(named)
    assert count.made == 0
    assert seen == ["acme"]


async def test_a_shadow_is_not_mirrored_again(clock: ManualClock):
    compared = mirror(clock)

    async def candidate() -> dict[str, int]:
        return await compared.call(old, new)

    await compared.call(old, candidate)
    await settle()
    assert compared.report().dropped == {"marked": 1}
    with shadow_context():
        await compared.call(old, new)
    assert compared.report().dropped == {"marked": 2}


async def test_a_caller_that_is_cancelled_after_its_answer_takes_no_comparison_along(clock: ManualClock):
    compared = mirror(clock)
    release = asyncio.Event()

    async def candidate() -> dict[str, int]:
        await release.wait()
        return {"sum": 1}

    async def caller() -> None:
        await compared.call(old, candidate)
        await hangs()

    task = asyncio.create_task(caller())
    await settle()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    release.set()
    await settle()
    assert compared.report().outcomes == {"same": 1}


async def test_a_caller_that_is_cancelled_before_its_answer_is_not_compared(clock: ManualClock):
    compared = mirror(clock)
    task = asyncio.create_task(compared.call(hangs, new))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settle()
    report = compared.report()
    assert (report.outcomes, report.dropped) == ({}, {"incomplete": 1})
    assert compared.in_flight == 0


async def test_a_comparison_that_a_busy_loop_could_not_begin_in_time_is_dropped(clock: ManualClock):
    compared = mirror(clock, start_within=0.1)
    await compared.call(old, new)
    clock.advance(0.2)
    await settle()
    assert compared.report().dropped == {"late": 1}


async def test_a_share_is_drawn_by_unit_and_the_same_units_stay(clock: ManualClock):
    compared = mirror(clock, share=0.3)
    first = [compared.enters(f"user-{n}") for n in range(1_000)]
    assert [compared.enters(f"user-{n}") for n in range(1_000)] == first
    assert 250 < sum(first) < 350
    compared.set_share(0.6)
    grown = [compared.enters(f"user-{n}") for n in range(1_000)]
    assert all(now for was, now in zip(first, grown, strict=True) if was)
    by_lot = [compared.enters() for _ in range(1_000)]
    assert 500 < sum(by_lot) < 700


async def test_a_share_of_nothing_switches_it_off(clock: ManualClock):
    compared = mirror(clock)
    compared.set_share(0.0)
    await compared.call(old, new)
    await settle()
    assert compared.report().dropped == {"disabled": 1}
    compared.set_share(1.0)
    await compared.call(old, new)
    await settle()
    assert compared.report().outcomes == {"different": 1}


async def test_a_share_of_nothing_stops_what_has_entered_too(clock: ManualClock):
    compared = mirror(clock)
    release = asyncio.Event()

    async def control() -> int:
        await release.wait()
        return 1

    task = asyncio.create_task(compared.call(control, new))
    await settle()
    compared.set_share(0.0)
    release.set()
    await task
    await settle()
    report = compared.report()
    assert (report.outcomes, report.dropped) == ({}, {"disabled": 1})


async def test_a_view_is_taken_before_the_caller_may_change_the_answer(clock: ManualClock):
    compared = mirror(clock, view=lambda answer: {"sum": answer["sum"]})

    async def other(x: int) -> dict[str, int]:
        return {"sum": x, "host": 7}

    answer = await compared.call(old, other, 3)
    answer["sum"] = 99
    await settle()
    assert compared.report().outcomes == {"same": 1}


async def test_a_view_that_raises_costs_the_caller_nothing(clock: ManualClock):
    compared = mirror(clock, view=lambda answer: answer["nothing"])
    assert await compared.call(old, new) == {"sum": 1}
    await settle()
    assert compared.report().dropped == {"broken": 1}


async def test_times_leave_out_waiting_and_the_fair_ones_are_of_both_second_answers(clock: ManualClock):
    async def control() -> int:
        await clock.sleep(0.010)
        return 1

    async def candidate() -> int:
        await clock.sleep(0.020)
        return 1

    compared = mirror(clock, noise_share=1.0)
    task = asyncio.create_task(compared.call(control, candidate))
    await clock.run_for(0.1)
    await task
    await clock.run_for(0.1)
    report = compared.report()
    shown = {arm: round(report.quantile(arm, 0.5), 3) for arm in report.seconds}
    assert shown == {
        "control": 0.010,
        "candidate": 0.020,
        "control_beside": 0.010,
        "candidate_beside": 0.020,
    }
    with pytest.raises(InvalidInput, match="one of control"):
        report.quantile("treatment", 0.5)


async def test_an_event_tells_of_each_comparison(clock: ManualClock):
    sink = MemorySink()
    compared = mirror(clock, sink=sink)
    with request_context(RequestContext(request_id="r-9")):
        await compared.call(old, new)
    await settle()
    (event,) = sink.events
    assert isinstance(event, ShadowCompared)
    assert (event.request_id, event.mirror, event.outcome) == ("r-9", "feed", "different")
    assert (event.differing, event.again, event.failed()) == (["sum"], False, False)


async def test_examples_are_few_and_show_what_was_declared_and_tokens_for_the_rest(clock: ManualClock):
    async def control() -> dict[str, object]:
        return {"name": "Ann", "rank": 1, "mail": "ann@example.com"}

    async def candidate() -> dict[str, object]:
        return {"name": "Bob", "rank": 2, "mail": "bob@example.com" + "x" * 1_000}

    compared = mirror(clock, redactor=Redactor(b"k" * 32), shown=("rank", "mail"))
    for _ in range(5):
        await compared.call(control, candidate)
        await settle()
    examples = compared.report().examples
    assert {path: len(found) for path, found in examples.items()} == {"mail": 3, "name": 3, "rank": 3}
    assert (examples["rank"][0].control, examples["rank"][0].candidate) == ("1", "2")
    assert all(
        "Ann" not in each.control and "ann@" not in each.control
        for found in examples.values()
        for each in found
    )
    assert all(len(each.candidate) <= 120 for each in examples["mail"])
    bare = mirror(clock)
    await bare.call(control, candidate)
    await settle()
    assert bare.report().examples == {}


async def test_an_answer_of_many_fields_names_the_same_of_both_later_answers(clock: ManualClock):
    names = [f"field{n:03}" for n in range(150)]
    values = iter(range(1_000))

    async def control() -> dict[str, int]:
        # Its last field is always another: control differs from itself in that one alone.
        return {**dict.fromkeys(names, 0), "last": next(values)}

    async def candidate() -> dict[str, int]:
        return dict.fromkeys(names, 1)

    sink = MemorySink()
    compared = mirror(clock, noise_share=1.0, sink=sink)
    await compared.call(control, candidate)
    await settle()
    (event,) = sink.events
    assert isinstance(event, ShadowCompared)
    assert event.differing == names[:100]
    assert (event.differing_again, event.unnamed) == ([], 51)
    assert "last" not in compared.report().discordant()
    assert compared.report().untracked == 51


async def test_an_answer_that_cannot_be_shown_is_counted_all_the_same(clock: ManualClock):
    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError("not me")

    async def control() -> dict[str, object]:
        return {"who": Shy(), "raw": b"ann@example.com"}

    async def candidate() -> dict[str, object]:
        return {"who": None, "raw": b"bob@example.com"}

    sink = MemorySink()
    redactor = Redactor(b"k" * 32)
    compared = mirror(clock, sink=sink, redactor=redactor, shown=("who", "raw"))
    await compared.call(control, candidate)
    await settle()
    report = compared.report()
    assert (report.outcomes, report.dropped, len(sink.events)) == ({"different": 1}, {}, 1)
    assert report.examples["who"][0].control == "a Shy that cannot be shown"
    assert report.examples["raw"][0].control == redactor.text("ann@example.com")


async def test_close_lets_what_runs_end_and_cancels_the_rest(clock: ManualClock):
    release = asyncio.Event()

    async def slow() -> dict[str, int]:
        await release.wait()
        return {"sum": 1}

    compared = mirror(clock, timeout=60.0)
    await compared.call(old, slow)
    await compared.call(old, hangs)
    await settle()
    closing = asyncio.create_task(compared.close(5.0))
    await settle()
    release.set()
    await settle()
    assert not closing.done()
    await clock.run_for(5.1)
    await closing
    await settle()
    report = compared.report()
    assert report.outcomes == {"same": 1}
    assert compared.in_flight == 0
    await compared.call(old, new)
    assert compared.report().dropped == {"disabled": 2}
    await compared.close()


async def test_what_had_not_begun_when_it_was_closed_is_counted(clock: ManualClock):
    compared = mirror(clock)
    await compared.call(old, new)
    closing = asyncio.create_task(compared.close(0.0))
    for task in asyncio.all_tasks():
        if task.get_name() == "feed shadow":
            task.cancel()  # as a loop that ends does
    await clock.run_for(2.0)
    await closing
    report = compared.report()
    assert (report.outcomes, report.dropped) == ({}, {"disabled": 1})


async def test_a_candidate_that_turns_its_cancellation_into_an_error_has_not_failed(clock: ManualClock):
    async def turns() -> None:
        try:
            await hangs()
        except asyncio.CancelledError:
            raise ValueError from None

    compared = mirror(clock, timeout=60.0)
    await compared.call(old, turns)
    await settle()
    closing = asyncio.create_task(compared.close(1.0))
    await clock.run_for(1.1)
    await closing
    report = compared.report()
    assert (report.outcomes, report.dropped) == ({}, {"disabled": 1})


async def test_close_leaves_a_candidate_behind_that_ignores_its_cancellation(clock: ManualClock):
    stop = asyncio.Event()

    async def stubborn() -> None:
        while not stop.is_set():
            try:
                await stop.wait()
            except asyncio.CancelledError:
                continue

    compared = mirror(clock, timeout=60.0)
    await compared.call(old, stubborn)
    await settle()
    closing = asyncio.create_task(compared.close(1.0))
    await clock.run_for(1.1)
    assert not closing.done()
    await clock.run_for(1.1)
    await closing
    assert compared.in_flight == 1
    stop.set()
    await settle()
    assert compared.in_flight == 0


async def test_the_numbers_are_exported(clock: ManualClock):
    compared = mirror(clock)
    registry = MetricRegistry()
    compared.export(registry)
    await compared.call(old, new)
    await settle()
    compared.set_share(0.0)
    await compared.call(old, new)
    families = {family.name: family for family in registry.snapshot().families}
    assert set(families) >= {
        "fairlead_shadow_compared_total",
        "fairlead_shadow_dropped_total",
        "fairlead_shadow_in_flight",
    }
    assert "'different'" in repr(families["fairlead_shadow_compared_total"])


def test_what_a_shadow_tells_does_not_count_as_real():
    live = MemorySink()
    sink = LiveSink(live)
    shown = Exposure(at_utc_seconds=1.0, flag="f", variant="on", targeting_key="u", reason="SPLIT")
    sink.emit(shown)
    with shadow_context():
        sink.emit(shown)
    sink.emit(shown)
    assert (live.events, sink.withheld) == ([shown, shown], 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"share": 1.5},
        {"share": float("nan")},
        {"noise_share": -0.1},
        {"timeout": 0},
        {"concurrency": 0},
        {"start_within": 0.0},
        {"fields": 0},
        {"shown": "body"},
        {"breaker": CircuitBreaker("other")},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_that_are_none_are_refused(clock: ManualClock, settings: dict[str, Any]):
    with pytest.raises(InvalidInput):
        mirror(clock, **settings)


async def test_a_tolerance_reaches_the_comparison(clock: ManualClock):
    compared = mirror(clock, diff=FieldDiff(tolerances={"sum": Tolerance(absolute=1)}))
    await compared.call(old, new)
    await settle()
    assert compared.report().outcomes == {"same": 1}


async def test_offering_never_raises(clock: ManualClock, monkeypatch: pytest.MonkeyPatch):
    compared = mirror(clock)

    def refuses(coroutine: Any, **_: object) -> None:
        coroutine.close()
        raise RuntimeError("no more tasks")

    monkeypatch.setattr(asyncio.get_running_loop(), "create_task", refuses)
    offered: Callable[..., None] = compared.offer
    offered(Answer(value=1), old)
    monkeypatch.undo()
    assert compared.report().dropped == {"broken": 1}
    assert sys.exc_info() == (None, None, None)
