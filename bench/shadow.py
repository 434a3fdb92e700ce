"""What a mirror costs the caller, and what the caller feels of a candidate that hangs.

simulated: the service's work is a sleep (`shadow_service.py`). Real: HTTP, the processes, the load engine, the stop.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import numpy as np
import uvloop

from bench.harness import Bar, Timing, interleave_async
from fairlead.errors import RunInvalid
from fairlead.lab import Ending, Schedule, Service, Topology, Zipf, drive
from fairlead.shadow import Answer, FieldDiff, Mirror, RawJson

__all__ = ["bars"]

_RATE = 200.0
_WARM_UP = 1.0
_TRIES = 4
_ARMS = ("none", "healthy", "hung")


async def _p99(arm: str, seconds: float, seed: int) -> float:
    for _ in range(_TRIES - 1):
        try:
            return await _p99_once(arm, seconds, seed)
        except RunInvalid as error:
            print(f"{arm}, seed {seed}: {error}; again", file=sys.stderr, flush=True)
    return await _p99_once(arm, seconds, seed)


async def _p99_once(arm: str, seconds: float, seed: int) -> float:
    schedule = Schedule.poisson(
        rate=_RATE,
        duration=_WARM_UP + seconds,
        popularity=Zipf(10),
        users=10,
        rng=np.random.default_rng(seed),
    )
    module = [sys.executable, "-m", "bench.shadow_service"]
    told = "none" if arm == "none" else "mirror"
    services = [
        Service(name="candidate", argv=[*module, "candidate", "{fd}"]),
        Service(name="service", argv=[*module, "service", "{fd}", "{candidate.url}", told]),
    ]
    with tempfile.TemporaryDirectory() as directory:
        async with Topology(services, log_directory=Path(directory)) as topology:
            if arm == "hung":
                os.kill(topology["candidate"].pid, signal.SIGSTOP)
            try:
                samples = await topology.during(
                    drive(schedule, lambda row: "/feed", base_url=topology["service"].url, timeout=2.0)
                )
            finally:
                if arm == "hung":
                    os.kill(topology["candidate"].pid, signal.SIGCONT)
    samples.validity().require()
    counted = samples.offset >= _WARM_UP
    if failed := int(np.count_nonzero(counted & (samples.ending != Ending.OK))):
        raise RunInvalid(f"{failed} requests failed")
    return float(np.quantile(samples.latency[counted], 0.99, method="inverted_cdf"))


async def _felt(quick: bool) -> list[Bar]:
    seconds, rounds = (5.0, 3) if quick else (15.0, 7)
    p99: dict[str, list[float]] = {arm: [] for arm in _ARMS}
    order = random.Random(1)
    for seed in range(1, rounds + 1):
        for arm in order.sample(_ARMS, len(_ARMS)):
            p99[arm].append(await _p99(arm, seconds, seed))
    figures = {f"{arm}_p99_seconds": statistics.median(values) for arm, values in p99.items()}
    found = []
    for arm, what, limit in (
        ("hung", "p99 of a service whose candidate hangs, against one that mirrors nothing", 1.1),
        ("healthy", "p99 of a service that mirrors all its requests to another process, likewise", 1.5),
    ):
        each = [ours / bare for ours, bare in zip(p99[arm], p99["none"], strict=True)]
        low, middle, high = statistics.quantiles(each, n=4, method="inclusive")
        found.append(
            Bar(
                what=what,
                value=middle,
                limit=limit,
                unit="×",
                n=int(rounds * seconds * _RATE),
                spread=(low, high),
                note=f"at {_RATE:g}/s: {figures[f'{arm}_p99_seconds'] * 1e3:.2f} ms "
                f"beside {figures['none_p99_seconds'] * 1e3:.2f} ms",
                figures=figures,
            )
        )
    return found


async def _suspends(x: int) -> dict[str, int]:
    await asyncio.sleep(0)
    return {"sum": x}


async def _hangs(x: int) -> None:
    await asyncio.get_running_loop().create_future()


def _calls(
    mirror: Mirror | None, candidate: Callable[[int], Awaitable[object]]
) -> Callable[[int], Awaitable[None]]:
    async def run(times: int) -> None:
        if mirror is None:
            for x in range(times):
                await _suspends(x)
        else:
            for x in range(times):
                await mirror.call(_suspends, candidate, x)

    return run


def _over(timings: dict[str, Timing], name: str) -> float:
    return statistics.median(
        ours - bare for ours, bare in zip(timings[name].rounds, timings["bare"].rounds, strict=True)
    )


async def _offered(rounds: int) -> float:
    """Seconds that `offer` itself takes, with nobody in the way: the work after it is not the caller's."""
    mirror = Mirror("offered", noise_share=0.0, concurrency=1)
    taken = []
    for _ in range(rounds * 100):
        entered = time.perf_counter()
        mirror.enters()
        from_there = time.perf_counter() - entered
        answer, ask = Answer(value=1, seconds=0.0), _none
        began = time.perf_counter()
        mirror.offer(answer, ask)
        taken.append(time.perf_counter() - began + from_there)
        while mirror.in_flight:  # noqa: ASYNC110 - the next offer needs the place
            await asyncio.sleep(0)
    return statistics.median(taken)


async def _none() -> int:
    return 1


def _costs(quick: bool) -> list[Bar]:
    rounds = 7 if quick else 25
    full = Mirror("full", timeout=60.0, concurrency=1)
    timings = interleave_async(
        {
            "bare": _calls(None, _suspends),
            "switched off": _calls(Mirror("off", share=0.0), _suspends),
            "not chosen": _calls(Mirror("none", share=1e-9), _suspends),
            "candidate hangs": _calls(full, _hangs),
            "mirrored, with all that follows": _calls(
                Mirror("all", noise_share=0.0, concurrency=10_000, start_within=60.0), _suspends
            ),
        },
        n=500 if quick else 2_000,
        rounds=rounds,
    )
    offered = asyncio.run(_offered(rounds))
    each = {name: _over(timings, name) * 1e6 for name in timings if name != "bare"}
    item = {"id": 1, "score": 0.5, "title": "t", "tags": ["a", "b"]}
    ours, other = ({"items": [{**item, "score": score} for _ in range(50)]} for score in (0.5, 0.6))
    pair = RawJson(msgspec.json.encode(ours)), RawJson(msgspec.json.encode(other))
    began = time.perf_counter()
    for _ in range(50):
        FieldDiff().differences(*pair)
    diff = (time.perf_counter() - began) / 50
    return [
        Bar(
            what="what a caller waits for its call to be mirrored: enter, offer",
            value=offered * 1e6,
            limit=20.0,
            unit="µs",
            n=rounds * 100,
            note="over a bare await: "
            + ", ".join(f"{name} {value:.1f} µs" for name, value in each.items())
            + f"; a diff of 50 items that all differ {diff * 1e3:.2f} ms, in pauses",
            figures={f"{name.replace(' ', '_')}_microseconds": value for name, value in each.items()},
        ),
        Bar(
            what="what a call that is not chosen pays for the mirror",
            value=each["not chosen"],
            limit=3.0,
            unit="µs",
            n=rounds,
        ),
    ]


def bars(quick: bool) -> list[Bar]:
    return [*_costs(quick), *uvloop.run(_felt(quick))]
