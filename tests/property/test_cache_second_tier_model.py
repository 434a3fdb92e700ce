"""Two processes, one tier that comes and goes: what was removed is not seen again."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.cache import Cache, Freshness, SecondTier
from fairlead.clock import ManualClock, settle
from tests.unit.cache.shared_tier import Shared, SharedPlane, SharedStore

KEYS = ("a", "b")
PROCESSES = (0, 1)
FRESHNESS = Freshness(ttl=3_600.0, jitter=0.0)

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from(PROCESSES), st.sampled_from(KEYS)),
        st.tuples(st.just("slow ask"), st.sampled_from(PROCESSES), st.sampled_from(KEYS)),
        st.tuples(st.just("change"), st.sampled_from(PROCESSES), st.sampled_from(KEYS)),
        st.tuples(st.just("change by tag"), st.sampled_from(PROCESSES), st.just("")),
        st.tuples(st.just("change all"), st.sampled_from(PROCESSES), st.just("")),
        st.tuples(st.just("set"), st.sampled_from(PROCESSES), st.sampled_from(KEYS)),
        st.tuples(st.just("down"), st.sampled_from(PROCESSES), st.just("")),
        st.tuples(st.just("hang"), st.sampled_from(PROCESSES), st.just("")),
        st.tuples(st.just("up"), st.sampled_from(PROCESSES), st.just("")),
        st.tuples(st.just("wait"), st.sampled_from((0.0, 0.01, 0.2, 7.0)), st.just("")),
    ),
    max_size=30,
)


class Fleet:
    def __init__(self) -> None:
        self.clock = ManualClock(now=1_000.0)
        shared, plane = Shared(), SharedPlane()
        self.stores = [SharedStore(shared, self.clock.now) for _ in PROCESSES]
        self.tiers = [
            SecondTier(store, backplane=plane, clock=self.clock, rng=random.Random(1), memory_ttl=3_600.0)
            for store in self.stores
        ]
        self.caches = [Cache(second=tier, clock=self.clock, rng=random.Random(1)) for tier in self.tiers]
        self.origin = dict.fromkeys(KEYS, 0)
        # The oldest version that may be seen: by the process that removed it, and by anybody once all is well.
        self.own = {(process, key): 0 for process in PROCESSES for key in KEYS}
        self.everywhere = dict.fromkeys(KEYS, 0)
        self.asking: list[asyncio.Task[Any]] = []

    async def ask(self, process: int, key: str, takes: float = 0.0) -> int:
        async def load() -> int:
            version = self.origin[key]
            if takes:
                await self.clock.sleep(takes)
            return version

        return await self.caches[process].get_or_load(key, load, FRESHNESS, tags=("all",))

    async def change(self, process: int, how: str, keys: tuple[str, ...]) -> None:
        for key in keys:
            self.origin[key] += 1
        cache = self.caches[process]
        if how == "set":
            await cache.set(keys[0], self.origin[keys[0]], FRESHNESS, tags=("all",))
        elif how == "change":
            await self.waited(cache.remove(keys[0]))
        elif how == "change by tag":
            await self.waited(cache.remove_tag("all"))
        else:
            await self.waited(cache.clear())
        for key in keys:
            self.own[process, key] = self.everywhere[key] = self.origin[key]

    async def waited(self, work: Any) -> Any:
        task = asyncio.ensure_future(work)
        while not task.done():
            await self.clock.run_for(0.01)
        return await task

    async def step(self, what: str, where: Any, key: str) -> None:
        self.clock.advance(0.001)
        if what == "ask":
            before = self.own[where, key]
            assert await self.waited(self.ask(where, key)) >= before
        elif what == "slow ask":
            self.asking.append(asyncio.create_task(self.ask(where, key, takes=0.5)))
            await settle()
        elif what in ("change", "set"):
            await self.change(where, what, (key,))
        elif what in ("change by tag", "change all"):
            await self.change(where, what, KEYS)
        elif what == "wait":
            await self.clock.run_for(where)
        else:
            self.stores[where].down = what == "down"
            self.stores[where].hung = what == "hang"

    async def recover(self) -> None:
        for store in self.stores:
            store.down = store.hung = False
        await self.clock.run_for(20.0)
        for task in self.asking:
            await task
        await self.clock.run_for(1.0)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_what_was_removed_is_not_seen_again(steps: list[tuple[str, Any, str]]) -> None:
    async def run() -> None:
        fleet = Fleet()
        for what, where, key in steps:
            await fleet.step(what, where, key)
        await fleet.recover()
        assert [(tier.is_trusted, tier.stats.owed) for tier in fleet.tiers] == [(True, 0)] * 2
        for process in PROCESSES:
            for key in KEYS:
                assert await fleet.ask(process, key) >= fleet.everywhere[key], (process, key)
        for cache in fleet.caches:
            await cache.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
