"""An exported policy counts how its calls end and how long they take; what it does stays the same."""

from __future__ import annotations

import asyncio

import pytest

from fairlead.calls import BreakerState, CircuitBreaker, ConcurrencyLimit, Fallback, Policy, Retry
from fairlead.clock import ManualClock
from fairlead.errors import CircuitOpen, DeadlineExceeded, Overloaded
from fairlead.telemetry import MetricRegistry


def endings(registry: MetricRegistry) -> dict[str, float]:
    [family] = [each for each in registry.snapshot().families if each.name == "fairlead_policy_calls_total"]
    return {labels[1]: value for labels, value in family.values.items() if value}


def timed(registry: MetricRegistry) -> tuple[int, float]:
    [family] = [
        each for each in registry.snapshot().families if each.name == "fairlead_policy_call_duration_seconds"
    ]
    [each] = family.histograms.values()
    return sum(each.buckets.values()) + each.zero_count, each.sum


async def answer() -> int:
    return 42


async def fail() -> int:
    raise ConnectionError("down")


async def test_a_call_that_succeeds_is_counted_and_timed_with_its_waits() -> None:
    clock, registry = ManualClock(), MetricRegistry()
    policy = Policy(name="oracle", timeout=60.0, clock=clock)
    policy.export(registry)

    async def slow() -> int:
        await clock.sleep(2.0)
        return 42

    task = asyncio.create_task(policy.call(slow))
    await clock.run_for(2.0)
    assert await task == 42
    assert endings(registry) == {"succeeded": 1}
    assert timed(registry) == (1, 2.0)


async def test_each_way_to_end_is_counted_apart() -> None:
    clock, registry = ManualClock(), MetricRegistry()
    limit = ConcurrencyLimit("oracle", clock=clock)
    policy = Policy(name="oracle", timeout=1.0, limit=limit, clock=clock)
    policy.export(registry)
    with pytest.raises(ConnectionError):
        await policy.call(fail)
    late = asyncio.create_task(policy.call(clock.sleep, 5.0))
    await clock.run_for(1.5)
    with pytest.raises(DeadlineExceeded):
        await late
    held = limit.in_flight
    limit.in_flight = limit.limit
    with pytest.raises(Overloaded):
        await policy.call(answer)
    limit.in_flight = held
    cancelled = asyncio.create_task(policy.call(clock.sleep, 0.5))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert endings(registry) == {"failed": 1, "timed_out": 1, "refused": 1, "cancelled": 1}
    assert timed(registry)[0] == 2


async def test_what_a_fallback_answers_counts_as_the_failure_that_it_was() -> None:
    clock, registry = ManualClock(), MetricRegistry()
    policy = Policy(name="oracle", fallback=Fallback(answer=7), clock=clock)
    policy.export(registry)
    assert await policy.call(fail) == 7
    assert endings(registry) == {"failed": 1}
    assert policy.stats.fell_back == 1


async def test_policies_derived_before_and_after_the_export_are_counted_too() -> None:
    clock, registry = ManualClock(), MetricRegistry()
    policy = Policy(name="oracle", retry=Retry(attempts=2, on=ConnectionError), clock=clock)
    before = policy.replayable
    await policy.run(answer())
    policy.export(registry)
    await before.call(answer)
    await policy.run(answer())
    await before.run(answer())
    await before.once.call(answer)
    assert endings(registry) == {"succeeded": 4}
    assert before.once is policy


async def test_a_block_is_counted_as_a_call_is() -> None:
    clock, registry = ManualClock(), MetricRegistry()
    breaker = CircuitBreaker("oracle", minimum_calls=1, clock=clock)
    policy = Policy(name="oracle", timeout=1.0, breaker=breaker, clock=clock)
    policy.export(registry)
    async with policy.attempt():
        clock.advance(0.5)
    with pytest.raises(ConnectionError):
        async with policy.attempt():
            raise ConnectionError("down")
    while breaker.state is BreakerState.CLOSED:
        with pytest.raises(ConnectionError):
            async with policy.attempt():
                raise ConnectionError("down")
    with pytest.raises(CircuitOpen):
        async with policy.attempt():
            pass
    assert endings(registry)["succeeded"] == 1
    assert endings(registry)["refused"] == 1
    assert endings(registry)["failed"] >= 1
    count, total = timed(registry)
    assert total == 0.5
    assert count == endings(registry)["failed"] + 1


async def test_a_block_that_takes_too_long_counts_as_timed_out() -> None:
    clock, registry = ManualClock(), MetricRegistry()
    policy = Policy(name="oracle", timeout=1.0, clock=clock)
    policy.export(registry)

    async def block() -> None:
        async with policy.attempt():
            await clock.sleep(5.0)

    task = asyncio.create_task(block())
    await clock.run_for(2.0)
    with pytest.raises(DeadlineExceeded):
        await task
    assert endings(registry) == {"timed_out": 1}


async def test_a_policy_that_is_not_exported_has_no_watch() -> None:
    policy = Policy(name="oracle")
    await policy.call(answer)
    assert type(policy) is Policy
