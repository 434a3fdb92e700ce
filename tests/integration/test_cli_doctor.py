"""`fairlead doctor` as a process, on this machine and on one that was made worse."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "fairlead.cli", "doctor"]


def doctor(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **{"cwd": "/", **options},
    )


def findings(run: subprocess.CompletedProcess[str]) -> dict[str, dict]:
    return {finding["name"]: finding for finding in json.loads(run.stdout)["findings"]}


def test_report_is_one_json_document_on_stdout(tmp_path: Path):
    run = doctor("--json", "--runs", str(tmp_path))
    report = json.loads(run.stdout)
    assert report["schema"] == "fairlead.doctor/1"
    assert run.stderr == ""
    assert run.returncode == (0 if report["ready"] else 1)
    assert {finding["area"] for finding in report["findings"]} == {
        "python",
        "extras",
        "systems",
        "machine",
        "tools",
    }
    assert list(tmp_path.iterdir()) == []


def test_machine_that_the_tests_run_on_is_ready(tmp_path: Path):
    run = doctor("--runs", str(tmp_path))
    assert run.returncode == 0, run.stdout
    assert run.stdout.endswith("ready: fairlead try can run here\n")


def test_everything_that_is_not_ok_comes_with_its_fix(tmp_path: Path):
    run = doctor("--json", "--runs", str(tmp_path), env={**os.environ, "PATH": ""})
    wrong = [finding for finding in findings(run).values() if finding["status"] != "ok"]
    assert [finding["name"] for finding in wrong if not finding["fix"]] == []


def test_broken_system_is_reported_and_hides_no_other(tmp_path: Path):
    metadata = tmp_path / "wreck-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: wreck\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        "[fairlead.systems]\nwreck = wreck:Wreck\nexits = wreck_exits:Wreck\n"
    )
    (tmp_path / "wreck.py").write_text("raise RuntimeError('cut\\x1b[31m off')\n")
    (tmp_path / "wreck_exits.py").write_text("raise SystemExit(9)\n")
    run = doctor("--json", "--runs", str(tmp_path), env={**os.environ, "PYTHONPATH": str(tmp_path)})
    found = findings(run)
    assert found["wreck"]["status"] == found["exits"]["status"] == "failed"
    assert found["wreck"]["found"] == r"RuntimeError: cut\x1b[31m off"
    assert found["home_feed"]["status"] == "ok"
    assert run.returncode == 0


def test_place_that_cannot_hold_runs_fails_the_report(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("")
    # In /proc nobody, root included, can make a file.
    for place in (file, file / "runs", Path("/proc/self")):
        run = doctor("--json", "--runs", str(place))
        assert (run.returncode, findings(run)["runs"]["status"]) == (1, "failed"), place


def test_small_limits_are_warnings_with_the_command_that_lifts_them(tmp_path: Path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    found = findings(doctor("--json", "--runs", str(tmp_path), preexec_fn=limit))
    assert (found["file size"]["status"], found["file size"]["fix"]) == ("warning", "ulimit -f unlimited")
    assert (found["file descriptors"]["status"], found["file descriptors"]["fix"]) == (
        "warning",
        "ulimit -n 1024",
    )


def test_reader_that_leaves_early_is_no_failure_of_ours():
    with subprocess.Popen(
        [*COMMAND, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 141


def test_full_output_is_one_line_and_exit_code_1():
    with open("/dev/full", "w") as full:
        run = subprocess.run(COMMAND, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "No space left on device" in run.stderr


@pytest.mark.parametrize("closed", [1, 2])
def test_closed_stream_is_no_failure(closed: int, tmp_path: Path):
    run = doctor("--runs", str(tmp_path), preexec_fn=lambda: os.close(closed))
    assert (run.returncode, run.stderr) == (0, "")
