"""What real processes lose when they exit, are told to stop, fork, run out of room or are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from fairlead.telemetry import ReadReport, read_events

PRELUDE = """
import os, resource, signal, sys, time
from fairlead.telemetry import BufferedSink, Exposure, JsonLinesSegments

directory = sys.argv[1]
sink = BufferedSink(JsonLinesSegments(directory), flush_interval=float(sys.argv[2]), capacity=200_000)

def emit(first, count):
    for number in range(first, first + count):
        at = float(number)
        sink.emit(Exposure(at_utc_seconds=at, flag="f", variant="on", targeting_key="u", reason="SPLIT"))
"""

SLOW = "60"
"""A flush interval that no test lives to see: what is found was written by the flush under test."""


def start(tmp_path: Path, script: str, flush_interval: str = SLOW) -> subprocess.Popen[str]:
    # From 3.12 on, os.fork warns in a process with threads; that it works here is what these tests are about.
    allowed = "ignore:This process:DeprecationWarning"
    return subprocess.Popen(
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            allowed,
            "-c",
            PRELUDE + script,
            str(tmp_path / "events"),
            flush_interval,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    return process.returncode, out, err


def numbers(tmp_path: Path, report: ReadReport | None = None) -> list[int]:
    return [int(event.at_utc_seconds) for event in read_events(tmp_path / "events", report=report)]


def test_a_sink_that_nobody_closed_loses_nothing_when_the_interpreter_exits(tmp_path: Path) -> None:
    code, _, err = finish(start(tmp_path, "emit(0, 20_000)"))
    assert (code, err) == (0, "")
    assert numbers(tmp_path) == list(range(20_000))


def test_an_exception_that_ends_the_program_loses_nothing(tmp_path: Path) -> None:
    code, _, err = finish(start(tmp_path, "emit(0, 1_000)\nraise ValueError('the end')"))
    assert code == 1
    assert "the end" in err
    assert len(numbers(tmp_path)) == 1_000


def test_sigterm_with_a_full_buffer_loses_nothing_when_it_is_turned_into_an_exit(tmp_path: Path) -> None:
    process = start(
        tmp_path,
        """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
emit(0, 50_000)
print("ready", flush=True)
while True:
    time.sleep(0.1)  # short: a signal that comes just before a sleep begins does not end it
""",
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert (code, err) == (143, "")
    assert numbers(tmp_path) == list(range(50_000))


def test_sigkill_loses_at_most_what_was_not_flushed_and_leaves_readable_segments(tmp_path: Path) -> None:
    process = start(
        tmp_path,
        """
emit(0, 10_000)
assert sink.flush()
emit(10_000, 10)
print("ready", flush=True)
while True:
    time.sleep(60)
""",
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    report = ReadReport()
    found = numbers(tmp_path, report)
    assert found[:10_000] == list(range(10_000))
    assert report.malformed == 0


def test_a_forked_child_writes_its_own_events_once_and_none_of_its_parents(tmp_path: Path) -> None:
    code, _, err = finish(
        start(
            tmp_path,
            """
emit(0, 1_000)
assert sink.flush()
emit(1_000, 500)                      # still buffered when the process forks
child = os.fork()
if child == 0:
    assert sink.stats.emitted == 0 and sink.failure is None
    emit(10_000, 300)
    assert sink.flush() and sink.stats.written == 300
    emit(10_300, 100)                 # left to the exit
    sys.exit(0)
emit(1_500, 500)
assert os.waitpid(child, 0)[1] == 0
sink.close()
assert sink.stats.written == 2_000, sink.stats
""",
        )
    )
    assert (code, err) == (0, "")
    assert sorted(numbers(tmp_path)) == [*range(2_000), *range(10_000, 10_400)]
    assert len(list((tmp_path / "events").glob("*.jsonl"))) == 2


def test_a_child_forked_while_the_writer_hangs_works_all_the_same(tmp_path: Path) -> None:
    code, _, err = finish(
        start(
            tmp_path,
            """
import threading
entered, release = threading.Event(), threading.Event()
write = JsonLinesSegments.write
def hang(self, lines):
    entered.set()
    release.wait()
    return write(self, lines)
JsonLinesSegments.write = hang
emit(0, 1)
entered.wait()
child = os.fork()
if child == 0:
    JsonLinesSegments.write = write
    emit(1, 1)
    sink.close()
    os._exit(0 if sink.stats.written == 1 else 1)
assert os.waitpid(child, 0)[1] == 0
release.set()
""",
            flush_interval="0.001",
        )
    )
    assert (code, err) == (0, "")
    assert sorted(numbers(tmp_path)) == [0, 1]


def test_a_file_size_limit_is_reported_in_one_line_and_the_service_goes_on(tmp_path: Path) -> None:
    code, out, err = finish(
        start(
            tmp_path,
            """
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
emit(0, 5_000)
sink.flush()
emit(5_000, 5_000)
sink.close()
stats = sink.stats
assert stats.emitted == 10_000 and stats.pending == 0, stats
print(type(sink.failure).__name__, stats.written)
print(sink.failure)
""",
        )
    )
    assert (code, err) == (0, "")
    first, message = out.splitlines()
    kind, written = first.split()
    assert int(written) > 100
    assert kind == "NoSpace"
    assert message.startswith(f"{tmp_path}/events/events-")
    assert "file-size limit" in message
    assert "make room" in message
    report = ReadReport()
    assert numbers(tmp_path, report) == list(range(int(written)))
    assert (report.malformed, report.truncated) == (0, 0)


def test_a_writer_that_hangs_cannot_keep_the_process_from_ending(tmp_path: Path) -> None:
    code, _, err = finish(
        start(
            tmp_path,
            """
import threading
import fairlead.telemetry.sink as module
module._EXIT_TIMEOUT = 0.2
entered = threading.Event()
def hang(self, lines):
    entered.set()
    threading.Event().wait()
JsonLinesSegments.write = hang
emit(0, 10)
entered.wait()
""",
            flush_interval="0.001",
        )
    )
    assert (code, err) == (0, "")
