"""Batcher: what is asked for in one turn of the loop is loaded once, and nobody harms another."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections.abc import Mapping
from typing import Any

import pytest

from fairlead.calls import Batcher, MissingKey
from fairlead.clock import ManualClock, settle
from fairlead.context import RequestContext, current, request_context
from fairlead.deadline import Deadline
from fairlead.errors import DeadlineExceeded, InvalidInput, LoadCancelled


class Loader:
    """Doubles numbers; records its batches; waits for `proceed` when it is set."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.contexts: list[RequestContext] = []
        self.proceed: asyncio.Event | None = None
        self.special: dict[int, Any] = {}

    async def __call__(self, keys: list[int]) -> Mapping[int, int | Exception]:
        self.batches.append(keys)
        self.contexts.append(current())
        if self.proceed is not None:
            await self.proceed.wait()
        return {
            key: self.special.get(key, key * 2) for key in keys if self.special.get(key) is not MissingKey
        }


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def test_what_is_asked_for_in_one_turn_of_the_loop_is_one_load_with_each_key_once(
    loader: Loader,
) -> None:
    batcher = Batcher(loader)
    assert await asyncio.gather(*(batcher.load(key) for key in [3, 1, 3, 2])) == [6, 2, 6, 4]
    assert loader.batches == [[3, 1, 2]]
    assert (batcher.stats.loads, batcher.stats.batches, batcher.stats.keys) == (4, 1, 3)


async def test_load_all_keeps_the_order_of_its_keys(loader: Loader) -> None:
    assert await Batcher(loader).load_all([5, 1, 5]) == [10, 2, 10]
    assert loader.batches == [[5, 1]]


async def test_a_sequence_answers_in_the_order_of_the_keys() -> None:
    async def load_many(keys: list[int]) -> list[int | Exception]:
        return [ValueError("odd") if key % 2 else key for key in keys]

    batcher = Batcher(load_many)
    assert await batcher.load_all([4, 2]) == [4, 2]
    with pytest.raises(ValueError, match="odd"):
        await batcher.load(3)


async def test_a_sequence_of_the_wrong_length_fails_all_rather_than_mix_values_up() -> None:
    async def load_many(keys: list[int]) -> list[int]:
        return keys[1:]

    with pytest.raises(InvalidInput, match="batch: load_many answered 1 values for 2 keys"):
        await Batcher(load_many).load_all([1, 2])


async def test_a_full_batch_starts_at_once_and_the_rest_makes_another(loader: Loader) -> None:
    await Batcher(loader, max_batch=2).load_all([1, 2, 3])
    assert loader.batches == [[1, 2], [3]]


async def test_with_max_wait_later_turns_join(loader: Loader, clock: ManualClock) -> None:
    batcher = Batcher(loader, max_wait=0.5, clock=clock)
    first = asyncio.ensure_future(batcher.load(1))
    await clock.run_for(0.25)
    second = asyncio.ensure_future(batcher.load(2))
    await settle()
    assert loader.batches == []
    await clock.run_for(0.25)
    assert (first.result(), second.result()) == (2, 4)
    assert loader.batches == [[1, 2]]


async def test_a_key_fails_by_itself(loader: Loader) -> None:
    loader.special[2] = ConnectionError("row locked")
    batcher = Batcher(loader)
    results = await asyncio.gather(*(batcher.load(key) for key in [1, 2, 3]), return_exceptions=True)
    assert (results[0], results[2]) == (2, 6)
    assert isinstance(results[1], ConnectionError)


async def test_a_key_that_is_not_answered_is_a_key_error_that_names_it(loader: Loader) -> None:
    loader.special[2] = MissingKey
    batcher = Batcher(loader, name="features")
    with pytest.raises(KeyError) as caught:
        await batcher.load(2)
    assert isinstance(caught.value, MissingKey)
    assert str(caught.value) == "features: load_many answered nothing for the key 2"


async def test_none_is_a_value(loader: Loader) -> None:
    async def load_many(keys: list[int]) -> dict[int, None]:
        return dict.fromkeys(keys)

    assert await Batcher(load_many).load_all([1, 2]) == [None, None]


