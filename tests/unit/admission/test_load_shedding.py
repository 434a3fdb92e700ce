"""LoadShedder: who is admitted, who waits, who is refused, and that no place is ever lost."""

from __future__ import annotations

import asyncio
import gc
import math
import random
from typing import Any

import pytest

from fairlead.admission import LoadShedder
from fairlead.calls import Aimd, Bulkhead, ConcurrencyLimit, Policy
from fairlead.clock import ManualClock, settle
from fairlead.context import Priority, RequestContext, request_context
from fairlead.deadline import Deadline
from fairlead.errors import DeadlineExceeded, InvalidInput, Overloaded, RateLimited
from fairlead.telemetry import MetricRegistry, StateChanged
from fairlead.telemetry.prometheus import render

LOW, NORMAL, HIGH = Priority


class Service:
    """A shedder with fixed places, and requests that hold theirs until told."""

    def __init__(self, clock: ManualClock, places: int = 1, **settings: Any) -> None:
        self.clock = clock
        self.shedder = LoadShedder(
            "svc", limit=Bulkhead("svc", calls=places), clock=clock, rng=random.Random(1), **settings
        )
        self.served: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}

    async def _request(self, name: str, priority: Priority, deadline: Deadline | None) -> None:
        async with self.shedder.admit(priority, deadline):
            self.served.append(name)
            await self.ends[name].wait()

    async def send(
        self, name: str, priority: Priority = NORMAL, deadline: Deadline | None = None
    ) -> asyncio.Task[None]:
        self.ends[name] = asyncio.Event()
        task = asyncio.create_task(self._request(name, priority, deadline))
        await settle(4)
        return task

    async def end(self, name: str) -> None:
        self.ends[name].set()
        await settle(8)

    def refusals(self) -> dict[tuple[Priority, str], int]:
        return dict(self.shedder.stats.refused)


def refusal(task: asyncio.Task[None]) -> str:
    error = task.exception()
    assert isinstance(error, Overloaded)
    return str(error)


# Order


async def test_a_request_passes_at_once_while_a_place_is_free(clock: ManualClock) -> None:
    service = Service(clock, places=2)
    await service.send("a")
    await service.send("b")
    assert service.served == ["a", "b"]
    assert (service.shedder.in_flight, service.shedder.waiting) == (2, 0)


async def test_a_free_place_goes_to_the_highest_priority_first_come_first_served(clock: ManualClock) -> None:
    service = Service(clock)
    await service.send("first")
    for name, priority in (("low", LOW), ("n1", NORMAL), ("high", HIGH), ("n2", NORMAL)):
        await service.send(name, priority)
    for name in ("first", "high", "n1", "n2", "low"):
        await service.end(name)
    assert service.served == ["first", "high", "n1", "n2", "low"]
    assert (service.shedder.in_flight, service.shedder.waiting) == (0, 0)


async def test_a_queue_that_stands_for_an_interval_serves_the_newest_first(clock: ManualClock) -> None:
    service = Service(clock, target=0.03, interval=0.1)
    await service.send("first")
    await service.send("oldest")
    await clock.run_for(0.05)
    await service.send("old")
    await clock.run_for(0.04)
    await service.send("new")
    await clock.run_for(0.011)
    await service.send("newest")
    await service.end("first")
    assert service.served == ["first", "newest"]
    await service.end("newest")
    assert service.served == ["first", "newest", "new"]


async def test_an_emptied_queue_is_first_in_first_out_again(clock: ManualClock) -> None:
    service = Service(clock, target=0.03, interval=0.1)
    await service.send("first")
    await service.send("tired")
    await clock.run_for(0.2)  # the queue stood, and its one request was refused
    assert service.shedder.waiting == 0
    await service.send("a")
    await service.send("b")
    await service.end("first")
    assert service.served == ["first", "a"]


# Refusals


