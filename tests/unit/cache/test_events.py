from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from fairlead.cache import Cache, CacheEvent, Freshness
from fairlead.cache.events import Generations
from fairlead.clock import ManualClock, settle
from fairlead.errors import InvalidInput

PLAIN = Freshness(ttl=10.0, jitter=0.0, stale_while_revalidate=60.0)


def change(generation: int, value: object, key: str = "k") -> CacheEvent:
    return CacheEvent(key=key, generation=generation, value=value, freshness=PLAIN)


async def test_a_change_is_written_through(cache: Cache):
    assert await cache.apply(change(1, "new"))
    assert await cache.get("k") == "new"
    assert cache.stats.events_applied == 1


async def test_changes_in_any_order_and_twice_end_with_the_newest(cache: Cache):
    for order in itertools.permutations([1, 2, 2, 3]):
        cache._generations = Generations(10)
        for generation in order:
            await cache.apply(change(generation, f"value {generation}"))
        assert await cache.get("k") == "value 3"


async def test_an_old_set_does_not_bring_back_what_a_newer_remove_forgot(cache: Cache):
    await cache.apply(CacheEvent(key="k", generation=5, kind="remove"))
    assert not await cache.apply(change(4, "old"))
    assert await cache.get("k") is None
    assert cache.stats.events_ignored == 1


async def test_an_expire_leaves_the_old_value_to_be_served_stale(cache: Cache, clock: ManualClock):
    await cache.apply(change(1, "old"))
    await cache.apply(CacheEvent(key="k", generation=2, kind="expire"))

    async def load() -> str:
        return "new"

    assert (await cache.lookup("k", load, PLAIN)).source == "stale"
    await settle()


async def test_a_load_under_way_does_not_undo_a_change(cache: Cache):
    gate = asyncio.Event()

    async def slow() -> str:
        await gate.wait()
        return "read before the change"

    waiting = asyncio.create_task(cache.get_or_load("k", slow, PLAIN))
    await settle()
    await cache.apply(change(1, "changed"))
    gate.set()
    await waiting
    assert await cache.get("k") == "changed"


async def test_the_tags_of_a_change_forget_it(cache: Cache):
    await cache.apply(CacheEvent(key="k", generation=1, value="v", freshness=PLAIN, tags=("user:7",)))
    await cache.remove_tag("user:7")
    assert await cache.get("k") is None


def tagged(generation: int, value: object, key: str = "k") -> CacheEvent:
    return CacheEvent(key=key, generation=generation, value=value, freshness=PLAIN, tags=("user:7",))


def removal(generation: int) -> CacheEvent:
    return CacheEvent(key="user:7", generation=generation, kind="remove_tag")


async def test_a_change_of_what_a_tag_stands_for_forgets_all_that_bear_it(cache: Cache):
    await cache.set("here", "v", PLAIN, tags=("user:7",))
    await cache.set("other", "v", PLAIN, tags=("user:8",))
    assert await cache.apply(removal(1))
    assert (await cache.get("here"), await cache.get("other")) == (None, "v")
    assert not await cache.apply(removal(1))
    assert not await cache.apply(removal(0))


async def test_a_late_set_does_not_bring_back_what_a_newer_removal_of_its_tag_forgot(cache: Cache):
    new, forgets = tagged(3, "new"), removal(2)
    for order in itertools.permutations([tagged(1, "old"), forgets, new]):
        cache._generations, cache._tag_generations = Generations(10), Generations(10)
        await cache.clear()
        for event in order:
            await cache.apply(event)
        held = await cache.get("k")
        # Forgotten too much, if the removal is late, and never too little.
        assert held == (None if order.index(forgets) > order.index(new) else "new")


async def test_a_set_that_may_be_older_than_the_removal_of_its_tag_leaves_nothing(cache: Cache):
    await cache.apply(removal(9))
    await cache.set("k", "loaded since", PLAIN)
    assert await cache.apply(tagged(9, "who knows"))  # the sequence of this key is another than its tag's
    assert await cache.get("k") is None


async def test_a_key_and_a_tag_of_one_name_have_generations_of_their_own(cache: Cache):
    await cache.apply(removal(5))
    assert await cache.apply(change(1, "v", key="user:7"))
    assert await cache.get("user:7") == "v"


def test_generations_are_remembered_for_the_keys_that_changed_last():
    generations = Generations(2)
    assert [generations.advance(key, 5) for key in ("a", "b", "a")] == [True, True, False]
    assert generations.advance("a", 6)
    assert generations.advance("c", 5)  # forgets b, whose last change is the oldest
    assert len(generations) == 2
    assert not generations.advance("a", 6)
    assert generations.advance("b", 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"generation": -1, "freshness": PLAIN}, "generation"),
        ({"generation": True, "freshness": PLAIN}, "generation"),
        ({"generation": 1.5, "freshness": PLAIN}, "generation"),
        ({"generation": 1}, "freshness: needed for a set"),
        ({"generation": 1, "kind": "remove", "freshness": PLAIN}, "freshness: needed for a set"),
        ({"generation": 1, "kind": "drop"}, "kind"),
        ({"generation": 1, "kind": "remove_tag", "key": 7}, "no tag"),
        ({"generation": 1, "kind": "remove_tag", "freshness": PLAIN}, "freshness: needed for a set"),
        ({"generation": 1, "freshness": PLAIN, "key": object()}, "hashes by identity"),
        ({"generation": 1, "freshness": PLAIN, "tags": "user"}, "one string"),
    ],
)
def test_an_event_that_cannot_be_is_refused_where_it_is_made(fields: dict[str, Any], message: str):
    with pytest.raises(InvalidInput, match=message):
        CacheEvent(**{"key": "k", **fields})
