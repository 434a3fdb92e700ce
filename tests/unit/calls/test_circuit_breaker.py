"""CircuitBreaker: when it opens, how it probes, and what does not count."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from fairlead.calls import BreakerState, CircuitBreaker, Policy
from fairlead.clock import ManualClock
from fairlead.context import RequestContext, request_context
from fairlead.errors import CircuitOpen, InvalidInput
from fairlead.telemetry.event import StateChanged


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def fail(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(ConnectionError), breaker.permit():
            raise ConnectionError("down")


def succeed(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        with breaker.permit():
            pass


def opened(clock: ManualClock, **settings: Any) -> CircuitBreaker:
    breaker = CircuitBreaker("dep", minimum_calls=1, clock=clock, rng=random.Random(1), **settings)
    fail(breaker)
    assert breaker.state is BreakerState.OPEN
    return breaker


def test_it_opens_at_the_failure_ratio_once_there_are_enough_calls(clock: ManualClock) -> None:
    breaker = CircuitBreaker("dep", failure_ratio=0.5, minimum_calls=10, clock=clock)
    succeed(breaker, 5)
    fail(breaker, 4)
    assert breaker.state is BreakerState.CLOSED
    fail(breaker)
    assert breaker.state is BreakerState.OPEN


async def test_a_failure_that_passes_through_two_policies_is_no_failed_probe(clock: ManualClock) -> None:
    breaker = CircuitBreaker("dep", minimum_calls=1, open_for=5.0, clock=clock, rng=random.Random(1))
    inner = Policy(name="row", breaker=breaker, clock=clock)
    outer = Policy(name="page", breaker=breaker, clock=clock)

    async def row() -> None:
        raise ConnectionError("down")

    async def page() -> None:
        await inner.call(row)

    with pytest.raises(ConnectionError):
        await outer.call(page)
    clock.advance(5.0 * 1.2)  # the most that a first opening may last
    succeed(breaker)
    assert breaker.state is BreakerState.HALF_OPEN


def test_failures_that_left_the_window_do_not_count(clock: ManualClock) -> None:
    breaker = CircuitBreaker("dep", minimum_calls=4, window=10.0, clock=clock)
    fail(breaker, 3)
    clock.advance(10.0)
    fail(breaker, 3)
    assert breaker.state is BreakerState.CLOSED
    fail(breaker)
    assert breaker.state is BreakerState.OPEN


def test_an_open_breaker_refuses_at_once_and_says_until_when(clock: ManualClock) -> None:
    breaker = opened(clock, open_for=5.0)
    with pytest.raises(CircuitOpen, match=r"dep: the circuit is open; next probe in 5\.\d s") as caught:
        succeed(breaker)
    assert caught.value.retry_after is not None
    clock.advance(caught.value.retry_after)
    succeed(breaker)
    assert breaker.state is BreakerState.HALF_OPEN


def test_whether_it_refuses_can_be_seen_without_asking(clock: ManualClock) -> None:
    breaker = opened(clock, open_for=5.0, half_open_permits=1)
    assert breaker.refuses()
    clock.advance(6.1)
    assert not breaker.refuses()  # a probe is due
    assert breaker.state is BreakerState.OPEN
    succeed(breaker)
    assert not breaker.refuses()
    assert breaker.refused == 0


def test_half_open_lets_through_a_counted_number_of_probes(clock: ManualClock) -> None:
    breaker = opened(clock, half_open_permits=2, open_for=1.0)
    clock.advance(1.2)
    with breaker.permit(), breaker.permit(), pytest.raises(CircuitOpen, match="all its probes are out"):
        succeed(breaker)
    assert breaker.state is BreakerState.CLOSED


def test_a_probe_that_succeeded_does_not_free_a_permit_for_another(clock: ManualClock) -> None:
    breaker = opened(clock, half_open_permits=2, open_for=1.0)
    clock.advance(1.2)
    with breaker.permit():
        succeed(breaker)
        with pytest.raises(CircuitOpen):
            succeed(breaker)


def test_a_cancelled_probe_returns_its_permit(clock: ManualClock) -> None:
    breaker = opened(clock, half_open_permits=1, open_for=1.0)
    clock.advance(1.2)
    for _ in range(3):
        with pytest.raises(asyncio.CancelledError), breaker.permit():
            raise asyncio.CancelledError
        assert breaker.state is BreakerState.HALF_OPEN
    succeed(breaker)
    assert breaker.state is BreakerState.CLOSED


def test_a_failed_probe_opens_it_again_for_longer_up_to_the_cap(clock: ManualClock) -> None:
    breaker = opened(clock, open_for=1.0, open_for_cap=4.0)
    waits = []
    for _ in range(5):
        with pytest.raises(CircuitOpen) as caught:
            succeed(breaker)
        waits.append(caught.value.retry_after or 0.0)
        clock.advance(waits[-1])
        fail(breaker)
    for wait, least in zip(waits, [1.0, 2.0, 4.0, 4.0, 4.0], strict=True):
        assert least <= wait <= least * 1.2
    assert len({wait / least for wait, least in zip(waits, [1.0, 2.0, 4.0, 4.0, 4.0], strict=True)}) == 5


def test_closing_forgets_the_old_failures_and_the_long_wait(clock: ManualClock) -> None:
    breaker = opened(clock, half_open_permits=1, open_for=1.0)
    clock.advance(1.2)
    fail(breaker)
    clock.advance(2.4)
    succeed(breaker)
    assert breaker.state is BreakerState.CLOSED
    assert breaker.outcomes.counts(clock.now()) == (0, 0)
    fail(breaker)
    with pytest.raises(CircuitOpen) as caught:
        succeed(breaker)
    assert caught.value.retry_after is not None
    assert caught.value.retry_after <= 1.2


@pytest.mark.parametrize("error", [asyncio.CancelledError, KeyboardInterrupt, GeneratorExit])
def test_cancellation_and_exit_are_neutral(clock: ManualClock, error: type[BaseException]) -> None:
    breaker = CircuitBreaker("dep", minimum_calls=1, clock=clock)
    with pytest.raises(error), breaker.permit():
        raise error
    assert breaker.outcomes.counts(clock.now()) == (0, 0)


def test_an_exception_that_is_no_failure_counts_as_success_because_it_is_an_answer(
    clock: ManualClock,
) -> None:
    breaker = CircuitBreaker(
        "dep", minimum_calls=1, is_failure=lambda error: not isinstance(error, LookupError), clock=clock
    )
    with pytest.raises(KeyError), breaker.permit():
        raise KeyError("no such user")
    assert breaker.outcomes.counts(clock.now()) == (1, 0)


def test_in_flight_age_counts_as_failure_when_the_breaker_is_asked(clock: ManualClock) -> None:
    breaker = CircuitBreaker("dep", minimum_calls=3, hung_after=0.5, clock=clock)
    hung = [breaker.permit().__enter__() for _ in range(3)]
    clock.advance(0.49)
    succeed(breaker)
    assert breaker.state is BreakerState.CLOSED
    clock.advance(0.01)
    with pytest.raises(CircuitOpen):
        succeed(breaker)
    for permit in hung:
        permit.__exit__(None, None, None)
    assert breaker.state is BreakerState.OPEN
    assert breaker.in_flight == 0


def test_a_call_that_was_counted_for_its_age_is_not_counted_when_it_ends(clock: ManualClock) -> None:
    breaker = CircuitBreaker("dep", minimum_calls=10, hung_after=0.5, clock=clock)
    permit = breaker.permit().__enter__()
    clock.advance(0.5)
    succeed(breaker)
    permit.__exit__(None, None, None)
    assert breaker.outcomes.counts(clock.now()) == (2, 1)


def test_a_probe_that_hangs_without_a_timeout_does_not_hold_it_half_open_for_ever(clock: ManualClock) -> None:
    breaker = opened(clock, half_open_permits=1, open_for=1.0)
    clock.advance(1.2)
    hung = breaker.permit().__enter__()
    clock.advance(1.0)
    with pytest.raises(CircuitOpen, match="the circuit is open"):
        succeed(breaker)
    clock.advance(2.4)
    succeed(breaker)
    assert breaker.state is BreakerState.CLOSED
    hung.__exit__(ConnectionError, ConnectionError(), None)
    assert breaker.outcomes.counts(clock.now()) == (0, 0)


def test_outcomes_of_calls_that_began_before_the_last_change_are_ignored(clock: ManualClock) -> None:
    breaker = CircuitBreaker("dep", minimum_calls=1, half_open_permits=1, open_for=1.0, clock=clock)
    early = [breaker.permit().__enter__() for _ in range(2)]
    fail(breaker)
    clock.advance(1.2)
    with breaker.permit():
        assert breaker.state is BreakerState.HALF_OPEN
        early[0].__exit__(None, None, None)
        assert breaker.state is BreakerState.HALF_OPEN  # an old success proves nothing about now
        early[1].__exit__(ConnectionError, ConnectionError(), None)
        assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.state is BreakerState.CLOSED


def test_each_change_of_state_is_an_event_with_its_reason_and_request(clock: ManualClock) -> None:
    events: list[StateChanged] = []
    breaker = CircuitBreaker(
        "dep", minimum_calls=1, half_open_permits=1, open_for=1.0, clock=clock, on_event=events.append
    )
    breaker.subscribe(events.append)  # bound methods compare equal: the same receiver is not told twice
    with request_context(RequestContext(request_id="r1")):
        fail(breaker)
    clock.advance(1.2)
    succeed(breaker)
    assert [(event.previous, event.current) for event in events] == [
        ("closed", "open"),
        ("open", "half_open"),
        ("half_open", "closed"),
    ]
    assert events[0].request_id == "r1"
    assert events[0].name == "dep"
    assert events[0].component == "circuit_breaker"
    assert events[0].reason.startswith("1 of 1 calls failed; next probe in 1.")
    assert events[0].at_utc_seconds == 1_750_000_000.0


def test_a_broken_listener_or_predicate_does_not_lose_a_permit(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> bool:
        raise RuntimeError("broken")

    breaker = CircuitBreaker("dep", minimum_calls=1, on_event=broken, is_failure=broken, clock=clock)
    fail(breaker)
    assert breaker.state is BreakerState.OPEN
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("failure_ratio", 0.0),
        ("failure_ratio", 1.5),
        ("failure_ratio", float("nan")),
        ("minimum_calls", 0),
        ("minimum_calls", True),
        ("minimum_calls", 2.0),
        ("window", 0.0),
        ("window", float("inf")),
        ("open_for", -1.0),
        ("open_for_cap", 1.0),
        ("half_open_permits", 0),
        ("hung_after", 0.0),
        ("slow_call", 0.0),
        ("slow_ratio", 1.5),
        ("last_calls", 0),
    ],
)
def test_a_setting_outside_its_bounds_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=rf"^CircuitBreaker\.{field}: "):
        CircuitBreaker("dep", **{field: value})


# Windows and slow calls


def outcome(
    breaker: CircuitBreaker, clock: ManualClock, *, seconds: float = 0.0, error: bool = False
) -> None:
    try:
        with breaker.permit():
            clock.advance(seconds)
            if error:
                raise ConnectionError
    except ConnectionError:
        pass


def test_a_window_of_calls_forgets_nothing_with_time_and_everything_beyond_its_length(
    clock: ManualClock,
) -> None:
    breaker = CircuitBreaker("dep", last_calls=4, minimum_calls=4, failure_ratio=0.5, clock=clock)
    outcome(breaker, clock, error=True)
    for _ in range(4):
        clock.advance(3600.0)
        outcome(breaker, clock)
    clock.advance(3600.0)
    outcome(breaker, clock, error=True)  # one of the last four; the first is forgotten
    assert breaker.state is BreakerState.CLOSED
    clock.advance(3600.0)
    outcome(breaker, clock, error=True)
    assert breaker.state is BreakerState.OPEN


def test_a_window_of_calls_does_not_open_before_the_minimum(clock: ManualClock) -> None:
    breaker = CircuitBreaker("dep", last_calls=10, minimum_calls=3, clock=clock)
    for _ in range(2):
        outcome(breaker, clock, error=True)
    assert breaker.state is BreakerState.CLOSED
    outcome(breaker, clock, error=True)
    assert breaker.state is BreakerState.OPEN


def test_a_minimum_that_never_fits_into_the_window_is_refused() -> None:
    with pytest.raises(InvalidInput, match="never fit into last_calls = 10"):
        CircuitBreaker("dep", last_calls=10)


@pytest.mark.parametrize("last_calls", [None, 4])
def test_slow_calls_open_the_breaker_although_they_succeed(
    clock: ManualClock, last_calls: int | None
) -> None:
    events: list[StateChanged] = []
    breaker = CircuitBreaker(
        "dep",
        minimum_calls=4,
        last_calls=last_calls,
        slow_call=0.5,
        slow_ratio=0.75,
        on_event=events.append,
        clock=clock,
    )
    for seconds in (0.4, 0.6, 0.6):
        outcome(breaker, clock, seconds=seconds)
    assert breaker.state is BreakerState.CLOSED
    outcome(breaker, clock, seconds=0.6)
    assert breaker.state is BreakerState.OPEN
    assert "3 of 4 calls took longer than 0.5 s" in events[-1].reason


def test_a_slow_failure_is_both(clock: ManualClock) -> None:
    breaker = CircuitBreaker(
        "dep", minimum_calls=2, failure_ratio=1.0, slow_call=0.5, slow_ratio=1.0, clock=clock
    )
    outcome(breaker, clock, seconds=0.6)
    outcome(breaker, clock, seconds=0.6, error=True)
    assert breaker.state is BreakerState.OPEN


def test_a_probe_that_is_slow_has_failed(clock: ManualClock) -> None:
    breaker = CircuitBreaker("dep", minimum_calls=1, open_for=1.0, slow_call=0.5, clock=clock)
    outcome(breaker, clock, error=True)
    clock.advance(2.0)
    outcome(breaker, clock, seconds=0.6)
    assert breaker.state is BreakerState.OPEN


def test_slow_calls_leave_the_window_with_time(clock: ManualClock) -> None:
    breaker = CircuitBreaker("dep", minimum_calls=2, window=10.0, slow_call=0.5, slow_ratio=1.0, clock=clock)
    outcome(breaker, clock, seconds=0.6)
    clock.advance(20.0)
    outcome(breaker, clock, seconds=0.6)
    assert breaker.state is BreakerState.CLOSED


def test_one_permit_is_not_two_at_once_so_no_probe_is_lost(clock: ManualClock) -> None:
    breaker = opened(clock, half_open_permits=1, open_for=1.0)
    clock.advance(2.0)
    permit = breaker.permit()
    with permit, pytest.raises(InvalidInput, match="one block at a time"), permit:
        raise AssertionError("not reached")
    assert breaker.state is BreakerState.CLOSED
    with permit:  # one after the other is well
        pass
