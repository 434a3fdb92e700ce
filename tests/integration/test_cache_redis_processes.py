"""Real processes that share a Redis: one load for all, and a leader that is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from fairlead.cache import Cache, Codec, Freshness, SecondTier
from fairlead.cache.redis import RedisBackplane, RedisStore
from fairlead.testing import RedisCluster, RedisServer

PLAIN = Freshness(ttl=60.0, jitter=0.0)

WORKER = """
import asyncio, json, sys, time
from fairlead.cache import Cache, Codec, Freshness, SecondTier
from fairlead.cache.redis import RedisStore

url, lease_for, takes, callers, at = sys.argv[1], *map(float, sys.argv[2:])

async def main():
    tier = SecondTier(RedisStore(url, codec=Codec(str)), lease_for=lease_for, budget=1.0)
    cache = Cache(second=tier)
    await tier.get("warm")
    async def load():
        print("loading", flush=True)
        await asyncio.sleep(takes)
        return "value"
    print("ready", flush=True)
    sys.stdin.readline()
    asking = (cache.get_or_load("k", load, Freshness(ttl=60.0)) for _ in range(int(callers)))
    answers = await asyncio.gather(*asking)
    print(json.dumps([cache.stats.loads, sorted(set(answers)), len(answers)]), flush=True)
    await cache.close()

asyncio.run(main())
"""


class Worker:
    """A process that asks for one key once it is told to."""

    def __init__(self, url: str, *, lease_for: float, takes: float, callers: int = 50) -> None:
        words = [url, *map(str, (lease_for, takes, callers, 0.0))]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(WORKER), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def expect(self, line: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == line

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def result(self) -> Any:
        assert self.process.stdout is not None
        lines = [line for line in self.process.stdout.read().splitlines() if line != "loading"]
        assert self.process.wait(30) == 0
        return json.loads(lines[-1])

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    started: list[Worker] = []
    yield started
    for worker in started:
        worker.end()


def test_four_processes_with_fifty_callers_each_load_once_in_all(
    redis_server: RedisServer, workers: list[Worker]
) -> None:
    workers += [Worker(redis_server.url, lease_for=5.0, takes=0.2) for _ in range(4)]
    for worker in workers:
        worker.expect("ready")
    for worker in workers:
        worker.go()
    results = [worker.result() for worker in workers]
    assert [result[1:] for result in results] == [[["value"], 50]] * 4
    assert sum(result[0] for result in results) == 1


def test_without_a_lease_each_process_loads_at_most_once(
    redis_server: RedisServer, workers: list[Worker]
) -> None:
    workers += [Worker(redis_server.url, lease_for=0.0, takes=0.2) for _ in range(4)]
    for worker in workers:
        worker.expect("ready")
    for worker in workers:
        worker.go()
    assert 1 <= sum(worker.result()[0] for worker in workers) <= 4


def test_another_process_loads_when_the_one_that_holds_the_lease_is_killed(
    redis_server: RedisServer, workers: list[Worker]
) -> None:
    workers += [Worker(redis_server.url, lease_for=1.0, takes=takes) for takes in (60.0, 0.0)]
    leader, heir = workers
    leader.expect("ready")
    heir.expect("ready")
    leader.go()
    leader.expect("loading")
    os.kill(leader.process.pid, signal.SIGKILL)
    began = time.monotonic()
    heir.go()
    assert heir.result() == [1, ["value"], 50]
    assert time.monotonic() - began < 5.0


def test_loads_go_ahead_without_a_lease_when_redis_is_gone(
    redis_server: RedisServer, workers: list[Worker]
) -> None:
    workers += [Worker(redis_server.url, lease_for=30.0, takes=0.0) for _ in range(2)]
    for worker in workers:
        worker.expect("ready")
    redis_server.kill()
    for worker in workers:
        worker.go()
    assert [worker.result() for worker in workers] == [[1, ["value"], 50]] * 2


@pytest.fixture(params=["one", "cluster"])
async def both(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Cache, Cache]]:
    """Two caches that know of each other through Redis only."""
    clustered = request.param == "cluster"
    server: RedisServer | RedisCluster = request.getfixturevalue(
        "redis_cluster" if clustered else "redis_server"
    )

    def new() -> Cache:
        store = RedisStore(server.url, codec=Codec(str), cluster=clustered)
        return Cache(second=SecondTier(store, backplane=RedisBackplane(store), budget=0.5))

    caches = new(), new()
    for cache in caches:
        await cache.remove("warm")
    await asyncio.sleep(0.1)
    yield caches
    for cache in caches:
        await cache.close()


async def has_become(cache: Cache, key: object, expected: object) -> None:
    end = time.monotonic() + 5.0
    while (found := await cache.get(key)) != expected:
        assert time.monotonic() < end, f"{found!r} is not {expected!r}"
        await asyncio.sleep(0.005)


async def test_what_one_cache_removes_leaves_the_memory_of_the_other(both: tuple[Cache, Cache]) -> None:
    here, there = both
    key = ("profile", 7)

    async def load() -> str:
        return "old"

    await here.get_or_load(key, load, PLAIN)
    await asyncio.sleep(0.1)
    found = await there.lookup(key, load, PLAIN)
    assert found.source == "second"
    await here.remove(key)
    await has_become(there, key, None)

    async def load_new() -> str:
        return "new"

    assert await there.get_or_load(key, load_new, PLAIN) == "new"
    assert there.stats.loads == 1


async def test_what_one_cache_sets_the_other_reads(both: tuple[Cache, Cache]) -> None:
    here, there = both

    async def load() -> str:
        return "old"

    await here.get_or_load("k", load, PLAIN)
    await asyncio.sleep(0.1)
    await there.get_or_load("k", load, PLAIN)
    await here.set("k", "set", PLAIN)
    await has_become(there, "k", None)
    assert (await there.lookup("k", load, PLAIN)).value == "set"


FORKED = """
import asyncio, os, sys
from fairlead.cache import Cache, Codec, Freshness, SecondTier
from fairlead.cache.redis import RedisBackplane, RedisStore

store = RedisStore(sys.argv[1], codec=Codec(str))
tier = SecondTier(store, backplane=RedisBackplane(store), budget=1.0)
cache = Cache(second=tier)
F = Freshness(ttl=60.0)

async def load():
    return "loaded"

async def ask(who, times):
    for n in range(times):
        cache._store.clear()
        for key in range(20):
            found = await cache.get_or_load(f"k{key}", load, F)
            assert found in ("loaded", f"v{key}"), (who, key, found)
    assert tier.stats.hits > 1_000, (who, tier.stats)  # of 4,000: a busy machine may spend a budget

async def parent():
    for key in range(20):
        await cache.set(f"k{key}", f"v{key}", F)
    while tier.stats.writes < 20:
        await asyncio.sleep(0.01)
    pid = os.fork()
    if pid == 0:  # as multiprocessing does: a loop of its own, and never back into the parent's
        asyncio.run(child())
        os._exit(0)
    await ask("parent", 200)
    _, status = os.waitpid(pid, 0)
    await cache.close()
    print(os.waitstatus_to_exitcode(status))

async def child():
    await ask("child", 200)
    await cache.close()

asyncio.run(parent())
"""


def test_a_fork_and_its_parent_do_not_read_each_others_replies(redis_server: RedisServer) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKED, redis_server.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
