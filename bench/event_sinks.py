"""Event sinks: what an event costs behind a spool, how fast a backlog drains, what a hung broker costs a request.

The peer is FastStream's own `broker.publish`, awaited where the event happens, against the same nats-server on the
same machine.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from statistics import quantiles

from faststream.nats import NatsBroker
from nats.js.api import StreamConfig

from bench.harness import Bar, interleave, interleave_here, ratio
from fairlead.telemetry import (
    BufferedSink,
    Exposure,
    JsonLinesSegments,
    RequestFinished,
    Spool,
    encode_event,
    read_events,
)
from fairlead.telemetry.identity import Numbering
from fairlead.telemetry.nats import NatsWriter
from fairlead.telemetry.parquet import compact
from fairlead.testing import NatsServer

__all__ = ["bars"]

_SHOWN = Exposure(at_utc_seconds=1.0, flag="new_feed", variant="on", targeting_key="user-1", reason="SPLIT")
_RATE = 200
_HUNG = 2.0
_TIMEOUT = 0.5


def bars(quick: bool) -> list[Bar]:
    """The bars of the event sinks."""
    rounds = 5 if quick else 15
    with NatsServer() as server:
        return [
            _emission(rounds),
            asyncio.run(_drain(server, rounds=rounds, count=2_000)),
            *asyncio.run(_outage(server)),
            *_compaction(events=20_000 if quick else 200_000),
        ]


class _Away:
    """A target that nobody reaches: the spool keeps everything."""

    def write(self, lines: object) -> int:
        raise ConnectionError("nobody there")

    def close(self) -> None:
        pass


def _emission(rounds: int) -> Bar:
    with tempfile.TemporaryDirectory() as directory:
        spool = Spool(f"{directory}/spool", to=_Away(), max_bytes=2**40, drain_timeout=0.0)
        direct = BufferedSink(
            JsonLinesSegments(f"{directory}/direct"), capacity=1_000_000, flush_interval=0.001
        )
        spooled = BufferedSink(spool, capacity=1_000_000, flush_interval=0.001)

        def emitted(sink: BufferedSink, count: int) -> None:
            for _ in range(count):
                sink.emit(_SHOWN)

        def flushed(sink: BufferedSink, count: int) -> None:
            emitted(sink, count)
            sink.flush(60.0)

        timings = interleave(
            {
                "emit, spool": partial(emitted, spooled),
                "emit, segments": partial(emitted, direct),
                "emit and flush, spool": partial(flushed, spooled),
                "emit and flush, segments": partial(flushed, direct),
            },
            n=20_000,
            rounds=rounds,
        )
        direct.close()
        spooled.close()
    ours = timings["emit, spool"]
    low, high = ours.spread
    return Bar(
        what="one event emitted, a spool behind the sink whose broker is down",
        value=ours.median * 1e6,
        limit=1.0,
        unit="µs",
        n=len(ours.rounds),
        spread=(low * 1e6, high * 1e6),
        figures={f"{name}_ns": timing.median * 1e9 for name, timing in timings.items()},
        note="'emit and flush' is the whole cost of an event: checked, encoded and on disk",
    )


async def _drain(server: NatsServer, *, rounds: int, count: int) -> Bar:
    broker = await _connected(server, "DRAIN", "drain")
    numbering = Numbering()
    line = encode_event(_SHOWN)

    async def one_by_one(n: int) -> None:
        for _ in range(n):
            data = numbering.stamp(line)
            await broker.publish(data, "drain.exposure", stream="DRAIN", timeout=5.0)

    async def spooled(n: int) -> None:
        with tempfile.TemporaryDirectory() as directory:
            spool = Spool(directory, to=NatsWriter(server.url, stream="DRAIN", prefix="drain"))
            await asyncio.to_thread(spool.write, [numbering.stamp(line) for _ in range(n)])
            assert await asyncio.to_thread(spool.drain, 60.0)
            await asyncio.to_thread(spool.close)

    arms: dict[str, Callable[[int], Awaitable[object]]] = {"spool": spooled, "awaited": one_by_one}
    timings = await interleave_here(arms, n=count, rounds=rounds)
    await broker.stop()
    faster, spread = ratio(timings["awaited"], timings["spool"])
    return Bar(
        what="a backlog drained to JetStream, receipts awaited, against publishes awaited one by one",
        value=faster,
        limit=2.0,
        at_most=False,
        unit="×",
        n=rounds,
        spread=spread,
        figures={f"{name}_events_per_second": 1 / timing.median for name, timing in timings.items()},
        note="the spool's arm writes the events to disk first, connects and disconnects",
    )


async def _outage(server: NatsServer) -> list[Bar]:
    """Requests at a fixed rate, each telling of itself, while the server is stopped for a while in the middle."""
    broker = await _connected(server, "AWAITED", "awaited")
    lost = 0

    async def awaited(_: int) -> None:
        nonlocal lost
        try:
            await broker.publish(encode_event(_SHOWN), "awaited.exposure", stream="AWAITED", timeout=_TIMEOUT)
        except Exception:  # whatever it is, the event is gone
            lost += 1

    without, sent = await _requests(server, awaited)
    await broker.stop()
    with tempfile.TemporaryDirectory() as directory:
        spool = Spool(
            directory, to=NatsWriter(server.url, stream="SPOOLED", prefix="spooled", timeout=_TIMEOUT)
        )
        sink = BufferedSink(spool)

        async def emitted(_: int) -> None:
            sink.emit(_SHOWN)

        with_sink, emitted_count = await _requests(server, emitted)
        assert await asyncio.to_thread(sink.flush)
        assert await asyncio.to_thread(spool.drain, 30.0)
        await asyncio.to_thread(sink.close)
        arrived = spool.stats.forwarded
    figures = {
        "awaited_p99_ms": _p99(without) * 1e3,
        "awaited_worst_ms": max(without) * 1e3,
        "awaited_lost": float(lost),
        "awaited_requests": float(sent),
        "emitted_p99_ms": _p99(with_sink) * 1e3,
        "emitted_worst_ms": max(with_sink) * 1e3,
        "emitted_requests": float(emitted_count),
    }
    return [
        Bar(
            what="what telling costs a request while the broker hangs, p99",
            value=_p99(with_sink) * 1e3,
            limit=1.0,
            unit="ms",
            n=len(with_sink),
            figures=figures,
            note=f"{_RATE} requests/s, the broker stopped for {_HUNG:g} s, publishes given {_TIMEOUT:g} s",
        ),
        Bar(
            what="events lost while the broker hung",
            value=float(emitted_count - arrived),
            limit=0.0,
            n=emitted_count,
        ),
    ]


async def _requests(server: NatsServer, tell: Callable[[int], Awaitable[None]]) -> tuple[list[float], int]:
    """Seconds that telling took each request of the outage; and how many requests there were in all."""
    during: list[float] = []
    tasks: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()
    start = loop.time() + 0.1
    begins, ends = 0.5, 0.5 + _HUNG
    total = int(_RATE * (ends + 1.0))

    async def request(number: int) -> None:
        began = time.perf_counter()
        await tell(number)
        if begins <= number / _RATE < ends:
            during.append(time.perf_counter() - began)

    # In a thread: it waits until the server has really stopped.
    loop.call_at(start + begins, lambda: loop.run_in_executor(None, server.pause))
    loop.call_at(start + ends, server.resume)
    for number in range(total):
        await asyncio.sleep(start + number / _RATE - loop.time())
        tasks.append(loop.create_task(request(number)))
    await asyncio.gather(*tasks)
    return during, total


def _compaction(events: int) -> list[Bar]:
    with tempfile.TemporaryDirectory() as directory:
        segments = JsonLinesSegments(directory)
        numbering = Numbering()
        rng = random.Random(1)
        lines = [
            numbering.stamp(
                encode_event(
                    RequestFinished(
                        at_utc_seconds=1_767_571_200.0 + number / 50,
                        request_id=f"{rng.getrandbits(64):016x}",
                        service="feed",
                        route="/feed/{user}",
                        status=200 if number % 50 else 503,
                        latency_seconds=rng.lognormvariate(-4.0, 1.0),
                        variant="on" if number % 2 else "off",
                    )
                )
            )
            for number in range(events)
        ]
        while lines:
            lines = lines[segments.write(lines) :]
        segments.close()
        began = time.perf_counter()
        json_count = sum(1 for _ in read_events(directory))
        read_json = time.perf_counter() - began
        before = sum(path.stat().st_size for path in Path(directory).glob("*.jsonl"))
        began = time.perf_counter()
        report = compact(directory)
        took = time.perf_counter() - began
        began = time.perf_counter()
        parquet_count = sum(1 for _ in read_events(directory))
        read_parquet = time.perf_counter() - began
    assert json_count == parquet_count == events
    return [
        Bar(
            what="an event compacted: checked, sorted, written to Parquet and synced",
            value=took / events * 1e6,
            limit=25.0,
            unit="µs",
            n=events,
            figures={
                "read_from_json_us": read_json / events * 1e6,
                "read_from_parquet_us": read_parquet / events * 1e6,
            },
        ),
        Bar(
            what="bytes of a compacted event against its line",
            value=report.bytes_after / before,
            limit=0.2,
            unit="×",
            n=events,
            figures={"line_bytes": before / events, "compacted_bytes": report.bytes_after / events},
        ),
    ]


async def _connected(server: NatsServer, stream: str, prefix: str) -> NatsBroker:
    broker = NatsBroker(server.url, logger=None, apply_types=False)
    await broker.connect()
    await broker.connection.jetstream().add_stream(StreamConfig(name=stream, subjects=[f"{prefix}.>"]))
    return broker


def _p99(values: list[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[98]
