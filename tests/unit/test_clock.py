from __future__ import annotations

import asyncio
import copy
import math
import pickle
from collections.abc import Callable

import pytest
import uvloop

from fairlead.clock import SYSTEM_CLOCK, ManualClock, SystemClock, settle
from fairlead.errors import InvalidInput


class Broken(Exception):
    pass


def broken() -> None:
    raise Broken


def test_timers_run_in_order_of_time_then_of_creation():
    clock = ManualClock()
    fired: list[tuple[str, float]] = []
    for name, when in [("c", 2.0), ("a", 1.0), ("d", 2.0), ("b", 1.0)]:
        clock.call_at(when, lambda name=name: fired.append((name, clock.now())))
    clock.advance(2.0)
    assert fired == [("a", 1.0), ("b", 1.0), ("c", 2.0), ("d", 2.0)]


def test_timer_set_by_a_timer_runs_in_the_same_advance_if_it_falls_due():
    clock = ManualClock()
    fired: list[float] = []

    def tick() -> None:
        fired.append(clock.now())
        clock.call_at(clock.now() + 2.0, tick)

    clock.call_at(1.0, tick)
    clock.advance(5.0)
    assert fired == [1.0, 3.0, 5.0]


def test_timer_for_the_past_runs_on_the_next_advance_at_the_present():
    clock = ManualClock(now=10.0)
    fired: list[float] = []
    clock.call_at(3.0, lambda: fired.append(clock.now()))
    assert fired == []
    clock.advance(0.0)
    assert fired == [10.0]


def test_callback_may_cancel_a_timer_of_the_same_moment():
    clock = ManualClock()
    fired: list[str] = []

    def cancel() -> None:
        fired.append("first")
        second.cancel()

    clock.call_at(1.0, cancel)
    second = clock.call_at(1.0, lambda: fired.append("second"))
    clock.advance(1.0)
    assert fired == ["first"]


def test_cancel_is_safe_twice_after_the_run_and_inside_it():
    clock = ManualClock()
    fired: list[str] = []

    def run() -> None:
        timer.cancel()
        fired.append("ran")

    timer = clock.call_at(1.0, run)
    clock.advance(1.0)
    timer.cancel()
    timer.cancel()
    clock.advance(1.0)
    assert fired == ["ran"]


def test_advance_inside_a_callback_never_takes_time_back():
    clock = ManualClock()
    fired: list[tuple[str, float]] = []
    clock.call_at(1.0, lambda: clock.advance(10.0))  # a callback that blocks for ten seconds
    clock.call_at(2.0, lambda: fired.append(("inside", clock.now())))
    clock.call_at(20.0, lambda: fired.append(("later", clock.now())))
    clock.advance(5.0)
    assert (clock.now(), fired) == (11.0, [("inside", 2.0)])


def test_timer_made_due_by_a_callback_that_blocks_runs_in_the_same_advance():
    clock = ManualClock()
    fired: list[float] = []

    def block() -> None:
        clock.advance(10.0)
        clock.call_at(8.0, lambda: fired.append(clock.now()))

    clock.call_at(1.0, block)
    clock.advance(5.0)
    assert fired == [11.0]


def test_callback_that_raises_stops_no_other_and_time_arrives():
    clock = ManualClock()
    fired: list[float] = []
    clock.call_at(1.0, broken)
    clock.call_at(2.0, lambda: fired.append(clock.now()))
    with pytest.raises(Broken):
        clock.advance(5.0)
    assert (fired, clock.now()) == ([2.0], 5.0)


def test_several_callbacks_that_raise_are_reported_together():
    clock = ManualClock()
    clock.call_at(1.0, broken)
    clock.call_at(2.0, broken)
    with pytest.raises(ExceptionGroup) as caught:
        clock.advance(5.0)
    assert [type(error) for error in caught.value.exceptions] == [Broken, Broken]


async def test_run_for_goes_on_after_a_callback_that_raises():
    clock = ManualClock()
    clock.call_at(1.0, broken)
    sleeper = asyncio.create_task(clock.sleep(2.0))
    with pytest.raises(Broken):
        await clock.run_for(5.0)
    assert (sleeper.done(), clock.now()) == (True, 5.0)


@pytest.mark.parametrize("seconds", [-0.001, math.nan, math.inf, -math.inf])
async def test_time_moves_forward_by_finite_spans_only(seconds: float):
    clock = ManualClock(now=3.0)
    with pytest.raises(InvalidInput, match="forward only"):
        clock.advance(seconds)
    with pytest.raises(InvalidInput, match="forward only"):
        await clock.run_for(seconds)
    assert clock.now() == 3.0


def test_timer_at_no_moment_is_refused_because_it_would_mix_up_the_others():
    with pytest.raises(InvalidInput, match="NaN"):
        ManualClock().call_at(math.nan, broken)


def test_timer_at_infinity_never_runs():
    clock = ManualClock()
    clock.call_at(math.inf, broken)
    clock.advance(1e12)


async def test_sleepers_that_sleep_again_wake_again_within_one_run():
    clock = ManualClock()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        for _ in range(3):
            await clock.sleep(seconds)
            woken.append((name, clock.now()))

    tasks = [asyncio.create_task(sleeper("slow", 2.0)), asyncio.create_task(sleeper("fast", 1.0))]
    await clock.run_for(4.0)
    assert woken == [("fast", 1.0), ("slow", 2.0), ("fast", 2.0), ("fast", 3.0), ("slow", 4.0)]
    await clock.run_for(2.0)
    await asyncio.gather(*tasks)
    assert woken[-1] == ("slow", 6.0)


