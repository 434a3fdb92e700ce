"""Hot keys: what memory keeps under scans, what finding and spreading them costs, and how evenly requests are routed.

Everything but the times is a count over seeded streams and comes out the same on every machine; only theine draws
by chance, and moves by some tenths of a percent.
"""

from __future__ import annotations

import bisect
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence

import cachebox
import numpy as np
import theine
import xxhash

from bench.harness import Bar, interleave, interleave_async, ratio
from fairlead.cache import Cache, Entry, Freshness, HotKeys, MemoryStore, Rendezvous
from fairlead.lab import Zipf

__all__ = ["bars"]

_FOREVER = Freshness(ttl=86_400.0)
_NODES = 10


def bars(quick: bool) -> list[Bar]:
    rounds = 5 if quick else 15
    return [
        *_hit_ratios(requests=50_000 if quick else 300_000),
        _hit_cost(rounds=rounds),
        _sketch_cost(rounds=rounds),
        *_hot_shard(requests=100_000 if quick else 1_000_000),
        *_routing(users=20_000 if quick else 100_000),
    ]


# What memory keeps


def _zipf(count: int, *, keys: int, alpha: float, seed: int) -> list[int]:
    return [int(key) for key in Zipf(keys, alpha).sample(count, np.random.default_rng(seed))]


def _with_scans(keys: Sequence[int], *, every: int, length: int) -> Iterator[int]:
    """`keys`, and after each `every` of them a scan over `length` keys that nobody asks for again."""
    fresh = 10**9
    for start in range(0, len(keys), every):
        yield from keys[start : start + every]
        yield from range(fresh, fresh + length)
        fresh += length


def _ours(admission: str, size: int) -> Callable[[int], bool]:
    store = MemoryStore(size, admission=admission)  # type: ignore[arg-type]  # one of its two words
    entry = Entry.keep(None, _FOREVER, began_at=0.0, now=0.0, draw=0.0)

    def asked(key: int) -> bool:
        if key in store.entries:
            store.touch(key)
            return True
        store.put(key, entry)
        return False

    return asked


def _theine(size: int) -> Callable[[int], bool]:
    store: theine.Cache[int, int] = theine.Cache(size, nolock=True)

    def asked(key: int) -> bool:
        _, found = store.get(key)
        if not found:
            store.set(key, 1)
        return bool(found)

    return asked


def _cachebox(store: cachebox.LRUCache[int, int] | cachebox.LFUCache[int, int]) -> Callable[[int], bool]:
    def asked(key: int) -> bool:
        found = store.get(key) is not None
        if not found:
            store[key] = 1
        return found

    return asked


def _hit_ratios(*, requests: int) -> list[Bar]:
    size = 1_000
    measured: list[Bar] = []
    for shown, scans in (("Zipf 0.9", False), ("Zipf 0.9 with scans", True)):
        keys = _zipf(requests, keys=100_000, alpha=0.9, seed=1)
        stream = list(_with_scans(keys, every=5_000, length=2_000)) if scans else keys
        arms = {
            "LRU": _ours("always", size),
            "tiny_lfu": _ours("tiny_lfu", size),
            "theine": _theine(size),
            "cachebox LRU": _cachebox(cachebox.LRUCache(size)),
            "cachebox LFU": _cachebox(cachebox.LFUCache(size)),
        }
        hits = {name: sum(map(asked, stream)) / len(stream) for name, asked in arms.items()}
        told = ", ".join(f"{name} {share:.1%}" for name, share in hits.items())
        figures = {f"hit_ratio_{name.replace(' ', '_')}": share for name, share in hits.items()}
        measured.append(
            Bar(
                what=f"hit ratio of tiny_lfu against LRU, {shown}, 1 % of the keys fit",
                value=hits["tiny_lfu"] / hits["LRU"],
                limit=1.1,
                at_most=False,
                unit="×",
                n=len(stream),
                figures=figures,
                note=told,
            )
        )
        measured.append(
            Bar(
                what=f"hit ratio of tiny_lfu against theine's, {shown}",
                value=hits["tiny_lfu"] / hits["theine"],
                limit=0.98,
                at_most=False,
                unit="×",
                n=len(stream),
            )
        )
    return measured


# What it costs


async def _origin() -> int:
    return 1