async def test_each_waiter_gets_its_own_exception_instance(loader: Loader) -> None:
    loader.special[1] = ConnectionError("down")
    batcher = Batcher(loader)
    first, second = await asyncio.gather(batcher.load(1), batcher.load(1), return_exceptions=True)
    assert isinstance(first, ConnectionError)
    assert isinstance(second, ConnectionError)
    assert first is not second
    assert first is not loader.special[1]


async def test_a_failed_load_fails_all_its_waiters_and_not_the_next_batch() -> None:
    outcomes: list[Exception | None] = [ConnectionError("down"), None]

    async def load_many(keys: list[int]) -> dict[int, int]:
        if (error := outcomes.pop(0)) is not None:
            raise error
        return {key: key for key in keys}

    batcher = Batcher(load_many)
    results = await asyncio.gather(batcher.load(1), batcher.load(2), return_exceptions=True)
    assert [type(result) for result in results] == [ConnectionError, ConnectionError]
    assert await batcher.load(1) == 1


@pytest.mark.parametrize("leaver", [0, 1])
async def test_a_cancelled_caller_first_or_not_harms_no_other(loader: Loader, leaver: int) -> None:
    loader.proceed = asyncio.Event()
    batcher = Batcher(loader)
    calls = [asyncio.ensure_future(batcher.load(1)), asyncio.ensure_future(batcher.load(1))]
    await settle()
    calls[leaver].cancel()
    await settle()
    loader.proceed.set()
    assert calls[leaver].cancelled()
    assert await calls[1 - leaver] == 2
    assert loader.batches == [[1]]


async def test_keys_whose_callers_all_left_before_the_start_are_not_loaded(
    loader: Loader, clock: ManualClock
) -> None:
    batcher = Batcher(loader, max_wait=1.0, clock=clock)
    calls = [asyncio.ensure_future(batcher.load(key)) for key in [1, 2]]
    await settle()
    calls[0].cancel()
    await clock.run_for(1.0)
    assert await calls[1] == 4
    assert loader.batches == [[2]]


async def test_the_load_runs_outside_its_callers_context_until_the_last_deadline_among_them(
    loader: Loader, clock: ManualClock
) -> None:
    leftover: contextvars.ContextVar[str] = contextvars.ContextVar("leftover", default="none")
    seen = []

    async def load_many(keys: list[int]) -> Mapping[int, int | Exception]:
        seen.append(leftover.get())
        return await loader(keys)

    batcher = Batcher(load_many, clock=clock)

    async def ask(key: int, seconds: float) -> int:
        leftover.set("from a caller")
        with request_context(RequestContext(request_id="r", deadline=Deadline.after(seconds, clock))):
            return await batcher.load(key)

    await asyncio.gather(ask(1, 0.2), ask(2, 0.7), ask(3, 0.5))
    assert loader.contexts[0].request_id == ""
    assert loader.contexts[0].deadline.at == 0.7
    assert seen == ["none"]


async def test_a_load_that_outlives_its_last_deadline_is_ended(loader: Loader, clock: ManualClock) -> None:
    loader.proceed = asyncio.Event()
    batcher = Batcher(loader, clock=clock, name="features")
    with request_context(RequestContext(deadline=Deadline.after(0.3, clock))):
        call = asyncio.ensure_future(batcher.load(1))
    await clock.run_for(0.3)
    with pytest.raises(DeadlineExceeded, match="features"):
        call.result()


async def test_the_load_has_a_timeout_of_its_own(loader: Loader, clock: ManualClock) -> None:
    loader.proceed = asyncio.Event()
    call = asyncio.ensure_future(Batcher(loader, timeout=0.1, clock=clock).load(1))
    await clock.run_for(0.1)
    assert isinstance(call.exception(), DeadlineExceeded)


async def test_nothing_is_asked_for_after_the_deadline(loader: Loader, clock: ManualClock) -> None:
    with (
        request_context(RequestContext(deadline=Deadline(-1.0, clock))),
        pytest.raises(DeadlineExceeded, match="was not started"),
    ):
        await Batcher(loader, clock=clock).load(1)
    assert loader.batches == []