async def test_a_request_waits_for_an_interval_at_most(clock: ManualClock) -> None:
    service = Service(clock)
    await service.send("first")
    waiting = await service.send("late")
    await clock.run_for(0.097)
    assert not waiting.done()
    await clock.run_for(0.003)
    assert "after 0.100 s in the queue (priority normal, reason age)" in refusal(waiting)
    assert service.refusals() == {(NORMAL, "age"): 1}


async def test_a_standing_queue_refuses_after_the_target(clock: ManualClock) -> None:
    service = Service(clock, target=0.05, interval=0.1)
    await service.send("first")
    for number in range(4):  # never empty for 100 ms
        await service.send(f"before {number}")
        await clock.run_for(0.03)
    waiting = await service.send("late")
    await clock.run_for(0.051)
    assert "after 0.05" in refusal(waiting)


async def test_the_queue_of_a_lower_priority_may_stand_while_the_higher_keeps_its_patience(
    clock: ManualClock,
) -> None:
    service = Service(clock, target=0.05, interval=0.1)
    await service.send("first")
    for number in range(4):
        await service.send(f"low {number}", LOW)
        await clock.run_for(0.03)
    low, high = await service.send("low", LOW), await service.send("high", HIGH)
    await clock.run_for(0.051)
    assert low.done()
    assert not high.done()
    await service.end("first")
    assert service.served == ["first", "high"]


async def test_bounds_of_the_age_grow_where_places_come_free_slowly(clock: ManualClock) -> None:
    service = Service(clock, places=1, interval=0.1)
    held = "0"
    await service.send(held)
    for number in range(1, 6):  # two in the queue, a place every 80 ms
        await service.send(f"{number}", HIGH)
        spare = await service.send(f"spare {number}", LOW)
        await clock.run_for(0.08)
        await service.end(held)
        held = str(number)
    assert held in service.served
    assert spare not in service.served
    waiting = await service.send("patient", HIGH)
    await clock.run_for(0.5)  # ten places take 800 ms
    assert not waiting.done()


async def test_a_full_queue_refuses_the_newcomer_that_would_be_served_last(clock: ManualClock) -> None:
    service = Service(clock, queue=2)
    await service.send("first")
    await service.send("a")
    await service.send("b")
    assert "reason full" in refusal(await service.send("c"))
    assert "reason full" in refusal(await service.send("d", LOW))
    assert service.shedder.waiting == 2


async def test_a_higher_arrival_evicts_the_newest_of_the_lowest(clock: ManualClock) -> None:
    service = Service(clock, queue=3)
    await service.send("first")
    old, new = await service.send("old low", LOW), await service.send("new low", LOW)
    await service.send("normal")
    await service.send("high", HIGH)
    assert "reason evicted" in refusal(new)
    assert not old.done()
    assert service.shedder.waiting == 3


async def test_a_full_standing_queue_gives_the_oldest_place_to_the_newcomer(clock: ManualClock) -> None:
    service = Service(clock, queue=2, target=0.09, interval=0.1)
    await service.send("first")
    await service.send("oldest")
    await clock.run_for(0.05)
    old = await service.send("old")
    await clock.run_for(0.051)
    await service.send("new")
    await service.send("newest")
    assert "reason evicted" in refusal(old)
    await service.end("first")
    assert service.served == ["first", "newest"]


async def test_without_a_queue_every_request_above_the_limit_is_refused_at_once(clock: ManualClock) -> None:
    service = Service(clock, queue=0)
    await service.send("first")
    assert "reason full" in refusal(await service.send("second", HIGH))


async def test_a_refusal_says_when_to_try_again_and_not_the_same_to_all(clock: ManualClock) -> None:
    service = Service(clock, queue=0)
    await service.send("first")
    waits = []
    for number in range(20):
        error = (await service.send(str(number))).exception()
        assert isinstance(error, Overloaded)
        assert error.retry_after is not None
        waits.append(error.retry_after)
    assert all(1.0 <= wait <= 4.0 for wait in waits)
    assert {math.ceil(wait) for wait in waits} == {2, 3, 4}


