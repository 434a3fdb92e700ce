from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from fairlead.cache import SingleFlight
from fairlead.clock import ManualClock, Timer, settle
from fairlead.context import Priority, RequestContext, current, request_context
from fairlead.deadline import Deadline
from fairlead.errors import DeadlineExceeded, InvalidInput, LoadCancelled


class CountingClock(ManualClock):
    """A ManualClock that counts the timers it is asked for."""

    timers = 0

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        self.timers += 1
        return super().call_at(when, callback)


class Gate:
    """A loader that waits until it is opened, and counts its calls."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.calls = 0
        self.open = asyncio.Event()
        self.error = error

    async def __call__(self) -> int:
        self.calls += 1
        answer = self.calls
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return answer


@pytest.fixture
def clock() -> CountingClock:
    return CountingClock()


@pytest.fixture
def flights(clock: CountingClock) -> SingleFlight:
    return SingleFlight(clock=clock, load_timeout=30.0)


@pytest.fixture
async def gate() -> Gate:
    return Gate()


async def waiting(flights: SingleFlight, load: Any, count: int, key: str = "k") -> list[asyncio.Task[Any]]:
    """`count` callers that have reached their wait, the first of them the one who started the load."""
    callers = [asyncio.create_task(flights.do(key, load)) for _ in range(count)]
    await settle()
    return callers


# Cancellation


@pytest.mark.parametrize("cancelled", [0, 1, 4])
async def test_one_cancelled_caller_leader_or_not_harms_no_other(
    flights: SingleFlight, gate: Gate, cancelled: int
) -> None:
    callers = await waiting(flights, gate, 5)
    callers[cancelled].cancel()
    await settle()
    gate.open.set()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(answers.pop(cancelled), asyncio.CancelledError)
    assert answers == [1, 1, 1, 1]
    assert gate.calls == 1


async def test_a_load_goes_on_when_all_callers_left_and_the_next_caller_joins_it(
    flights: SingleFlight, gate: Gate
) -> None:
    for caller in await waiting(flights, gate, 3):
        caller.cancel()
    await settle()
    (late,) = await waiting(flights, gate, 1)
    gate.open.set()
    assert await late == 1


async def test_the_library_holds_its_load_when_nobody_else_does(flights: SingleFlight) -> None:
    held: list[weakref.ref[asyncio.Future[str]]] = []

    async def load() -> str:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        held.append(weakref.ref(future))
        return await future

    (starter,) = await waiting(flights, load, 1)
    starter.cancel()
    await settle()
    del starter
    gc.collect()
    (late,) = await waiting(flights, load, 1)
    future = held[0]()
    assert future is not None
    future.set_result("kept")
    assert await late == "kept"


async def test_the_slot_is_cleared_before_waiters_wake(flights: SingleFlight, gate: Gate) -> None:
    async def twice() -> tuple[int, int]:
        first = await flights.do("k", gate)
        in_flight = flights.in_flight
        await flights.do("k", gate)
        return first, in_flight

    callers = [asyncio.create_task(twice()) for _ in range(2)]
    await settle()
    gate.open.set()
    answers = await asyncio.gather(*callers)
    assert answers[0] == (1, 0)
    assert gate.calls == 2


async def test_a_loader_that_cancels_itself_does_not_look_like_its_waiters_cancellation(
    flights: SingleFlight, gate: Gate
) -> None:
    gate.error = asyncio.CancelledError()
    callers = await waiting(flights, gate, 2)
    gate.open.set()
    for caller in callers:
        with pytest.raises(LoadCancelled, match="'k' was cancelled; its callers may try again"):
            await caller
        assert not caller.cancelled()
    assert flights.in_flight == 0


async def test_a_load_cancelled_before_its_first_step_still_answers_its_waiters(
    flights: SingleFlight, gate: Gate
) -> None:
    caller = asyncio.create_task(flights.do("k", gate))
    await asyncio.sleep(0)
    await flights.close()
    with pytest.raises(LoadCancelled):
        await caller
    assert gate.calls == 0
    assert await flights.do("k", answer) == "answer"
    assert flights.peak_per_key == 1


async def test_a_caller_cancelled_in_the_moment_the_load_fails_leaves_no_unread_error(
    flights: SingleFlight, gate: Gate
) -> None:
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    gate.error = OSError("down")
    (caller,) = await waiting(flights, gate, 1)
    gate.open.set()
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises((asyncio.CancelledError, OSError)):
        await caller
    del caller
    await settle()
    gc.collect()
    assert problems == []


# Outcomes


async def answer() -> str:
    return "answer"


async def test_none_is_an_answer_like_any_other(flights: SingleFlight) -> None:
    calls = 0

    async def load() -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)

    assert await asyncio.gather(*(flights.do("k", load) for _ in range(3))) == [None] * 3
    assert calls == 1


async def test_each_waiter_gets_an_exception_instance_of_its_own(flights: SingleFlight, gate: Gate) -> None:
    gate.error = OSError(5, "down")
    callers = await waiting(flights, gate, 4)
    gate.open.set()
    errors = await asyncio.gather(*callers, return_exceptions=True)
    assert len({id(error) for error in errors}) == 4
    assert gate.error not in errors
    assert {(type(error), str(error)) for error in errors} == {(OSError, "[Errno 5] down")}
    assert await flights.do("other", answer) == "answer"


async def test_a_failed_load_and_its_value_are_freed_without_the_garbage_collector(
    flights: SingleFlight,
) -> None:
    class Big:
        pass

    seen: list[weakref.ref[Big]] = []

    async def load() -> None:
        big = Big()
        seen.append(weakref.ref(big))
        raise OSError("down")

    gc.collect()
    gc.disable()
    try:
        with pytest.raises(OSError, match="down"):
            await flights.do("k", load)
        await settle()
        assert seen[0]() is None
    finally:
        gc.enable()


async def test_a_loader_that_raises_before_it_returns_an_awaitable_fails_like_any_other(
    flights: SingleFlight,
) -> None:
    def load() -> Any:
        raise OSError("at once")

    with pytest.raises(OSError, match="at once"):
        await flights.do("k", load)
    assert flights.in_flight == 0


@pytest.mark.parametrize("value", [None, 7, "text", [1]])
async def test_a_loader_that_returns_no_awaitable_is_named(flights: SingleFlight, value: Any) -> None:
    with pytest.raises(
        TypeError, match=f"'k': the loader returned {type(value).__name__}, which cannot be awaited"
    ):
        await flights.do("k", lambda: value)


async def test_a_long_key_is_cut_in_messages(flights: SingleFlight) -> None:
    with pytest.raises(TypeError) as raised:
        await flights.do("x" * 10_000, lambda: 1)  # type: ignore[arg-type, return-value]  # the point
    assert len(str(raised.value)) < 250


async def test_an_error_that_nobody_waits_for_is_not_reported_as_unread(
    flights: SingleFlight, gate: Gate
) -> None:
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    gate.error = OSError("down")
    (caller,) = await waiting(flights, gate, 1)
    caller.cancel()
    gate.open.set()
    await settle()
    gc.collect()
    assert problems == []


# Deadlines and timeouts


async def test_each_waiter_honours_its_own_deadline_and_the_load_goes_on(
    flights: SingleFlight, clock: CountingClock, gate: Gate
) -> None:
    with request_context(RequestContext(deadline=Deadline.after(1.0, clock))):
        hasty = asyncio.create_task(flights.do("k", gate))
    with request_context(RequestContext(deadline=Deadline.after(5.0, clock))):
        patient = asyncio.create_task(flights.do("k", gate))
    await settle()
    clock.advance(1.0)
    with pytest.raises(DeadlineExceeded, match="this caller's deadline passed while it ran"):
        await hasty
    gate.open.set()
    assert await patient == 1


async def test_a_waiter_sets_one_timer_with_a_deadline_and_none_without(
    flights: SingleFlight, clock: CountingClock, gate: Gate
) -> None:
    callers = await waiting(flights, gate, 3)
    assert clock.timers == 1  # the load's own
    with request_context(RequestContext(deadline=Deadline.after(5.0, clock))):
        callers += await waiting(flights, gate, 2)
    assert clock.timers == 3
    gate.open.set()
    await asyncio.gather(*callers)


async def test_an_answer_that_lands_with_the_deadline_is_not_thrown_away(
    flights: SingleFlight, clock: CountingClock, gate: Gate
) -> None:
    with request_context(RequestContext(deadline=Deadline.after(1.0, clock))):
        (caller,) = await waiting(flights, gate, 1)
    gate.open.set()
    await asyncio.sleep(0)
    clock.advance(1.0)
    assert await caller == 1


async def test_the_load_does_not_inherit_its_starters_deadline(
    flights: SingleFlight, clock: CountingClock
) -> None:
    async def load() -> tuple[float, Priority]:
        return current().deadline.remaining(), current().priority

    context = RequestContext(deadline=Deadline.after(0.1, clock), priority=Priority.CRITICAL)
    with request_context(context):
        assert await flights.do("k", load) == (30.0, Priority.CRITICAL)


async def test_a_hung_loader_is_given_up_after_the_load_timeout(
    flights: SingleFlight, clock: CountingClock, gate: Gate
) -> None:
    callers = await waiting(flights, gate, 2)
    clock.advance(30.0)
    for caller in callers:
        with pytest.raises(DeadlineExceeded, match="'k' ran longer than load_timeout=30 s"):
            await caller
    await settle()
    gate.open.set()
    assert await flights.do("k", gate) == 2
    assert flights.peak_per_key == 1


async def test_a_loader_that_ignores_its_cancellation_holds_up_nobody_and_its_answer_is_too_late(
    flights: SingleFlight, clock: CountingClock
) -> None:
    release = asyncio.Event()

    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await release.wait()
        return "too late"

    (caller,) = await waiting(flights, stubborn, 1)
    clock.advance(30.0)
    with pytest.raises(DeadlineExceeded):
        await caller
    assert await flights.do("k", answer) == "answer"
    assert flights.peak_per_key == 2
    release.set()
    await settle()
    assert await flights.do("k", answer) == "answer"


async def test_closing_does_not_wait_for_a_stubborn_loader_beyond_its_timeout(flights: SingleFlight) -> None:
    release = asyncio.Event()

    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await release.wait()
        return "late"

    (caller,) = await waiting(flights, stubborn, 1)
    await flights.close(timeout=0.0)
    assert not caller.done()
    release.set()
    assert await caller == "late"


@pytest.mark.parametrize("load_timeout", [0, -1.0, float("nan"), float("inf"), True, "30", None])
def test_an_impossible_load_timeout_is_refused(load_timeout: Any) -> None:
    with pytest.raises(InvalidInput, match="load_timeout"):
        SingleFlight(load_timeout=load_timeout)


# Generations


async def test_a_forgotten_load_answers_who_waits_and_later_callers_start_anew(
    flights: SingleFlight, gate: Gate
) -> None:
    before = await waiting(flights, gate, 2)
    flights.forget("k")
    after = await waiting(flights, gate, 2)
    gate.open.set()
    assert await asyncio.gather(*before, *after) == [1, 1, 2, 2]
    assert flights.peak_per_key == 2


async def test_a_forgotten_load_that_ends_late_does_not_clear_the_slot_of_its_successor(
    flights: SingleFlight, gate: Gate
) -> None:
    (before,) = await waiting(flights, gate, 1)
    flights.forget_all()
    second = Gate()
    (after,) = await waiting(flights, second, 1)
    gate.open.set()
    assert await before == 1
    (joined,) = await waiting(flights, gate, 1)
    second.open.set()
    assert await asyncio.gather(after, joined) == [1, 1]
    assert gate.calls == 1


async def test_a_load_that_asks_for_its_own_key_is_refused_instead_of_waiting_for_itself(
    flights: SingleFlight,
) -> None:
    async def inner() -> str:
        return await flights.do("outer", answer)

    async def outer() -> str:
        return await flights.do("inner", inner)

    with pytest.raises(InvalidInput, match="'outer' asks the cache for 'outer'"):
        await flights.do("outer", outer)


async def test_loads_of_different_keys_run_at_once_and_may_need_each_other(flights: SingleFlight) -> None:
    async def outer() -> str:
        return "outer " + await flights.do("inner", answer)

    assert await flights.do("outer", outer) == "outer answer"
    assert flights.started == 2


# Loops


def test_a_load_left_in_a_closed_loop_is_replaced_in_the_next_one() -> None:
    flights = SingleFlight()

    async def leave() -> None:
        task = asyncio.create_task(flights.do("k", asyncio.Event().wait))
        await settle()
        task.cancel()

    first = asyncio.new_event_loop()
    first.set_exception_handler(lambda *_: None)  # asyncio reports the load that was destroyed while pending
    first.run_until_complete(leave())
    first.run_until_complete(settle())
    first.close()
    assert flights.in_flight == 1
    assert asyncio.run(flights.do("k", answer)) == "answer"
    assert (flights.in_flight, flights.peak_per_key) == (0, 1)
    gc.collect()


@dataclass(frozen=True)
class Unprintable:
    id: int

    def __repr__(self) -> str:
        raise AttributeError("detached")


async def test_a_load_whose_key_cannot_be_printed_is_given_up_all_the_same() -> None:
    clock = ManualClock()
    flights = SingleFlight(load_timeout=1.0, clock=clock)
    call = asyncio.ensure_future(flights.do(Unprintable(1), Gate()))
    await clock.run_for(1.0)
    with pytest.raises(DeadlineExceeded, match="Unprintable"):
        call.result()
    assert flights.in_flight == 0


async def test_callers_who_left_leave_neither_a_waiter_nor_a_timer_on_a_load_that_goes_on() -> None:
    clock = ManualClock()
    flights = SingleFlight(clock=clock)
    gate = Gate()
    with request_context(RequestContext(deadline=Deadline.after(5.0, clock))):
        calls = [asyncio.ensure_future(flights.do("k", gate)) for _ in range(3)]
    await settle()
    timers = [weakref.ref(timer.callback) for _, _, timer in clock._timers]
    for call in calls:
        call.cancel()
    await settle()
    flight = flights.joinable("k")
    assert flight is not None
    assert not flight._waiters
    assert sum(timer() is not None for timer in timers) == 1  # the load's own
    gate.open.set()
    await settle()


def test_loops_that_take_turns_each_run_their_own_load() -> None:
    flights = SingleFlight()
    loops = [asyncio.new_event_loop() for _ in range(2)]
    gates: list[asyncio.Event] = []

    async def load(number: int) -> int:
        gate = asyncio.Event()
        gates.append(gate)
        await gate.wait()
        return number

    def begin(number: int) -> asyncio.Task[int]:
        task = loops[number].create_task(flights.do("k", lambda: load(number)))
        loops[number].run_until_complete(settle())
        return task

    tasks = [begin(0), begin(1)]
    for number in (0, 1):
        gates[number].set()
        assert loops[number].run_until_complete(tasks[number]) == number
        loops[number].run_until_complete(settle())
        loops[number].close()