async def test_a_loader_that_cancels_itself_does_not_look_like_a_cancelled_caller() -> None:
    async def load_many(keys: list[int]) -> dict[int, int]:
        raise asyncio.CancelledError("inner")

    with pytest.raises(LoadCancelled, match="batch: the load of 1 keys was cancelled"):
        await Batcher(load_many).load(1)


async def test_a_key_whose_load_was_cancelled_fails_and_is_not_answered_with_the_cancellation() -> None:
    async def one(key: int) -> int:
        if key == 1:
            raise asyncio.CancelledError
        return key

    async def load_many(keys: list[int]) -> list[Any]:
        return await asyncio.gather(*map(one, keys), return_exceptions=True)

    batcher = Batcher(load_many)
    cancelled, answer = await asyncio.gather(batcher.load(1), batcher.load(2), return_exceptions=True)
    assert isinstance(cancelled, LoadCancelled)
    assert isinstance(cancelled.__cause__, asyncio.CancelledError)
    assert answer == 2


async def test_each_callers_own_deadline_ends_its_wait_and_no_others(
    loader: Loader, clock: ManualClock
) -> None:
    loader.proceed = asyncio.Event()
    batcher = Batcher(loader, clock=clock, name="features")
    patient = asyncio.ensure_future(batcher.load(1))
    with request_context(RequestContext(deadline=Deadline.after(0.3, clock))):
        hurried = asyncio.ensure_future(batcher.load(1))
    await clock.run_for(0.3)
    with pytest.raises(DeadlineExceeded, match="features: this caller's deadline passed"):
        hurried.result()
    loader.proceed.set()
    assert await patient == 2


async def test_an_answered_caller_leaves_no_timer(loader: Loader, clock: ManualClock) -> None:
    with request_context(RequestContext(deadline=Deadline.after(0.3, clock))):
        assert await Batcher(loader, clock=clock).load(1) == 2
    assert [timer.callback for _, _, timer in clock._timers] == [None]


async def test_keys_that_cannot_all_be_asked_for_are_not_loaded_for_nobody(loader: Loader) -> None:
    batcher: Batcher[Any, Any] = Batcher(loader)
    with pytest.raises(TypeError, match="unhashable"):
        await batcher.load_all([1, [2]])
    await settle()
    assert loader.batches == []


class Unprintable:
    def __repr__(self) -> str:
        raise AttributeError("detached")


async def test_a_missing_key_that_cannot_be_printed_is_still_missing_and_harms_no_other() -> None:
    async def load_many(keys: list[object]) -> dict[object, object]:
        return {"there": 1}

    batcher = Batcher(load_many)
    missing, answer = await asyncio.gather(
        batcher.load(Unprintable()), batcher.load("there"), return_exceptions=True
    )
    assert isinstance(missing, MissingKey)
    assert "Unprintable" in str(missing)
    assert answer == 1


async def test_a_failure_that_nobody_waits_for_any_more_is_not_reported_as_lost(loader: Loader) -> None:
    loader.proceed = asyncio.Event()
    loader.special[1] = ValueError("x")
    call = asyncio.ensure_future(Batcher(loader).load(1))
    await settle()
    call.cancel()
    loader.proceed.set()
    await settle()
    gc.collect()
    assert call.cancelled()


def test_a_batch_left_behind_in_a_closed_loop_does_not_hold_up_the_next_one(loader: Loader) -> None:
    batcher = Batcher(loader, max_wait=5.0)

    async def abandon() -> None:
        task = asyncio.ensure_future(batcher.load(1))
        await settle(2)
        task.cancel()

    async def use() -> int:
        full = Batcher(loader)
        assert await full.load(3) == 6
        task = asyncio.ensure_future(batcher.load(2))
        await settle(2)
        batch = batcher._open
        assert batch is not None
        batcher._start(batch)
        return await task

    asyncio.run(abandon())
    assert asyncio.run(use()) == 4
    assert loader.batches == [[3], [2]]


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_batch", 0), ("max_batch", True), ("max_wait", -1.0), ("max_wait", float("nan"))],
)
def test_a_setting_outside_its_bounds_is_refused_by_name(loader: Loader, field: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=rf"^Batcher\.{field}: "):
        Batcher(loader, **{field: value})


