"""Ways through a policy other than `call`: a block, an awaitable, a twin, and a loop that was closed."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

import pytest

from fairlead.calls import BreakerState, CircuitBreaker, ConcurrencyLimit, Policy, Retry, RetryBudget
from fairlead.clock import ManualClock, settle
from fairlead.context import RequestContext, current, request_context
from fairlead.deadline import Deadline
from fairlead.errors import CircuitOpen, DeadlineExceeded, InvalidInput, Overloaded


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def guarded(clock: ManualClock, **changes: Any) -> Policy:
    settings: dict[str, Any] = {
        "name": "p",
        "timeout": 1.0,
        "breaker": CircuitBreaker("p", minimum_calls=2, clock=clock),
        "limit": ConcurrencyLimit("p", initial=1, minimum=1, maximum=1, clock=clock),
        "clock": clock,
    }
    return Policy(**(settings | changes))


async def hang() -> None:
    await asyncio.get_running_loop().create_future()


# A block


async def test_a_block_is_one_attempt_within_deadline_breaker_and_limit(clock: ManualClock) -> None:
    policy = guarded(clock)
    async with policy.attempt():
        assert current().deadline.remaining() == 1.0
        with pytest.raises(Overloaded):
            async with policy.attempt():
                raise AssertionError("not reached")
    assert current().deadline.at == float("inf")
    assert policy._limit is not None
    assert policy._limit.in_flight == 0
    assert policy._breaker is not None
    assert policy._breaker.outcomes.counts(clock.now()) == (1, 0)


async def test_a_block_that_takes_too_long_is_a_deadline_exceeded_and_a_failure(clock: ManualClock) -> None:
    policy = guarded(clock)

    async def block() -> None:
        async with policy.attempt():
            await hang()

    call = asyncio.ensure_future(block())
    await clock.run_for(1.0)
    with pytest.raises(DeadlineExceeded, match=r"p: the block was not done within 1\.000 s"):
        call.result()
    assert policy._breaker is not None
    assert policy._breaker.outcomes.counts(clock.now()) == (1, 1)
    assert policy.stats.timed_out == 1


async def test_the_callers_cancellation_of_a_block_is_neutral(clock: ManualClock) -> None:
    policy = guarded(clock)

    async def block() -> None:
        async with policy.attempt():
            await hang()

    call = asyncio.ensure_future(block())
    await settle()
    call.cancel()
    await settle()
    assert call.cancelled()
    assert policy._breaker is not None
    assert policy._breaker.outcomes.counts(clock.now()) == (0, 0)
    assert policy._limit is not None
    assert policy._limit.in_flight == 0


async def test_failures_of_blocks_open_the_breaker_which_refuses_the_next(clock: ManualClock) -> None:
    policy = guarded(clock)
    for _ in range(2):
        with pytest.raises(OSError, match="x"):
            async with policy.attempt():
                raise OSError("x")
    with pytest.raises(CircuitOpen):
        async with policy.attempt():
            raise AssertionError("not reached")
    assert policy.stats.refused == 1


async def test_no_block_begins_after_the_deadline(clock: ManualClock) -> None:
    passed = RequestContext(deadline=Deadline(clock.now(), clock))
    with request_context(passed), pytest.raises(DeadlineExceeded, match="not started"):
        async with guarded(clock).attempt():
            raise AssertionError("not reached")


async def test_a_probe_may_be_a_block(clock: ManualClock) -> None:
    policy = guarded(
        clock, breaker=CircuitBreaker("p", minimum_calls=1, half_open_permits=1, open_for=1.0, clock=clock)
    )
    with pytest.raises(OSError, match="x"):
        async with policy.attempt():
            raise OSError("x")
    clock.advance(2.0)
    async with policy.attempt():
        assert policy._breaker is not None
        assert policy._breaker.state is BreakerState.HALF_OPEN
    assert policy._breaker.state is BreakerState.CLOSED


# An awaitable


async def test_an_awaitable_is_run_once_and_never_again(clock: ManualClock) -> None:
    retry = Retry(on=OSError, base=0.0, cap=0.0, budget=RetryBudget(clock=clock))
    policy = guarded(clock, retry=retry, idempotent=True)
    assert await policy.run(asyncio.sleep(0, 7)) == 7

    async def fail() -> None:
        raise OSError("x")

    with pytest.raises(OSError, match="x"):
        await policy.run(fail())
    assert policy.stats.retried == 0


async def test_a_future_and_a_task_can_be_run(clock: ManualClock) -> None:
    policy = guarded(clock)
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.set_result(1)
    assert await policy.run(future) == 1
    assert await policy.run(asyncio.create_task(asyncio.sleep(0, 2))) == 2


async def test_an_awaitable_that_hangs_ends_at_the_deadline(clock: ManualClock) -> None:
    call = asyncio.ensure_future(guarded(clock).run(hang()))
    await clock.run_for(1.0)
    with pytest.raises(DeadlineExceeded):
        call.result()


async def test_a_coroutine_that_is_refused_is_closed_without_a_warning(clock: ManualClock) -> None:
    policy = guarded(clock)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with policy.attempt():
            with pytest.raises(Overloaded):
                await policy.run(hang())


# Twins


async def fail() -> None:
    raise ConnectionError("reset")


def retrying(clock: ManualClock, **changes: Any) -> Policy:
    retry = Retry(
        on=(ConnectionError, Overloaded), attempts=2, base=0.0, cap=0.0, budget=RetryBudget(clock=clock)
    )
    return Policy(name="p", retry=retry, clock=clock, **changes)


async def test_a_call_that_may_have_begun_is_not_repeated_unless_it_is_idempotent(clock: ManualClock) -> None:
    policy = retrying(clock)
    with pytest.raises(ConnectionError) as caught:
        await policy.call(fail)
    assert caught.value.__notes__ == [
        "p: not tried again: it may have begun, and the policy was not told that it is idempotent"
    ]
    with pytest.raises(ConnectionError):
        await policy.replayable.call(fail)
    assert policy.stats.retried == 1


async def test_a_refusal_is_repeated_whatever_the_call_because_nothing_was_begun(clock: ManualClock) -> None:
    calls = 0

    async def refused_once() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise Overloaded("the service's own limit")
        return "ok"

    assert await retrying(clock).call(refused_once) == "ok"


async def test_twins_share_state_and_lead_back_to_each_other(clock: ManualClock) -> None:
    policy = retrying(clock, breaker=CircuitBreaker("p", minimum_calls=2, clock=clock))
    assert policy.once is policy
    assert policy.replayable.once is policy
    assert policy.replayable.replayable is policy.replayable
    for each in (policy, policy.replayable):
        with pytest.raises(ConnectionError):
            await each.call(fail)
    with pytest.raises(CircuitOpen):
        await policy.call(fail)
    assert policy.stats == policy.replayable.stats


# A loop that was closed


@pytest.mark.parametrize("timeout", [5.0, None])
def test_permits_of_a_closed_loop_come_back_when_another_loop_finds_the_limit_full(
    clock: ManualClock, timeout: float | None
) -> None:
    policy = guarded(clock, timeout=timeout)
    kept = leave_hanging(policy)
    assert policy._limit is not None
    assert policy._limit.in_flight == 1
    assert asyncio.run(policy.call(asyncio.sleep, 0, "ok")) == "ok"
    assert policy._limit.in_flight == 0
    kept.clear()
    assert policy._limit.in_flight == 0


def test_permits_that_another_policy_left_in_a_closed_loop_come_back_too(clock: ManualClock) -> None:
    left = guarded(clock)
    other = guarded(clock, limit=left._limit)
    kept = leave_hanging(left)
    assert asyncio.run(other.call(asyncio.sleep, 0, "ok")) == "ok"
    assert len(kept) == 1


def test_who_queued_in_a_closed_loop_is_forgotten(clock: ManualClock) -> None:
    limit = ConcurrencyLimit("p", initial=1, minimum=1, maximum=1, max_wait=60.0, clock=clock)
    policy = guarded(clock, limit=limit, timeout=None)
    kept = leave_hanging(policy, policy)
    assert limit.waiting == 1
    assert asyncio.run(policy.call(asyncio.sleep, 0, "ok")) == "ok"
    assert (limit.waiting, limit.in_flight) == (0, 0)
    assert len(kept) == 2


def test_a_clean_up_that_fails_in_a_closed_loop_fails_no_later_call(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    policy = guarded(clock)

    async def unclean() -> None:
        try:
            await hang()
        finally:
            raise ValueError("unclean")

    kept = leave_hanging(policy, fn=unclean)
    assert asyncio.run(policy.call(asyncio.sleep, 0, "ok")) == "ok"
    assert "abandoned in a closed loop" in caplog.text
    assert len(kept) == 1


def test_a_probe_left_in_a_closed_loop_does_not_hold_the_breaker_half_open(clock: ManualClock) -> None:
    breaker = CircuitBreaker("p", minimum_calls=1, half_open_permits=1, open_for=1.0, clock=clock)
    policy = guarded(clock, breaker=breaker, limit=None, timeout=None)  # a real timer dies with its loop
    with pytest.raises(ConnectionError):
        asyncio.run(policy.call(fail))
    clock.advance(2.0)
    kept = leave_hanging(policy)
    assert breaker.state is BreakerState.HALF_OPEN
    clock.advance(1.0)  # by then it counts as failed, and the breaker is open once more
    with pytest.raises(CircuitOpen):
        asyncio.run(policy.call(asyncio.sleep, 0))
    clock.advance(3.0)
    asyncio.run(policy.call(asyncio.sleep, 0))
    assert breaker.state is BreakerState.CLOSED
    assert len(kept) == 1


def leave_hanging(*policies: Policy, fn: Any = hang) -> list[asyncio.Task[Any]]:
    """A call of each policy in flight in a loop that is closed; the tasks are to be kept."""
    kept: list[asyncio.Task[Any]] = []

    async def begin() -> None:
        for policy in policies:
            kept.append(asyncio.ensure_future(policy.call(fn)))
            await settle()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # that is what these tests are about
    loop.close()
    return kept


async def test_one_attempt_is_not_two_blocks_at_once(clock: ManualClock) -> None:
    policy = guarded(clock, limit=ConcurrencyLimit("p", clock=clock))
    attempt = policy.attempt()
    for _ in range(2):  # one after the other is well
        async with attempt:
            with pytest.raises(InvalidInput, match="one block at a time"):
                async with attempt:
                    raise AssertionError("not reached")
    assert policy._limit is not None
    assert policy._limit.in_flight == 0
