"""Bulkhead: a fixed number of calls in flight, whatever they experience."""

from __future__ import annotations

import asyncio

import pytest

from fairlead.calls import Bulkhead, Policy
from fairlead.clock import ManualClock, settle
from fairlead.errors import DeadlineExceeded, InvalidInput, Overloaded


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def hang() -> None:
    await asyncio.Event().wait()


async def test_neither_timeouts_nor_successes_move_it(clock: ManualClock) -> None:
    bulkhead = Bulkhead("exports", calls=3, clock=clock)
    policy = Policy(name="exports", timeout=1.0, limit=bulkhead, clock=clock)
    for _ in range(5):
        calls = [asyncio.create_task(policy.call(hang)) for _ in range(3)]
        await clock.run_for(1.5)
        for call in calls:
            with pytest.raises(DeadlineExceeded):
                await call
    assert (bulkhead.limit, bulkhead.in_flight) == (3, 0)
    for _ in range(50):
        calls = [asyncio.create_task(policy.call(clock.sleep, 0.1)) for _ in range(3)]
        await clock.run_for(0.2)
        await asyncio.gather(*calls)
    assert (bulkhead.limit, bulkhead.in_flight) == (3, 0)


async def test_a_full_bulkhead_refuses_at_once_and_a_cancelled_call_frees_its_place(
    clock: ManualClock,
) -> None:
    policy = Policy(name="exports", limit=Bulkhead("exports", calls=1, clock=clock), clock=clock)
    first = asyncio.create_task(policy.call(hang))
    await settle()
    with pytest.raises(Overloaded, match="exports: 1 of 1 calls are in flight"):
        await policy.call(hang)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await policy.call(clock.sleep, 0)


async def test_a_call_queues_for_a_place_no_longer_than_max_wait(clock: ManualClock) -> None:
    bulkhead = Bulkhead("exports", calls=1, max_wait=2.0, clock=clock)
    policy = Policy(name="exports", limit=bulkhead, clock=clock)
    first = asyncio.create_task(policy.call(clock.sleep, 3.0))
    await settle()
    impatient = asyncio.create_task(policy.call(clock.sleep, 0))
    await clock.run_for(2.5)
    with pytest.raises(Overloaded, match=r"refused after 2\.000 s"):
        await impatient
    lucky = asyncio.create_task(policy.call(clock.sleep, 0))
    await clock.run_for(1.0)
    await asyncio.gather(first, lucky)


@pytest.mark.parametrize("calls", [0, -1, 1.5, True, float("nan"), 10**9])
def test_a_number_of_calls_that_is_none_is_refused(calls: object) -> None:
    with pytest.raises(InvalidInput, match=r"Bulkhead\.calls"):
        Bulkhead("exports", calls=calls)  # type: ignore[arg-type]  # what this is about
