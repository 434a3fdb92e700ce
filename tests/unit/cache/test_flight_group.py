"""Many keys that one call loads keep what each key has alone."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections.abc import Callable

import pytest

from fairlead.cache import Cache, Composite, Field, Freshness, MemoryStore
from fairlead.calls import MissingKey
from fairlead.clock import ManualClock, settle
from fairlead.context import Priority, RequestContext, current, request_context
from fairlead.errors import InvalidInput, LoadCancelled

PLAIN = Freshness(ttl=10.0, jitter=0.0)
STALE = Freshness(ttl=10.0, jitter=0.0, stale_while_revalidate=5.0)
NEGATIVE = Freshness(ttl=10.0, jitter=0.0, negative_ttl=1.0)


class Origin:
    """Answers `key * 10` once its gate is open; `answers` are given in the place of that."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.answers: dict[int, object] = {}
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, keys: list[int]) -> dict[int, object]:
        self.batches.append(list(keys))
        await self.gate.wait()
        return {key: self.answers.get(key, key * 10) for key in keys}


@pytest.fixture
async def origin() -> Origin:
    return Origin()


def _items(cache: Cache, origin: Callable[[list[int]], object]) -> Composite[int]:
    return Composite(cache, "item", {"label": Field(load_many=origin, freshness=PLAIN)})  # type: ignore[arg-type]


async def test_missing_keys_cost_one_task(cache: Cache, origin: Origin):
    origin.gate.clear()
    before = len(asyncio.all_tasks())
    caller = asyncio.create_task(cache.get_many(range(20), origin, PLAIN))
    await settle()
    assert len(asyncio.all_tasks()) == before + 2  # the caller's and the load's
    assert (cache.stats.loads, cache.stats.max_concurrent_loads) == (20, 1)
    origin.gate.set()
    assert (await caller)[19] == 190


async def test_composites_that_overlap_load_each_key_once(cache: Cache, origin: Origin):
    items = _items(cache, origin)
    origin.gate.clear()
    first = asyncio.create_task(items.get_many([1, 2]))
    await settle()
    second = asyncio.create_task(items.get_many([2, 3]))
    third = asyncio.create_task(items.get(1))
    await settle()
    first.cancel()
    origin.gate.set()
    assert {key: answer.values for key, answer in (await second).items()} == {  # type: ignore[union-attr]  # none failed
        2: {"label": 20},
        3: {"label": 30},
    }
    assert (await third).values == {"label": 10}
    assert origin.batches == [[1, 2], [3]]


async def test_an_answer_that_is_an_exception_is_the_failure_of_its_key_alone(cache: Cache, origin: Origin):
    origin.answers = {2: ConnectionError("key 2"), 3: asyncio.CancelledError()}
    found = await _items(cache, origin).get_many([1, 2, 3])
    assert found[1].values == {"label": 10}  # type: ignore[union-attr]  # it did not fail
    assert isinstance(found[2], ConnectionError)
    assert isinstance(found[3], LoadCancelled)
    assert cache.stats.load_errors == 2


async def test_each_waiter_of_a_batch_that_fails_gets_an_instance_of_its_own(cache: Cache):
    async def load_many(keys: list[int]) -> list[int]:
        raise ConnectionError("down")

    found = await _items(cache, load_many).get_many([1, 2])
    assert all(isinstance(each, ConnectionError) for each in found.values())
    assert found[1] is not found[2]


@pytest.mark.parametrize(
    ("load_many", "error"),
    [
        (lambda keys: keys, TypeError),
        (lambda keys: asyncio.sleep(0, [1]), InvalidInput),
        (lambda keys: asyncio.sleep(0, {}), MissingKey),
    ],
)
async def test_a_batch_loader_that_answers_otherwise_fails_every_key(
    cache: Cache, load_many: Callable[[list[int]], object], error: type[Exception]
):
    found = await _items(cache, load_many).get_many([1, 2])
    assert [type(each) for each in found.values()] == [error, error]
    assert cache._flights.in_flight == 0


async def test_a_key_set_or_removed_by_tag_meanwhile_is_not_overwritten_by_the_batch(
    cache: Cache, origin: Origin
):
    origin.gate.clear()
    caller = asyncio.create_task(cache.get_many([1, 2], origin, PLAIN, tags=("t",)))
    await settle()
    await cache.set(1, 0, PLAIN)
    await cache.remove_tag("t")
    await cache.set(1, 0, PLAIN)
    later = asyncio.create_task(cache.get_many([2], origin, PLAIN))
    await settle()
    origin.answers = {2: 21}
    origin.gate.set()
    assert await caller == {1: 10, 2: 21}
    assert await later == {2: 21}
    assert origin.batches == [[1, 2], [2]]
    assert cache.stats.max_concurrent_loads == 2
    assert await cache.get(1) == 0


