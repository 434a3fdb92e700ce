"""Everything dies again and again: emitters, broker, worker. What an emitter was told is safe is there, once."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path

from fairlead.telemetry import JsonLinesSegments, ReadReport, Spool, read_events
from fairlead.telemetry.nats import NatsToSegments, NatsWriter
from fairlead.testing import NatsServer

ROUNDS = 60
SEED = 20260102

EMITTER = """
import sys, time
from fairlead.telemetry import BufferedSink, Exposure, Spool
from fairlead.telemetry.nats import NatsWriter

url, directory, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
sink = BufferedSink(Spool(directory, to=NatsWriter(url, timeout=0.5)), flush_interval=0.01, capacity=1_000_000)
number = first
while True:
    for number in range(number, number + 50):
        at = float(number)
        sink.emit(Exposure(at_utc_seconds=at, flag="f", variant="on", targeting_key="u", reason="SPLIT"))
    number += 1
    if sink.flush():
        print(number, flush=True)  # all below it are on disk
    time.sleep(0.005)
"""

WORKER = """
import asyncio, sys
from fairlead.telemetry import JsonLinesSegments
from fairlead.telemetry.nats import NatsToSegments

asyncio.run(NatsToSegments(sys.argv[1], segments=JsonLinesSegments(sys.argv[2], fsync="batch")).run())
"""


def started(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)


def killed(process: subprocess.Popen[str]) -> str:
    process.kill()
    return process.communicate()[0]


def test_nothing_that_was_flushed_is_lost_or_doubled_while_everything_is_killed(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    safe: set[int] = set()
    spool, events = tmp_path / "spool", tmp_path / "events"
    with NatsServer() as server:
        worker = started(WORKER, server.url, str(events))
        for number in range(ROUNDS):
            first = number * 1_000_000
            emitter = started(EMITTER, server.url, str(spool), str(first))
            time.sleep(rng.uniform(0.3, 1.5))
            what = rng.choice(("broker", "worker", "hang", "nothing"))
            if what == "broker":
                server.kill()
            elif what == "worker":
                killed(worker)
                worker = started(WORKER, server.url, str(events))
            elif what == "hang":
                server.pause()
            time.sleep(rng.uniform(0.0, 0.7))
            told = killed(emitter).split()
            if what == "hang":
                server.resume()
            elif what == "broker":
                server.restart()
            if told:
                safe |= set(range(first, int(told[-1])))
        heir = Spool(spool, to=NatsWriter(server.url))
        assert heir.drain(timeout=120.0), heir.failure
        heir.close()
        assert list(spool.iterdir()) == []
        killed(worker)
        # What the killed workers had not acknowledged comes again after 30 s; a consumer anew sees all at once.
        asyncio.run(everything(server.url, events, len(safe)))
    report = ReadReport()
    found = [int(event.at_utc_seconds) for event in read_events(events, report=report)]
    assert len(found) == len(set(found))
    assert safe <= set(found), f"{len(safe - set(found))} of {len(safe)} are missing"
    assert report.malformed == 0
    print(f"{len(found)} events, {report.duplicates} delivered again, {report.truncated} cut short")


async def everything(url: str, directory: Path, least: int) -> None:
    worker = NatsToSegments(url, segments=JsonLinesSegments(directory, fsync="batch"), durable="anew")
    running = asyncio.create_task(worker.run())
    before = -1
    while worker.stats.written < least or worker.stats.written > before:
        before = worker.stats.written
        await asyncio.sleep(2.0)
    running.cancel()
    await asyncio.wait([running])
