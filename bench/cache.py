"""The cache: what a hit costs beside its peers, and how many fetches a herd makes with and without coalescing."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import aiocache
import async_lru
import cachebox
import cashews
import theine

from bench.__main__ import machine
from bench.cache_hit import hit
from bench.harness import Bar
from bench.trace import Replayed, Request, drawn, has_times, read, replay
from fairlead.cache import Cache, Freshness
from fairlead.calls.bounds import check_whole
from fairlead.clock import ManualClock, settle
from fairlead.errors import InvalidInput

__all__ = ["bars"]

_FOR_LONG = Freshness(ttl=86_400.0)


def bars(quick: bool) -> list[Bar]:
    return [
        *hit(rounds=5 if quick else 15, quick=quick),
        _thousand_misses(),
        _cancelled_leader(),
        *_herd_law(expiries=20 if quick else 200),
    ]


# Herds


def _thousand_misses() -> Bar:
    """Loads that 1,000 callers of one missing key cause, here and in those peers that load for their callers."""

    async def loads(
        decorate: Callable[..., Any],
    ) -> int:
        started = 0

        async def slow(key: str) -> int:
            nonlocal started
            started += 1
            await asyncio.sleep(0.02)
            return 1

        ask = decorate(slow)
        await asyncio.gather(*(ask("video:1") for _ in range(1_000)))
        return started

    async def each() -> dict[str, int]:
        cashews_cache = cashews.Cache()
        cashews_cache.setup("mem://", size=10)
        return {
            "fairlead": await loads(Cache().cached(key=str, freshness=_FOR_LONG)),
            "async-lru": await loads(async_lru.alru_cache(maxsize=10, ttl=86_400.0)),
            "cashews": await loads(cashews_cache(ttl="24h", key="{key}")),
            "cashews with lock=True": await loads(cashews_cache(ttl="24h", key="locked:{key}", lock=True)),
            "cashews with protected=False": await loads(
                cashews_cache(ttl="24h", key="unprotected:{key}", protected=False)
            ),
            "aiocache": await loads(aiocache.cached(ttl=86_400)),
            "aiocache cached_stampede": await loads(aiocache.cached_stampede(ttl=86_400)),
            "theine": await loads(_memoized),
            "cachebox": await loads(cachebox.cached(cachebox.TTLCache(10, global_ttl=86_400.0))),
        }

    counted = asyncio.run(each())
    return Bar(
        what="loads for 1,000 concurrent misses of one key",
        value=counted["fairlead"],
        limit=1,
        n=1_000,
        unit="loads",
        note=", ".join(f"{name}: {count:,}" for name, count in counted.items() if name != "fairlead"),
        figures={f"{name}_loads": float(count) for name, count in counted.items()},
    )


def _memoized(load: Callable[[str], Awaitable[int]]) -> Callable[[str], Awaitable[int]]:
    memoized = theine.Memoize(10, timedelta(days=1))(load)
    memoized.key(lambda key: key)
    return cast(Callable[[str], Awaitable[int]], memoized)


def _cancelled_leader() -> Bar:
    """How many of 99 callers that wait for a load fail when the hundredth, who started it, is cancelled."""

    async def slow(key: str) -> int:
        await asyncio.sleep(0.02)
        return 1

    async def failed(ask: Callable[[str], Awaitable[object]]) -> int:
        async def caller() -> object:
            return await ask("video:1")

        leader = asyncio.create_task(caller())
        await settle(3)
        others = [asyncio.create_task(caller()) for _ in range(99)]
        await settle(3)
        leader.cancel()
        answers = await asyncio.gather(*others, return_exceptions=True)
        return sum(isinstance(answer, BaseException) for answer in answers)

    async def each() -> dict[str, int]:
        cache = Cache()
        tasks: dict[str, asyncio.Task[int]] = {}

        async def shared_task(key: str) -> int:
            if key not in tasks:
                tasks[key] = asyncio.create_task(slow(key))
            return await tasks[key]

        cashews_cache = cashews.Cache()
        cashews_cache.setup("mem://", size=10)
        return {
            "fairlead": await failed(lambda key: cache.get_or_load(key, lambda: slow(key), _FOR_LONG)),
            "one task that all callers await": await failed(shared_task),
            "async-lru": await failed(async_lru.alru_cache(maxsize=10)(slow)),
            "cashews": await failed(cashews_cache(ttl="24h", key="{key}")(slow)),
            "aiocache cached_stampede": await failed(aiocache.cached_stampede(ttl=86_400)(slow)),
            "cachebox": await failed(cachebox.cached(cachebox.TTLCache(10, global_ttl=86_400.0))(slow)),
            "theine": await failed(_memoized(slow)),
        }

    failures = asyncio.run(each())
    return Bar(
        what="callers of 99 that fail with the one who started the load",
        value=failures["fairlead"],
        limit=0,
        n=99,
        unit="callers",
        note=", ".join(f"{name}: {count}" for name, count in failures.items() if name != "fairlead"),
        figures={f"{name}_failed": float(count) for name, count in failures.items()},
    )


def _herd_law(*, expiries: int) -> list[Bar]:
    """Fetches per expiry of a key asked for `rate` times a second whose fetch takes `seconds`, beside 1 + rate·seconds.

    On virtual time: Poisson arrivals, one expiry after another. Without coalescing, every request that comes while the
    first fetch runs starts its own.
    """
    measured = []
    for offered in (0.5, 2.0, 8.0, 32.0):
        plain = asyncio.run(_fetches_per_expiry(offered, expiries, coalesced=False))
        ours = asyncio.run(_fetches_per_expiry(offered, expiries, coalesced=True))
        law = 1.0 + offered
        measured.append(
            Bar(
                what=f"fetches per expiry, coalesced, λL = {offered:g}",
                value=ours,
                limit=1.0,
                unit="fetches",
                n=expiries,
                note=f"uncoalesced: {plain:.2f}, law 1 + λL: {law:g}; saved: {1 - ours / plain:.1%}, "
                f"law 1 − 1/(1 + λL): {1 - 1 / law:.1%}",
                figures={"uncoalesced": plain, "law_1_plus_lambda_l": law},
            )
        )
    return measured


async def _fetches_per_expiry(offered: float, expiries: int, *, coalesced: bool) -> float:
    clock = ManualClock()
    rng = random.Random(4)
    ttl, seconds = 60.0, 1.0
    freshness = Freshness(ttl=ttl, jitter=0.0)
    cache = Cache(clock=clock)
    stored_until = 0.0
    fetches = 0

    async def fetch() -> int:
        nonlocal fetches
        fetches += 1
        await clock.sleep(seconds)
        return 1

    async def without_coalescing() -> None:
        nonlocal stored_until
        if clock.now() >= stored_until:
            await fetch()
            stored_until = clock.now() + ttl

    async def ask() -> None:
        if coalesced:
            await cache.get_or_load("video:1", fetch, freshness)
        else:
            await without_coalescing()

    for _ in range(expiries):
        # The first request after the expiry, then those that come while its fetch runs.
        asking = [asyncio.create_task(ask())]
        await settle(3)
        left = seconds
        while (gap := rng.expovariate(offered / seconds)) < left:
            left -= gap
            clock.advance(gap)
            asking.append(asyncio.create_task(ask()))
            await settle(3)
        await clock.run_for(left + seconds)
        await asyncio.gather(*asking)
        clock.advance(2 * ttl)
    return fetches / expiries


# Traces


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.cache", description="Replays a trace through caches of equal size."
    )
    parser.add_argument("--trace", type=Path, metavar="FILE", help="ARC .lis or CSV time,key,size, also .gz")
    parser.add_argument(
        "--entries", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="sizes to try"
    )
    parser.add_argument(
        "--ttl", type=float, help="seconds on the trace's clock after which an answer is too old"
    )
    parser.add_argument(
        "--requests", type=int, help="of a drawn trace (1,000,000), or the first of a file (all)"
    )
    parser.add_argument("--keys", type=int, default=1_000_000, help="of a drawn trace")
    parser.add_argument("--alpha", type=float, default=0.9, help="Zipf exponent of a drawn trace")
    parser.add_argument("--rate", type=float, default=1_000.0, help="requests a second of a drawn trace")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures; - for stdout")
    chosen = parser.parse_args(arguments)
    try:
        requests, what = _requests(chosen)
        replayed = replay(requests, chosen.entries, ttl=chosen.ttl, seed=chosen.seed)
    except InvalidInput as error:
        print(error, file=sys.stderr)
        return 2
    return _report(replayed, what, chosen.ttl, chosen.json)


def _requests(chosen: argparse.Namespace) -> tuple[Iterator[Request], str]:
    """What is replayed, and how the report calls it."""
    if chosen.trace is None:
        count = 1_000_000 if chosen.requests is None else chosen.requests
        stream = drawn(count, keys=chosen.keys, alpha=chosen.alpha, rate=chosen.rate, seed=chosen.seed)
        return stream, f"Zipf {chosen.alpha:g} over {chosen.keys:,} keys, seed {chosen.seed}"
    if chosen.ttl is not None and not has_times(chosen.trace):
        raise InvalidInput(f"--ttl {chosen.ttl:g} needs times, and an ARC trace ({chosen.trace}) has none")
    if chosen.requests is not None:
        check_whole("requests", chosen.requests, low=1, high=10**12)
    return itertools.islice(read(chosen.trace), chosen.requests), str(chosen.trace)


def _report(replayed: list[Replayed], what: str, ttl: float | None, into: Path | None) -> int:
    if not replayed or not replayed[0].requests:
        print(f"{what}: no requests", file=sys.stderr)
        return 2
    if into is not None:
        document = {
            "schema": "fairlead.trace/1",
            "trace": what,
            "machine": machine(),
            "ttl_seconds": ttl,
            "arms": [{**asdict(each), "hit_ratio": each.hit_ratio} for each in replayed],
        }
        text = json.dumps(document, indent=2)
        if str(into) == "-":
            print(text)
            return 0
        into.parent.mkdir(parents=True, exist_ok=True)
        into.write_text(text + "\n", encoding="utf-8")
    print(f"{what}: {replayed[0].requests:,} requests" + (f", ttl {ttl:g} s" if ttl is not None else ""))
    ours = {each.entries: each.seconds for each in replayed if each.name == "fairlead LRU"}
    print(f"{'entries':>9}  {'cache':<20} {'hit ratio':>9} {'µs/request':>11} {'× fairlead LRU':>15}")
    for each in replayed:
        print(
            f"{each.entries:>9,}  {each.name:<20} {each.hit_ratio:>9.2%} "
            f"{each.seconds / each.requests * 1e6:>11.2f} {each.seconds / ours[each.entries]:>15.2f}"
        )
    print("\n" + " · ".join(f"{name} {value}" for name, value in machine().items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
