"""What a policy tells of itself: events, counts, and a scrape."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fairlead.calls import Bulkhead, CircuitBreaker, ConcurrencyLimit, Fallback, Policy, Retry, RetryBudget
from fairlead.clock import ManualClock
from fairlead.context import RequestContext, request_context
from fairlead.deadline import Deadline
from fairlead.errors import CircuitOpen, DeadlineExceeded, Overloaded
from fairlead.telemetry import (
    Event,
    MemorySink,
    MetricRegistry,
    PolicyActed,
    StateChanged,
    decode_event,
    encode_event,
)
from fairlead.telemetry.prometheus import render


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def fail() -> None:
    raise ConnectionError("reset")


def told(clock: ManualClock, **changes: Any) -> tuple[Policy, MemorySink]:
    sink = MemorySink()
    settings: dict[str, Any] = {
        "name": "p",
        "idempotent": True,
        "retry": Retry(on=OSError, attempts=2, base=0.0, cap=0.0, budget=RetryBudget(clock=clock)),
        "clock": clock,
        "on_event": sink.emit,
    }
    return Policy(**(settings | changes)), sink


async def test_a_retry_a_refusal_and_a_fallback_are_events(clock: ManualClock) -> None:
    policy, sink = told(
        clock,
        breaker=CircuitBreaker("p", minimum_calls=2, clock=clock),
        fallback=Fallback(answer=None),
    )
    with request_context(RequestContext(request_id="r1")):
        await policy.call(fail)
        await policy.call(fail)
    acted = [(event.action, event.reason, event.attempt) for event in sink.of(PolicyActed)]
    assert acted == [
        ("retried", "ConnectionError", 1),
        ("fell_back", "ConnectionError", 1),
        ("refused", "CircuitOpen", 1),
        ("fell_back", "CircuitOpen", 1),
    ]
    assert {(event.policy, event.request_id) for event in sink.of(PolicyActed)} == {("p", "r1")}
    assert [event.current for event in sink.of(StateChanged)] == ["open"]


async def test_a_call_that_goes_straight_is_no_event(clock: ManualClock) -> None:
    policy, sink = told(clock)
    await policy.call(asyncio.sleep, 0)
    assert sink.events == []


async def test_a_receiver_that_raises_harms_no_call(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: Event) -> None:
        raise RuntimeError("sink is gone")

    policy, _ = told(clock, on_event=broken, fallback=Fallback(answer="spare"))
    assert await policy.call(fail) == "spare"
    assert "sink is gone" in caplog.text


def test_the_event_survives_its_journey() -> None:
    event = PolicyActed(at_utc_seconds=1.0, policy="p", action="hedged", reason="slow", attempt=2)
    assert decode_event(encode_event(event)) == event


async def test_a_scrape_reads_the_counts_the_limit_and_the_circuit(clock: ManualClock) -> None:
    policy, _ = told(
        clock,
        breaker=CircuitBreaker("p", minimum_calls=2, clock=clock),
        limit=ConcurrencyLimit("p", initial=7, clock=clock),
    )
    registry = MetricRegistry()
    policy.export(registry)
    with pytest.raises(ConnectionError):
        await policy.call(fail)
    with pytest.raises(CircuitOpen):
        await policy.call(fail)
    text = render(registry)
    for line in (
        'fairlead_policy_total{policy="p",what="retried"} 1.0',
        'fairlead_policy_total{policy="p",what="refused"} 1.0',
        'fairlead_policy_total{policy="p",what="hedged"} 0.0',
        'fairlead_policy_limit{policy="p"} 7.0',
        'fairlead_policy_in_flight{policy="p"} 0.0',
        'fairlead_policy_circuit_open{policy="p"} 1.0',
    ):
        assert line + "\n" in text


# Who earns, and what a failure asks for


async def test_a_call_that_was_refused_earns_no_retry(clock: ManualClock) -> None:
    budget = RetryBudget(clock=clock)
    policy = Policy(
        name="p",
        retry=Retry(on=OSError, attempts=1, budget=budget),
        breaker=CircuitBreaker("p", minimum_calls=1, clock=clock),
        clock=clock,
    )
    with pytest.raises(ConnectionError):
        await policy.call(fail)
    for _ in range(100):
        with pytest.raises(CircuitOpen):
            await policy.call(fail)
    assert budget.earnings.counts(clock.now()) == (1, 0)


async def test_a_retry_earns_nothing(clock: ManualClock) -> None:
    budget = RetryBudget(clock=clock)
    policy, _ = told(clock, retry=Retry(on=OSError, attempts=3, base=0.0, cap=0.0, budget=budget))
    with pytest.raises(ConnectionError):
        await policy.call(fail)
    assert budget.earnings.counts(clock.now()) == (1, 2)


def busy(*retry_after: Any) -> Any:
    left = list(retry_after)

    async def call() -> str:
        if left:
            error = ConnectionError("busy")
            error.retry_after = left.pop(0)  # type: ignore[attr-defined]
            raise error
        return "ok"

    return call


async def test_a_dependency_that_says_how_long_to_wait_is_not_asked_sooner(clock: ManualClock) -> None:
    policy, _ = told(clock, retry=Retry(on=OSError, base=0.0, cap=2.0, budget=RetryBudget(clock=clock)))
    call = asyncio.ensure_future(policy.call(busy(1.5)))
    await clock.run_for(1.49)
    assert not call.done()
    await clock.run_for(0.02)
    assert await call == "ok"


async def test_a_wait_that_is_asked_for_and_does_not_fit_the_deadline_is_no_retry(clock: ManualClock) -> None:
    policy, _ = told(
        clock, timeout=1.0, retry=Retry(on=OSError, base=0.0, cap=2.0, budget=RetryBudget(clock=clock))
    )
    with pytest.raises(ConnectionError) as caught:
        await policy.call(busy(1.5))
    assert "1.000 s remain, and the next would begin in 1.500 s" in caught.value.__notes__[0]


@pytest.mark.parametrize("seconds", [2.5, float("inf"), 1e300])
async def test_a_wait_longer_than_the_cap_is_no_retry(clock: ManualClock, seconds: float) -> None:
    policy, _ = told(clock, retry=Retry(on=OSError, base=0.0, cap=2.0, budget=RetryBudget(clock=clock)))
    with pytest.raises(ConnectionError) as caught:
        await policy.call(busy(seconds))
    assert "and a wait may last 2 s" in caught.value.__notes__[0]


@pytest.mark.parametrize("nonsense", [float("nan"), -5.0, "10", None, True])
async def test_a_wait_that_is_no_number_of_seconds_is_not_listened_to(
    clock: ManualClock, nonsense: Any
) -> None:
    policy, _ = told(clock)
    call = asyncio.ensure_future(policy.call(busy(nonsense)))
    await clock.run_for(0.01)
    assert await call == "ok"


async def test_the_wait_that_a_refusal_names_is_honoured_for_a_call_that_is_not_idempotent(
    clock: ManualClock,
) -> None:
    attempts = []

    async def shed() -> str:
        attempts.append(clock.now())
        if len(attempts) == 1:
            raise Overloaded("shed", retry_after=1.0)
        return "ok"

    policy, _ = told(
        clock, idempotent=False, retry=Retry(on=Overloaded, base=0.0, budget=RetryBudget(clock=clock))
    )
    call = asyncio.ensure_future(policy.call(shed))
    await clock.run_for(1.0)
    assert await call == "ok"
    assert attempts == [0.0, 1.0]


@pytest.mark.parametrize(
    ("retry", "most"),
    [
        (None, 1.0),
        (Retry(on=OSError, attempts=3), 3.0),
        (Retry(on=OSError, attempts=3, budget=RetryBudget(ratio=0.25)), 1.25),
    ],
)
def test_the_maximum_amplification_can_be_read(retry: Retry | None, most: float) -> None:
    assert Policy(name="p", retry=retry).maximum_amplification == most


# Everything on /metrics by one call


async def test_one_export_shows_every_refusal_by_its_reason_and_the_breakers_changes(
    clock: ManualClock,
) -> None:
    policy, _ = told(
        clock,
        retry=None,
        breaker=CircuitBreaker("dep", minimum_calls=1, half_open_permits=1, open_for=1.0, clock=clock),
        limit=ConcurrencyLimit("p", initial=1, minimum=1, clock=clock),
    )
    registry = MetricRegistry()
    policy.export(registry)
    holder = asyncio.ensure_future(policy.call(asyncio.Event().wait))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await policy.call(fail)
    holder.cancel()
    await asyncio.wait([holder])
    with pytest.raises(ConnectionError):
        await policy.call(fail)
    with pytest.raises(CircuitOpen):
        await policy.call(fail)
    with (
        request_context(RequestContext(deadline=Deadline.after(0.0, clock))),
        pytest.raises(DeadlineExceeded),
    ):
        await policy.call(fail)
    clock.advance(2.0)
    await policy.call(asyncio.sleep, 0)
    text = render(registry)
    for line in (
        'fairlead_policy_total{policy="p",what="refused"} 3.0',
        'fairlead_policy_refused_total{policy="p",reason="CircuitOpen"} 1.0',
        'fairlead_policy_refused_total{policy="p",reason="DeadlineExceeded"} 1.0',
        'fairlead_policy_refused_total{policy="p",reason="Overloaded"} 1.0',
        'fairlead_policy_maximum_amplification{policy="p"} 1.0',
        'fairlead_breaker_refused_total{breaker="dep"} 1.0',
        'fairlead_breaker_changes_total{breaker="dep",state="open"} 1.0',
        'fairlead_breaker_changes_total{breaker="dep",state="half_open"} 1.0',
        'fairlead_breaker_changes_total{breaker="dep",state="closed"} 1.0',
    ):
        assert line + "\n" in text


def test_a_hundred_policies_are_each_seen_with_all_their_counts(clock: ManualClock) -> None:
    registry = MetricRegistry()
    for each in range(100):
        breaker = CircuitBreaker(f"p{each}", clock=clock)
        Policy(name=f"p{each}", breaker=breaker, clock=clock).export(registry)
    text = render(registry)
    assert "_overflow" not in text
    assert 'fairlead_policy_total{policy="p99",what="fallbacks_suppressed"} 0.0' in text


async def test_a_limit_by_itself_is_seen(clock: ManualClock) -> None:
    limit, registry = Bulkhead("exports", calls=1, clock=clock), MetricRegistry()
    limit.export(registry)
    async with limit.permit():
        with pytest.raises(Overloaded):
            async with limit.permit():
                raise AssertionError("not reached")
        text = render(registry)
    for line in (
        'fairlead_limit_refused_total{limit="exports"} 1.0',
        'fairlead_limit_allowed{limit="exports"} 1.0',
        'fairlead_limit_in_flight{limit="exports"} 1.0',
        'fairlead_limit_waiting{limit="exports"} 0.0',
    ):
        assert line + "\n" in text
