"""`fairlead events` as a process, beside a service that is writing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.telemetry import (
    BufferedSink,
    Exposure,
    JsonLinesSegments,
    RequestFinished,
    read_dead_letters,
)

COMMAND = [sys.executable, "-m", "fairlead.cli", "events"]

KINDS = """
from fairlead.telemetry import EVENTS, Event, Internal

@EVENTS.register
class PagePainted(Event, frozen=True, kw_only=True):
    \"\"\"A page was shown.\"\"\"
    path: Internal[str]
"""


def events(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False, **options
    )


def finished(number: int, *, status: int = 200) -> RequestFinished:
    return RequestFinished(
        at_utc_seconds=1_795_000_000.0 + number, request_id=f"r{number}", service="feed", route="/", status=status,
        latency_seconds=0.01,
    )  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    with BufferedSink(JsonLinesSegments(tmp_path / "events")) as sink:
        for number in range(20):
            sink.emit(finished(number, status=503 if number == 7 else 200))
    return tmp_path / "events"


def test_check_of_good_events_counts_them_and_succeeds(directory: Path):
    run = events("check", str(directory), "--json")
    findings = json.loads(run.stdout)
    assert (run.returncode, run.stderr) == (0, "")
    assert findings["schema"] == "fairlead.events.check/1"
    assert findings["kinds"]["request_finished"]["events"] == 20
    assert findings["kinds"]["request_finished"]["failures"] == 1
    text = events("check", str(directory))
    assert text.stdout.endswith("every line is an event\n")


def test_check_names_bad_lines_keeps_them_and_fails(directory: Path, tmp_path: Path):
    (directory / "zz.jsonl").write_text('{"event":"page_painted","at_utc_seconds":1,"path":"/"}\nnonsense\n')
    letters = tmp_path / "letters.jsonl"
    run = events("check", str(directory), "--dead-letters", str(letters))
    assert run.returncode == 1
    assert "zz.jsonl:1: event 'page_painted' is not one of" in run.stdout
    assert run.stdout.endswith("2 lines are not taken\n")
    assert [letter.line for letter in read_dead_letters(letters)] == [
        b'{"event":"page_painted","at_utc_seconds":1,"path":"/"}',
        b"nonsense",
    ]


def test_kinds_of_ones_own_are_known_by_the_module_that_registers_them(directory: Path, tmp_path: Path):
    (tmp_path / "my_kinds.py").write_text(KINDS)
    (directory / "zz.jsonl").write_text('{"event":"page_painted","at_utc_seconds":1,"path":"/"}\n')
    run = events("check", str(directory), "--schemas", "my_kinds", cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    schema = json.loads(
        events("schema", "page_painted", "--json", "--schemas", "my_kinds", cwd=tmp_path).stdout
    )
    assert schema["$defs"]["PagePainted"]["description"] == "A page was shown."


def test_tail_shows_the_last_by_time_whatever_segment_they_lie_in(directory: Path):
    with BufferedSink(JsonLinesSegments(directory, prefix="a")) as sink:
        sink.emit(finished(100))
    run = events("tail", str(directory), "--last", "2", "--json")
    assert [json.loads(line)["request_id"] for line in run.stdout.splitlines()] == ["r19", "r100"]
    run = events("tail", str(directory), "--where", "status>=500", "--where", "service=feed")
    assert run.stdout.split()[2] == "request_id=r7"
    assert run.stdout.count("\n") == 1


@pytest.fixture
def following(directory: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, "tail", str(directory), "--last", "100", "--follow", "--json", "--kind", "exposure"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def test_tail_follows_a_service_that_writes_and_ends_when_interrupted(
    directory: Path, following: subprocess.Popen[str]
):
    with BufferedSink(JsonLinesSegments(directory, prefix="late"), flush_interval=0.01) as sink:
        assert following.stdout is not None
        for number in range(5):
            sink.emit(finished(number))
            sink.emit(
                Exposure(
                    at_utc_seconds=1.0, flag="f", variant="on", targeting_key=f"u{number}", reason="SPLIT"
                )
            )
        sink.flush()
        seen = [json.loads(following.stdout.readline()) for _ in range(5)]
    assert [event["targeting_key"] for event in seen] == [f"u{number}" for number in range(5)]
    following.send_signal(signal.SIGINT)
    assert following.wait(10) == 130
