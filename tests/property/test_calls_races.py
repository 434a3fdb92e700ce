"""Whatever two attempts of a call do, and whenever the caller leaves, nothing is left of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.calls import CircuitBreaker, ConcurrencyLimit, Hedge, Policy, Retry, RetryBudget
from fairlead.clock import ManualClock, settle
from fairlead.errors import DeadlineExceeded

DELAY = 1.0


@dataclass(frozen=True)
class Plan:
    """What one attempt does: how long it takes, how it ends, how long it cleans up when it is cancelled."""

    seconds: float
    fails: bool
    clean_up: float
    swallows: bool


PLANS = st.builds(
    Plan,
    seconds=st.integers(0, 16).map(lambda quarters: quarters / 4),
    fails=st.booleans(),
    clean_up=st.sampled_from([0.0, 0.0, 0.5]),
    swallows=st.sampled_from([False, False, False, True]),
)


@settings(max_examples=400, deadline=None)
@given(
    plans=st.lists(PLANS, min_size=4, max_size=4),
    attempts=st.integers(1, 2),
    attempt_timeout=st.sampled_from([None, 1.5, 2.5]),
    leaves_after=st.none() | st.integers(0, 16).map(lambda quarters: quarters / 4),
    places=st.integers(1, 3),
)
def test_a_call_ends_with_all_its_attempts(
    plans: list[Plan],
    attempts: int,
    attempt_timeout: float | None,
    leaves_after: float | None,
    places: int,
) -> None:
    async def run() -> None:
        clock = ManualClock()
        limit = ConcurrencyLimit("d", initial=places, minimum=places, maximum=places, clock=clock)
        policy = Policy(
            name="d",
            timeout=3.0,
            attempt_timeout=attempt_timeout,
            idempotent=True,
            retry=Retry(
                on=(OSError, TimeoutError), attempts=attempts, base=0.0, budget=RetryBudget(clock=clock)
            ),
            breaker=CircuitBreaker("d", minimum_calls=1000, hung_after=1.25, clock=clock),
            limit=limit,
            hedge=Hedge(minimum_calls=1),
            clock=clock,
        )
        assert policy._hedging is not None
        policy._hedging.delay = DELAY
        left = list(plans)
        running = 0

        async def attempt() -> str:
            nonlocal running
            plan = left.pop(0) if left else plans[-1]
            running += 1
            try:
                await clock.sleep(plan.seconds)
                if plan.fails:
                    raise OSError("down")
                return "answer"
            except asyncio.CancelledError:
                if plan.clean_up:
                    await clock.sleep(plan.clean_up)
                if plan.swallows:
                    return "swallowed"
                raise
            finally:
                running -= 1

        leftovers: list[tuple[int, int]] = []

        async def caller() -> str:
            task = asyncio.current_task()
            assert task is not None
            try:
                return await policy.call(attempt)
            finally:
                leftovers.append((running, limit.in_flight))
                if leaves_after is None:
                    assert task.cancelling() == 0

        call = asyncio.ensure_future(caller())
        leaves = False
        if leaves_after is not None:
            await clock.run_for(leaves_after)
            leaves = call.cancel() and not any(plan.swallows for plan in plans)
        await clock.run_for(30.0)
        await settle()
        assert call.done()
        assert leftovers in ([(0, 0)], [])  # empty: cancelled before its first step
        assert limit.in_flight == 0
        assert policy._breaker is not None
        assert policy._breaker.in_flight == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}
        if leaves:
            assert call.cancelled()
        if not call.cancelled():
            error = call.exception()
            assert error is None or isinstance(error, OSError | DeadlineExceeded), error
        stats = policy.stats
        assert stats.hedges_won <= stats.hedged <= len(plans) - len(left)

    asyncio.run(run())
