"""The load engine against a service in another process: is it punctual, is a stall charged in full, what does it cost?

The service answers from a bare asyncio protocol, so that what is measured is the engine. For the stall it sleeps for
one second with its whole process, once; by arithmetic a request due t seconds into the stall waits 1 − t, and the
quantiles of those waits over the very schedule that was sent are what the engine has to report.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import uvloop

from bench.harness import Bar
from fairlead.lab import Samples, Schedule, Service, Topology, Zipf, drive

__all__ = ["bars"]

_STALL = 1.0
_SERVICE = f"""
import asyncio, socket, sys, time
ANSWER = b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\nx-age-seconds: 0.1\\r\\n\\r\\n{{}}"
class Answer(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.waiting = transport, b""
    def data_received(self, data):
        if b"GET /stall " in data:
            time.sleep({_STALL})
        self.waiting += data
        *heads, self.waiting = self.waiting.split(b"\\r\\n\\r\\n")
        self.transport.write(ANSWER * len(heads))
async def main():
    listener = socket.socket(fileno=int(sys.argv[1]))
    # The default backlog of 100 is full after 0.2 s of stall; SYNs are then dropped, and repeated 1 s later.
    server = await asyncio.get_running_loop().create_server(Answer, sock=listener, backlog=1024)
    await server.serve_forever()
try:
    import uvloop
    uvloop.run(main())
except KeyboardInterrupt:
    pass
"""


def _schedule(rate: float, duration: float, seed: int) -> Schedule:
    rng = np.random.default_rng(seed)
    return Schedule.poisson(rate=rate, duration=duration, popularity=Zipf(10_000), users=1_000, rng=rng)


async def _punctuality(url: str, seconds: float, seed: int) -> tuple[Samples, float]:
    schedule = _schedule(3_000.0, seconds, seed)
    paths = [f"/feed/{user}?video={key}" for user, key in zip(schedule.users, schedule.keys, strict=True)]
    used = time.process_time()
    samples = await drive(schedule, paths.__getitem__, base_url=url, read_headers={"age": "x-age-seconds"})
    return samples, (time.process_time() - used) / len(schedule)


async def _stall(url: str, seed: int) -> dict[float, float]:
    """Relative error of p90 and p99 under one stall of a second within four."""
    schedule = _schedule(500.0, 4.0, seed)
    first = int(np.searchsorted(schedule.offsets, 1.0))
    samples = await drive(schedule, lambda row: "/stall" if row == first else "/", base_url=url, timeout=10.0)
    began = schedule.offsets[first]
    waits = np.where(schedule.offsets < began, 0.0, np.maximum(0.0, began + _STALL - schedule.offsets))
    return {
        q: float(abs(np.quantile(samples.latency, q) / np.quantile(waits, q) - 1.0)) for q in (0.90, 0.99)
    }


async def _measure(quick: bool) -> tuple[list[tuple[Samples, float]], list[dict[float, float]]]:
    rounds, seconds = (2, 2.0) if quick else (5, 4.0)
    service = Service(name="answer", argv=[sys.executable, "-c", _SERVICE, "{fd}"])
    punctual, stalls = [], []
    with tempfile.TemporaryDirectory() as directory:
        async with Topology([service], log_directory=Path(directory)) as topology:
            url = topology["answer"].url
            for seed in range(1, rounds + 1):
                punctual.append(await topology.during(_punctuality(url, seconds, seed)))
                stalls.append(await topology.during(_stall(url, seed)))
    return punctual, stalls


def _bar(what: str, values: list[float], limit: float, unit: str, n: int, **figures: float) -> Bar:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Bar(
        what=what,
        value=middle,
        limit=limit,
        unit=unit,
        n=n,
        spread=(low, high),
        note=f"median of {len(values)} rounds; the worst: {max(values):.3g} {unit}",
        figures=figures,
    )


def bars(quick: bool) -> list[Bar]:
    """Send lag at 3,000/s, error of p90 and p99 under a stall, CPU per request."""
    punctual, stalls = uvloop.run(_measure(quick))
    runs = [samples for samples, _ in punctual]
    sent = sum(map(len, runs))
    lags = [samples.lag_p99 * 1_000 for samples in runs]
    costs = [cost * 1e6 for _, cost in punctual]
    return [
        _bar(
            "send lag p99 at 3,000/s",
            lags,
            5.0,
            "ms",
            sent,
            lag_p50_ms=statistics.median(float(np.median(samples.lag)) * 1_000 for samples in runs),
            latency_p50_ms=statistics.median(float(np.median(samples.latency)) * 1_000 for samples in runs),
        ),
        _bar(
            "p90 under a 1 s stall, error",
            [each[0.90] * 100 for each in stalls],
            5.0,
            "%",
            len(stalls) * 2_000,
        ),
        _bar(
            "p99 under a 1 s stall, error",
            [each[0.99] * 100 for each in stalls],
            5.0,
            "%",
            len(stalls) * 2_000,
        ),
        _bar("load engine, CPU per request", costs, 250.0, "µs", sent),
    ]