async def test_an_answer_of_none_is_kept_for_the_negative_ttl(
    cache: Cache, origin: Origin, clock: ManualClock
):
    origin.answers = {1: None}
    await cache.get_many([1, 2], origin, NEGATIVE)
    clock.advance(0.9)
    assert await cache.get_many([1, 2], origin, NEGATIVE) == {1: None, 2: 20}
    clock.advance(0.2)
    await cache.get_many([1, 2], origin, NEGATIVE)
    assert origin.batches == [[1, 2], [1]]


async def test_a_refresh_in_a_batch_counts_against_the_bound_on_refreshes(clock: ManualClock, origin: Origin):
    cache = Cache(clock=clock, rng=random.Random(1), refresh_concurrency=2)
    await cache.get_many([1, 2, 3], origin, STALE)
    clock.advance(11.0)
    assert await cache.get_many([1, 2, 3], origin, STALE) == {1: 10, 2: 20, 3: 30}
    await settle()
    assert origin.batches == [[1, 2, 3], [1, 2]]
    assert cache.stats.refreshes_skipped == 1
    await cache.get_many([3], origin, STALE)
    await settle()
    assert origin.batches[2:] == [[3]]  # the places are free again


async def test_a_batch_that_is_given_up_frees_its_keys_and_ends_its_task(
    cache: Cache, origin: Origin, clock: ManualClock
):
    origin.gate.clear()
    items = _items(cache, origin)
    caller = asyncio.create_task(items.get_many([1, 2]))
    await settle()
    before = len(asyncio.all_tasks())
    await clock.run_for(31.0)
    found = await caller
    assert all("load_timeout=30" in str(each) for each in found.values())
    await settle()
    assert len(asyncio.all_tasks()) == before - 2
    assert cache._flights.in_flight == 0
    assert cache._flights._running == {}


async def test_closing_before_the_first_step_of_a_batch_tells_its_callers(cache: Cache, origin: Origin):
    caller = asyncio.create_task(cache.get_many([1, 2], origin, PLAIN))
    await asyncio.sleep(0)
    await cache._flights.close()
    with pytest.raises(LoadCancelled):
        await caller
    assert origin.batches == []
    assert cache._flights._running == {}


async def test_a_batch_runs_outside_its_callers_request_until_the_load_timeout(
    cache: Cache, clock: ManualClock
):
    seen: list[RequestContext] = []

    async def load_many(keys: list[int]) -> list[int]:
        seen.append(current())
        return keys

    with request_context(RequestContext(request_id="r", priority=Priority.CRITICAL)):
        await cache.get_many([1], load_many, PLAIN)
    assert (seen[0].request_id, seen[0].deadline.at) == (RequestContext().request_id, clock.now() + 30.0)


async def test_a_composites_batch_that_asks_for_its_own_key_is_refused(cache: Cache):
    async def load_many(keys: list[int]) -> list[object]:
        return [(await items.get(key)).values for key in keys]

    items = _items(cache, load_many)
    found = await items.get_many([1, 2])
    assert ["wait for itself" in str(each) for each in found.values()] == [True, True]


async def test_a_value_that_cannot_be_kept_does_not_keep_the_others_from_landing(clock: ManualClock):
    def size_of(value: object) -> int:
        if value == 10:
            raise ZeroDivisionError
        return 1

    cache = Cache(MemoryStore(max_bytes=1000, size_of=size_of), clock=clock)  # type: ignore[call-arg]
    origin = Origin()
    assert await cache.get_many([1, 2], origin, PLAIN) == {1: 10, 2: 20}
    await settle()
    assert (await cache.get(1), await cache.get(2)) == (None, 20)


async def test_a_batch_that_fails_leaves_no_reference_cycle(cache: Cache):
    class Failure(Exception):
        pass

    marks: list[weakref.ref[Failure]] = []

    async def load_many(keys: list[int]) -> list[int]:
        failure = Failure("down")
        marks.append(weakref.ref(failure))
        try:
            raise failure
        finally:
            del failure

    gc.collect()
    gc.disable()
    try:
        failed = False
        try:
            await cache.get_many([1, 2], load_many, PLAIN)
        except Failure:
            failed = True
        await settle()
        assert failed
        assert marks[0]() is None
    finally:
        gc.enable()


async def test_a_field_says_once_where_it_comes_from(origin: Origin):
    with pytest.raises(InvalidInput, match="one of load and load_many"):
        Field(freshness=PLAIN)
    with pytest.raises(InvalidInput, match="one of load and load_many"):
        Field(load=asyncio.sleep, load_many=origin, freshness=PLAIN)
