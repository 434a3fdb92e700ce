"""Hedges: when the second attempt is sent, who wins, and that nothing is left of the other."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest

from fairlead.calls import BreakerState, CircuitBreaker, ConcurrencyLimit, Hedge, Policy, Retry, RetryBudget
from fairlead.clock import ManualClock, settle
from fairlead.context import RequestContext, current, request_context
from fairlead.deadline import Deadline
from fairlead.errors import DeadlineExceeded, InvalidInput
from fairlead.telemetry import MemorySink, PolicyActed

USUAL = 0.1


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


class Replicas:
    """Answers call by call as told; every attempt leaves a trace of its end."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.plan: list[float | Exception | tuple[float, Exception]] = []
        self.begun: list[float] = []
        self.ended: list[str] = []

    async def call(self) -> int:
        number = len(self.begun)
        self.begun.append(self.clock.now())
        todo = self.plan.pop(0) if self.plan else USUAL
        seconds, error = todo if isinstance(todo, tuple) else (todo, None)
        try:
            if isinstance(seconds, Exception):
                raise seconds
            await self.clock.sleep(seconds)
            if error is not None:
                raise error
        except asyncio.CancelledError:
            self.ended.append(f"{number} cancelled")
            raise
        except Exception:
            self.ended.append(f"{number} failed")
            raise
        self.ended.append(f"{number} answered")
        return number


def hedged(clock: ManualClock, **changes: Any) -> Policy:
    settings: dict[str, Any] = {
        "name": "search",
        "timeout": 5.0,
        "idempotent": True,
        "hedge": Hedge(minimum_calls=10),
        "limit": ConcurrencyLimit("search", clock=clock),
        "breaker": CircuitBreaker("search", minimum_calls=2, failure_ratio=0.01, clock=clock),
        "clock": clock,
    }
    return Policy(**(settings | changes))


async def warm(policy: Policy, replicas: Replicas, clock: ManualClock, calls: int = 10) -> None:
    """Lets the policy see its usual latency."""
    for _ in range(calls):
        task = asyncio.ensure_future(policy.replayable.call(replicas.call))
        await clock.run_for(USUAL)
        await task
    replicas.begun.clear()
    replicas.ended.clear()


async def begin(call: Callable[[], Awaitable[int]]) -> asyncio.Future[int]:
    task = asyncio.ensure_future(call())
    await settle()
    return task


async def started(
    clock: ManualClock, *plan: Any, **changes: Any
) -> tuple[Policy, Replicas, asyncio.Future[int]]:
    """A warm policy with one call in flight, of which the attempts go by `plan`."""
    policy = hedged(clock, **changes)
    replicas = Replicas(clock)
    await warm(policy, replicas, clock)
    replicas.plan = list(plan)
    return policy, replicas, await begin(lambda: policy.call(replicas.call))


def nothing_is_left(policy: Policy) -> bool:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    return not tasks and policy._limit is not None and policy._limit.in_flight == 0


async def test_no_hedge_is_sent_before_enough_calls_were_observed(clock: ManualClock) -> None:
    policy = hedged(clock)
    replicas = Replicas(clock)
    await warm(policy, replicas, clock, calls=9)
    replicas.plan = [3.0]
    call = await begin(lambda: policy.call(replicas.call))
    await clock.run_for(3.0)
    assert await call == 0
    assert policy.stats.hedged == 0


async def test_a_call_that_returns_before_the_delay_makes_no_task(clock: ManualClock) -> None:
    policy, _, call = await started(clock, 0.09)
    assert len(asyncio.all_tasks()) == 2  # this test and the caller
    await clock.run_for(0.09)
    assert await call == 0
    assert policy.stats.hedged == 0
    assert nothing_is_left(policy)