async def test_task_that_advances_while_the_clock_runs_never_sees_time_go_back():
    clock = ManualClock()

    async def blocks() -> None:
        await clock.sleep(1.0)
        clock.advance(10.0)

    task = asyncio.create_task(blocks())
    await clock.run_for(5.0)
    assert (task.done(), clock.now()) == (True, 11.0)


async def test_sleeper_cancelled_in_the_moment_of_its_waking_does_not_break_the_clock():
    clock = ManualClock()
    sleeper = asyncio.create_task(clock.sleep(1.0))
    await settle()
    sleeper.cancel()
    clock.advance(1.0)
    await settle()
    assert sleeper.cancelled()


async def test_cancelled_sleeper_ends_at_once_and_harms_no_other():
    clock = ManualClock()
    sleeper = asyncio.create_task(clock.sleep(1.0))
    other = asyncio.create_task(clock.sleep(1.0))
    await settle()
    sleeper.cancel()
    await settle()
    assert sleeper.cancelled()
    await clock.run_for(1.0)
    assert other.done()


async def test_sleeper_cancelled_after_its_waking_before_it_runs_is_cancelled():
    clock = ManualClock()
    sleeper = asyncio.create_task(clock.sleep(1.0))
    await settle()
    clock.advance(1.0)
    sleeper.cancel()
    await settle()
    assert sleeper.cancelled()


@pytest.mark.parametrize("seconds", [0.0, -1.0])
async def test_sleep_of_nothing_yields_once(seconds: float):
    clock = ManualClock()
    sleeper = asyncio.create_task(clock.sleep(seconds))
    await asyncio.sleep(0)
    assert not sleeper.done()
    await asyncio.sleep(0)
    assert sleeper.done()


def test_wall_clock_can_be_set_while_monotonic_time_stays():
    clock = ManualClock(now=0.1, utc=1_000.0)
    fired: list[float] = []
    clock.call_at(5.0, lambda: fired.append(clock.now()))
    clock.advance(0.2)
    before = clock.now()
    clock.set_utc(1_760_000_000.3)
    assert (clock.utc(), clock.now()) == (1_760_000_000.3, before)
    clock.set_utc(-5.0)
    clock.advance(10.0)
    assert (clock.utc(), fired) == (5.0, [5.0])


def run_on(runner: asyncio.Runner, main: Callable[[], object]) -> None:
    """Runs `main`; an error in a callback, which a loop would only log, fails the test."""
    lost: list[dict[str, object]] = []
    with runner:
        runner.get_loop().set_exception_handler(lambda loop, context: lost.append(context))
        runner.run(main())
    assert lost == []


def on_asyncio(main: Callable[[], object]) -> None:
    run_on(asyncio.Runner(), main)


def on_uvloop(main: Callable[[], object]) -> None:
    run_on(asyncio.Runner(loop_factory=uvloop.new_event_loop), main)


LOOPS = pytest.mark.parametrize("run", [on_asyncio, on_uvloop])


@LOOPS
@pytest.mark.parametrize("ahead", [-math.inf, -60.0, 0.0])
def test_system_timer_for_the_past_runs_in_a_later_turn_of_the_loop(
    run: Callable[[Callable[[], object]], None], ahead: float
):
    async def main() -> None:
        fired = asyncio.Event()
        timer = SYSTEM_CLOCK.call_at(SYSTEM_CLOCK.now() + ahead, fired.set)
        assert not fired.is_set()
        await fired.wait()
        timer.cancel()
        timer.cancel()

    run(main)


@LOOPS
def test_cancelled_system_timer_does_not_run(run: Callable[[Callable[[], object]], None]):
    async def main() -> None:
        timer = SYSTEM_CLOCK.call_at(SYSTEM_CLOCK.now(), broken)
        timer.cancel()
        timer.cancel()
        done = asyncio.Event()
        SYSTEM_CLOCK.call_at(SYSTEM_CLOCK.now(), done.set)
        await done.wait()

    run(main)


@LOOPS
def test_system_timer_at_infinity_can_be_set_and_cancelled(run: Callable[[Callable[[], object]], None]):
    async def main() -> None:
        timer = SYSTEM_CLOCK.call_at(math.inf, broken)
        await SYSTEM_CLOCK.sleep(0)
        timer.cancel()

    run(main)


@LOOPS
def test_system_sleep_of_less_than_nothing_returns(run: Callable[[Callable[[], object]], None]):
    run(lambda: SYSTEM_CLOCK.sleep(-1.0))


def test_one_system_clock_equals_another_wherever_it_was_copied():
    assert SystemClock() == SYSTEM_CLOCK
    assert hash(SystemClock()) == hash(SYSTEM_CLOCK)
    carried = pickle.loads(pickle.dumps(SYSTEM_CLOCK))  # noqa: S301  # written one call earlier
    assert copy.deepcopy(SYSTEM_CLOCK) == carried == SYSTEM_CLOCK


def test_manual_clocks_are_equal_only_to_themselves():
    assert ManualClock() != ManualClock()