async def test_close_ends_batches_that_run_and_that_have_not_begun_and_tells_their_callers(
    loader: Loader,
) -> None:
    loader.proceed = asyncio.Event()
    batcher = Batcher(loader)
    running = asyncio.create_task(batcher.load(1))
    await settle()
    waiting = asyncio.create_task(batcher.load(2))
    await asyncio.sleep(0)
    await batcher.close()
    for caller in (running, waiting):
        with pytest.raises(LoadCancelled, match="load of 1 keys was cancelled"):
            await caller
    assert loader.batches == [[1]]
    loader.proceed.set()
    assert await batcher.load(3) == 6


# Remembering


async def test_a_batcher_that_remembers_loads_each_key_once_for_its_life(loader: Loader) -> None:
    batcher = Batcher(loader, remember=True)
    assert await batcher.load(1) == 2
    assert await batcher.load_all([1, 2]) == [2, 4]
    assert loader.batches == [[1], [2]]
    assert (batcher.stats.loads, batcher.stats.remembered) == (3, 1)


async def test_without_remember_the_next_batch_loads_again(loader: Loader) -> None:
    batcher = Batcher(loader)
    await batcher.load(1)
    await batcher.load(1)
    assert loader.batches == [[1], [1]]
    with pytest.raises(InvalidInput, match="remember=True"):
        batcher.prime(1, 2)


async def test_a_failure_and_a_missing_key_are_not_remembered(loader: Loader) -> None:
    batcher = Batcher(loader, remember=True)
    loader.special = {1: OSError("down"), 2: MissingKey}
    with pytest.raises(OSError, match="down"):
        await batcher.load(1)
    with pytest.raises(MissingKey):
        await batcher.load(2)
    loader.special = {}
    assert await batcher.load_all([1, 2]) == [2, 4]


async def test_a_load_that_is_under_way_answers_for_its_key(loader: Loader) -> None:
    batcher = Batcher(loader, remember=True)
    loader.proceed = asyncio.Event()
    first = asyncio.ensure_future(batcher.load(1))
    await settle()
    second = asyncio.ensure_future(batcher.load(1))
    await settle()
    loader.proceed.set()
    assert await asyncio.gather(first, second) == [2, 2]
    assert loader.batches == [[1]]


async def test_a_caller_who_has_longer_than_the_load_under_way_gets_one_of_its_own(
    loader: Loader, clock: ManualClock
) -> None:
    batcher = Batcher(loader, remember=True, clock=clock)
    loader.proceed = asyncio.Event()
    with request_context(RequestContext(deadline=Deadline.after(1.0, clock))):
        hurried = asyncio.ensure_future(batcher.load(1))
    await settle()
    patient = asyncio.ensure_future(batcher.load(1))
    await clock.run_for(2.0)
    assert isinstance(hurried.exception(), DeadlineExceeded)
    loader.proceed.set()
    assert await patient == 2


async def test_what_was_forgotten_while_it_was_loaded_is_not_remembered(loader: Loader) -> None:
    batcher = Batcher(loader, remember=True)
    loader.proceed = asyncio.Event()
    first = asyncio.ensure_future(batcher.load(1))
    await settle()
    batcher.forget(1)
    second = asyncio.ensure_future(batcher.load(1))
    await settle()
    loader.proceed.set()
    await asyncio.gather(first, second)
    assert loader.batches == [[1], [1]]
    batcher.forget_all()
    await batcher.load(1)
    assert loader.batches == [[1], [1], [1]]


async def test_a_primed_value_is_found_and_takes_no_other_ones_place(loader: Loader) -> None:
    batcher = Batcher(loader, remember=True)
    batcher.prime(1, 100)
    batcher.prime(1, 200)
    assert await batcher.load(1) == 100
    assert loader.batches == []


async def test_a_key_whose_callers_left_before_its_batch_began_can_be_asked_for_again(loader: Loader) -> None:
    batcher = Batcher(loader, remember=True, max_wait=0.0)
    left = asyncio.ensure_future(batcher.load(1))
    await asyncio.sleep(0)
    left.cancel()
    await settle()
    assert await batcher.load(1) == 2