async def test_a_second_attempt_is_sent_once_the_first_has_run_longer_than_the_quantile(
    clock: ManualClock,
) -> None:
    policy, replicas, call = await started(clock, 3.0, USUAL)
    sent = clock.now()
    await clock.run_for(USUAL * 1.03)
    assert [round(moment - sent, 2) for moment in replicas.begun] == [0.0, 0.1]
    await clock.run_for(USUAL)
    assert await call == 1
    assert (policy.stats.hedged, policy.stats.hedges_won) == (1, 1)


async def test_the_first_is_cancelled_and_has_ended_when_the_second_wins(clock: ManualClock) -> None:
    policy, replicas, call = await started(clock, 3.0, USUAL)
    await clock.run_for(0.3)
    assert call.done()
    assert replicas.ended == ["1 answered", "0 cancelled"]
    assert nothing_is_left(policy)
    assert policy._breaker is not None
    assert policy._breaker.state is BreakerState.CLOSED  # one failure would have opened it
    assert policy._breaker.outcomes.counts(clock.now()) == (11, 0)


async def test_the_second_is_cancelled_and_has_ended_when_the_first_wins(clock: ManualClock) -> None:
    policy, replicas, call = await started(clock, 0.15, 3.0)
    await clock.run_for(0.15)
    assert await call == 0
    assert replicas.ended == ["0 answered", "1 cancelled"]
    assert nothing_is_left(policy)
    assert policy._breaker is not None
    assert policy._breaker.outcomes.counts(clock.now()) == (11, 0)
    assert (policy.stats.hedged, policy.stats.hedges_won) == (1, 0)


async def test_an_answer_of_the_second_makes_good_for_a_first_that_fails(clock: ManualClock) -> None:
    policy, replicas, call = await started(clock, (0.15, ConnectionError()), 0.3, breaker=None)
    await clock.run_for(0.15)
    assert not call.done()
    assert policy._limit is not None
    assert policy._limit.in_flight == 1  # one attempt is in flight, so one place is taken
    await clock.run_for(0.3)
    assert await call == 1
    assert replicas.ended == ["0 failed", "1 answered"]
    assert nothing_is_left(policy)


async def test_when_both_fail_the_first_failure_is_raised_and_names_the_other(clock: ManualClock) -> None:
    policy, _, call = await started(
        clock, (0.15, ConnectionError("first")), (0.2, OSError("second")), breaker=None
    )
    await clock.run_for(0.5)
    with pytest.raises(ConnectionError, match="first") as caught:
        call.result()
    assert caught.value.__notes__ == ["search: its hedge failed too: OSError: second"]
    assert nothing_is_left(policy)


async def test_a_second_that_fails_leaves_the_first_alone(clock: ManualClock) -> None:
    policy, _, call = await started(clock, 0.5, OSError("second"), breaker=None)
    await clock.run_for(0.5)
    assert await call == 0
    assert nothing_is_left(policy)


async def test_a_cancelled_caller_takes_both_attempts_along(clock: ManualClock) -> None:
    policy, replicas, call = await started(clock, 3.0, 3.0)
    await clock.run_for(0.2)
    call.cancel()
    await settle()
    assert call.cancelled()
    assert sorted(replicas.ended) == ["0 cancelled", "1 cancelled"]
    assert nothing_is_left(policy)


async def test_a_caller_cancelled_while_only_the_second_runs_takes_it_along(clock: ManualClock) -> None:
    policy, replicas, call = await started(clock, (0.15, OSError()), 3.0, breaker=None)
    await clock.run_for(0.2)
    call.cancel()
    await settle()
    assert call.cancelled()
    assert replicas.ended == ["0 failed", "1 cancelled"]
    assert nothing_is_left(policy)


async def test_a_caller_cancelled_in_the_moment_the_second_wins_is_cancelled(clock: ManualClock) -> None:
    policy, _, call = await started(clock, 3.0, USUAL)
    await clock.run_for(0.12)
    clock.call_at(clock.now(), call.cancel)
    clock.advance(0.3)
    await settle()
    assert call.cancelled()
    assert nothing_is_left(policy)


