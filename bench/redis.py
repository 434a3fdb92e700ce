"""The shared tier: what a hit costs beside its peers, what a dead Redis costs, and herds across processes.

A real redis-server on this machine, so the network is the loopback's and shares the processors with the clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiocache
import aiocache.serializers
import cashews
import coredis
import msgspec
import redis.asyncio

from bench.harness import Bar, interleave_here, ratio
from fairlead.cache import Cache, Codec, Entry, Freshness, MemoryStore, SecondTier
from fairlead.cache.redis import RedisStore
from fairlead.testing import RedisServer

__all__ = ["bars"]

_TASKS = 64
_BUDGET = 0.03
_FOR_LONG = Freshness(ttl=3600.0, jitter=0.0)
_FETCH = 0.02  # seconds, of the herd's origin


class Profile(msgspec.Struct, frozen=True):
    name: str
    follows: int
    lists: tuple[str, ...]


_PROFILE = Profile("Ada", 1815, ("engines", "numbers"))


def bars(quick: bool) -> list[Bar]:
    with RedisServer() as server:
        return [
            *_hit(server, rounds=5 if quick else 15, each=20 if quick else 100),
            *asyncio.run(_hung(server, times=3 if quick else 10)),
            *_stampede(server, times=1 if quick else 5),
            *asyncio.run(_herd_law(server, expiries=10 if quick else 60)),
        ]


# What a hit costs


def _new_tier(server: RedisServer) -> SecondTier:
    return SecondTier(RedisStore(server.url, codec=Codec(Profile)), budget=_BUDGET)


def _hit(server: RedisServer, *, rounds: int, each: int) -> list[Bar]:
    timings: dict[str, Any] = {}

    async def run(stack: contextlib.AsyncExitStack) -> None:
        keys = [f"profile:{n}" for n in range(_TASKS)]
        # This measures cost: another program's busy moment must not open the breaker.
        tier = SecondTier(RedisStore(server.url, codec=Codec(Profile)), budget=1.0)
        in_front = Cache(MemoryStore(10 * _TASKS), second=tier)
        await tier.get("warm")
        now = time.monotonic()
        for key in keys:
            tier.put(key, Entry.keep(_PROFILE, _FOR_LONG, began_at=now, now=now, draw=0.0))
        plain = redis.asyncio.Redis.from_url(server.url)
        other = await stack.enter_async_context(coredis.Redis(port=server.port))
        beside = cashews.Cache()
        beside.setup(server.url, client_side=False)
        third = aiocache.RedisCache(
            endpoint="127.0.0.1", port=server.port, serializer=aiocache.serializers.PickleSerializer()
        )
        packed = msgspec.msgpack.encode(_PROFILE)
        for key in keys:
            await plain.set(f"plain:{key}", packed)
            await beside.set(f"cashews:{key}", _PROFILE, expire=3600)
            await third.set(f"aiocache:{key}", _PROFILE, ttl=3600)
        await asyncio.sleep(0.1)

        async def unused() -> Profile:
            raise AssertionError("every key is in the second tier")

        async def through_cache(key: str) -> object:
            in_front._store.entries.clear()
            return await in_front.get_or_load(key, unused, _FOR_LONG)

        arms: dict[str, Callable[[str], Awaitable[object]]] = {
            "tier": tier.get,
            "cache": through_cache,
            "redis-py": lambda key: plain.get(f"plain:{key}"),
            "coredis": lambda key: other.get(f"plain:{key}"),
            "cashews": lambda key: beside.get(f"cashews:{key}"),
            "aiocache": lambda key: third.get(f"aiocache:{key}"),
        }

        def tasks(ask: Callable[[str], Awaitable[object]]) -> Callable[[int], Awaitable[object]]:
            async def one(key: str, times: int) -> None:
                for _ in range(times):
                    assert await ask(key) is not None

            async def all_tasks(n: int) -> None:
                await asyncio.gather(*(one(key, n // _TASKS) for key in keys))

            return all_tasks

        measured = {name: tasks(ask) for name, ask in arms.items()}
        timings.update(await interleave_here(measured, n=_TASKS * each, rounds=rounds))
        await in_front.close()
        await plain.aclose()
        await beside.close()
        await third.close()

    async def run_and_close() -> None:
        async with contextlib.AsyncExitStack() as stack:
            await run(stack)

    asyncio.run(run_and_close())
    figures = {f"{name}_microseconds": timing.median * 1e6 for name, timing in timings.items()}

    def beside(what: str, peer: str, arm: str, limit: float, note: str) -> Bar:
        value, spread = ratio(timings[peer], timings[arm])
        return Bar(
            what=what,
            value=value,
            limit=limit,
            at_most=False,
            unit="×",
            n=rounds,
            spread=spread,
            note=note,
            figures=figures,
        )

    alone = timings["tier"].median * 1e6
    ours = (
        f"ours is get_or_load, {timings['cache'].median * 1e6:.1f} µs with the entry decoded and kept in memory, "
        f"of which the tier alone takes {alone:.1f}"
    )
    compared = "no bar: to compare"
    return [
        beside(
            "L2 hit, 64 tasks: redis-py GET per call against ours",
            "redis-py",
            "cache",
            5.0,
            f"{ours}; redis-py returns bytes, {timings['redis-py'].median * 1e6:.1f} µs",
        ),
        beside(
            "L2 hit, 64 tasks: cashews' get against ours",
            "cashews",
            "cache",
            8.0,
            f"cashews unpickles, {timings['cashews'].median * 1e6:.1f} µs",
        ),
        beside("L2 hit, 64 tasks: coredis GET against ours", "coredis", "cache", 1.0, compared),
        beside("L2 hit, 64 tasks: aiocache's get against ours", "aiocache", "cache", 1.0, compared),
        beside(
            "L2 hit, 64 tasks: redis-py GET per call against SecondTier.get",
            "redis-py",
            "tier",
            1.0,
            f"no bar: the tier alone, {alone:.1f} µs",
        ),
    ]


# What a dead Redis costs


async def _hung(server: RedisServer, *, times: int) -> list[Bar]:
    """SIGSTOP and SIGKILL: the first call, and the later ones until a probe succeeds."""
    first: dict[str, list[float]] = {"hung": [], "killed": []}
    later: dict[str, list[float]] = {"hung": [], "killed": []}
    for _ in range(times):
        for how in first:
            tier = _new_tier(server)
            cache = Cache(second=tier)
            await tier.get("warm")
            (server.pause if how == "hung" else server.kill)()
            calls = [await _beyond_loader(cache, ("key", n)) for n in range(201)]
            first[how].append(calls[0])
            later[how] += calls[1:]
            (server.resume if how == "hung" else server.restart)()
            await cache.close()
    bars = []
    for how in first:
        beyond = sorted(later[how])
        p99 = beyond[int(0.99 * len(beyond))]
        figures = {
            "first_max_milliseconds": max(first[how]) * 1e3,
            "later_p50_milliseconds": statistics.median(beyond) * 1e3,
            "later_max_milliseconds": beyond[-1] * 1e3,
        }
        bars += [
            Bar(
                what=f"Redis {how}: first call beyond its loader, median",
                value=statistics.median(first[how]) * 1e3,
                limit=(_BUDGET + 0.005) * 1e3,
                unit="ms",
                n=times,
                note=f"budget {_BUDGET * 1e3:g} ms; worst {max(first[how]) * 1e3:.1f} ms",
                figures=figures,
            ),
            Bar(
                what=f"Redis {how}: later calls beyond their loader, p99",
                value=p99 * 1e3,
                limit=1.0,
                unit="ms",
                n=len(beyond),
                note=f"median {statistics.median(beyond) * 1e3:.3f} ms, worst {beyond[-1] * 1e3:.2f} ms",
                figures=figures,
            ),
        ]
    return bars


async def _beyond_loader(cache: Cache, key: tuple[str, int]) -> float:
    """Seconds that a call took without those that its loader took."""
    loading = 0.0

    async def load() -> Profile:
        nonlocal loading
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        loading = time.perf_counter() - began
        return _PROFILE

    began = time.perf_counter()
    await cache.get_or_load(key, load, _FOR_LONG)
    return time.perf_counter() - began - loading


# Herds


def _stampede(server: RedisServer, *, times: int) -> list[Bar]:
    """Four processes, 50 callers each, one key: loads in all."""
    loads: dict[float, list[int]] = {5.0: [], 0.0: []}
    for _ in range(times):
        for lease_for, counted in loads.items():
            server.command("FLUSHALL")
            counted.append(_loads_of_four(server.url, lease_for))
    return [
        Bar(
            what="4 processes × 50 concurrent callers, with the lease: loads in all",
            value=max(loads[5.0]),
            limit=1.0,
            unit="loads",
            n=times,
        ),
        Bar(
            what="4 processes × 50 concurrent callers, without it: loads in all",
            value=max(loads[0.0]),
            limit=4.0,
            unit="loads",
            n=times,
        ),
    ]


def _loads_of_four(url: str, lease_for: float) -> int:
    words = [sys.executable, "-m", "bench.redis", url, str(lease_for)]
    workers = [
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        return sum(json.loads(worker.communicate(timeout=30)[0]) for worker in workers)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()


async def _one_of_four(url: str, lease_for: float) -> None:
    tier = SecondTier(RedisStore(url, codec=Codec(Profile)), lease_for=lease_for, budget=1.0)
    cache = Cache(second=tier)
    await tier.get("warm")

    async def load() -> Profile:
        await asyncio.sleep(0.2)
        return _PROFILE

    print("ready", flush=True)
    sys.stdin.readline()
    await asyncio.gather(*(cache.get_or_load("hot", load, _FOR_LONG) for _ in range(50)))
    print(cache.stats.loads, flush=True)
    await cache.close()


async def _herd_law(server: RedisServer, *, expiries: int) -> list[Bar]:
    """Fetches per expiry of a key asked for λ times a second whose fetch takes L: 1 + λL without coalescing."""
    found = []
    for offered in (0.5, 2.0, 8.0, 32.0):
        plain = await _fetches_per_expiry(server, offered, expiries, coalesced=False)
        ours = await _fetches_per_expiry(server, offered, expiries, coalesced=True)
        law = 1.0 + offered
        found.append(
            Bar(
                what=f"fetches per expiry at λL = {offered:g}, real Redis, with Cache",
                value=ours,
                limit=1.0,
                unit="fetches",
                n=expiries,
                note=f"get, fetch, set by hand: {plain:.2f}; law 1 + λL: {law:g}; saved: {1 - ours / plain:.1%}, "
                f"law 1 − 1/(1 + λL): {1 - 1 / law:.1%}",
                figures={"by_hand": plain, "law_1_plus_lambda_l": law},
            )
        )
    return found


async def _fetches_per_expiry(
    server: RedisServer, offered: float, expiries: int, *, coalesced: bool
) -> float:
    """Poisson arrivals on real time; the key expires once all that came for it are answered."""
    rng = random.Random(int(offered * 10))
    fetches = 0
    client = redis.asyncio.Redis.from_url(server.url)
    tier = _new_tier(server)
    cache = Cache(second=tier)
    await tier.get("warm")
    await client.ping()

    async def fetch() -> Profile:
        nonlocal fetches
        fetches += 1
        await asyncio.sleep(_FETCH)
        return _PROFILE

    async def by_hand(key: str) -> None:
        if await client.get(key) is None:
            await client.set(key, msgspec.msgpack.encode(await fetch()), ex=60)

    async def ask(key: str) -> None:
        await (cache.get_or_load(key, fetch, _FOR_LONG) if coalesced else by_hand(key))

    for number in range(expiries):
        key = f"herd:{offered}:{coalesced}:{number}"  # a key that nobody has is one that has just expired
        asking = [asyncio.create_task(ask(key))]
        at, end = time.perf_counter(), time.perf_counter() + 1.5 * _FETCH
        while (at := at + rng.expovariate(offered / _FETCH)) < end:
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            asking.append(asyncio.create_task(ask(key)))
        await asyncio.gather(*asking)
    await cache.close()
    await client.aclose()
    return fetches / expiries


if __name__ == "__main__":
    asyncio.run(_one_of_four(sys.argv[1], float(sys.argv[2])))
