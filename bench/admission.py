"""Goodput under overload with and without admission, what the middleware costs, what a token costs.

Goodput is answers per second that came within the callers' patience. Every run starts fresh processes, because without
admission a run of overload leaves the next one its backlog. Nobody tells the service a deadline: the harder case.

simulated: the dependency's work is a sleep (`overload_service.py`); the minutes of overload are on virtual time
(`overload_model.py`). Real: HTTP, the service, the load engine, the shedder.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from aiolimiter import AsyncLimiter
from starlette.middleware.base import BaseHTTPMiddleware

from bench.harness import Bar, Timing, interleave_async, ratio
from bench.overload_model import FAST, SLOW, Outcomes, overload
from bench.overload_service import CAPACITY, PATIENCE
from fairlead.admission import LoadShedder, RateLimit, RateLimiter
from fairlead.admission.asgi import AdmissionMiddleware
from fairlead.calls import Aimd, ConcurrencyLimit, Gradient
from fairlead.clock import ManualClock
from fairlead.context import Priority
from fairlead.errors import RunInvalid
from fairlead.lab import Ending, Samples, Schedule, Service, Topology, Zipf, drive

__all__ = ["bars"]

_PATHS = ("/background", "/normal", "/critical")
_MIX = (0.3, 0.5, 0.2)
_TRIES = 4
_WARM_UP = 1.0  # seconds from the start that are not counted: connections are opened, the limit is found

# Goodput


async def _run(arm: str, times: float, seconds: float, seed: int) -> tuple[float, list[float]]:
    """Goodput per second, and the share in time of each priority. A run whose load was late is thrown away whole."""
    for _ in range(_TRIES - 1):
        try:
            return await _run_once(arm, times, seconds, seed)
        except RunInvalid as error:
            print(f"{arm} at {times:g} x, seed {seed}: {error}; again", file=sys.stderr, flush=True)
    return await _run_once(arm, times, seconds, seed)


async def _run_once(arm: str, times: float, seconds: float, seed: int) -> tuple[float, list[float]]:
    rng = np.random.default_rng(seed)
    schedule = Schedule.poisson(
        rate=times * CAPACITY, duration=_WARM_UP + seconds, popularity=Zipf(10), users=10, rng=rng
    )
    priority = rng.choice(3, size=len(schedule), p=_MIX)
    module = [sys.executable, "-m", "bench.overload_service"]
    services = [
        Service(name="dependency", argv=[*module, "dependency", "{fd}"]),
        Service(
            name="service",
            argv=[*module, "service", "{fd}", "{dependency.url}", arm],
        ),
    ]
    with tempfile.TemporaryDirectory() as directory:
        async with Topology(services, log_directory=Path(directory)) as topology:
            samples: Samples = await topology.during(
                drive(
                    schedule,
                    lambda row: _PATHS[priority[row]],
                    base_url=topology["service"].url,
                    timeout=PATIENCE,
                    max_in_flight=10_000,
                )
            )
    samples.validity(max_lag_p99=0.05).require()
    counted = samples.offset >= _WARM_UP
    in_time = counted & (samples.ending == Ending.OK)
    shares = [
        float(np.count_nonzero(in_time & (priority == each)) / np.count_nonzero(counted & (priority == each)))
        for each in range(3)
    ]
    return float(np.count_nonzero(in_time)) / seconds, shares


async def _goodput(quick: bool) -> list[Bar]:
    loads = (1.0, 3.0) if quick else (0.5, 1.0, 2.0, 3.0)
    rounds, seconds = (1, 5.0) if quick else (3, 10.0)
    goodput: dict[tuple[str, float], list[float]] = {}
    critical: dict[str, list[float]] = {"none": [], "admission": []}
    figures: dict[str, float] = {"capacity_per_second": CAPACITY, "patience_seconds": PATIENCE}
    for seed in range(1, rounds + 1):
        for times in loads:
            for arm in ("none", "admission"):
                found, shares = await _run(arm, times, seconds, seed)
                goodput.setdefault((arm, times), []).append(found)
                if times == loads[-1]:
                    critical[arm].append(shares[2])
                    for name, share in zip(("background", "normal", "critical"), shares, strict=True):
                        figures[f"{arm}_{name}_in_time_at_{times:g}x_round_{seed}"] = share
    for (arm, times), values in goodput.items():
        figures[f"{arm}_goodput_per_second_at_{times:g}x"] = statistics.median(values)
    # The peak of either arm, so that an arm that is poor at every load does not look steady.
    peaks = [max(values[each] for values in goodput.values()) for each in range(rounds)]
    kept = {
        arm: [goodput[arm, loads[-1]][each] / peaks[each] for each in range(rounds)]
        for arm in ("none", "admission")
    }
    n = rounds * int((seconds + _WARM_UP) * CAPACITY * sum(loads)) * 2
    return [
        Bar(
            what="goodput at 3 × the capacity, with admission: share of the peak",
            value=statistics.median(kept["admission"]),
            limit=0.9,
            at_most=False,
            n=n,
            spread=(min(kept["admission"]), max(kept["admission"])),
            note=f"without admission: {statistics.median(kept['none']):.3f}; the spread is the whole range "
            f"of {rounds} rounds",
            figures=figures,
        ),
        Bar(
            what="requests of the highest priority in time at 3 × the capacity",
            value=statistics.median(critical["admission"]),
            limit=0.9,
            at_most=False,
            n=n,
            spread=(min(critical["admission"]), max(critical["admission"])),
            note=f"they are a fifth of the load; without admission: {statistics.median(critical['none']):.3f}",
        ),
    ]


# Minutes of overload, on virtual time


def _lasting(quick: bool) -> Bar:
    seconds, seeds = (60.0, (1,)) if quick else (300.0, (1, 2, 3))
    rules: dict[str, tuple[Aimd | Gradient | None, bool]] = {
        "none": (None, False),
        "aimd": (Aimd(), False),
        "aimd_told_deadlines": (Aimd(), True),
        "gradient": (Gradient(), False),
        "gradient_told_deadlines": (Gradient(), True),
    }
    shares: dict[str, list[float]] = {}
    figures: dict[str, float] = {"virtual_seconds": seconds}
    for name, (rule, deadlines) in rules.items():
        for seed in seeds:
            clock = ManualClock()
            limit = ConcurrencyLimit("model", algorithm=rule, clock=clock) if rule else None
            outcomes = asyncio.run(
                overload(limit, clock, times=3.0, seconds=seconds, deadlines=deadlines, seed=seed)
            )
            shares.setdefault(name, []).append(outcomes.total_in_time / seconds / FAST.capacity)
            figures[f"{name}_goodput_share_of_capacity_seed_{seed}"] = shares[name][-1]
            latencies = sorted(outcomes.latencies)
            figures[f"{name}_p50_seconds_seed_{seed}"] = latencies[len(latencies) // 2]
            figures[f"{name}_limit_seed_{seed}"] = outcomes.limit
            figures |= _by_priority(outcomes, name, seed)
    for seed in seeds:
        # Where a place comes free every 62 ms, the queue's bounds have to grow, or it refuses those who had time.
        clock = ManualClock()
        limit = ConcurrencyLimit("model", algorithm=Gradient(), clock=clock)
        outcomes = asyncio.run(
            overload(limit, clock, times=3.0, seconds=seconds, deadlines=False, seed=seed, shape=SLOW)
        )
        figures |= _by_priority(outcomes, "slow_places", seed)
    others = ", ".join(
        f"{name} {statistics.median(shares[name]):.2f}" for name in rules if name != "gradient"
    )
    return Bar(
        what=f"{seconds:g} virtual seconds at 3 × the capacity, gradient: goodput over capacity",
        value=statistics.median(shares["gradient"]),
        limit=0.9,
        at_most=False,
        n=int(seconds * FAST.capacity * 3) * len(seeds),
        spread=(min(shares["gradient"]), max(shares["gradient"])),
        note=f"the others: {others}; the spread is the whole range of {len(seeds)} seeds",
        figures=figures,
    )


def _by_priority(outcomes: Outcomes, name: str, seed: int) -> dict[str, float]:
    """The share in time of each priority."""
    shares = [in_time / offered for in_time, offered in zip(outcomes.in_time, outcomes.offered, strict=True)]
    return {f"{name}_{each.name.lower()}_in_time_seed_{seed}": shares[each] for each in Priority}


# Costs


async def _hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


class _Nothing(BaseHTTPMiddleware):
    async def dispatch(self, request: Any, call_next: Any) -> Any:
        return await call_next(request)


def _requests(app: Any) -> Callable[[int], Awaitable[None]]:
    headers = [(b"host", b"a"), (b"user-agent", b"b"), (b"accept", b"*/*"), (b"x-request-timeout-ms", b"500")]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    async def run(times: int) -> None:
        for _ in range(times):
            scope = {
                "type": "http",
                "method": "GET",
                "path": "/feed",
                "query_string": b"",
                "client": ("192.0.2.1", 5000),
                "headers": headers,
            }
            await app(scope, receive, send)

    return run


def _over_bare(timings: dict[str, Timing], name: str) -> list[float]:
    pairs = zip(timings[name].rounds, timings["bare"].rounds, strict=True)
    return [each - bare for each, bare in pairs]


def _costs(quick: bool) -> list[Bar]:
    rounds = 7 if quick else 25
    unlimited = RateLimit(rate=1_000_000.0, burst=1_000_000)
    timings = interleave_async(
        {
            "bare": _requests(_hello),
            "admission": _requests(AdmissionMiddleware(_hello, shedder=LoadShedder("bench"))),
            "admission and rate limit": _requests(
                AdmissionMiddleware(_hello, shedder=LoadShedder("bench"), rate_limiter=RateLimiter(unlimited))
            ),
            "BaseHTTPMiddleware": _requests(_Nothing(_hello)),
        },
        n=500 if quick else 1_000,
        rounds=rounds,
    )
    each = [
        peer / ours
        for peer, ours in zip(
            _over_bare(timings, "BaseHTTPMiddleware"), _over_bare(timings, "admission"), strict=True
        )
    ]
    low, middle, high = statistics.quantiles(each, n=4, method="inclusive")
    own, limited = (
        statistics.median(_over_bare(timings, name)) * 1e6
        for name in ("admission", "admission and rate limit")
    )

    bucket, peer = RateLimiter(unlimited), AsyncLimiter(1_000_000, 1.0)

    async def check(times: int) -> None:
        for _ in range(times):
            bucket.check("192.0.2.1")

    async def acquire(times: int) -> None:
        for _ in range(times):
            await peer.acquire()

    tokens = interleave_async({"check": check, "aiolimiter": acquire}, n=2_000, rounds=rounds)
    saved, spread = ratio(tokens["aiolimiter"], tokens["check"])
    return [
        Bar(
            what="a Starlette BaseHTTPMiddleware that does nothing costs so many admissions",
            value=middle,
            limit=3.0,
            at_most=False,
            unit="×",
            n=rounds,
            spread=(low, high),
            note=f"over a bare application: admission {own:.1f} µs, with a rate limit {limited:.1f} µs",
            figures={f"{name}_microseconds": timing.median * 1e6 for name, timing in timings.items()},
        ),
        Bar(
            what="a token of aiolimiter costs so many rate limit checks",
            value=saved,
            limit=1.0,
            at_most=False,
            unit="×",
            n=rounds,
            spread=spread,
            note="aiolimiter waits instead of refusing, has one bucket for all, and keeps no client apart",
            figures={f"{name}_nanoseconds": timing.median * 1e9 for name, timing in tokens.items()},
        ),
    ]


def bars(quick: bool) -> list[Bar]:
    return [*uvloop.run(_goodput(quick)), _lasting(quick), *_costs(quick)]