# Deadlines


async def test_a_request_whose_deadline_has_passed_is_not_admitted(clock: ManualClock) -> None:
    service = Service(clock)
    task = await service.send("late", deadline=Deadline.after(0.0, clock))
    assert isinstance(task.exception(), DeadlineExceeded)
    assert service.shedder.in_flight == 0


async def test_a_waiting_request_is_dropped_when_no_answer_could_come_in_time(clock: ManualClock) -> None:
    service = Service(clock)
    await service.send("first")
    await clock.run_for(0.3)
    await service.end("first")  # the fastest of late: 0.3 s
    await service.send("second")
    waiting = await service.send("hurried", deadline=Deadline.after(0.35, clock))
    await clock.run_for(0.051)
    assert "reason deadline" in refusal(waiting)


async def test_a_free_place_is_given_even_to_a_hurried_request(clock: ManualClock) -> None:
    # Nobody else would use it, and an estimate that refuses everything would never be corrected.
    service = Service(clock)
    await service.send("first")
    await clock.run_for(0.3)
    await service.end("first")
    await service.send("hurried", deadline=Deadline.after(0.1, clock))
    assert service.served == ["first", "hurried"]


async def test_priority_and_deadline_come_from_the_request_unless_given(clock: ManualClock) -> None:
    shedder = LoadShedder("svc", clock=clock)
    with request_context(RequestContext(priority=HIGH, deadline=Deadline.after(1.0, clock))):
        async with shedder.admit():
            pass
        clock.advance(2.0)
        with pytest.raises(DeadlineExceeded):
            await shedder.admit().__aenter__()
    assert shedder.stats.admitted == {LOW: 0, NORMAL: 0, HIGH: 1}


# Places are never lost


async def end_with(shedder: LoadShedder, error: BaseException, after: float = 0.0) -> None:
    """A request that ends with this error, after so many seconds."""
    admission = shedder.admit()
    await admission.__aenter__()
    shedder.clock.advance(after)
    await admission.__aexit__(type(error), error, None)


@pytest.mark.parametrize("error", [ValueError(), TimeoutError(), asyncio.CancelledError(), SystemExit()])
async def test_a_place_comes_back_however_the_request_ends(clock: ManualClock, error: BaseException) -> None:
    shedder = LoadShedder("svc", clock=clock)
    await end_with(shedder, error)
    assert shedder.in_flight == 0


async def test_a_cancelled_request_leaves_the_queue(clock: ManualClock) -> None:
    service = Service(clock)
    await service.send("first")
    waiting = await service.send("gone")
    following = await service.send("next")
    waiting.cancel()
    await settle()
    assert service.shedder.waiting == 1
    assert service.shedder.stats.left == 1
    await service.end("first")
    assert service.served == ["first", "next"]
    assert not following.done()


async def test_a_request_cancelled_in_the_turn_that_admitted_it_hands_its_place_on(
    clock: ManualClock,
) -> None:
    service = Service(clock)
    holder = service.shedder.admit()
    await holder.__aenter__()
    first = await service.send("first")
    await service.send("second")
    await holder.__aexit__(None, None, None)  # admits first, whose task has not run yet
    first.cancel()
    await settle()
    assert service.served == ["second"]
    assert service.shedder.in_flight == 1


async def test_the_end_of_a_wait_leaves_no_timer(clock: ManualClock) -> None:
    service = Service(clock)
    await service.send("first")
    await service.send("second")
    await service.end("first")
    assert [timer.callback for _, _, timer in clock._timers] == [None]


