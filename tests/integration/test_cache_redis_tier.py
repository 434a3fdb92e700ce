"""The second tier on a Redis that is hung, killed and restarted, on the real clock."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvloop

from fairlead.cache import Cache
from fairlead.cache.codec import Codec
from fairlead.cache.entry import Entry
from fairlead.cache.freshness import Freshness
from fairlead.cache.redis import RedisBackplane, RedisStore
from fairlead.cache.second_tier import SecondTier
from fairlead.cache.two_nodes import TwoNodes
from fairlead.testing import RedisServer

FRESHNESS = Freshness(ttl=60.0, jitter=0.0, stale_if_error=600.0)
BUDGET = 0.25  # a busy machine must not make a healthy server look late


ANYTHING: Codec[Any] = Codec(Any, mutable_ok=True)


def entry(value: object) -> Entry[object]:
    now = time.monotonic()
    return Entry.keep(value, FRESHNESS, began_at=now, now=now, draw=0.0)


async def read(tier: SecondTier | TwoNodes, key: object) -> object:
    found = await tier.get(key)
    return "absent" if found is None else found.value


async def eventually(what: Callable[[], Awaitable[bool]], within: float = 10.0) -> None:
    end = time.monotonic() + within
    while not await what():
        assert time.monotonic() < end, "it did not come true in time"
        await asyncio.sleep(0.01)


async def until_trusted(tier: SecondTier) -> None:
    async def is_trusted() -> bool:
        return tier.is_trusted and not tier.stats.owed

    await eventually(is_trusted)


def new_tier(server: RedisServer, name: str = "second tier") -> SecondTier:
    return SecondTier(RedisStore(server.url, codec=ANYTHING), budget=BUDGET, probe_cap=0.5, name=name)


@pytest.fixture
async def tier(redis_server: RedisServer) -> AsyncIterator[SecondTier]:
    made = new_tier(redis_server)
    await made.get("warm")  # the first read also connects
    yield made
    redis_server.resume()
    await made.close()


@pytest.fixture
async def elsewhere(redis_server: RedisServer) -> AsyncIterator[SecondTier]:
    """Another process's."""
    made = new_tier(redis_server)
    await made.get("warm")
    yield made
    redis_server.resume()
    await made.close()


async def stored(tier: SecondTier, key: object, value: object) -> None:
    tier.put(key, entry(value))

    async def is_there() -> bool:
        return await read(tier, key) == value

    await eventually(is_there)


