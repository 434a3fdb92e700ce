"""The downstream that can be overloaded, on a clock that is moved by hand."""

from __future__ import annotations

import asyncio
import random

import pytest

from fairlead.clock import ManualClock, settle
from fairlead_systems.home_feed.capacity import Capacity, Full, ServiceTime

SECOND = ServiceTime(median=1.0, sigma=0.0)


def capacity(
    clock: ManualClock, *, workers: int = 2, queue: int = 3, service_time: ServiceTime = SECOND
) -> Capacity:
    return Capacity(workers=workers, queue=queue, service_time=service_time, seed=1, clock=clock)


def calls(origin: Capacity, count: int, key: str = "k") -> list[asyncio.Task[None]]:
    return [asyncio.create_task(origin.serve(key)) for _ in range(count)]


async def test_as_many_calls_run_at_once_as_there_are_workers():
    clock = ManualClock()
    started = calls(capacity(clock, workers=2), 5)
    done_by = []
    for _ in range(4):
        await clock.run_for(1.0)
        done_by.append(sum(task.done() for task in started))
    assert done_by == [2, 4, 5, 5]


async def test_calls_of_one_turn_of_the_loop_cannot_overfill_the_queue():
    clock = ManualClock()
    origin = capacity(clock, workers=2, queue=3)
    started = calls(origin, 9)
    await settle()
    refused = [task for task in started if task.done()]
    assert len(refused) == 4
    assert all(isinstance(task.exception(), Full) for task in refused)
    await clock.run_for(3.0)
    window = origin.take_window()
    assert (window.calls, window.refused, window.queue_peak) == (9, 4, 3)
    assert [task.exception() for task in started if task not in refused] == [None] * 5


async def test_room_comes_back_when_a_call_is_done():
    clock = ManualClock()
    origin = capacity(clock, workers=1, queue=0)
    (first,) = calls(origin, 1)
    await settle()
    with pytest.raises(Full):
        await origin.serve("k")
    await clock.run_for(1.0)
    assert first.done()
    (again,) = calls(origin, 1)
    await clock.run_for(1.0)
    assert again.exception() is None


async def test_waiting_calls_are_served_in_the_order_they_came():
    clock = ManualClock()
    origin = capacity(clock, workers=1, queue=5)
    order: list[str] = []

    async def call(name: str) -> None:
        await origin.serve(name)
        order.append(name)

    tasks = [asyncio.create_task(call(name)) for name in "abcd"]
    await clock.run_for(4.0)
    await asyncio.gather(*tasks)
    assert order == list("abcd")


async def test_call_whose_caller_left_keeps_its_worker_busy():
    clock = ManualClock()
    origin = capacity(clock, workers=1, queue=1)
    left, waiting = calls(origin, 2)
    await clock.run_for(0.5)
    left.cancel()
    await settle()
    assert left.cancelled()
    await clock.run_for(0.4)
    assert not waiting.done()
    await clock.run_for(1.1)
    assert waiting.done()
    assert origin.take_window().busy_seconds == pytest.approx(2.0)


async def test_waiting_call_whose_caller_left_still_costs_its_work():
    clock = ManualClock()
    origin = capacity(clock, workers=1, queue=2)
    first, left, last = calls(origin, 3)
    await clock.run_for(0.1)
    left.cancel()
    await clock.run_for(1.9)
    assert first.done()
    assert not last.done()
    await clock.run_for(1.0)
    assert last.done()


async def test_stall_holds_every_worker_and_ends_by_itself():
    clock = ManualClock()
    origin = capacity(clock, workers=3, queue=0)
    started = calls(origin, 2)
    await clock.run_for(0.5)
    origin.stall(10.0)
    started += calls(origin, 1)
    await clock.run_for(9.9)
    assert not any(task.done() for task in started)
    await clock.run_for(1.2)
    assert all(task.done() for task in started)
    (after,) = calls(origin, 1)
    await clock.run_for(1.0)
    assert after.done()