async def test_a_win_leaves_no_request_to_cancel_behind(clock: ManualClock) -> None:
    policy = hedged(clock)
    replicas = Replicas(clock)
    await warm(policy, replicas, clock)
    replicas.plan = [3.0, USUAL]

    async def caller() -> tuple[int, int]:
        answer = await policy.call(replicas.call)
        await asyncio.sleep(0)  # a request left behind would come through here
        task = asyncio.current_task()
        assert task is not None
        return answer, task.cancelling()

    call = asyncio.ensure_future(caller())
    await clock.run_for(0.5)
    assert await call == (1, 0)


async def test_the_result_of_a_first_that_swallows_its_defeat_stands(clock: ManualClock) -> None:
    policy = hedged(clock)
    replicas = Replicas(clock)
    await warm(policy, replicas, clock)
    calls = 0

    async def stubborn() -> str:
        nonlocal calls
        calls += 1
        if calls == 2:
            return "second"
        try:
            await clock.sleep(3.0)
        except asyncio.CancelledError:
            return "first, all the same"
        return "late"

    call = asyncio.ensure_future(policy.call(stubborn))
    await clock.run_for(0.2)
    assert await call == "first, all the same"
    assert nothing_is_left(policy)


async def test_both_attempts_end_at_the_deadline(clock: ManualClock) -> None:
    policy, replicas, call = await started(clock, 60.0, 60.0, timeout=1.0)
    await clock.run_for(1.0)
    with pytest.raises(DeadlineExceeded, match="search: no answer within"):
        call.result()
    assert sorted(replicas.ended) == ["0 cancelled", "1 cancelled"]
    assert nothing_is_left(policy)


async def test_a_call_that_is_not_idempotent_is_not_hedged_and_its_replayable_twin_is(
    clock: ManualClock,
) -> None:
    policy, replicas, call = await started(clock, 1.0, idempotent=False)
    await clock.run_for(1.0)
    assert await call == 0
    assert policy.stats.hedged == 0
    replicas.plan = [3.0]
    replayed = await begin(lambda: policy.replayable.call(replicas.call))
    await clock.run_for(1.0)
    assert await replayed == 2
    assert policy.stats.hedged == 1


async def test_a_hedge_takes_its_token_from_the_budget_of_the_retries(clock: ManualClock) -> None:
    budget = RetryBudget(ratio=0.1, floor_per_second=0.0, clock=clock)
    policy, replicas, call = await started(clock, 0.5, 0.5, retry=Retry(on=OSError, budget=budget))
    assert budget.available == 1  # eleven first attempts, in this window
    await clock.run_for(0.5)
    await call
    assert (policy.stats.hedged, budget.available) == (1, 0)
    replicas.plan = [0.5]
    await begin(lambda: policy.call(replicas.call))
    await clock.run_for(0.5)
    assert (policy.stats.hedged, policy.stats.hedges_suppressed) == (1, 1)


async def test_a_hedge_without_a_retry_has_a_budget_of_its_own(clock: ManualClock) -> None:
    assert hedged(clock).maximum_amplification == pytest.approx(1.1)


async def test_retries_and_hedges_with_two_budgets_are_refused(clock: ManualClock) -> None:
    one, two = RetryBudget(clock=clock), RetryBudget(clock=clock)
    with pytest.raises(InvalidInput, match="share one budget"):
        hedged(clock, hedge=Hedge(budget=one), retry=Retry(on=OSError, budget=two))


async def test_a_full_limit_gets_no_hedge(clock: ManualClock) -> None:
    limit = ConcurrencyLimit("search", initial=1, minimum=1, maximum=1, clock=clock)
    policy, _, call = await started(clock, 0.5, limit=limit)
    await clock.run_for(0.5)
    assert await call == 0
    assert policy.stats.hedges_suppressed == 1


async def test_an_open_circuit_gets_no_hedge(clock: ManualClock) -> None:
    policy, _, call = await started(clock, 0.5)
    assert policy._breaker is not None
    policy._breaker.record(policy._breaker.generation, False, clock.now())
    assert policy._breaker.state is BreakerState.OPEN
    await clock.run_for(0.5)
    assert await call == 0
    assert policy.stats.hedges_suppressed == 1


