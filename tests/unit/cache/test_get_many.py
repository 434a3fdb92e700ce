from __future__ import annotations

import asyncio
import gc

import pytest

from fairlead.cache import Cache, Freshness
from fairlead.calls import MissingKey
from fairlead.clock import ManualClock, settle
from fairlead.context import RequestContext, request_context
from fairlead.deadline import Deadline
from fairlead.errors import DeadlineExceeded, InvalidInput, LoadCancelled

PLAIN = Freshness(ttl=10.0, jitter=0.0)
STALE = Freshness(ttl=10.0, jitter=0.0, stale_while_revalidate=5.0)
SAFE = Freshness(ttl=10.0, jitter=0.0, stale_if_error=60.0)


class Origin:
    """Answers `key * 10` for each key, after its gate opens; `failing` keys fail, `unknown` ones are left out."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.failing: set[int] = set()
        self.unknown: set[int] = set()
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, keys: list[int]) -> dict[int, int | Exception]:
        self.batches.append(list(keys))
        await self.gate.wait()
        return {
            key: ConnectionError(f"key {key}") if key in self.failing else key * 10
            for key in keys
            if key not in self.unknown
        }


@pytest.fixture
async def origin() -> Origin:
    return Origin()


async def test_only_the_missing_keys_reach_the_batch_loader_in_one_call(cache: Cache, origin: Origin):
    await cache.set(2, 20, PLAIN)
    assert await cache.get_many([3, 2, 1, 3], origin, PLAIN) == {3: 30, 2: 20, 1: 10}
    assert origin.batches == [[3, 1]]
    assert (cache.stats.hits, cache.stats.misses, cache.stats.loads) == (1, 2, 2)


async def test_the_answer_keeps_the_order_of_the_keys_and_fills_the_cache(cache: Cache, origin: Origin):
    assert list(await cache.get_many([3, 1, 2], origin, PLAIN)) == [3, 1, 2]
    assert await cache.get_many([2, 3], origin, PLAIN) == {2: 20, 3: 30}
    assert await cache.get(1) == 10
    assert len(origin.batches) == 1


async def test_no_keys_load_nothing(cache: Cache, origin: Origin):
    assert await cache.get_many([], origin, PLAIN) == {}
    assert origin.batches == []


async def test_a_sequence_answers_in_the_order_of_the_keys(cache: Cache):
    async def load_many(keys: list[int]) -> list[str]:
        return [f"v{key}" for key in keys]

    assert await cache.get_many([2, 1], load_many, PLAIN) == {2: "v2", 1: "v1"}


async def test_callers_with_overlapping_keys_load_each_key_once(cache: Cache, origin: Origin):
    origin.gate.clear()
    first = asyncio.create_task(cache.get_many([1, 2], origin, PLAIN))
    await settle()
    second = asyncio.create_task(cache.get_many([2, 3], origin, PLAIN))
    single = asyncio.create_task(cache.get_or_load(1, origin.gate.wait, PLAIN))
    await settle()
    origin.gate.set()
    assert await first == {1: 10, 2: 20}
    assert await second == {2: 20, 3: 30}
    assert await single == 10
    assert origin.batches == [[1, 2], [3]]


async def test_a_stale_key_is_answered_at_once_and_refreshed_in_the_same_batch(
    cache: Cache, origin: Origin, clock: ManualClock
):
    await cache.set(1, 0, STALE)
    clock.advance(11.0)
    assert await cache.get_many([1, 2], origin, STALE) == {1: 0, 2: 20}
    assert origin.batches == [[1, 2]]
    await settle()
    assert await cache.get(1) == 10


async def test_a_key_that_fails_leaves_the_others_loaded(cache: Cache, origin: Origin):
    origin.failing = {2}
    with pytest.raises(ConnectionError, match="key 2"):
        await cache.get_many([1, 2, 3], origin, PLAIN)
    await settle()
    assert (await cache.get(1), await cache.get(2), await cache.get(3)) == (10, None, 30)


async def test_the_old_value_stands_in_for_a_key_that_fails(cache: Cache, origin: Origin, clock: ManualClock):
    await cache.set(2, 0, SAFE)
    clock.advance(11.0)
    origin.failing = {2}
    assert await cache.get_many([1, 2], origin, SAFE) == {1: 10, 2: 0}
    assert cache.stats.stale_error_served == 1


async def test_a_key_that_the_batch_does_not_answer_raises_missing_key(cache: Cache, origin: Origin):
    origin.unknown = {2}
    with pytest.raises(MissingKey, match=r"cache\.get_many: .* the key 2"):
        await cache.get_many([1, 2], origin, PLAIN)


async def test_a_cancelled_caller_does_not_end_the_batch_for_others(cache: Cache, origin: Origin):
    origin.gate.clear()
    leader = asyncio.create_task(cache.get_many([1, 2], origin, PLAIN))
    await settle()
    waiter = asyncio.create_task(cache.get_many([2, 1], origin, PLAIN))
    await settle()
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    origin.gate.set()
    assert await waiter == {2: 20, 1: 10}
    assert origin.batches == [[1, 2]]


async def test_a_removal_during_the_batch_is_not_undone_by_it(cache: Cache, origin: Origin):
    origin.gate.clear()
    caller = asyncio.create_task(cache.get_many([1, 2], origin, PLAIN))
    await settle()
    await cache.remove(1)
    origin.gate.set()
    assert await caller == {1: 10, 2: 20}
    assert (await cache.get(1), await cache.get(2)) == (None, 20)


async def test_a_caller_leaves_at_its_deadline_and_the_batch_lands_for_later_ones(
    cache: Cache, origin: Origin, clock: ManualClock
):
    origin.gate.clear()

    async def with_deadline() -> dict[int, int]:
        with request_context(RequestContext(deadline=Deadline.after(1.0, clock))):
            return await cache.get_many([1, 2], origin, PLAIN)

    caller = asyncio.create_task(with_deadline())
    await clock.run_for(1.5)
    with pytest.raises(DeadlineExceeded):
        await caller
    origin.gate.set()
    await settle()
    assert await cache.get_many([1, 2], origin, PLAIN) == {1: 10, 2: 20}
    assert origin.batches == [[1, 2]]


async def test_a_batch_that_hangs_is_given_up_at_the_load_timeout(
    cache: Cache, origin: Origin, clock: ManualClock
):
    origin.gate.clear()
    caller = asyncio.create_task(cache.get_many([1, 2], origin, PLAIN))
    await clock.run_for(31.0)
    with pytest.raises(DeadlineExceeded, match="load_timeout=30"):
        await caller
    origin.gate.set()
    assert await cache.get_many([1, 2], origin, PLAIN) == {1: 10, 2: 20}
    assert len(origin.batches) == 2


async def test_a_key_that_cannot_be_one_is_refused_before_anything_is_loaded(cache: Cache, origin: Origin):
    with pytest.raises(InvalidInput, match="hashes by identity"):
        await cache.get_many([1, object()], origin, PLAIN)
    await settle()
    assert origin.batches == []
    assert cache.stats.misses == 0


async def test_closing_the_cache_ends_the_batch_loader_and_tells_its_callers(cache: Cache):
    ended: list[str] = []

    async def load_many(keys: list[int]) -> list[int]:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("loader")
        return keys

    caller = asyncio.create_task(cache.get_many([1, 2], load_many, PLAIN))
    await settle()
    await cache.close()
    assert ended == ["loader"]
    with pytest.raises(LoadCancelled):
        await caller


async def test_a_batcher_is_not_kept_after_its_loads(cache: Cache, origin: Origin):
    for key in range(5):
        await cache.get_many([key], origin, PLAIN)
    await settle()
    gc.collect()
    assert len(cache._batchers) == 0


async def test_a_batch_loader_that_asks_for_its_own_key_is_refused_at_once(cache: Cache):
    async def load_many(keys: list[int]) -> dict[int, int]:
        return await cache.get_many([keys[-1]], load_many, PLAIN)

    with pytest.raises(InvalidInput, match="wait for itself"):
        await cache.get_many([1, 2], load_many, PLAIN)


async def test_a_batch_loader_inside_a_load_that_asks_for_the_outer_key_is_refused_at_once(cache: Cache):
    async def outer() -> int:
        return (await cache.get_many([1], inner, PLAIN))[1]

    async def inner(keys: list[int]) -> list[int]:
        return [await cache.get_or_load("outer", outer, PLAIN)]

    with pytest.raises(InvalidInput, match="wait for itself"):
        await cache.get_or_load("outer", outer, PLAIN)


async def test_looking_up_many_says_where_each_value_came_from(
    cache: Cache, origin: Origin, clock: ManualClock
):
    await cache.set(1, 10, STALE)
    clock.advance(12.0)
    await cache.set(2, 20, STALE)
    found = await cache.lookup_many([1, 2, 3], origin, STALE)
    assert [(key, answer.value, answer.source) for key, answer in found.items()] == [
        (1, 10, "stale"),
        (2, 20, "hit"),
        (3, 30, "load"),
    ]
    assert (found[1].staleness, found[2].staleness) == (2.0, 0.0)