async def test_stall_asked_for_again_counts_from_the_last_time():
    clock = ManualClock()
    origin = capacity(clock, workers=1)
    origin.stall(5.0)
    (call,) = calls(origin, 1)
    await clock.run_for(4.0)
    origin.stall(5.0)
    await clock.run_for(5.5)
    assert not call.done()
    await clock.run_for(1.0)
    assert call.done()


async def test_window_counts_calls_items_peaks_and_episodes_of_each_key():
    clock = ManualClock()
    origin = capacity(clock, workers=10)
    herd = calls(origin, 4, "hot")
    batch = asyncio.create_task(origin.serve("cold", items=12))
    await clock.run_for(1.0)
    again = calls(origin, 1, "hot")
    await clock.run_for(1.0)
    await asyncio.gather(*herd, batch, *again)
    window = origin.take_window()
    assert (window.calls, window.items, window.workers) == (6, 17, 10)
    hot, cold = window.keys["hot"], window.keys["cold"]
    assert (hot.calls, hot.peak, hot.episodes) == (5, 4, 2)
    assert hot.first_seconds == pytest.approx(2.0)
    assert (cold.calls, cold.peak, cold.episodes) == (1, 1, 1)


async def test_time_in_the_queue_belongs_to_the_load_that_opened_an_episode():
    clock = ManualClock()
    origin = capacity(clock, workers=1)
    calls(origin, 1, "other")
    await settle()
    calls(origin, 1, "hot")
    await clock.run_for(2.0)
    assert origin.take_window().keys["hot"].first_seconds == pytest.approx(2.0)


async def test_taking_the_window_begins_a_new_one_that_knows_what_is_in_flight():
    clock = ManualClock()
    origin = capacity(clock, workers=1, queue=5)
    calls(origin, 3, "hot")
    await settle()
    first = origin.take_window()
    assert (first.calls, first.queue_peak, first.keys["hot"].peak) == (3, 2, 3)
    second = origin.take_window()
    assert (second.calls, second.queue_peak, second.keys["hot"].peak) == (0, 2, 3)
    await clock.run_for(3.0)
    assert origin.take_window().busy_seconds == pytest.approx(3.0)
    assert origin.take_window().keys == {}


def test_service_times_are_the_same_for_the_same_seed():
    time = ServiceTime(median=0.05, sigma=0.5, stall_chance=0.1, stall=0.3)
    first, second = random.Random(7), random.Random(7)
    assert [time.draw(first) for _ in range(50)] == [time.draw(second) for _ in range(50)]


def test_share_of_calls_that_stall_is_the_one_asked_for():
    time = ServiceTime(median=0.01, sigma=0.0, stall_chance=0.1, stall=1.0)
    rng = random.Random(3)
    stalled = sum(time.draw(rng) > 1.0 for _ in range(20_000))
    assert 0.09 < stalled / 20_000 < 0.11


def test_each_further_item_of_a_call_costs_a_little_more():
    time = ServiceTime(median=0.005, sigma=0.0, per_item=0.0002)
    assert time.draw(random.Random(1), items=12) - time.draw(random.Random(1), items=1) == pytest.approx(
        0.0022
    )


async def test_the_law_counts_the_time_until_the_first_answer_not_until_the_openers():
    clock = ManualClock()
    drawn = iter([5.0, 1.0])

    class Drawn(ServiceTime):
        def draw(self, rng: random.Random, items: int = 1) -> float:
            return next(drawn)

    capacity = Capacity(workers=4, queue=4, service_time=Drawn(median=1.0, sigma=0.0), seed=1, clock=clock)
    calls = [asyncio.ensure_future(capacity.serve("hot")) for _ in range(2)]
    await clock.run_for(10.0)
    await asyncio.gather(*calls)
    key = capacity.take_window().keys["hot"]
    # The cache is filled after 1 s by the second call, though the call that began the episode took 5.
    assert (key.episodes, key.calls, key.first_seconds) == (1, 2, 1.0)
