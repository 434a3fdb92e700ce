"""Hundreds of SIGKILLs at random moments: what was flushed is there, what was started is gone.

`make soak` runs this; FAIRLEAD_SOAK_KILLS sets how many of each (default 200).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fairlead.telemetry import Exposure, ReadReport, read_events

KILLS = int(os.environ.get("FAIRLEAD_SOAK_KILLS", "200"))

WRITER = """
import itertools, sys
from fairlead.telemetry import BufferedSink, Exposure, JsonLinesSegments
sink = BufferedSink(JsonLinesSegments(sys.argv[1], max_bytes=20_000))
for number in itertools.count():
    sink.emit(Exposure(at_utc_seconds=float(number), flag="f", variant="on", targeting_key=str(number), reason="SPLIT"))
    if number % 200 == 199:
        assert sink.flush(10)
        print(number, flush=True)
"""

PARENT = """
import asyncio, sys
from pathlib import Path
from fairlead.lab import Service, TcpReady, Topology
program = "import socket, time, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(600)"
services = [
    Service(name=name, argv=[sys.executable, "-S", "-c", program, "{port}", sys.argv[2]], ready=TcpReady())
    for name in ("one", "two")
]
async def main():
    print("starting", flush=True)
    async with Topology(services, log_directory=Path(sys.argv[1])):
        print("up", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.parametrize("seed", range(KILLS))
def test_every_flushed_event_is_read_back_after_a_kill(seed: int, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    flushed = int(process.stdout.readline())
    time.sleep(random.Random(seed).uniform(0, 0.05))
    process.kill()
    flushed = max([flushed, *(int(line) for line in process.stdout if line.endswith("\n"))])
    process.stdout.close()
    process.wait()
    report = ReadReport()
    found = [
        int(event.targeting_key)
        for event in read_events(tmp_path, report=report)
        if isinstance(event, Exposure)
    ]
    assert found[: flushed + 1] == list(range(flushed + 1))
    assert found == list(range(len(found)))  # no gap, nothing twice, nothing out of order
    assert report.malformed == 0


@pytest.mark.parametrize("seed", range(KILLS))
def test_nothing_outlives_a_killed_parent(seed: int, tmp_path: Path) -> None:
    mark = f"soak-{os.getpid()}-{seed}"
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), mark],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "starting\n"
    # From before the first launch to after both are up: about 0.3 s.
    time.sleep(random.Random(seed).uniform(0, 0.45))
    os.kill(process.pid, signal.SIGKILL)
    process.stdout.close()
    process.wait()
    limit = time.monotonic() + 10
    while (left := marked(mark)) and time.monotonic() < limit:
        time.sleep(0.02)
    assert left == []


def marked(mark: str) -> list[str]:
    """Command lines of living processes that carry `mark`."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"] or []
        if mark in command and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(" ".join(command))
    return found
