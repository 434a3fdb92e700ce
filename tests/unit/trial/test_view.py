"""What the terminal shows of a finished run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fairlead.cli.try_view import LiveProgress, print_result
from fairlead.trial import Arm, Settings
from fairlead.trial.conclude import conclude
from fairlead.trial.progress import Live

BRACKETS = "[/bold] [red]x[/red]"


def test_tables_targets_and_verdict_are_on_stdout(
    paper: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    result = conclude(paper.system(targets=[paper.target()]), Settings(), paper.complete(), tmp_path)
    print_result(result, tmp_path)
    out, err = capsys.readouterr()
    assert err == ""
    for part in (
        "calm",
        "storm",
        "whole run",
        "✓ met",
        "simulated:",
        "  - everything",
        "valid: 2,000 requests",
    ):
        assert part in out
    assert out.endswith(f"report: {tmp_path / 'report.html'}\n")


def test_invalid_run_says_not_to_use_its_figures(
    paper: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    result = conclude(
        paper.system(targets=[paper.target()]),
        Settings(),
        paper.recorded([]),
        tmp_path,
        ended_early="ended early",
    )
    print_result(result, tmp_path)
    out = capsys.readouterr().out
    assert "NOT VALID, do not use these figures: ended early" in out
    assert "– not judged" in out
    assert "the treatment has no figure" in out.replace("\n", " ")


def test_names_with_brackets_are_names_and_no_markup(
    paper: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arms = (Arm(name=BRACKETS, variant="control"), Arm(name="b", variant="treatment", without=(BRACKETS,)))
    recorded = paper.recorded([(arm, 0, paper.steady()) for arm in arms], arms)
    recorded.plan = replace(
        recorded.plan, phases=tuple(replace(phase, title=BRACKETS) for phase in recorded.plan.phases)
    )
    result = conclude(
        paper.system(summary=BRACKETS, simulated=(BRACKETS,), targets=[paper.target()]),
        Settings(),
        recorded,
        tmp_path,
    )
    print_result(result, tmp_path)
    assert capsys.readouterr().out.count(BRACKETS) >= 5


def test_progress_away_from_a_terminal_is_a_line_per_turn_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    live = Live(arm="control", phase=BRACKETS, cycle=1, elapsed=1.0, total=2.0, due=3, answered=2, failed=1)
    with LiveProgress(BRACKETS, tmp_path) as progress:
        progress.moved(live)
        progress.finished(Arm(name=BRACKETS, variant="control"), 0, "3 requests")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [f"{BRACKETS}: starting its processes", f"cycle 1  {BRACKETS}: 3 requests"]


def test_run_that_fails_says_where_its_record_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(RuntimeError), LiveProgress("Paper", tmp_path):
        raise RuntimeError
    assert f"recorded so far: {tmp_path}" in capsys.readouterr().err