async def test_a_limit_that_grows_admits_those_who_wait(clock: ManualClock) -> None:
    limit = ConcurrencyLimit("svc", algorithm=Aimd(), initial=1, minimum=1, clock=clock)
    shedder = LoadShedder("svc", limit=limit, clock=clock)
    stream = shedder.admit()
    await stream.__aenter__()
    waiting = [asyncio.create_task(shedder.admit().__aenter__()) for _ in range(2)]
    await settle()
    stream.measure("success")  # the answer has begun, and goes on
    await settle()
    assert limit.limit == 2
    assert [task.done() for task in waiting] == [True, False]
    waiting[1].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_an_event_loop_that_was_closed_around_waiting_requests_harms_no_later_one() -> None:
    clock = ManualClock()
    service = Service(clock)

    def other_loop() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(service.shedder.admit().__aenter__())
        task = loop.create_task(service.shedder.admit().__aenter__())
        loop.run_until_complete(asyncio.sleep(0))
        task._log_destroy_pending = False  # it is destroyed on purpose
        loop.close()
        abandoned.append(task)

    abandoned: list[asyncio.Task[object]] = []
    await asyncio.to_thread(other_loop)
    assert (service.shedder.in_flight, service.shedder.waiting) == (1, 1)
    service.shedder._give_back()
    await service.send("later")
    assert service.served == ["later"]


# What it learns


@pytest.mark.parametrize(
    ("error", "cut"),
    [
        (TimeoutError(), True),
        (Overloaded("behind us"), True),
        (RateLimited("this client"), False),
        (ValueError(), False),
        (asyncio.CancelledError(), False),
    ],
)
async def test_only_what_speaks_of_overload_cuts_the_limit(
    clock: ManualClock, error: BaseException, cut: bool
) -> None:
    shedder = LoadShedder("svc", clock=clock)
    before = shedder.limit.limit
    await end_with(shedder, error, 0.1)
    assert (shedder.limit.limit < before) is cut


async def test_callers_who_name_tiny_deadlines_do_not_cut_the_limit(clock: ManualClock) -> None:
    shedder = LoadShedder("svc", clock=clock)
    async with shedder.admit():
        clock.advance(0.1)
    before = shedder.limit.limit
    for _ in range(20):
        await end_with(shedder, DeadlineExceeded("1 ms"), 0.001)
    assert shedder.limit.limit == before
    await end_with(shedder, DeadlineExceeded("200 ms"), 0.2)
    assert shedder.limit.limit < before


async def test_timeouts_cut_the_limit_again_once_no_success_is_known(clock: ManualClock) -> None:
    shedder = LoadShedder("svc", clock=clock)
    async with shedder.admit():
        clock.advance(1.0)
    clock.advance(20.0)
    before = shedder.limit.limit
    await end_with(shedder, TimeoutError(), 0.5)
    assert shedder.limit.limit < before


async def test_a_stream_is_measured_when_it_begins(clock: ManualClock) -> None:
    shedder = LoadShedder("svc", clock=clock)
    async with shedder.admit() as admission:
        clock.advance(0.1)
        admission.measure("success")
        clock.advance(3600.0)
    assert shedder._fastest.seconds == pytest.approx(0.1)


# What it tells


async def test_state_changes_are_events(clock: ManualClock) -> None:
    events: list[StateChanged] = []
    service = Service(clock, queue=0, on_event=events.append)
    await service.send("first")
    for number in range(3):
        await service.send(str(number))
    assert service.shedder.state == "overloaded"
    await service.end("first")
    await clock.run_for(1.0)
    await service.send("calm")
    assert service.shedder.state == "normal"
    assert [(event.component, event.name, event.previous, event.current) for event in events] == [
        ("load_shedder", "svc", "normal", "overloaded"),
        ("load_shedder", "svc", "overloaded", "normal"),
    ]


async def test_a_listener_that_fails_harms_no_request(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: StateChanged) -> None:
        raise RuntimeError("listener")

    service = Service(clock, queue=0, on_event=broken)
    await service.send("first")
    assert "reason full" in refusal(await service.send("second"))
    assert "listener" in caplog.text