async def test_a_hung_redis_costs_its_budget_once_and_later_reads_nothing(
    tier: SecondTier, redis_server: RedisServer
) -> None:
    await stored(tier, "k", "v")
    redis_server.pause()
    began = time.monotonic()
    assert await read(tier, "k") == "absent"
    first = time.monotonic() - began
    later = []
    for _ in range(200):
        began = time.monotonic()
        assert await read(tier, "k") == "absent"
        later.append(time.monotonic() - began)
        await asyncio.sleep(0.002)
    redis_server.resume()
    assert BUDGET * 0.9 <= first < BUDGET + 0.25  # 5 ms on a quiet machine: `python -m bench redis`
    assert sorted(later)[len(later) // 2] < 0.0005
    await until_trusted(tier)
    assert await read(tier, "k") == "v"


async def test_what_was_invalidated_while_redis_hung_is_gone_when_it_answers(
    tier: SecondTier, elsewhere: SecondTier, redis_server: RedisServer
) -> None:
    await stored(tier, "k", "old")
    redis_server.pause()
    await tier.invalidate("remove", "k")
    await tier.invalidate("remove", "k2")
    assert tier.stats.owed == 2
    redis_server.resume()
    await until_trusted(tier)
    assert [await read(each, "k") for each in (tier, elsewhere)] == ["absent", "absent"]


async def test_a_killed_redis_is_a_miss_and_is_used_again_when_it_is_back(
    tier: SecondTier, redis_server: RedisServer
) -> None:
    await stored(tier, "k", "v")
    redis_server.kill()
    assert await read(tier, "k") == "absent"
    tier.put("k", entry("lost"))
    await tier.invalidate("remove_tag", "t")
    redis_server.restart()
    await until_trusted(tier)
    assert await read(tier, "k") == "absent"
    assert tier.stats.dropped_writes == 1
    assert tier.stats.replayed >= 1
    await stored(tier, "k", "again")


async def test_a_load_that_began_before_a_removal_by_another_process_stays_out(
    tier: SecondTier, elsewhere: SecondTier
) -> None:
    old = entry("old")
    await elsewhere.invalidate("remove", "k")
    tier.put("k", old)
    await asyncio.sleep(0.05)
    assert await read(elsewhere, "k") == "absent"
    assert tier.stats.refused_writes == 1


async def test_cancelled_readers_leave_the_connection_and_the_replies_of_others_alone(
    tier: SecondTier,
) -> None:
    for n in range(50):
        tier.put(n, entry(n))
    await asyncio.sleep(0.1)
    connection = tier.store._nodes.seed._connection
    for _ in range(40):
        readers = [asyncio.create_task(read(tier, n)) for n in range(50)]
        await asyncio.sleep(0)
        for reader in readers[::2]:
            reader.cancel()
        answers = await asyncio.gather(*readers, return_exceptions=True)
        assert answers[1::2] == list(range(1, 50, 2))
    assert tier.store._nodes.seed._connection is connection


@pytest.fixture
def two_servers() -> Iterator[tuple[RedisServer, RedisServer]]:
    with RedisServer() as a, RedisServer() as b:
        yield a, b


async def test_reads_move_to_the_other_node_and_a_node_that_returns_serves_nothing_old(
    two_servers: tuple[RedisServer, RedisServer],
) -> None:
    a, b = two_servers
    nodes = TwoNodes(new_tier(a, "a"), new_tier(b, "b"))
    for node in nodes.nodes:
        await node.get("warm")
    nodes.put("k", entry("v"))
    await asyncio.sleep(0.1)
    a.pause()
    await read(nodes, "k")
    assert await read(nodes, "k") == "v"  # from b
    assert nodes.reading.name == "b"
    await nodes.invalidate("remove", "k")
    a.resume()  # with the old value in it
    await until_trusted(nodes.nodes[0])
    b.kill()
    await read(nodes, "k")
    assert await read(nodes, "k") == "absent"
    assert nodes.reading.name == "a"
    nodes.put("k", entry("new"))
    await asyncio.sleep(0.1)
    assert await read(nodes, "k") == "new"
    b.restart()
    await until_trusted(nodes.nodes[1])
    a.kill()
    await read(nodes, "k")
    assert await read(nodes, "k") == "absent"  # b came back empty
    await nodes.close()


def test_on_uvloop_two_caches_share_and_outlive_a_hung_redis(redis_server: RedisServer) -> None:
    freshness = Freshness(ttl=60.0)
    loads = 0

    async def load() -> str:
        nonlocal loads
        loads += 1
        return "value"

    def new_cache(name: str) -> Cache:
        store = RedisStore(redis_server.url, codec=ANYTHING, namespace="uvloop")
        return Cache(second=SecondTier(store, budget=BUDGET, backplane=RedisBackplane(store), name=name))

    async def main() -> None:
        here, there = new_cache("here"), new_cache("there")

        async def is_shared() -> bool:
            return (await there.lookup("k", load, freshness)).source in ("second", "hit")

        async def is_forgotten() -> bool:
            return await there.get("k") is None

        await here.get_or_load("k", load, freshness)
        await eventually(is_shared)
        await asyncio.sleep(0.2)  # until it listens
        await here.remove("k")
        await eventually(is_forgotten)
        redis_server.pause()
        began = time.monotonic()
        for n in range(100):
            assert await here.get_or_load(n, load, freshness) == "value"
        assert time.monotonic() - began < 10 * BUDGET
        redis_server.resume()
        await here.close()
        await there.close()

    uvloop.run(main())
    assert loads >= 101


BOTH_LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
IN_A_HURRY = 0.03  # the default
STALL = 0.15  # a synchronous call somewhere else in the service


@contextlib.asynccontextmanager
async def in_a_hurry(server: RedisServer) -> AsyncIterator[SecondTier]:
    tier = SecondTier(RedisStore(server.url, codec=ANYTHING, reply_timeout=IN_A_HURRY), budget=IN_A_HURRY)
    try:
        await until_trusted(tier)
        await tier.get("warm")
        yield tier
    finally:
        server.resume()
        await tier.close()


@BOTH_LOOPS
@pytest.mark.parametrize("turns", range(6))
def test_a_stalled_event_loop_is_no_failure_of_a_tier_that_answered(
    run: Callable[[Any], object], turns: int, redis_server: RedisServer
) -> None:
    async def main() -> None:
        async with in_a_hurry(redis_server) as tier:
            await stored(tier, "k", "v")
            reading = asyncio.create_task(read(tier, "k"))
            removing = asyncio.create_task(tier.invalidate("remove", "another"))
            for _ in range(turns):  # the question is not yet made, not yet sent, on its way
                await asyncio.sleep(0)
            time.sleep(STALL)  # noqa: ASYNC251 (what this is about)
            assert await reading == "v"
            await removing
            assert (tier.stats.errors, tier.stats.last_error, tier.is_trusted) == (0, "", True)

    run(main())


@BOTH_LOOPS
def test_a_stalled_event_loop_does_not_hide_that_the_tier_hangs(
    run: Callable[[Any], object], redis_server: RedisServer
) -> None:
    async def main() -> None:
        async with in_a_hurry(redis_server) as tier:
            redis_server.pause()
            reading = asyncio.create_task(read(tier, "k"))
            await asyncio.sleep(0)
            time.sleep(STALL)  # noqa: ASYNC251 (what this is about)
            began = time.monotonic()
            assert await reading == "absent"
            assert (
                time.monotonic() - began < 2 * IN_A_HURRY + 0.1
            )  # of which a busy machine may take the tenth
            assert (tier.stats.errors, tier.is_trusted) == (1, False)

    run(main())
