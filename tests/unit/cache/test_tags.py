from __future__ import annotations

import asyncio

import pytest

from fairlead.cache import Cache, Freshness
from fairlead.clock import ManualClock, settle
from fairlead.errors import InvalidInput

PLAIN = Freshness(ttl=10.0, jitter=0.0)
STALE = Freshness(ttl=10.0, jitter=0.0, stale_while_revalidate=60.0, stale_if_error=60.0)


async def new() -> str:
    return "new"


async def old() -> str:
    return "old"


async def test_removing_a_tag_forgets_what_bears_it_and_nothing_else(cache: Cache):
    await cache.get_or_load("a", old, STALE, tags=("user:7", "feed"))
    await cache.get_or_load("b", old, STALE, tags=("feed",))
    await cache.set("c", "old", STALE, tags=("user:7",))
    await cache.get_or_load("d", old, STALE)
    await cache.remove_tag("user:7")
    assert [await cache.get(key) for key in "abcd"] == [None, "old", None, "old"]


async def test_a_removed_tag_leaves_nothing_stale_to_serve(cache: Cache, clock: ManualClock):
    await cache.get_or_load("a", old, STALE, tags=("t",))
    clock.advance(11.0)
    await cache.remove_tag("t")
    assert await cache.get_or_load("a", new, STALE) == "new"


async def test_a_load_under_way_is_not_kept_after_its_tag_was_removed(cache: Cache):
    gate = asyncio.Event()

    async def slow() -> str:
        await gate.wait()
        return "old"

    waiting = asyncio.create_task(cache.get_or_load("a", slow, PLAIN, tags=("t",)))
    other = asyncio.create_task(cache.get_or_load("b", slow, PLAIN, tags=("u",)))
    await settle()
    await cache.remove_tag("t")
    gate.set()
    assert (await waiting, await other) == ("old", "old")
    assert await cache.get("a") is None
    assert await cache.get("b") == "old"


async def test_the_keys_of_a_multi_get_share_its_tags(cache: Cache):
    async def load_many(keys: list[int]) -> list[int]:
        return [key * 10 for key in keys]

    await cache.get_many([1, 2], load_many, PLAIN, tags=("page",))
    await cache.remove_tag("page")
    assert [await cache.get(key) for key in (1, 2)] == [None, None]


async def test_a_decorator_takes_tags_for_all_calls_or_per_call(cache: Cache):
    @cache.cached(key=lambda user: ("a", user), freshness=PLAIN, tags=("profiles",))
    async def for_all(user: int) -> int:
        return user

    @cache.cached(key=lambda user: ("b", user), freshness=PLAIN, tags=lambda user: (f"user:{user}",))
    async def per_call(user: int) -> int:
        return user

    for user in (1, 2):
        await for_all(user)
        await per_call(user=user)
    await cache.remove_tag("user:1")
    assert [await cache.get(("b", user)) for user in (1, 2)] == [None, 2]
    await cache.remove_tag("profiles")
    assert [await cache.get(("a", user)) for user in (1, 2)] == [None, None]


@pytest.mark.parametrize("tags", ["one string", ("",), (7,), ("x" * 201,), [str(n) for n in range(101)]])
async def test_tags_that_cannot_be_ones_are_refused_before_anything_is_loaded(cache: Cache, tags: object):
    with pytest.raises(InvalidInput, match=r"^tags: "):
        await cache.get_or_load("a", new, PLAIN, tags=tags)  # type: ignore[arg-type]
    assert cache.stats.loads == 0
    with pytest.raises(InvalidInput, match=r"^tags: "):
        await cache.set("a", "value", PLAIN, tags=tags)  # type: ignore[arg-type]