async def test_counters_and_gauges_are_scraped(clock: ManualClock) -> None:
    metrics = MetricRegistry()
    service = Service(clock, queue=1, metrics=metrics)
    await service.send("first", HIGH)
    await service.send("second")
    await service.send("third")
    text = render(metrics)
    assert 'fairlead_admission_admitted_total{shedder="svc",priority="critical"} 1.0' in text
    assert 'fairlead_admission_refused_total{shedder="svc",priority="normal",reason="full"} 1.0' in text
    assert 'fairlead_admission_limit{shedder="svc"} 1.0' in text
    assert 'fairlead_admission_in_flight{shedder="svc"} 1.0' in text
    assert 'fairlead_admission_waiting{shedder="svc"} 1.0' in text
    await clock.run_for(0.02)
    await service.end("first")
    assert 'fairlead_admission_queue_seconds_count{shedder="svc",priority="normal"} 1' in render(metrics)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"queue": -1}, "queue"),
        ({"queue": 1.5}, "queue"),
        ({"target": 0.0}, "target"),
        ({"interval": 0.001}, "interval"),
        ({"interval": float("nan")}, "interval"),
    ],
)
def test_a_setting_outside_its_bounds_is_refused_by_name(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^LoadShedder\.{field}: "):
        LoadShedder("svc", **settings)


async def test_an_admission_is_entered_once(clock: ManualClock) -> None:
    shedder = LoadShedder("svc", clock=clock)
    admission = shedder.admit()
    async with admission:
        with pytest.raises(InvalidInput, match="entered once"):
            await admission.__aenter__()
    assert shedder.in_flight == 0


@pytest.mark.parametrize("priority", [3, -1, 1, "high", None])
async def test_a_priority_that_is_none_is_refused_and_costs_no_place(
    clock: ManualClock, priority: Any
) -> None:
    shedder = LoadShedder("svc", clock=clock)
    with (
        request_context(RequestContext(priority=priority)),
        pytest.raises(InvalidInput, match="is not a Priority"),
    ):
        async with shedder.admit():
            raise AssertionError("not reached")
    assert shedder.in_flight == 0


async def test_a_deadline_that_had_passed_is_a_refusal_that_is_counted(clock: ManualClock) -> None:
    shedder = LoadShedder("svc", clock=clock)
    with pytest.raises(DeadlineExceeded):
        async with shedder.admit(HIGH, Deadline.after(0.0, clock)):
            raise AssertionError("not reached")
    assert shedder.stats.refused == {(HIGH, "deadline"): 1}
    assert shedder.state == "normal"  # it says nothing about the service


async def test_a_limit_is_the_shedders_own_or_places_would_pass_its_queue_by(clock: ManualClock) -> None:
    limit = ConcurrencyLimit("dep", clock=clock)
    shedder = LoadShedder("svc", limit=limit, clock=clock)
    with pytest.raises(
        InvalidInput, match="a LoadShedder uses this limit already; give LoadShedder 'two' one"
    ):
        LoadShedder("two", limit=limit, clock=clock)
    with pytest.raises(InvalidInput, match="give a Policy one of its own"):
        Policy(name="p", limit=limit, clock=clock)
    with pytest.raises(InvalidInput, match=r"give permit\(\) one of its own"):
        limit.permit()
    async with shedder.admit():
        assert limit.in_flight == 1


async def test_a_limit_of_a_policy_is_refused_and_one_of_a_shedder_that_is_gone_is_not(
    clock: ManualClock,
) -> None:
    limit = ConcurrencyLimit("dep", clock=clock)
    policies = [Policy(name=name, limit=limit, clock=clock) for name in ("p", "q")]  # who may share
    with pytest.raises(InvalidInput, match="a Policy uses this limit already"):
        LoadShedder("svc", limit=limit, clock=clock)
    assert len(policies) == 2
    free = ConcurrencyLimit("free", clock=clock)
    for _ in range(2):
        LoadShedder("svc", limit=free, clock=clock)
        gc.collect()