async def test_the_second_sees_the_callers_context_and_what_remains_of_the_call(clock: ManualClock) -> None:
    user: ContextVar[str] = ContextVar("user")
    policy = hedged(clock)
    replicas = Replicas(clock)
    await warm(policy, replicas, clock)
    seen = []

    async def look() -> None:
        seen.append((user.get(), current().request_id, round(current().deadline.remaining(), 2)))
        await clock.sleep(3.0 if len(seen) == 1 else 0.0)

    async def caller() -> None:
        user.set("ada")
        with request_context(RequestContext(request_id="r1", deadline=Deadline.after(2.0, clock))):
            await policy.call(look)
            assert current().deadline.remaining() > 1.0

    call = asyncio.ensure_future(caller())
    await clock.run_for(0.5)
    await call
    assert seen == [("ada", "r1", 2.0), ("ada", "r1", 1.9)]


async def test_what_was_beaten_counts_as_slow_so_that_the_delay_does_not_sink(clock: ManualClock) -> None:
    policy = hedged(clock, hedge=Hedge(minimum_calls=10, quantile=0.5))
    replicas = Replicas(clock)
    await warm(policy, replicas, clock)
    for _ in range(60):  # the first attempts hang from now on, and every answer is a second's, in no time
        replicas.plan = [60.0, 0.0]
        call = await begin(lambda: policy.call(replicas.call))
        await clock.run_for(2.0)
        assert await call > 0
    assert policy._hedging is not None
    assert policy._hedging.delay is not None
    assert policy._hedging.delay >= USUAL / 1.011  # what the histogram promises


async def test_the_event_of_a_hedge_names_the_request_that_was_hedged_not_the_one_that_set_the_timer(
    clock: ManualClock,
) -> None:
    sink = MemorySink()
    policy = hedged(clock, on_event=sink.emit)
    replicas = Replicas(clock)
    await warm(policy, replicas, clock)
    replicas.plan = [0.05, 3.0]
    for request_id in ("first", "second"):
        with request_context(RequestContext(request_id=request_id)):
            call = await begin(lambda: policy.call(replicas.call))
    await clock.run_for(0.5)
    await call
    assert [(event.action, event.request_id) for event in sink.of(PolicyActed)] == [("hedged", "second")]


async def test_a_retried_attempt_is_hedged_as_well(clock: ManualClock) -> None:
    _, replicas, call = await started(
        clock,
        ConnectionError(),
        3.0,
        USUAL,
        breaker=None,
        retry=Retry(on=ConnectionError, base=0.0, cap=0.0, budget=RetryBudget(clock=clock)),
    )
    await clock.run_for(0.5)
    assert await call == 2
    assert len(replicas.begun) == 3


def test_a_loop_that_is_closed_in_the_middle_of_a_race_keeps_no_permit(clock: ManualClock) -> None:
    policy = hedged(clock, limit=ConcurrencyLimit("search", initial=2, minimum=2, maximum=2, clock=clock))
    replicas = Replicas(clock)
    kept = []

    async def abandon() -> None:
        await warm(policy, replicas, clock)
        replicas.plan = [60.0, 60.0]
        kept.append(await begin(lambda: policy.call(replicas.call)))
        await clock.run_for(0.2)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(abandon())
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # that is what this test is about
    loop.close()
    assert policy._limit is not None
    assert policy._limit.in_flight == 2

    async def later() -> int:
        return 7

    assert asyncio.run(policy.call(later)) == 7
    assert policy._limit.in_flight == 0
    kept.clear()
    gc.collect()


@pytest.mark.parametrize(
    ("field", "value"),
    [("quantile", 1.0), ("quantile", 0.0), ("minimum_calls", 0), ("floor", -1.0), ("cap", 0.0001)],
)
def test_a_hedge_setting_outside_its_bounds_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=rf"^Hedge\.{field}: "):
        Hedge(**{field: value})
