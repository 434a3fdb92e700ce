"""ConcurrencyLimit and its two algorithms."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from fairlead.calls import Aimd, ConcurrencyLimit, Gradient
from fairlead.clock import ManualClock, settle
from fairlead.errors import InvalidInput, Overloaded


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def round_trip(limit: ConcurrencyLimit, clock: ManualClock, calls: int, seconds: float) -> None:
    """`calls` calls at once, each `seconds` long."""
    permits = [limit.permit() for _ in range(calls)]
    for permit in permits:
        await permit.__aenter__()
    clock.advance(seconds)
    for permit in permits:
        await permit.__aexit__(None, None, None)


async def dropped(limit: ConcurrencyLimit, error: Exception | None = None) -> None:
    error = error or TimeoutError()
    with pytest.raises(type(error)):
        async with limit.permit():
            raise error


async def test_a_full_limit_refuses_at_once(clock: ManualClock) -> None:
    limit = ConcurrencyLimit("dep", initial=2, minimum=1, clock=clock)
    async with limit.permit(), limit.permit():
        with pytest.raises(Overloaded, match="dep: 2 of 2 calls are in flight"):
            await limit.permit().__aenter__()
    assert limit.in_flight == 0


async def test_calls_count_from_their_start_to_their_end_however_they_end(clock: ManualClock) -> None:
    limit = ConcurrencyLimit("dep", clock=clock)
    for error in (None, ValueError(), TimeoutError(), asyncio.CancelledError()):
        permit = limit.permit()
        await permit.__aenter__()
        assert limit.in_flight == 1
        await permit.__aexit__(type(error) if error else None, error, None)
        assert limit.in_flight == 0


async def test_aimd_grows_by_at_most_one_per_round_trip_while_it_is_used(clock: ManualClock) -> None:
    limit = ConcurrencyLimit("dep", initial=10, clock=clock)
    for _ in range(5):
        await round_trip(limit, clock, limit.limit, 0.1)
    assert 12 <= limit.limit <= 15


@pytest.mark.parametrize("algorithm", [Aimd(), Gradient()])
async def test_it_grows_only_when_used(clock: ManualClock, algorithm: Any) -> None:
    limit = ConcurrencyLimit("dep", initial=20, algorithm=algorithm, clock=clock)
    for _ in range(100):
        await round_trip(limit, clock, 9, 0.1)
    assert limit.limit == 20
    for _ in range(100):
        await round_trip(limit, clock, limit.limit, 0.1)
    assert limit.limit > 20


@pytest.mark.parametrize("algorithm", [Aimd(), Gradient()])
@pytest.mark.parametrize("error", [TimeoutError(), Overloaded("behind us")])
async def test_a_drop_cuts_the_limit(clock: ManualClock, algorithm: Any, error: Exception) -> None:
    limit = ConcurrencyLimit("dep", initial=20, algorithm=algorithm, clock=clock)
    await dropped(limit, error)
    assert limit.limit == 14


async def test_all_drops_of_one_round_trip_cut_once(clock: ManualClock) -> None:
    limit = ConcurrencyLimit("dep", initial=20, clock=clock)
    permits = [limit.permit() for _ in range(20)]
    for permit in permits:
        await permit.__aenter__()
    for permit in permits:
        clock.advance(0.01)
        await permit.__aexit__(TimeoutError, TimeoutError(), None)
    assert limit.limit == 14
    await dropped(limit)
    assert limit.limit == 9


@pytest.mark.parametrize("error", [asyncio.CancelledError(), ValueError("bad request")])
async def test_cancellation_and_other_errors_move_nothing(clock: ManualClock, error: BaseException) -> None:
    limit = ConcurrencyLimit("dep", initial=20, clock=clock)
    with pytest.raises(type(error)):
        async with limit.permit():
            raise error
    assert limit.limit == 20


async def test_the_limit_stays_within_its_bounds(clock: ManualClock) -> None:
    limit = ConcurrencyLimit("dep", initial=6, minimum=4, maximum=8, clock=clock)
    for _ in range(50):
        await round_trip(limit, clock, limit.limit, 0.1)
    assert limit.limit == 8
    for _ in range(50):
        clock.advance(0.1)
        await dropped(limit)
    assert limit.limit == 4


async def test_the_gradient_shrinks_when_calls_slow_down_before_any_is_dropped(clock: ManualClock) -> None:
    limit = ConcurrencyLimit("dep", initial=40, maximum=60, algorithm=Gradient(), clock=clock)
    for _ in range(30):
        await round_trip(limit, clock, limit.limit, 0.05)
    before = limit.limit
    for _ in range(10):
        await round_trip(limit, clock, limit.limit, 0.25)
    assert limit.limit < before / 2


async def test_the_gradient_tolerates_a_little_slowness(clock: ManualClock) -> None:
    limit = ConcurrencyLimit("dep", initial=40, maximum=40, algorithm=Gradient(), clock=clock)
    for seconds in [0.05, 0.07] * 20:
        await round_trip(limit, clock, limit.limit, seconds)
    assert limit.limit == 40


async def test_the_gradient_recovers_without_draining_to_one(clock: ManualClock) -> None:
    limit = ConcurrencyLimit("dep", initial=40, algorithm=Gradient(long_window=10.0), clock=clock)
    lowest = 40
    for seconds in [0.05] * 20 + [0.5] * 10 + [0.05] * 60:
        await round_trip(limit, clock, limit.limit, seconds)
        lowest = min(lowest, limit.limit)
    assert 1 < lowest < 40
    assert limit.limit > 40


async def test_the_gradient_forgets_a_baseline_taken_in_a_bad_time(clock: ManualClock) -> None:
    limit = ConcurrencyLimit(
        "dep", initial=40, maximum=40, algorithm=Gradient(long_window=3600.0), clock=clock
    )
    for _ in range(5):
        await round_trip(limit, clock, limit.limit, 1.0)
    for _ in range(200):
        await round_trip(limit, clock, limit.limit, 0.05)
    for _ in range(10):
        await round_trip(limit, clock, limit.limit, 0.5)
    assert limit.limit < 30


def of_workers(calls: int, workers: int, seconds: float) -> float:
    """Round-trip time of a dependency that queues: `workers` calls at once, each `seconds` long."""
    return seconds * max(1.0, calls / workers)


async def test_the_gradient_does_not_learn_its_own_queue_as_normal(clock: ManualClock) -> None:
    limit = ConcurrencyLimit("dep", initial=20, algorithm=Gradient(), clock=clock)
    highest = 0
    while clock.now() < 1200.0:  # twenty minutes in which callers always want more
        await round_trip(limit, clock, limit.limit, of_workers(limit.limit, 8, 0.05))
        if clock.now() > 60.0:
            highest = max(highest, limit.limit)
    assert 8 <= highest <= 20  # 1.5 × 8 workers and a headroom of 4, and some


async def test_the_gradient_finds_its_way_when_the_dependency_changes_under_overload(
    clock: ManualClock,
) -> None:
    limit = ConcurrencyLimit("dep", initial=20, algorithm=Gradient(), clock=clock)
    for workers, seconds in ((8, 0.05), (40, 0.05), (8, 0.2)):
        limits = []
        for _ in range(1500):
            await round_trip(limit, clock, limit.limit, of_workers(limit.limit, workers, seconds))
            limits.append(limit.limit)
        settled = sorted(limits[-500:])[250]
        assert workers <= settled <= 2 * workers + 4


async def test_a_probe_of_the_gradient_halves_the_limit_and_restores_it(clock: ManualClock) -> None:
    limit = ConcurrencyLimit("dep", initial=40, algorithm=Gradient(probe_every=5.0), clock=clock)
    limits = []
    while clock.now() < 20.0:
        await round_trip(limit, clock, limit.limit, of_workers(limit.limit, 20, 0.05))
        limits.append(limit.limit)
    drops = [later / earlier for earlier, later in itertools.pairwise(limits) if later < 0.7 * earlier]
    rises = [later for earlier, later in itertools.pairwise(limits) if later > 1.5 * earlier]
    assert 2 <= len(drops) == len(rises) <= 5
    assert all(0.4 <= drop <= 0.5 for drop in drops)


async def test_a_drop_during_a_probe_cuts_what_is_restored_too(clock: ManualClock) -> None:
    limit = ConcurrencyLimit("dep", initial=40, algorithm=Gradient(), clock=clock)
    for _ in range(2):
        await round_trip(limit, clock, 40, 0.1)
    assert limit.limit == 18  # a probe began
    clock.advance(0.1)
    await dropped(limit)
    assert limit.limit == 12
    await round_trip(limit, clock, 12, 0.1)
    assert limit.limit == 28  # 0.7 × 40 and a little


# Queueing for a permit


async def test_with_max_wait_a_call_waits_first_in_first_out(clock: ManualClock) -> None:
    limit = ConcurrencyLimit("dep", initial=1, minimum=1, max_wait=1.0, clock=clock)
    order: list[str] = []

    async def call(name: str) -> None:
        async with limit.permit():
            order.append(name)
            await asyncio.sleep(0)

    async with limit.permit():
        first = asyncio.ensure_future(call("first"))
        await settle()
        with pytest.raises(Overloaded):  # the queue is as long as the limit
            await call("second")
    await first
    assert order == ["first"]
    assert (limit.in_flight, limit.waiting) == (0, 0)


async def test_a_wait_that_is_too_long_is_refused_and_says_so(clock: ManualClock) -> None:
    limit = ConcurrencyLimit("dep", initial=1, minimum=1, max_wait=1.0, clock=clock)
    async with limit.permit():
        waiting = asyncio.ensure_future(limit.permit().__aenter__())
        await clock.run_for(1.0)
        with pytest.raises(Overloaded, match=r"refused after 1\.000 s in the queue"):
            waiting.result()
    assert (limit.in_flight, limit.waiting) == (0, 0)


async def test_a_cancelled_waiter_takes_no_permit(clock: ManualClock) -> None:
    limit = ConcurrencyLimit("dep", initial=1, minimum=1, max_wait=1.0, clock=clock)
    async with limit.permit():
        waiting = asyncio.ensure_future(limit.permit().__aenter__())
        await settle()
        waiting.cancel()
        await settle()
    assert (limit.in_flight, limit.waiting) == (0, 0)


async def test_a_wait_that_was_granted_leaves_no_timer(clock: ManualClock) -> None:
    limit = ConcurrencyLimit("dep", initial=1, minimum=1, max_wait=1.0, clock=clock)
    async with limit.permit():
        waiting = asyncio.ensure_future(limit.permit().__aenter__())
        await settle()
    await (await waiting).__aexit__(None, None, None)
    assert [timer.callback for _, _, timer in clock._timers] == [None]


async def test_a_waiter_cancelled_in_the_turn_that_granted_it_hands_the_permit_on(clock: ManualClock) -> None:
    limit = ConcurrencyLimit("dep", initial=2, minimum=1, max_wait=1.0, clock=clock)
    held = [limit.permit(), limit.permit()]
    for permit in held:
        await permit.__aenter__()
    first = asyncio.ensure_future(limit.permit().__aenter__())
    second = asyncio.ensure_future(limit.permit().__aenter__())
    await settle()
    await held[0].__aexit__(None, None, None)  # grants first, whose task has not run yet
    first.cancel()
    await settle()
    assert first.cancelled()
    assert second.done()
    assert limit.in_flight == 2
    await held[1].__aexit__(None, None, None)
    await second.result().__aexit__(None, None, None)
    assert limit.in_flight == 0


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"initial": 3}, "initial"),
        ({"minimum": 0}, "minimum"),
        ({"maximum": 2}, "maximum"),
        ({"initial": True}, "initial"),
        ({"max_wait": float("nan")}, "max_wait"),
        ({"max_wait": -1.0}, "max_wait"),
    ],
)
def test_a_setting_outside_its_bounds_is_refused_by_name(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^ConcurrencyLimit\.{field}: "):
        ConcurrencyLimit("dep", **settings)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (Aimd, "cut", 1.0),
        (Gradient, "tolerance", 0.9),
        (Gradient, "smoothing", 0.0),
        (Gradient, "headroom", -1.0),
        (Gradient, "long_window", float("inf")),
        (Gradient, "probe_every", 0.0),
        (Gradient, "cut", float("nan")),
    ],
)
def test_an_algorithm_setting_outside_its_bounds_is_refused_by_name(
    kind: Any, field: str, value: float
) -> None:
    with pytest.raises(InvalidInput, match=rf"^{kind.__name__}\.{field}: "):
        kind(**{field: value})


async def test_one_permit_is_not_two_at_once(clock: ManualClock) -> None:
    limit = ConcurrencyLimit("dep", clock=clock)
    permit = limit.permit()
    for _ in range(2):  # one after the other is well
        async with permit:
            with pytest.raises(InvalidInput, match="one block at a time"):
                async with permit:
                    raise AssertionError("not reached")
    assert limit.in_flight == 0
