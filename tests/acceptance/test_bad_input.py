"""What `fairlead try` does when it cannot do what it was asked: one line, the right code, nothing left running."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import fairlead_systems
from fairlead.telemetry.jsonl import ReadReport, read_events
from fairlead.trial.result import Result, read_result

COMMAND = [sys.executable, "-m", "fairlead.cli"]
NOBODY = "http://127.0.0.1:9"
FEED = [sys.executable, "-m", "fairlead_systems.home_feed.feed"]
for _downstream in ("trending", "in-network", "nearest", "labels", "features"):
    FEED += [f"--{_downstream}", NOBODY]
QUICK = ["try", "home_feed", "--quick"]


def fairlead(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        **{"cwd": "/", **options},
    )


def told(stderr: str) -> str:
    """The one line of the failure; progress may stand before it, nothing after it."""
    lines = [line for line in stderr.splitlines() if line.startswith("fairlead: ")]
    assert len(lines) == 1, stderr
    assert stderr.endswith(lines[0] + "\n"), stderr
    assert "Traceback" not in stderr
    assert "unexpected" not in lines[0]
    return lines[0]


def belonging_to(out: Path) -> list[psutil.Process]:
    """Living processes with the run's folder on their command line, and all below them."""
    return [
        each
        for each in psutil.process_iter(["cmdline", "status"])
        if each.info["status"] != psutil.STATUS_ZOMBIE
        and any(str(out) in word for word in each.info["cmdline"] or ())
    ]


def wait_until(happens: Callable[[], bool], what: str, within: float = 30.0) -> None:
    limit = time.monotonic() + within
    while not happens():
        assert time.monotonic() < limit, what
        time.sleep(0.02)


def assert_nothing_runs(pids: list[int]) -> None:
    def gone() -> bool:
        return not any(
            psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids
        )

    wait_until(gone, f"still running: {pids}")


def only_run(out: Path) -> Path:
    (directory,) = out.iterdir()
    return directory


def kept(out: Path) -> Result:
    """The result of a run that ended early, once it is clear that it says so and that its events can be read."""
    directory = only_run(out)
    result = read_result(directory / "result.json")
    assert not result.validity.valid
    assert (directory / "report.html").exists()
    assert readable_events(directory) > 0
    return result


def readable_events(directory: Path) -> int:
    report = ReadReport()
    for folder in (directory / "events").iterdir():
        for _ in read_events(folder, report=report):
            continue
    assert report.malformed == report.unknown == 0, report.problems
    return report.events


