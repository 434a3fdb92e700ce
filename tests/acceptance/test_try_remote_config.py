"""`fairlead try remote_config --quick`, once: the second system goes through the same contract as the first."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from fairlead.telemetry import LoadSample, RequestFinished
from fairlead.telemetry.jsonl import read_events
from fairlead.trial.result import Result, read_result

pytestmark = pytest.mark.timeout(180)


@dataclass(frozen=True)
class Run:
    code: int
    stdout: str
    stderr: str
    directory: Path
    result: Result
    left_running: list[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs")
    command = [
        sys.executable,
        "-m",
        "fairlead.cli",
        "try",
        "remote_config",
        "--quick",
        "--seed",
        "2",
        "--json",
    ]
    done = subprocess.run(
        [*command, "--out", str(out)], capture_output=True, text=True, timeout=170, cwd="/", check=False
    )
    left = [
        " ".join(each.info["cmdline"])
        for each in psutil.process_iter(["cmdline"])
        if any(str(out) in word for word in each.info["cmdline"] or ())
    ]
    (directory,) = out.iterdir()
    return Run(
        done.returncode, done.stdout, done.stderr, directory, read_result(directory / "result.json"), left
    )


def value(run: Run, metric: str, arm: str, phase: str) -> float:
    figure = run.result.figure(metric, arm, phase)
    assert figure is not None, (metric, arm, phase)
    assert figure.value is not None, figure
    return figure.value


def test_run_is_valid_or_says_that_it_was_late(run: Run):
    validity = run.result.validity
    assert run.code == (0 if validity.valid else 4), run.stderr
    assert all("requests were sent late" in reason for reason in validity.reasons), validity.reasons
    assert json.loads(run.stdout)["system"] == "remote_config"


def test_nothing_is_left_running(run: Run):
    assert run.left_running == []


def test_data_that_the_arms_were_given_is_evidence(run: Run):
    kept = {each.path for each in run.result.evidence}
    assert {"data/config.db", "data/profile.db", "data/rules.db", "data/assembly.db"} <= kept


def test_every_answered_request_is_on_both_sides_of_the_wire(run: Run):
    sent = [each for each in read_events(run.directory / "events" / "load") if isinstance(each, LoadSample)]
    assert len(sent) == run.result.validity.requests
    for arm, front in (("control", "assembly-control"), ("treatment", "config-treatment")):
        served = read_events(run.directory / "events" / front)
        finished = [each for each in served if isinstance(each, RequestFinished) and each.variant == arm]
        answered = [each for each in sent if each.arm == arm and each.ending in ("ok", "degraded")]
        # The front is killed once, and with it the events of the last moment before.
        assert len(finished) >= len(answered) - 40


def test_one_table_has_fewer_parts_and_does_less_for_each_request(run: Run):
    assert (value(run, "processes", "control", "run"), value(run, "processes", "treatment", "run")) == (3, 1)
    for metric in ("calls", "queries", "cpu"):
        assert value(run, metric, "treatment", "normal") < value(run, metric, "control", "normal"), metric


def test_one_table_outlives_a_database_that_hangs_and_has_no_inner_service_to_lose(run: Run):
    for phase in ("hung", "inner_gone"):
        lost = {
            arm: value(run, "errors", arm, phase) + value(run, "timeouts", arm, phase)
            for arm in ("control", "treatment")
        }
        assert lost["treatment"] == 0
        assert lost["control"] > 0


def test_report_names_both_variants_and_what_is_simulated(run: Run):
    page = (run.directory / "report.html").read_text()
    assert "Remote configuration" in page
    assert "the database that hangs" in page
