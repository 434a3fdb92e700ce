"""Fill a cold cache before its first caller waits for it.

A process that starts with an empty cache gives its first requests the latency of the origin, and the origin their
load all at once. `prewarm` loads keys that are worth it, a few at a time, and stops where one more would only
push out another.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Hashable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from fairlead.cache.cache import Cache
from fairlead.cache.freshness import Freshness
from fairlead.calls.bounds import check_whole

__all__ = ["Prewarmed", "prewarm"]

_K = TypeVar("_K", bound=Hashable)

_MOST_AT_ONCE = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Prewarmed:
    """What became of the keys that were taken from the iterable."""

    loaded: int
    """Keys that were missing and now are not."""
    present: int
    """Keys that had an answer already, or were being loaded for somebody."""
    failed: int
    """Keys whose load failed."""
    error: str
    """The last failure, type and message, cut to 200 characters."""
    is_full: bool
    """It stopped because the store was full, by entries or by bytes; keys were left."""


async def prewarm(
    cache: Cache,
    keys: Iterable[_K] | AsyncIterable[_K],
    load: Callable[[_K], Awaitable[Any]],
    freshness: Freshness,
    *,
    concurrency: int = 8,
    tags: Iterable[str] = (),
) -> Prewarmed:
    """Loads the keys that have no fresh answer, in the order given, `concurrency` at a time.

    keys: the hottest first, from any iterable; it is read as places come free, so it may be a cursor or a file.
    It stops before the store would evict for the number of entries, and once it has evicted for their size or
    refused one, because what goes is what came first; an asynchronous generator is closed then, and however it
    ends. A key that fails is counted and the rest goes on; what `keys` itself raises ends it. Cancelled, it
    takes no more keys and leaves the loads under way to the cache. Per process.

    >>> async def main():
    ...     cache = Cache()
    ...     async def load(user): return f"user {user}"
    ...     done = await prewarm(cache, range(100), load, Freshness(ttl=60))
    ...     return done.loaded, await cache.get(7)
    >>> asyncio.run(main())
    (100, 'user 7')
    """
    check_whole("prewarm.concurrency", concurrency, low=1, high=_MOST_AT_ONCE)
    labels = tuple(tags) if not isinstance(tags, str) else tags
    store = cache._store
    turned_away = store.evicted + store.rejected
    counts = {"loaded": 0, "present": 0, "failed": 0}
    error = ""
    is_full = False
    running: set[asyncio.Task[str]] = set()

    async def one(key: _K) -> str:
        nonlocal error
        try:
            found = await cache.lookup(key, lambda: load(key), freshness, labels)
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"[:200]
            return "failed"
        return "loaded" if found.source == "load" else "present"

    async with aclosing(_each(keys)) as source:
        try:
            async for key in source:
                # Each key under way may need a place of its own.
                full = len(store) + len(running) >= store.max_entries
                if full or store.evicted + store.rejected > turned_away:
                    is_full = True
                    break
                running.add(asyncio.create_task(one(key)))
                if len(running) >= concurrency:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        counts[task.result()] += 1
            if running:
                done, running = await asyncio.wait(running)
                for task in done:
                    counts[task.result()] += 1
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
    return Prewarmed(**counts, error=error, is_full=is_full)


async def _each(keys: Iterable[_K] | AsyncIterable[_K]) -> AsyncGenerator[_K, None]:
    if isinstance(keys, AsyncGenerator):
        async with aclosing(keys):  # it may hold a cursor, which nobody else would close
            async for key in keys:
                yield key
    elif isinstance(keys, AsyncIterable):
        async for key in keys:
            yield key
    else:
        for key in keys:
            yield key
