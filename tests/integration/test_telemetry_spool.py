"""What a spool keeps when its process is killed, told to stop, or forks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fairlead.telemetry import Exposure, JsonLinesSegments, Spool, read_events

PROGRAM = """
import os, signal, sys, time
from fairlead.telemetry import BufferedSink, Exposure, Spool

class Away:
    def write(self, lines):
        raise ConnectionError("nobody there")

    def close(self):
        pass

sink = BufferedSink(Spool(sys.argv[1], to=Away()), capacity=100_000)

def emit(first, count):
    for number in range(first, first + count):
        at = float(number)
        sink.emit(Exposure(at_utc_seconds=at, flag="f", variant="on", targeting_key="u", reason="SPLIT"))
"""


def started(spool: Path, script: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM + script, str(spool)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def drained(tmp_path: Path) -> list[int]:
    spool = Spool(tmp_path / "spool", to=JsonLinesSegments(tmp_path / "events"))
    assert spool.drain(timeout=20.0)
    spool.close()
    assert list((tmp_path / "spool").iterdir()) == []
    events = [event for event in read_events(tmp_path / "events") if isinstance(event, Exposure)]
    return [int(event.at_utc_seconds) for event in events]


def test_sigkill_loses_no_line_that_reached_the_spool_and_the_next_process_hands_them_on(
    tmp_path: Path,
) -> None:
    script = (
        'emit(0, 20_000)\nassert sink.flush()\nemit(20_000, 500)\nprint("ready", flush=True)\ntime.sleep(60)'
    )
    process = started(tmp_path / "spool", script)
    process.kill()
    process.communicate()
    found = drained(tmp_path)
    assert found == list(range(len(found)))
    assert 20_000 <= len(found) <= 20_500, "at most what was emitted within the last flush_interval is gone"


def test_sigkill_costs_no_more_than_what_was_emitted_within_the_flush_interval(tmp_path: Path) -> None:
    script = """
print("ready", flush=True)
while True:
    sink.emit(Exposure(
        at_utc_seconds=time.time(), flag="f", variant="on", targeting_key="u", reason="SPLIT"
    ))
    time.sleep(0.001)
"""
    process = started(tmp_path / "spool", script)
    time.sleep(0.5)
    killed_at = time.time()
    process.kill()
    process.communicate()
    spool = Spool(tmp_path / "spool", to=JsonLinesSegments(tmp_path / "events"))
    assert spool.drain(timeout=20.0)
    spool.close()
    last = max(event.at_utc_seconds for event in read_events(tmp_path / "events"))
    # 0.1 s of waiting for company, and twice that for a machine that is busy.
    assert killed_at - last < 0.3


def test_sigterm_loses_nothing_while_the_target_is_away(tmp_path: Path) -> None:
    script = (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        'emit(0, 30_000)\nprint("ready", flush=True)\n'
        # Short: a signal that comes just before a sleep begins does not end it.
        "while True:\n    time.sleep(0.1)"
    )
    process = started(tmp_path / "spool", script)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert drained(tmp_path) == list(range(30_000))


def test_a_forked_child_spools_for_itself_and_does_not_hold_its_parents_backlog(tmp_path: Path) -> None:
    script = """
emit(0, 100)
assert sink.flush()
child = os.fork()
if child == 0:
    emit(100, 100)
    assert sink.flush()
    if os.fork() == 0:
        print("ready", os.getpid(), sep="\\n", flush=True)
        time.sleep(60)  # an heir that never emits
        os._exit(0)
    os._exit(0)         # as SIGKILL: nothing is closed
os.waitpid(child, 0)
os._exit(0)
"""
    process = started(tmp_path / "spool", script)
    assert process.stdout is not None
    heir = int(process.stdout.readline())
    try:
        process.wait(timeout=20)
        assert sorted(drained(tmp_path)) == list(range(200))
    finally:
        os.kill(heir, signal.SIGKILL)
        process.communicate()
