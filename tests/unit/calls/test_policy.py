"""Policy: deadline, retry, breaker and limit of one call, under success, failure and cancellation."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import inspect
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from fairlead.calls import BreakerState, CircuitBreaker, ConcurrencyLimit, Policy, Retry, RetryBudget
from fairlead.clock import ManualClock, settle
from fairlead.context import RequestContext, current, request_context
from fairlead.deadline import Deadline
from fairlead.errors import CircuitOpen, DeadlineExceeded, InvalidInput, Overloaded
from fairlead.telemetry import Event


class CountingClock(ManualClock):
    """Counts the timers it is asked for."""

    timers = 0

    def call_at(self, when: float, callback: Callable[[], object]) -> Any:
        self.timers += 1
        return super().call_at(when, callback)


@pytest.fixture
def clock() -> CountingClock:
    return CountingClock()


async def at_once(value: int = 1) -> int:
    return value


async def hang() -> None:
    await asyncio.get_running_loop().create_future()


def failing(*errors: BaseException, then: object = "ok") -> Callable[[], Any]:
    """A coroutine function that raises each error in turn, and then returns."""
    left = list(errors)

    async def call() -> object:
        if left:
            raise left.pop(0)
        return then

    return call


class LowestWait(random.Random):
    """Full jitter at its lower end: no wait at all."""

    def uniform(self, a: float, b: float) -> float:
        return a


class LongestWait(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return b


def everything(clock: ManualClock, **changes: Any) -> Policy:
    settings: dict[str, Any] = {
        "name": "feature_service",
        "timeout": 1.0,
        "attempt_timeout": 0.4,
        "retry": Retry(
            on=(ConnectionError, TimeoutError), base=0.0, cap=0.0, budget=RetryBudget(clock=clock)
        ),
        "breaker": CircuitBreaker("feature_service", clock=clock, minimum_calls=4),
        "limit": ConcurrencyLimit("feature_service", clock=clock),
        "idempotent": True,
        "clock": clock,
        "rng": LowestWait(),
    }
    return Policy(**(settings | changes))


# Timers


async def test_a_call_that_does_not_suspend_sets_no_timer(clock: CountingClock) -> None:
    assert await everything(clock).call(at_once, 7) == 7
    assert clock.timers == 0


async def test_at_most_one_timer_is_set_per_call_and_calls_in_a_row_share_it(clock: CountingClock) -> None:
    policy = everything(clock)

    async def suspends() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    await policy.call(suspends)
    assert clock.timers == 1
    await asyncio.gather(*(policy.call(suspends) for _ in range(10)))
    assert clock.timers == 1


async def test_the_shared_timer_moves_on_to_the_next_call_that_is_due(clock: CountingClock) -> None:
    policy = Policy(name="p", timeout=1.0, clock=clock)
    first = asyncio.ensure_future(policy.call(hang))
    await clock.run_for(0.5)
    second = asyncio.ensure_future(policy.call(hang))
    await clock.run_for(0.5)
    assert (first.done(), second.done()) == (True, False)
    await clock.run_for(0.5)
    for task in (first, second):
        with pytest.raises(DeadlineExceeded):
            task.result()


async def test_an_earlier_end_moves_the_shared_timer_forward(clock: CountingClock) -> None:
    policy = Policy(name="p", timeout=10.0, clock=clock)
    long = asyncio.ensure_future(policy.call(hang))
    await settle()
    with request_context(RequestContext(deadline=Deadline.after(0.1, clock))):
        short = asyncio.ensure_future(policy.call(hang))
    await clock.run_for(0.1)
    assert (short.done(), long.done()) == (True, False)
    assert isinstance(short.exception(), DeadlineExceeded)
    long.cancel()
    await settle()


async def test_ends_of_finished_calls_do_not_pile_up(clock: CountingClock) -> None:
    policy = Policy(name="p", timeout=60.0, clock=clock)
    for _ in range(1000):
        await policy.call(asyncio.sleep, 0)
    assert len(policy.expiries._heap) < 300


# Deadline


async def test_the_end_of_the_call_is_a_deadline_exceeded_that_names_policy_budget_and_attempts(
    clock: CountingClock,
) -> None:
    call = asyncio.ensure_future(Policy(name="ranking", timeout=0.3, clock=clock).call(hang))
    await clock.run_for(0.3)
    with pytest.raises(
        DeadlineExceeded, match=r"ranking: no answer within 0\.300 s; .* 0\.300 s and 1 attempt$"
    ):
        call.result()
    assert isinstance(call.exception().__cause__, asyncio.CancelledError)  # shows where it hung


async def test_deadline_exceeded_is_caused_by_the_last_failure(clock: CountingClock) -> None:
    refused = ConnectionError("refused")
    first = failing(refused)

    async def fails_then_hangs() -> None:
        await first()
        await hang()

    call = asyncio.ensure_future(everything(clock, attempt_timeout=None).call(fails_then_hangs))
    await clock.run_for(1.0)
    with pytest.raises(DeadlineExceeded, match="2 attempts"):
        call.result()
    assert call.exception().__cause__ is refused


async def test_an_earlier_ambient_deadline_prevails(clock: CountingClock) -> None:
    with request_context(RequestContext(deadline=Deadline.after(0.2, clock))):
        call = asyncio.ensure_future(Policy(name="p", timeout=5.0, clock=clock).call(hang))
    await clock.run_for(0.2)
    assert isinstance(call.exception(), DeadlineExceeded)


async def test_an_ambient_deadline_of_another_clock_is_read_on_that_clock(clock: CountingClock) -> None:
    other = ManualClock(now=1e6)
    with request_context(RequestContext(deadline=Deadline.after(0.2, other))):
        call = asyncio.ensure_future(Policy(name="p", clock=clock).call(hang))
        await clock.run_for(0.2)
        assert isinstance(call.exception(), DeadlineExceeded)


async def test_nothing_begins_after_the_deadline(clock: CountingClock) -> None:
    begun = []

    async def call() -> None:
        begun.append(1)

    with (
        request_context(RequestContext(deadline=Deadline(-0.5, clock))),
        pytest.raises(DeadlineExceeded, match="p: the deadline passed 500 ms ago, so it was not started"),
    ):
        await Policy(name="p", clock=clock).call(call)
    assert not begun


async def test_during_an_attempt_the_context_ends_with_the_attempt_and_keeps_the_rest(
    clock: CountingClock,
) -> None:
    request = RequestContext(request_id="r1", targeting_key="u1", deadline=Deadline.after(0.9, clock))

    async def seen() -> list[RequestContext]:
        first = current()
        await asyncio.sleep(0)
        return [first, current()]

    with request_context(request):
        for context in await everything(clock).call(seen):
            assert isinstance(context, RequestContext)
            assert context == dataclasses.replace(request, deadline=Deadline(0.4, clock))
            assert dataclasses.replace(context, request_id="r2").request_id == "r2"
            assert context.deadline.remaining() == 0.4
        assert current() is request
    assert current().deadline.at == float("inf")


async def test_the_context_is_left_alone_when_the_request_ends_before_the_attempt_would(
    clock: CountingClock,
) -> None:
    request = RequestContext(deadline=Deadline.after(0.1, clock))

    async def seen() -> RequestContext:
        return current()

    with request_context(request):
        assert await everything(clock).call(seen) is request


async def test_a_nested_policy_inherits_the_end_of_the_outer_attempt(clock: CountingClock) -> None:
    inner = Policy(name="inner", timeout=10.0, clock=clock)
    outer = Policy(name="outer", attempt_timeout=0.25, clock=clock)
    call = asyncio.ensure_future(outer.call(inner.call, hang))
    await clock.run_for(0.25)
    assert isinstance(call.exception(), DeadlineExceeded)


# Cancellation


async def test_the_callers_cancellation_is_no_timeout_and_is_not_retried(clock: CountingClock) -> None:
    policy = everything(clock)
    call = asyncio.ensure_future(policy.call(hang))
    await clock.run_for(0.1)
    call.cancel()
    await settle()
    assert call.cancelled()
    assert policy.stats.timed_out == policy.stats.retried == 0


async def test_a_caller_who_cancels_at_the_moment_of_the_timeout_gets_a_cancellation(
    clock: CountingClock,
) -> None:
    call = asyncio.ensure_future(Policy(name="p", timeout=0.3, clock=clock).call(hang))
    await settle()
    clock.advance(0.3)  # the timer has fired, the task has not run yet
    call.cancel()
    await settle()
    assert call.cancelled()


async def test_a_timeout_leaves_no_request_to_cancel_behind(clock: CountingClock) -> None:
    async def work() -> int:
        with pytest.raises(DeadlineExceeded):
            await Policy(name="p", timeout=0.3, clock=clock).call(hang)
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(0)
        return task.cancelling()

    call = asyncio.ensure_future(work())
    await clock.run_for(0.3)
    assert await call == 0


async def test_a_timeout_in_the_clean_up_of_a_cancelled_task_is_still_a_timeout(clock: CountingClock) -> None:
    outcome: list[BaseException] = []

    async def work() -> None:
        try:
            await hang()
        finally:
            try:
                await Policy(name="p", timeout=0.3, clock=clock).call(hang)
            except DeadlineExceeded as error:
                outcome.append(error)

    call = asyncio.ensure_future(work())
    await settle()
    call.cancel()
    await clock.run_for(0.3)
    assert call.cancelled()
    assert len(outcome) == 1


async def test_the_result_of_a_call_that_swallows_the_timeout_stands_and_the_breaker_counts_a_failure(
    clock: CountingClock,
) -> None:
    breaker = CircuitBreaker("b", clock=clock, minimum_calls=1)
    limit = ConcurrencyLimit("b", clock=clock)

    async def stubborn() -> str:
        try:
            await hang()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return "late"

    call = asyncio.ensure_future(
        Policy(name="b", timeout=0.3, clock=clock, breaker=breaker, limit=limit).call(stubborn)
    )
    await clock.run_for(0.3)
    assert call.result() == "late"
    assert breaker.state is BreakerState.OPEN
    assert limit.limit < 20
    assert limit.in_flight == 0


async def test_a_call_that_swallows_the_timeout_and_hangs_is_counted_before_it_ends(
    clock: CountingClock,
) -> None:
    breaker = CircuitBreaker("b", clock=clock, minimum_calls=1)

    async def never_ends() -> None:
        try:
            await hang()
        except asyncio.CancelledError:
            await hang()

    call = asyncio.ensure_future(Policy(name="b", timeout=0.3, clock=clock, breaker=breaker).call(never_ends))
    await clock.run_for(0.3)
    assert not call.done()
    assert breaker.state is BreakerState.OPEN
    call.cancel()
    await settle()
    assert call.cancelled()


async def test_an_exception_that_replaces_our_cancellation_is_the_outcome(clock: CountingClock) -> None:
    async def translates() -> None:
        try:
            await hang()
        except asyncio.CancelledError:
            raise ValueError("interrupted") from None

    call = asyncio.ensure_future(Policy(name="p", timeout=0.3, clock=clock).call(translates))
    await clock.run_for(0.3)
    assert isinstance(call.exception(), ValueError)


@pytest.mark.parametrize("end", ["cancel", "timeout", "error", "success", "close"])
async def test_permits_and_context_are_given_back_however_the_call_ends(
    clock: CountingClock, end: str
) -> None:
    breaker = CircuitBreaker("b", clock=clock, hung_after=5.0)
    limit = ConcurrencyLimit("b", clock=clock)
    policy = Policy(name="b", timeout=0.3, clock=clock, breaker=breaker, limit=limit)
    proceed: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def work() -> int:
        return await proceed

    if end == "close":
        coroutine = policy.call(work)
        coroutine.send(None)
        assert (limit.in_flight, breaker.in_flight) == (1, 1)
        coroutine.close()
    else:
        call = asyncio.ensure_future(policy.call(work))
        await settle()
        assert (limit.in_flight, breaker.in_flight) == (1, 1)
        if end == "cancel":
            call.cancel()
        elif end == "error":
            proceed.set_exception(ValueError("no"))
        elif end == "success":
            proceed.set_result(1)
        await clock.run_for(0.3)
        assert call.done()
        if not call.cancelled():
            call.exception()  # retrieved, so that nobody warns of it
    assert (limit.in_flight, breaker.in_flight) == (0, 0)
    assert current().deadline.at == float("inf")


def test_a_loop_that_was_closed_leaves_nothing_behind_that_stops_the_next_one() -> None:
    clock = ManualClock()
    policy = everything(clock)

    async def abandon() -> None:
        task = asyncio.ensure_future(policy.call(hang))
        await settle()
        task.cancel()

    async def time_out() -> None:
        call = asyncio.ensure_future(Policy.call(policy, hang))
        await clock.run_for(1.0)
        assert isinstance(call.exception(), DeadlineExceeded)

    asyncio.run(abandon())
    asyncio.run(time_out())


# Retry


async def test_a_failure_that_is_listed_is_tried_again(clock: CountingClock) -> None:
    policy = everything(clock)
    assert await policy.call(failing(ConnectionError("a"), TimeoutError("b"))) == "ok"
    assert policy.stats.retried == 2


async def test_after_the_last_attempt_the_original_error_is_raised_with_a_note(clock: CountingClock) -> None:
    last = ConnectionError("c")
    with pytest.raises(ConnectionError, match="c") as caught:
        await everything(clock).call(failing(ConnectionError("a"), ConnectionError("b"), last))
    assert caught.value is last
    assert caught.value.__notes__ == ["feature_service: attempt 3 of 3 was the last: no more are allowed"]


async def test_a_failure_that_is_not_listed_is_raised_as_it_is(clock: CountingClock) -> None:
    error = ValueError("bad request")
    with pytest.raises(ValueError, match="bad request"):
        await everything(clock).call(failing(error))
    assert not hasattr(error, "__notes__")


async def test_an_attempt_that_times_out_is_tried_again_within_the_call(clock: CountingClock) -> None:
    attempts = []

    async def hangs_once() -> str:
        attempts.append(clock.now())
        if len(attempts) == 1:
            await hang()
        return "ok"

    call = asyncio.ensure_future(everything(clock).call(hangs_once))
    await clock.run_for(0.4)
    assert call.result() == "ok"
    assert attempts == [0.0, 0.4]


async def test_no_wait_that_cannot_be_followed_by_an_attempt(clock: CountingClock) -> None:
    retry = Retry(on=ConnectionError, base=2.0, cap=2.0)
    policy = everything(clock, retry=retry, rng=LongestWait())
    with pytest.raises(ConnectionError) as caught:
        await policy.call(failing(ConnectionError("a")))
    assert clock.now() == 0.0
    assert "1.000 s remain, and the next would begin in 2.000 s" in caught.value.__notes__[0]


async def test_the_budget_token_is_taken_when_the_retry_is_decided_not_when_it_runs(
    clock: CountingClock,
) -> None:
    budget = RetryBudget(ratio=0.0, floor_per_second=0.1, window=10.0, clock=clock)
    policy = everything(
        clock, retry=Retry(on=ConnectionError, base=0.5, cap=0.5, budget=budget), rng=LongestWait()
    )
    call = asyncio.ensure_future(policy.call(failing(ConnectionError("a"))))
    await settle()
    assert budget.available == 0  # asleep, and the token is gone
    with pytest.raises(ConnectionError):
        await policy.call(failing(ConnectionError("b")))
    await clock.run_for(0.5)
    assert await call == "ok"


async def test_a_retry_that_does_not_fit_the_deadline_takes_no_token(clock: CountingClock) -> None:
    budget = RetryBudget(clock=clock)
    before = budget.available
    policy = everything(
        clock, retry=Retry(on=ConnectionError, base=9.0, cap=9.0, budget=budget), rng=LongestWait()
    )
    with pytest.raises(ConnectionError):
        await policy.call(failing(ConnectionError("a")))
    assert budget.available == before


async def test_an_empty_budget_suppresses_new_attempts_but_never_the_original(clock: CountingClock) -> None:
    budget = RetryBudget(ratio=0.0, floor_per_second=0.0, clock=clock)
    policy = everything(clock, retry=Retry(on=ConnectionError, budget=budget), breaker=None)
    attempts = 0

    async def fails() -> None:
        nonlocal attempts
        attempts += 1
        raise ConnectionError("down")

    for _ in range(50):
        with pytest.raises(ConnectionError):
            await policy.call(fails)
    assert attempts == 50
    assert policy.stats.retries_suppressed == budget.suppressed == 50


async def test_in_an_outage_the_load_grows_by_no_more_than_the_budget(clock: CountingClock) -> None:
    budget = RetryBudget(ratio=0.1, floor_per_second=0.0, clock=clock)
    policy = everything(
        clock, retry=Retry(on=ConnectionError, base=0.0, cap=0.0, budget=budget), breaker=None
    )
    attempts = 0

    async def fails() -> None:
        nonlocal attempts
        attempts += 1
        raise ConnectionError("down")

    for _ in range(1000):
        with pytest.raises(ConnectionError):
            await policy.call(fails)
    assert attempts == 1000 * budget.maximum_amplification == 1100


async def test_no_permit_is_held_while_waiting_for_a_retry(clock: CountingClock) -> None:
    limit = ConcurrencyLimit("l", clock=clock)
    policy = everything(
        clock, limit=limit, retry=Retry(on=ConnectionError, base=0.5, cap=0.5), rng=LongestWait()
    )
    call = asyncio.ensure_future(policy.call(failing(ConnectionError("a"))))
    await settle()
    assert limit.in_flight == 0
    call.cancel()
    await settle()
    assert call.cancelled()


async def test_no_predicate_is_asked_whether_a_cancellation_is_to_be_tried_again(
    clock: CountingClock,
) -> None:
    asked: list[Exception] = []

    def always(error: Exception) -> bool:
        asked.append(error)
        return True

    policy = Policy(name="p", idempotent=True, retry=Retry(on=always, base=0.0, cap=0.0), clock=clock)
    with pytest.raises(asyncio.CancelledError):
        await policy.call(failing(asyncio.CancelledError()))
    call = asyncio.ensure_future(policy.call(hang))
    await settle()
    call.cancel()
    await settle()
    assert (call.cancelled(), asked) == (True, [])


async def test_a_wait_for_a_retry_that_ends_after_the_deadline_begins_nothing(clock: CountingClock) -> None:
    retry = Retry(on=ConnectionError, base=0.1, cap=0.1)
    policy = Policy(name="p", idempotent=True, timeout=0.5, retry=retry, clock=clock, rng=LongestWait())
    call = asyncio.ensure_future(policy.call(failing(ConnectionError("down"))))
    await settle()
    clock.advance(0.6)  # the loop stalls
    await settle()
    with pytest.raises(ConnectionError, match="down") as caught:
        call.result()
    assert caught.value.__notes__ == [
        "p: not tried again: the deadline passed 100 ms ago, in the wait",
    ]


async def test_cancellation_while_waiting_for_a_retry_is_not_swallowed(clock: CountingClock) -> None:
    policy = everything(clock, retry=Retry(on=ConnectionError, base=0.5, cap=0.5), rng=LongestWait())
    call = asyncio.ensure_future(policy.call(failing(ConnectionError("a"))))
    await settle()
    call.cancel()
    await settle()
    assert call.cancelled()


async def test_a_first_call_refused_by_the_breaker_is_circuit_open_and_not_retried(
    clock: CountingClock,
) -> None:
    breaker = CircuitBreaker("b", clock=clock, minimum_calls=1)
    policy = everything(clock, breaker=breaker, retry=Retry(on=Exception, base=0.0, cap=0.0, attempts=2))
    with pytest.raises(ValueError, match="x"):
        await policy.call(failing(ValueError("x"), ValueError("x")))
    with pytest.raises(CircuitOpen):
        await policy.call(at_once)
    assert policy.stats.retried == 1


async def test_a_retry_refused_by_the_breaker_raises_the_failure_because_something_was_begun(
    clock: CountingClock,
) -> None:
    policy = everything(clock, breaker=CircuitBreaker("b", clock=clock, minimum_calls=1))
    error = ConnectionError("reset")
    with pytest.raises(ConnectionError, match="reset") as caught:
        await policy.call(failing(error))
    assert "not tried again: b: the circuit is open" in caught.value.__notes__[-1]


async def test_a_retry_refused_by_the_limit_raises_the_failure_too(clock: CountingClock) -> None:
    limit = ConcurrencyLimit("l", initial=1, minimum=1, maximum=1, clock=clock)
    policy = everything(
        clock, limit=limit, retry=Retry(on=ConnectionError, base=0.5, cap=0.5), rng=LongestWait()
    )
    call = asyncio.ensure_future(policy.call(failing(ConnectionError("reset"))))
    await settle()
    other = asyncio.ensure_future(limit.permit().__aenter__())
    await clock.run_for(0.5)
    await other
    with pytest.raises(ConnectionError, match="reset"):
        call.result()


# Breaker and limit inside the policy


async def test_the_callers_cancellation_is_neutral_to_the_breaker(clock: CountingClock) -> None:
    breaker = CircuitBreaker("b", clock=clock, minimum_calls=1)
    call = asyncio.ensure_future(Policy(name="b", timeout=9.0, breaker=breaker, clock=clock).call(hang))
    await settle()
    call.cancel()
    await settle()
    assert breaker.outcomes.counts(clock.now()) == (0, 0)


async def test_the_expiry_of_our_own_deadline_is_a_failure_to_the_breaker(clock: CountingClock) -> None:
    breaker = CircuitBreaker("b", clock=clock)
    call = asyncio.ensure_future(Policy(name="b", timeout=0.3, breaker=breaker, clock=clock).call(hang))
    await clock.run_for(0.3)
    assert isinstance(call.exception(), DeadlineExceeded)
    assert breaker.outcomes.counts(clock.now()) == (1, 1)


async def test_a_deadline_enforced_by_an_outer_policy_is_a_failure_to_the_inner_breaker(
    clock: CountingClock,
) -> None:
    breaker = CircuitBreaker("b", clock=clock)
    inner = Policy(name="inner", breaker=breaker, clock=clock)
    outer = Policy(name="outer", timeout=0.3, clock=clock)
    call = asyncio.ensure_future(outer.call(inner.call, hang))
    await clock.run_for(0.3)
    assert isinstance(call.exception(), DeadlineExceeded)
    assert breaker.outcomes.counts(clock.now()) == (1, 1)


async def test_a_callers_own_timer_for_the_same_moment_is_a_failure_to_the_breaker(
    clock: CountingClock,
) -> None:
    breaker = CircuitBreaker("b", clock=clock)
    policy = Policy(name="b", breaker=breaker, clock=clock)

    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        clock.call_at(0.3, task.cancel)  # set first, so it fires first and ours finds the call gone
        with request_context(RequestContext(deadline=Deadline.after(0.3005, clock))):
            await policy.call(hang)

    call = asyncio.ensure_future(work())
    await clock.run_for(0.3)
    assert call.cancelled()
    assert breaker.outcomes.counts(clock.now()) == (1, 1)


async def test_a_call_counted_for_its_age_is_not_counted_again_when_it_times_out(
    clock: CountingClock,
) -> None:
    breaker = CircuitBreaker("b", clock=clock, hung_after=0.1, minimum_calls=5)
    policy = Policy(name="b", timeout=0.3, breaker=breaker, clock=clock)
    call = asyncio.ensure_future(policy.call(hang))
    await clock.run_for(0.2)
    await policy.call(at_once)
    assert breaker.outcomes.counts(clock.now()) == (2, 1)
    await clock.run_for(0.1)
    assert isinstance(call.exception(), DeadlineExceeded)
    assert breaker.outcomes.counts(clock.now()) == (2, 1)


async def test_the_breaker_is_asked_again_when_the_next_call_in_flight_falls_due(
    clock: CountingClock,
) -> None:
    breaker = CircuitBreaker("b", clock=clock, minimum_calls=2, hung_after=1.0, window=100.0)
    policy = Policy(name="p", breaker=breaker, clock=clock)
    hung = []
    for _ in range(2):
        hung.append(asyncio.ensure_future(policy.call(hang)))
        await clock.run_for(0.5)
    clock.advance(0.1)
    assert await policy.call(at_once) == 1  # the first has been counted, the second has not
    clock.advance(0.5)
    with pytest.raises(CircuitOpen):
        await policy.call(at_once)
    for call in hung:
        call.cancel()
    await settle()


async def test_a_call_counted_for_its_age_is_not_counted_again_when_it_fails(clock: CountingClock) -> None:
    breaker = CircuitBreaker("b", clock=clock, hung_after=1.0, window=100.0)
    policy = Policy(name="p", breaker=breaker, clock=clock)
    gate = asyncio.Event()

    async def late() -> None:
        await gate.wait()
        raise ConnectionError

    call = asyncio.ensure_future(policy.call(late))
    await clock.run_for(1.1)
    assert await policy.call(at_once) == 1
    gate.set()
    await settle()
    assert isinstance(call.exception(), ConnectionError)
    assert breaker.outcomes.counts(clock.now()) == (2, 1)


async def test_a_dependency_that_hangs_opens_the_breaker_before_its_timeouts_return(
    clock: CountingClock,
) -> None:
    breaker = CircuitBreaker("b", clock=clock, hung_after=0.1, minimum_calls=5)
    policy = Policy(name="b", timeout=30.0, breaker=breaker, clock=clock)
    calls = [asyncio.ensure_future(policy.call(hang)) for _ in range(5)]
    await clock.run_for(0.1)
    with pytest.raises(CircuitOpen):
        await policy.call(at_once)
    assert not any(call.done() for call in calls)
    for call in calls:
        call.cancel()
    await settle()


async def test_a_probe_that_the_limit_refuses_gives_its_permit_back(clock: CountingClock) -> None:
    breaker = CircuitBreaker("b", clock=clock, minimum_calls=1, half_open_permits=1, open_for=1.0)
    limit = ConcurrencyLimit("l", initial=1, minimum=1, maximum=1, clock=clock)
    policy = Policy(name="b", breaker=breaker, limit=limit, clock=clock)
    with pytest.raises(ValueError, match="x"):
        await policy.call(failing(ValueError("x")))
    clock.advance(1.3)
    async with limit.permit():
        with pytest.raises(Overloaded):
            await policy.call(at_once)
    assert await policy.call(at_once) == 1
    assert breaker.state is BreakerState.CLOSED


async def test_the_limit_is_innermost_and_counts_each_attempt_from_its_start(clock: CountingClock) -> None:
    limit = ConcurrencyLimit("l", clock=clock)
    seen = []

    async def work() -> None:
        seen.append(limit.in_flight)
        if len(seen) < 3:
            raise ConnectionError("again")

    await everything(clock, limit=limit).call(work)
    assert seen == [1, 1, 1]
    assert limit.in_flight == 0


async def test_a_full_limit_refuses_at_once(clock: CountingClock) -> None:
    limit = ConcurrencyLimit("l", initial=1, minimum=1, clock=clock)
    policy = Policy(name="p", limit=limit, clock=clock)
    call = asyncio.ensure_future(policy.call(hang))
    await settle()
    with pytest.raises(Overloaded, match="l: 1 of 1 calls are in flight"):
        await policy.call(at_once)
    call.cancel()
    await settle()


async def test_an_attempt_that_our_timeout_ends_is_a_drop_to_the_limit(clock: CountingClock) -> None:
    limit = ConcurrencyLimit("l", initial=20, minimum=1, clock=clock)
    call = asyncio.ensure_future(Policy(name="p", limit=limit, timeout=0.5, clock=clock).call(hang))
    await clock.run_for(0.5)
    assert isinstance(call.exception(), DeadlineExceeded)
    assert limit.limit == 14


async def test_the_wait_for_a_permit_is_taken_from_the_time_of_the_call(clock: CountingClock) -> None:
    limit = ConcurrencyLimit("l", initial=1, minimum=1, max_wait=10.0, clock=clock)
    policy = Policy(name="p", limit=limit, timeout=1.0, clock=clock)
    async with limit.permit():
        call = asyncio.ensure_future(policy.call(hang))
        await clock.run_for(0.6)
    await clock.run_for(0.4)
    with pytest.raises(DeadlineExceeded, match=r"no answer within 1\.000 s"):
        call.result()


async def test_a_wait_for_a_permit_ends_with_the_deadline(clock: CountingClock) -> None:
    limit = ConcurrencyLimit("l", initial=1, minimum=1, max_wait=10.0, clock=clock)
    policy = Policy(name="p", limit=limit, timeout=0.5, clock=clock)
    async with limit.permit():
        call = asyncio.ensure_future(policy.call(at_once))
        await clock.run_for(0.5)
        assert isinstance(call.exception(), Overloaded)


async def test_a_permit_that_comes_while_the_loop_stalls_past_the_deadline_begins_nothing(
    clock: CountingClock,
) -> None:
    limit = ConcurrencyLimit("l", initial=1, minimum=1, max_wait=10.0, clock=clock)
    breaker = CircuitBreaker("b", clock=clock, minimum_calls=1, half_open_permits=1, open_for=1.0)
    with pytest.raises(ConnectionError), breaker.permit():
        raise ConnectionError
    clock.advance(1.2)
    policy = Policy(name="p", limit=limit, breaker=breaker, timeout=0.5, clock=clock)
    begun: list[int] = []

    async def begin() -> None:
        begun.append(1)

    async with limit.permit():
        call = asyncio.ensure_future(policy.call(begin))
        await settle()
    clock.advance(0.6)  # granted, but its task has not run yet
    await settle()
    with pytest.raises(DeadlineExceeded, match="p: the deadline passed 100 ms ago, so it was not started"):
        call.result()
    assert (begun, limit.in_flight, policy.stats.refused) == ([], 0, 1)
    await policy.call(begin)  # the probe's permit was given back
    assert breaker.state is BreakerState.CLOSED


# Shape


async def test_the_decorator_keeps_name_and_stays_a_coroutine_function(clock: CountingClock) -> None:
    @Policy(name="p", clock=clock)
    async def fetch(user: int, *, deep: bool = False) -> tuple[int, bool]:
        """Fetches."""
        return user, deep

    assert inspect.iscoroutinefunction(fetch)
    assert (fetch.__name__, fetch.__doc__) == ("fetch", "Fetches.")
    assert await fetch(1, deep=True) == (1, True)


async def test_any_awaitable_can_be_called(clock: CountingClock) -> None:
    def future() -> asyncio.Future[int]:
        made: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        made.set_result(5)
        return made

    assert await Policy(name="p", timeout=1.0, clock=clock).call(future) == 5


async def test_breaker_limit_and_budget_must_read_the_policys_clock(clock: CountingClock) -> None:
    with pytest.raises(InvalidInput, match="CircuitBreaker reads another clock"):
        Policy(name="p", breaker=CircuitBreaker("b"), clock=clock)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), True, "1", 1e9])
def test_a_timeout_outside_its_bounds_is_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^Policy\.timeout: "):
        Policy(name="p", timeout=value)
    with pytest.raises(InvalidInput, match=r"^Policy\.attempt_timeout: "):
        Policy(name="p", attempt_timeout=value)


async def test_a_timed_out_call_without_retries_leaves_no_reference_cycle_to_its_arguments(
    clock: CountingClock,
) -> None:
    class Payload:
        pass

    async def work(_: Payload) -> None:
        raise ValueError("no")

    policy = Policy(name="p", timeout=1.0, clock=clock)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ValueError, match="no"):
            await policy.call(work, Payload())
        alive = [each for each in gc.get_objects() if isinstance(each, Payload)]
    finally:
        gc.enable()
    assert alive == []


async def test_a_change_of_state_at_a_timeout_is_not_laid_to_another_request(clock: CountingClock) -> None:
    events: list[Event] = []
    breaker = CircuitBreaker("p", minimum_calls=1, clock=clock)
    policy = Policy(name="p", timeout=1.0, breaker=breaker, clock=clock, on_event=events.append)
    with request_context(RequestContext(request_id="quick")):  # sets the timer, and is done
        await policy.call(asyncio.sleep, 0)
    with request_context(RequestContext(request_id="hung")):
        call = asyncio.ensure_future(policy.call(hang))
    await clock.run_for(1.0)
    assert isinstance(call.exception(), DeadlineExceeded)
    assert [event.request_id for event in events] == [""]  # it has none, rather than a wrong one


# Callers in a hurry


async def within(clock: ManualClock, policy: Policy, seconds: float, work: float = 0.05) -> object:
    """What becomes of a call that needs `work` seconds and has `seconds`."""

    async def call() -> str:
        await clock.sleep(work)
        return "ok"

    async def guarded() -> str:
        with request_context(RequestContext(deadline=Deadline.after(seconds, clock))):
            return await policy.call(call)

    task = asyncio.ensure_future(guarded())
    await clock.run_for(min(seconds, work) + 0.001)
    return task.exception() or task.result()


def hurriable(clock: ManualClock, **changes: Any) -> Policy:
    settings: dict[str, Any] = {"breaker": CircuitBreaker("p", minimum_calls=5, open_for=1.0, clock=clock)}
    limit = ConcurrencyLimit("p", initial=20, clock=clock)
    return Policy(name="p", timeout=1.0, limit=limit, clock=clock, **(settings | changes))


async def test_callers_who_name_tiny_deadlines_neither_open_the_breaker_nor_cut_the_limit() -> None:
    clock = ManualClock()
    policy = hurriable(clock)
    assert await within(clock, policy, 1.0) == "ok"
    for _ in range(50):
        assert isinstance(await within(clock, policy, 0.001), DeadlineExceeded)
    assert await within(clock, policy, 1.0) == "ok"
    assert policy._limit is not None
    assert policy._limit.limit == 20
    assert policy._breaker is not None
    assert policy._breaker.outcomes.counts(clock.now()) == (2, 0)


async def test_a_deadline_that_left_as_long_as_a_success_needed_is_a_failure() -> None:
    clock = ManualClock()
    policy = hurriable(clock)
    assert await within(clock, policy, 1.0) == "ok"
    for _ in range(4):
        assert isinstance(await within(clock, policy, 0.06, work=5.0), DeadlineExceeded)
    assert isinstance(await within(clock, policy, 1.0), CircuitOpen)


async def test_without_a_success_of_late_every_timeout_counts() -> None:
    clock = ManualClock()
    policy = hurriable(clock)
    assert await within(clock, policy, 1.0) == "ok"
    clock.advance(25.0)
    for _ in range(5):
        assert isinstance(await within(clock, policy, 0.001), DeadlineExceeded)
    assert isinstance(await within(clock, policy, 1.0), CircuitOpen)


async def test_a_probe_of_a_caller_in_a_hurry_gives_its_permit_back() -> None:
    clock = ManualClock()
    breaker = CircuitBreaker("p", minimum_calls=5, open_for=1.0, half_open_permits=1, clock=clock)
    policy = hurriable(clock, breaker=breaker)
    assert await within(clock, policy, 1.0) == "ok"
    for _ in range(5):
        await within(clock, policy, 0.5, work=5.0)
    assert breaker.state is BreakerState.OPEN
    clock.advance(1.5)
    assert isinstance(await within(clock, policy, 0.001), DeadlineExceeded)
    assert breaker.state is BreakerState.HALF_OPEN
    assert await within(clock, policy, 1.0) == "ok"
    assert breaker.state is BreakerState.CLOSED


async def test_a_hurried_block_that_swallows_its_end_leaves_nothing_watched() -> None:
    clock = ManualClock()
    breaker = CircuitBreaker("p", hung_after=10.0, clock=clock)
    policy = hurriable(clock, breaker=breaker)
    assert await within(clock, policy, 1.0) == "ok"

    async def block() -> None:
        with request_context(RequestContext(deadline=Deadline.after(0.001, clock))):
            async with policy.attempt():
                with suppress(asyncio.CancelledError):
                    await clock.sleep(1.0)

    async def call() -> None:
        with suppress(asyncio.CancelledError):
            await clock.sleep(1.0)

    async def hurried() -> None:
        with request_context(RequestContext(deadline=Deadline.after(0.001, clock))):
            await policy.call(call)

    for work in (block, hurried):
        task = asyncio.ensure_future(work())
        await clock.run_for(0.01)
        assert task.done()
    assert breaker.in_flight == 0
    assert breaker.outcomes.counts(clock.now()) == (1, 0)
