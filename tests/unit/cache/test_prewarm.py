from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from fairlead.cache import Cache, Freshness, MemoryStore, prewarm
from fairlead.clock import settle
from fairlead.errors import InvalidInput

PLAIN = Freshness(ttl=10.0, jitter=0.0)


async def load(key: int) -> int:
    return key * 10


async def test_the_missing_keys_are_loaded_and_the_present_ones_left_alone(cache: Cache):
    await cache.set(2, "mine", PLAIN)
    done = await prewarm(cache, [1, 2, 3], load, PLAIN)
    assert (done.loaded, done.present, done.failed, done.is_full) == (2, 1, 0, False)
    assert [await cache.get(key) for key in (1, 2, 3)] == [10, "mine", 30]


async def test_keys_may_come_from_an_asynchronous_source(cache: Cache):
    async def keys() -> AsyncIterator[int]:
        for key in range(5):
            await asyncio.sleep(0)
            yield key

    assert (await prewarm(cache, keys(), load, PLAIN, concurrency=2)).loaded == 5


async def test_no_more_loads_than_allowed_run_at_once_and_keys_are_read_as_they_go(cache: Cache):
    taken = running = most = 0

    def keys() -> Iterator[int]:
        nonlocal taken
        for key in range(20):
            taken += 1
            yield key

    async def count(key: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        assert taken <= key + 4
        await asyncio.sleep(0)
        running -= 1
        return key

    assert (await prewarm(cache, keys(), count, PLAIN, concurrency=3)).loaded == 20
    assert most == 3


async def test_a_key_that_fails_is_counted_and_the_rest_goes_on(cache: Cache):
    async def fail_on_two(key: int) -> int:
        if key == 2:
            raise ConnectionError("down")
        return key

    done = await prewarm(cache, [1, 2, 3], fail_on_two, PLAIN)
    assert (done.loaded, done.failed, done.error) == (2, 1, "ConnectionError: down")


async def test_it_stops_before_it_would_push_out_what_it_loaded_first():
    cache = Cache(MemoryStore(max_entries=5))
    done = await prewarm(cache, range(100), load, PLAIN)
    assert (done.loaded, done.is_full) == (5, True)
    assert cache.stats.evictions == 0
    assert [await cache.get(key) for key in range(5)] == [0, 10, 20, 30, 40]


async def test_it_stops_once_the_bytes_are_full():
    cache = Cache(MemoryStore(max_entries=1000, max_bytes=50, size_of=lambda value: 10))
    done = await prewarm(cache, range(100), load, PLAIN, concurrency=2)
    assert done.is_full
    assert done.loaded <= 9  # five fit, and those under way when the first was pushed out
    assert len(cache) == 5


async def test_cancelled_it_takes_no_more_keys_and_leaves_no_task(cache: Cache):
    gate = asyncio.Event()
    before = asyncio.all_tasks()

    async def wait(key: int) -> int:
        await gate.wait()
        return key

    warming = asyncio.create_task(prewarm(cache, range(100), wait, PLAIN, concurrency=4))
    await settle()
    warming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await warming
    gate.set()
    await settle()
    assert len(cache) == 4  # what was under way belongs to the cache
    assert asyncio.all_tasks() == before


async def test_a_source_that_fails_ends_it(cache: Cache):
    def keys() -> Iterator[int]:
        yield 1
        raise OSError("the file is gone")

    with pytest.raises(OSError, match="the file is gone"):
        await prewarm(cache, keys(), load, PLAIN)
    await settle()


async def test_a_source_that_holds_a_cursor_is_closed_when_it_stops():
    closed = False

    async def keys() -> AsyncIterator[int]:
        nonlocal closed
        try:
            for key in range(100):
                yield key
        finally:
            await asyncio.sleep(0)
            closed = True

    assert (await prewarm(Cache(MemoryStore(max_entries=5)), keys(), load, PLAIN)).is_full
    assert closed


async def test_an_impossible_concurrency_is_refused(cache: Cache):
    with pytest.raises(InvalidInput, match=r"prewarm\.concurrency"):
        await prewarm(cache, [1], load, PLAIN, concurrency=0)
