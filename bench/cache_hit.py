"""What a hit in memory costs, beside a dict behind a coroutine and beside the caches that a service would use instead.

Every arm awaits one call per key. A peer that is synchronous stands behind a coroutine of ours, which is what its user
writes; a decorator of a peer is called as it is.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from datetime import timedelta

import aiocache
import async_lru
import cachebox
import cachetools
import cashews
import theine

from bench.harness import Bar, Timing, interleave_async, ratio
from fairlead.cache import Cache, Freshness, MemoryStore

__all__ = ["hit"]

_KEYS = 1_000
_FOR_LONG = Freshness(ttl=86_400.0)


def _keys() -> list[str]:
    rng = random.Random(1)
    return [f"video:{rng.randrange(_KEYS)}" for _ in range(5_000)]


async def _origin() -> int:
    return 1


def _hit_arms(keys: list[str]) -> dict[str, Callable[[int], Awaitable[object]]]:
    """Every arm awaits one call per key, all hits but for the first round, which is not counted."""
    plain = dict.fromkeys(keys, 1)

    async def dict_get(key: str) -> int:
        return plain[key]

    cache = Cache(MemoryStore(max_entries=10 * _KEYS))
    load = cache.get_or_load
    decorated = Cache(MemoryStore(max_entries=10 * _KEYS)).cached(key=lambda key: key, freshness=_FOR_LONG)

    @decorated
    async def fairlead_function(key: str) -> int:
        return 1

    @async_lru.alru_cache(maxsize=10 * _KEYS, ttl=86_400.0)
    async def async_lru_function(key: str) -> int:
        return 1

    cashews_cache = cashews.Cache()
    cashews_store = cashews_cache.setup("mem://", size=10 * _KEYS)

    @cashews_cache(ttl="24h", key="{key}")
    async def cashews_function(key: str) -> int:
        return 1

    @cashews_cache(ttl="24h", key="unprotected:{key}", protected=False)
    async def cashews_unprotected(key: str) -> int:
        return 1

    async def cashews_read(n: int) -> None:
        for _ in range(n // len(keys)):
            for key in keys:
                await cashews_cache.get_or_set(key, 1, expire=86_400)

    aiocache_cache = aiocache.SimpleMemoryCache()

    async def aiocache_read(n: int) -> None:
        for key in set(keys):
            await aiocache_cache.set(key, 1, ttl=86_400)
        for _ in range(n // len(keys)):
            for key in keys:
                await aiocache_cache.get(key)

    timed: cachetools.TTLCache[str, int] = cachetools.TTLCache(10 * _KEYS, 86_400.0)

    async def cachetools_get(key: str) -> object:
        found = timed.get(key)
        if found is None:
            timed[key] = found = 1
        return found

    @cachebox.cached(cachebox.TTLCache(10 * _KEYS, global_ttl=86_400.0))
    async def cachebox_function(key: str) -> int:
        return 1

    fast: cachebox.TTLCache[str, int] = cachebox.TTLCache(10 * _KEYS, global_ttl=86_400.0)

    async def cachebox_get(key: str) -> object:
        if (found := fast.get(key, 0)) == 0:
            fast[key] = found = 1
        return found

    tiny: theine.Cache[str, int] = theine.Cache(10 * _KEYS, nolock=True)

    async def theine_get(key: str) -> object:
        found, is_there = tiny.get(key)
        if not is_there:
            tiny.set(key, 1, timedelta(days=1))
        return found

    @theine.Memoize(10 * _KEYS, timedelta(days=1), nolock=True)
    async def theine_function(key: str) -> int:
        return 1

    theine_function.key(lambda key: key)

    def each(function: Callable[[str], Awaitable[object]]) -> Callable[[int], Awaitable[object]]:
        async def run(n: int) -> None:
            for _ in range(n // len(keys)):
                for key in keys:
                    await function(key)

        return run

    async def get_or_load(n: int) -> None:
        for _ in range(n // len(keys)):
            for key in keys:
                await load(key, _origin, _FOR_LONG)

    async def lookup(n: int) -> None:
        for _ in range(n // len(keys)):
            for key in keys:
                await cache.lookup(key, _origin, _FOR_LONG)

    return {
        "dict": each(dict_get),
        "fairlead": get_or_load,
        "fairlead lookup": lookup,
        "fairlead decorator": each(fairlead_function),
        "async-lru": each(async_lru_function),
        "cashews decorator": each(cashews_function),
        "cashews decorator, unprotected": each(cashews_unprotected),
        "cashews": cashews_read,
        "cashews' store": each(cashews_store.get),
        "aiocache": aiocache_read,
        "cachetools": each(cachetools_get),
        "cachebox": each(cachebox_get),
        "cachebox decorator": each(cachebox_function),
        "theine": each(theine_get),
        "theine decorator": each(theine_function),
    }


def hit(*, rounds: int, quick: bool) -> list[Bar]:
    keys = _keys()
    timings = interleave_async(_hit_arms(keys), n=len(keys) * (1 if quick else 4), rounds=rounds)
    ours = timings["fairlead"]
    low, high = ours.spread
    of_store, _ = ratio(timings["cashews' store"], timings["cashews"])
    figures = {f"{name}_ns": timing.median * 1e9 for name, timing in timings.items()}

    def beside(what: str, slow: Timing, fast: Timing, limit: float, *, at_most: bool, note: str = "") -> Bar:
        value, spread = ratio(slow, fast)
        return Bar(
            what=what, value=value, limit=limit, at_most=at_most, unit="×", n=rounds, spread=spread, note=note
        )

    return [
        Bar(
            what="L1 hit, one awaited call, counters on",
            value=ours.median * 1e6,
            limit=0.5,
            unit="µs",
            n=rounds,
            spread=(low * 1e6, high * 1e6),
            figures=figures,
        ),
        beside("L1 hit against a dict behind a coroutine", ours, timings["dict"], 3.5, at_most=True),
        beside("async-lru's hit against ours", timings["async-lru"], ours, 2.0, at_most=False),
        beside(
            "cashews' hit (mem://, its decorator) against ours",
            timings["cashews decorator"],
            ours,
            30.0,
            at_most=False,
            note="what its users write; on each call it decorates the function anew for one load per key",
        ),
        beside(
            "cashews' hit (mem://, its decorator with protected=False) against ours",
            timings["cashews decorator, unprotected"],
            ours,
            30.0,
            at_most=False,
            note="every caller of a missing key loads it",
        ),
        beside(
            "cashews' hit (mem://, bare get_or_set) against ours",
            timings["cashews"],
            ours,
            30.0,
            at_most=False,
            note=f"no key to format and no one load per key; its store alone takes {of_store:.0%} of this, "
            "choosing it and wrapping it in four middlewares on each call takes the rest",
        ),
        beside(
            "aiocache's hit (SimpleMemoryCache.get) against ours",
            timings["aiocache"],
            ours,
            30.0,
            at_most=False,
        ),
        beside(
            "cachetools' hit (TTLCache.get behind a coroutine) against ours",
            timings["cachetools"],
            ours,
            1.0,
            at_most=False,
            note="synchronous: no one load for many callers, no stale answer, no deadline",
        ),
        beside(
            "theine's hit (Cache.get behind a coroutine) against ours",
            timings["theine"],
            ours,
            1.0,
            at_most=False,
            note="synchronous, W-TinyLFU",
        ),
        beside(
            "theine's hit (its decorator of a coroutine function) against ours",
            timings["theine decorator"],
            ours,
            1.0,
            at_most=False,
        ),
        beside(
            "cachebox' hit (its decorator of a coroutine function) against ours",
            timings["cachebox decorator"],
            ours,
            1.0,
            at_most=False,
        ),
        beside(
            "cachebox' hit (TTLCache.get behind a coroutine) against ours",
            timings["cachebox"],
            ours,
            1.0,
            at_most=False,
            note="synchronous, in Rust: a store and no loads; ours is the whole get_or_load",
        ),
        beside(
            "async-lru's hit against our decorator's",
            timings["async-lru"],
            timings["fairlead decorator"],
            1.0,
            at_most=False,
            note="the decorator calls the user's key function on every hit",
        ),
    ]