def _hit_cost(*, rounds: int) -> Bar:
    rng = random.Random(1)
    keys = [f"video:{rng.randrange(1_000)}" for _ in range(5_000)]

    def arm(admission: str) -> Callable[[int], Awaitable[object]]:
        load = Cache(MemoryStore(10_000, admission=admission)).get_or_load  # type: ignore[arg-type]  # one of its two words

        async def run(n: int) -> None:
            for _ in range(n // len(keys)):
                for key in keys:
                    await load(key, _origin, _FOREVER)

        return run

    timings = interleave_async(
        {each: arm(each) for each in ("always", "tiny_lfu")}, n=4 * len(keys), rounds=rounds
    )
    value, spread = ratio(timings["tiny_lfu"], timings["always"])
    return Bar(
        what="L1 hit with tiny_lfu against LRU",
        value=value,
        limit=1.05,
        unit="×",
        n=rounds,
        spread=spread,
        figures={f"{name}_ns": timing.median * 1e9 for name, timing in timings.items()},
    )


def _sketch_cost(*, rounds: int) -> Bar:
    keys = _zipf(20_000, keys=100_000, alpha=0.9, seed=2)

    def sketch(n: int) -> None:
        add = HotKeys(capacity=256).add
        for key in keys[:n]:
            add(key)

    def counted(n: int) -> None:
        counts: dict[Hashable, int] = {}
        for key in keys[:n]:
            counts[key] = counts.get(key, 0) + 1

    timings = interleave({"sketch": sketch, "dict": counted}, n=len(keys), rounds=rounds)
    value, spread = timings["sketch"].median * 1e6, timings["sketch"].spread
    times, _ = ratio(timings["sketch"], timings["dict"])
    return Bar(
        what="HotKeys.add, 256 counters, Zipf 0.9 over 100,000 keys",
        value=value,
        limit=1.0,
        unit="µs",
        n=rounds,
        spread=(spread[0] * 1e6, spread[1] * 1e6),
        figures={f"{name}_ns": timing.median * 1e9 for name, timing in timings.items()},
        note=f"{times:.1f}× a dict of all keys, whose memory has no bound",
    )


# One hot key


def _hot_shard(*, requests: int) -> list[Bar]:
    """One key takes a part of the traffic over ten nodes, the rest is even: load of the busiest over the mean."""
    nodes = Rendezvous([f"node-{index}" for index in range(_NODES)])
    measured = []
    for share in (0.05, 0.2, 0.5):
        rng = random.Random(3)
        cold = [nodes.node(("video", key)) for key in range(20_000)]
        found: dict[int, float] = {}
        for copies in (1, 3, 10):
            choices = nodes.nodes(("video", "hot"), copies)
            load: Counter[str] = Counter()
            for _ in range(requests):
                load[rng.choice(choices) if rng.random() < share else rng.choice(cold)] += 1
            found[copies] = max(load.values()) * _NODES / requests
        measured.append(
            Bar(
                what=f"busiest of 10 nodes over the mean, one key takes {share:.0%}, on 10 copies",
                value=found[10],
                limit=1.1,
                unit="×",
                n=requests,
                figures={f"max_over_mean_{copies}_copies": value for copies, value in found.items()},
                note=", ".join(
                    f"{copies} {'copy' if copies == 1 else 'copies'} {value:.2f} ×"
                    for copies, value in found.items()
                ),
            )
        )
    return measured


# Which pod a user's requests meet

_Router = Callable[[Sequence[str]], Callable[[str], str]]


def _ring(virtual: int) -> _Router:
    def made(pods: Sequence[str]) -> Callable[[str], str]:
        points = sorted(
            (xxhash.xxh3_64_intdigest(f"{pod}#{index}".encode()), pod)
            for pod in pods
            for index in range(virtual)
        )
        places = [place for place, _ in points]

        def route(user: str) -> str:
            at = bisect.bisect(places, xxhash.xxh3_64_intdigest(user.encode()))
            return points[at % len(points)][1]

        return route

    return made


def _jump(pods: Sequence[str]) -> Callable[[str], str]:
    """Jump consistent hash (Lamping and Veach 2014): even, but only the last pod can leave."""

    def route(user: str) -> str:
        key = xxhash.xxh3_64_intdigest(user.encode())
        at, following = -1, 0
        while following < len(pods):
            at = following
            key = (key * 2862933555777941757 + 1) & (2**64 - 1)
            following = int((at + 1) * (2**31 / ((key >> 33) + 1)))
        return pods[at]

    return route


def _modulo(pods: Sequence[str]) -> Callable[[str], str]:
    return lambda user: pods[xxhash.xxh3_64_intdigest(user.encode()) % len(pods)]


def _routing(*, users: int) -> list[Bar]:
    pods = [f"feed-{index}" for index in range(_NODES)]
    names = [f"user:{index}" for index in range(users)]
    asked = _zipf(5 * users, keys=users, alpha=1.0, seed=4)
    routers: dict[str, _Router] = {
        "modulo": _modulo,
        "ring, 1 point": _ring(1),
        "ring, 100 points": _ring(100),
        "ring, 1000 points": _ring(1_000),
        "jump": _jump,
        "rendezvous": lambda pods: Rendezvous(pods).node,
    }
    even, skewed, left, came = {}, {}, {}, {}
    for name, router in routers.items():
        route, without, beside = router(pods), router(pods[:3] + pods[4:]), router([*pods, "feed-10"])
        before = [route(user) for user in names]
        even[name] = _over_mean(Counter(before))
        skewed[name] = _over_mean(Counter(before[user] for user in asked))
        left[name] = sum(was != without(user) for was, user in zip(before, names, strict=True)) / users
        came[name] = sum(was != beside(user) for was, user in zip(before, names, strict=True)) / users

    def told(found: dict[str, float], unit: str) -> str:
        return ", ".join(
            f"{name} {value:.1%}" if unit == "%" else f"{name} {value:.2f} ×" for name, value in found.items()
        )

    def bar(what: str, found: dict[str, float], limit: float, unit: str) -> Bar:
        scale = 100.0 if unit == "%" else 1.0
        return Bar(
            what=what,
            value=scale * found["rendezvous"],
            limit=limit,
            unit=unit,
            n=users,
            figures={name.replace(" ", "_").replace(",", ""): value for name, value in found.items()},
            note=told(found, unit),
        )

    return [
        bar("busiest of 10 pods over the mean, every user alike", even, 1.05, "×"),
        bar("busiest of 10 pods over the mean, users by Zipf 1.0", skewed, 1.8, "×"),
        bar("users that move when the 4th of 10 pods leaves", left, 11.0, "%"),
        bar("users that move when an 11th pod comes", came, 10.0, "%"),
    ]


def _over_mean(load: Counter[str]) -> float:
    return max(load.values()) * _NODES / sum(load.values())