@contextmanager
def under_load(out: Path, *arguments: str, **options) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A quick run whose load has begun, and the ids of all its processes."""
    process = subprocess.Popen(
        [*COMMAND, *QUICK, "--out", str(out), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        **options,
    )
    try:
        wait_until(
            lambda: (
                any(file.stat().st_size for file in out.glob("*/events/feed-control/*.jsonl"))
                or process.poll() is not None
            ),
            "the load never began",
        )
        assert process.poll() is None, process.stderr.read()
        yield (
            process,
            [process.pid, *(each.pid for each in psutil.Process(process.pid).children(recursive=True))],
        )
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


# Refused before anything is started: no folder, no process.


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["try", "home_fed"], ["'home_fed'", "did you mean 'home_feed'?", "fairlead try --list"]),
        ([*QUICK, "--ablate", "batchng"], ["'batchng'", "there are: ", "batching"]),
        ([*QUICK, "--ablate", "jitter", "--ablate", "jitter"], ["jitter", "twice"]),
        ([*QUICK, "--rate", "nan"], ["rate nan", "1 to 5000"]),
        ([*QUICK, "--rate", "0"], ["rate 0", "1 to 5000"]),
        ([*QUICK, "--rate", "1e9"], ["rate 1000000000", "1 to 5000"]),
        ([*QUICK, "--rate", "fast"], ["--rate", "valid number", "--help"]),
        ([*QUICK, "--seed", "-1"], ["seed -1", "0 to 4294967295"]),
        ([*QUICK, "--port", "65536"], ["port 65536", "0 to 65535"]),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_argument_that_cannot_be_used_is_refused_before_anything_starts(
    arguments: list[str], parts: list[str], tmp_path: Path
):
    run = fairlead(*arguments, "--out", str(tmp_path / "runs"))
    line = told(run.stderr)
    assert run.returncode == 2
    assert run.stdout == ""
    assert [part for part in parts if part not in line] == []
    assert not (tmp_path / "runs").exists()


def test_out_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "taken").write_text("mine")
    run = fairlead(*QUICK, "--out", str(tmp_path / "taken"))
    assert run.returncode == 2
    assert str(tmp_path / "taken") in told(run.stderr)
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize(
    ("module", "named"),
    [("aiohttp", "aiohttp"), ("starlette", "starlette"), ("rich", "rich"), ("grpc", "grpcio")],
)
def test_missing_package_is_named_with_the_extra_that_brings_it(module: str, named: str, tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{module!r}] = None\n")
    run = fairlead(*QUICK, "--out", str(tmp_path / "runs"), env={**os.environ, "PYTHONPATH": str(tmp_path)})
    line = told(run.stderr)
    assert run.returncode == 1
    assert f"{named} is not installed: pip install 'fairlead[" in line
    assert not (tmp_path / "runs").exists()


# Refused by a process of the run: it is told through the walk, and nothing is left.


def test_port_that_is_taken_is_named_with_who_has_it(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = fairlead(*QUICK, "--port", str(port), "--out", str(tmp_path))
    line = told(run.stderr)
    assert run.returncode == 1
    assert f"port {port} is taken by process {os.getpid()}" in line
    assert "another port" in line
    assert belonging_to(tmp_path) == []
    assert "ended early" in read_result(only_run(tmp_path) / "result.json").validity.reasons[0]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b'{"flags": ', "flags.json"),
        (b'{"flags": {}}', "feed_path"),
        (b"\xff\xfe", "flags.json"),
        (
            b'{"flags": {"feed_path": {"state": "ENABLED", "variants": {"a": 1}, "defaultVariant": "a"}}}',
            "feed_path",
        ),
        (None, "flags.json"),
    ],
    ids=["cut", "without the flag", "no text", "of another type", "missing"],
)
def test_broken_flag_file_is_one_line(content: bytes | None, part: str, tmp_path: Path):
    flags = tmp_path / "flags.json"
    if content is not None:
        flags.write_bytes(content)
    run = subprocess.run(
        [*FEED, "--flags", str(flags)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.count("\n") == 1, run.stderr
    assert part in run.stderr


@pytest.fixture
def changed_systems(tmp_path: Path) -> Path:
    """A copy of the reference systems that is found before the installed ones."""
    copy = tmp_path / "python"
    shutil.copytree(
        Path(fairlead_systems.__file__).parent,
        copy / "fairlead_systems",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    return copy


def test_model_with_a_flipped_byte_is_refused_by_name(changed_systems: Path, tmp_path: Path):
    model = changed_systems / "fairlead_systems" / "home_feed" / "model" / "ranker.int8.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    out = tmp_path / "runs"
    run = fairlead(*QUICK, "--out", str(out), env={**os.environ, "PYTHONPATH": str(changed_systems)})
    line = told(run.stderr)
    assert run.returncode == 1
    assert "ranker.int8.onnx" in line
    assert "feed-" in line
    assert belonging_to(out) == []
    # The process itself says it in one line, too; the other one may have been ended before it came to that.
    log = "".join(each.read_text() for each in (only_run(out) / "logs").glob("feed-*.log"))
    assert "Traceback" not in log
    assert "ranker.int8.onnx" in log


def test_full_disk_ends_the_run_and_keeps_what_was_recorded(tmp_path: Path):
    out = tmp_path / "runs"

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))  # the ledger fits, events do not

    run = fairlead(*QUICK, "--out", str(out), preexec_fn=fill)
    line = told(run.stderr)
    assert run.returncode == 1
    assert "file-size limit" in line or "File too large" in line
    assert str(out) in line
    assert str(out) in run.stderr  # where to find what was recorded
    assert belonging_to(out) == []
    assert readable_events(only_run(out)) > 0


# Ended in mid-run, by others.


def test_downstream_that_is_killed_is_named_and_the_rest_is_kept(tmp_path: Path):
    with under_load(tmp_path) as (process, pids):
        (origin,) = [
            each
            for each in psutil.Process(process.pid).children(recursive=True)
            if "--source=trending" in each.cmdline()
            and not any("guard.py" in word for word in each.cmdline())
        ]
        origin.send_signal(signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
    line = told(stderr)
    assert process.returncode == 1
    assert "trending_source died with signal SIGKILL" in line
    assert "trending_source.log" in line
    assert_nothing_runs(pids)
    assert "trending_source died" in kept(tmp_path).validity.reasons[0]


@pytest.mark.parametrize(
    ("number", "code", "reason"),
    [
        (signal.SIGINT, 130, "ended early: interrupted"),
        (signal.SIGTERM, 143, "ended early: asked to end (exit code 143)"),
    ],
)
def test_run_that_is_asked_to_end_does_and_keeps_what_it_has(
    number: signal.Signals, code: int, reason: str, tmp_path: Path
):
    with under_load(tmp_path) as (process, pids):
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert stdout == ""
    assert "Traceback" not in stderr
    assert f"recorded so far: {only_run(tmp_path)}" in stderr
    assert_nothing_runs(pids)
    assert kept(tmp_path).validity.reasons[0] == reason
    assert (only_run(tmp_path) / "events" / "load").is_dir()


def test_run_that_is_killed_leaves_nothing_running(tmp_path: Path):
    with under_load(tmp_path) as (process, pids):
        assert len(pids) >= 9  # the command, and four services with a guard each
        process.kill()
        process.wait(timeout=30)
        assert_nothing_runs(pids)
    assert readable_events(only_run(tmp_path)) > 0


def test_reader_that_left_is_no_error_and_the_run_is_kept(tmp_path: Path):
    process = subprocess.Popen(
        [*COMMAND, *QUICK, "--rate", "20", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 141, stderr
    assert "Traceback" not in stderr
    assert "fairlead: " not in stderr
    assert json.loads((only_run(tmp_path) / "result.json").read_text())["system"] == "home_feed"
    assert belonging_to(tmp_path) == []
