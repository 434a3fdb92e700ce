"""Two caches before one Redis that hangs and is killed, under callers that leave and keys that change.

Invariant: who asks a cache after that cache has removed a key is never answered with what was true before the removal.
Each key's origin is a number that only grows, so an answer says by itself how old it is.
"""

from __future__ import annotations

import asyncio
import random
import time

import pytest
import uvloop

from fairlead.cache import Cache, Codec, Freshness, MemoryStore, SecondTier
from fairlead.cache.redis import RedisBackplane, RedisStore
from fairlead.testing import RedisServer

SECONDS = 30.0
CALLERS = 60
KEYS = 200
FRESHNESS = Freshness(ttl=0.3, stale_while_revalidate=0.2, stale_if_error=1.0)


class Storm:
    def __init__(self, server: RedisServer, seed: int) -> None:
        self.server = server
        self.rng = random.Random(seed)
        self.caches = [self.new_cache(name) for name in ("one", "other")]
        self.truth = [0] * KEYS
        self.removed: dict[tuple[int, int], tuple[float, int]] = {}
        """By cache and key: when a removal had ended, and what has been true since before it began."""
        self.end = time.monotonic() + SECONDS
        self.answers = self.cancelled = 0
        self.wrong: list[str] = []

    def new_cache(self, name: str) -> Cache:
        store = RedisStore(self.server.url, codec=Codec(int))
        tier = SecondTier(store, backplane=RedisBackplane(store), lease_for=0.5, name=name)
        return Cache(MemoryStore(KEYS // 2), second=tier, name=name)

    async def load(self, key: int) -> int:
        value = self.truth[key]
        await asyncio.sleep(self.rng.random() * 0.02)
        if self.rng.random() < 0.02:
            raise ConnectionError("origin")
        return value

    async def ask(self, index: int, key: int) -> None:
        asked_at = time.monotonic()
        try:
            found = await self.caches[index].lookup(
                key, lambda: self.load(key), FRESHNESS, tags=(f"tag {key % 5}",)
            )
        except ConnectionError:
            return
        self.answers += 1
        removed_at, since = self.removed.get((index, key), (asked_at, 0))
        if removed_at < asked_at and found.value < since:
            self.wrong.append(f"{key}: {found} {asked_at - removed_at:.4f} s after {since} was removed")

    async def caller(self) -> None:
        rng = self.rng
        while time.monotonic() < self.end:
            index, key = rng.randrange(2), min(int(rng.paretovariate(0.8)), KEYS - 1)
            asking = asyncio.create_task(self.ask(index, key))
            if rng.random() < 0.2:
                await asyncio.sleep(rng.random() * 0.005)
                asking.cancel()
            try:
                await asking
            except asyncio.CancelledError:
                self.cancelled += 1
            if rng.random() < 0.02:
                self.truth[key] += 1
                value = self.truth[key]
                await self.caches[index].remove(key)
                self.removed[index, key] = (time.monotonic(), value)

    async def trouble(self) -> None:
        while time.monotonic() < self.end - 4.0:
            await asyncio.sleep(1.5)
            self.server.pause()
            await asyncio.sleep(0.8)
            self.server.resume()
            await asyncio.sleep(1.5)
            await asyncio.to_thread(self.server.kill)
            await asyncio.sleep(0.5)
            await asyncio.to_thread(self.server.restart)

    async def run(self) -> None:
        problems: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        await asyncio.gather(self.trouble(), *(self.caller() for _ in range(CALLERS)))
        for cache in self.caches:
            await cache.close()
        await asyncio.sleep(0.1)
        assert self.wrong == []
        assert problems == []
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
        assert self.answers > 10_000
        assert self.cancelled > 1_000


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_no_answer_is_older_than_its_caches_last_removal(runner, seed: int) -> None:
    with RedisServer() as server:

        async def main() -> None:
            await Storm(server, seed).run()  # made in the loop, as a service makes it

        runner(main())
