from __future__ import annotations

import importlib
import os
import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from fairlead.change import new_change
from fairlead.errors import InvalidInput, LedgerBroken
from fairlead.ledger import Decision, Evidence, Ledger
from fairlead.store import Database
from fairlead.trial.conclude import conclude
from fairlead.trial.definitions import load_metrics
from fairlead.trial.program import program_sha256
from fairlead.trial.promise import LEDGER, Promise, freeze_promise, record_result
from fairlead.trial.report import render_report
from fairlead.trial.result import Result
from fairlead.trial.system import Arm, Settings
from tests.unit.trial import conftest as paper

P99 = """
[metrics.latency_p99]
role = "primary"
title = "latency p99"
kind = "quantile"
event = "load_sample"
field = "latency_seconds"
q = 0.99
unit = "seconds"
unit_of_analysis = "request"
side = "client"
measured = "MEASURED"
window = "phase"
segment = "all requests of the arm"
better = "lower"
design = "load_test"
baseline = 0.1
target = 0.05
"""


def change_file(**edits: str) -> bytes:
    """A good change file about the paper system's p99."""
    text = new_change("paper_change")
    measured = next(m.measured for m in load_metrics(paper.PATIENCE) if m.name == "latency_p99")
    start, end = text.index('[metrics."«latency_p99»"]'), text.index('[metrics."«errors»"]')
    text = text[:start] + P99.strip().replace("MEASURED", measured) + "\n\n" + text[end:]
    text = (
        text.replace('metrics."«errors»"', "metrics.failures")
        .replace("«errors»", "failures")
        .replace("«what shall be true afterwards", "«p99 of 50 ms")
    )
    text = re.sub(
        r'hypothesis = ".*"', 'hypothesis = "caching halves latency_p99 to 50 ms, as hits do not wait"', text
    )
    text = re.sub("[«»]", "", text)
    for old, new in edits.items():
        text = text.replace(old, new)
    return text.encode()


def played(directory: Path, content: bytes | None) -> tuple[Result, paper.PaperSystem]:
    system = paper.PaperSystem(targets=[paper.target()], change=content)
    recorded = paper.complete()
    promise = freeze_promise(system, recorded.plan, directory)
    return record_result(conclude(system, Settings(), recorded, directory), promise, directory), system


def test_figures_are_read_back_from_the_ledger_as_they_were_computed(tmp_path: Path) -> None:
    content = change_file()
    result, system = played(tmp_path, content)
    computed = conclude(system, Settings(), paper.complete(), tmp_path)
    assert [(f.metric, f.arm, f.phase, f.value, f.low, f.high, f.n, f.caveat) for f in result.figures] == [
        (f.metric, f.arm, f.phase, f.value, f.low, f.high, f.n, f.caveat) for f in computed.figures
    ]
    ledger = Ledger(Database(tmp_path / LEDGER))
    assert ledger.frozen("paper_change").content == content
    found = ledger.evidence_by_ids(figure.evidence for figure in result.figures)
    assert len(found) == len(result.figures) > 10
    assert result.change.sha256 == ledger.frozen("paper_change").sha256
    assert ledger.verify(ledger.head()).is_whole
    assert result.ledger_head == str(ledger.head())


def test_the_promise_is_older_than_every_figure(tmp_path: Path) -> None:
    played(tmp_path, change_file())
    kinds = [type(entry.body).__name__ for entry in Ledger(Database(tmp_path / LEDGER)).entries()]
    assert kinds[:3] == ["FrozenChange", "Decision", "Decision"]  # the plan, the target
    assert kinds[-1] == "Decision"
    assert set(kinds[3:-1]) == {"Evidence"}


def test_a_target_is_a_decision_that_stands_on_its_two_figures(tmp_path: Path) -> None:
    result, _ = played(tmp_path, change_file())
    ledger = Ledger(Database(tmp_path / LEDGER))
    decisions = [entry.body for entry in ledger.decisions("paper_change")]
    assert all(isinstance(decision, Decision) for decision in decisions)
    assert [decision.verdict for decision in decisions] == ["promised", "promised", "met"]
    assert result.targets[0].met
    stands_on = ledger.evidence_by_ids(decisions[-1].evidence)
    assert {(each.metric, each.arm) for each in stands_on.values()} == {
        ("latency_p99", "control"),
        ("latency_p99", "treatment"),
    }


def test_a_system_without_a_change_file_has_a_ledger_all_the_same(tmp_path: Path) -> None:
    result, _ = played(tmp_path, None)
    assert result.change is None
    assert result.ledger_head
    assert next(iter(Ledger(Database(tmp_path / LEDGER)).evidence("paper"))).body.metric


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ({"q = 0.99": "q = 0.95"}, "the change file defines otherwise"),
        ({"[metrics.latency_p99]": "[metrics.slowness]", "latency_p99 to": "slowness to"}, "does not define"),
        ({"p99 of 50 ms": "a lot faster"}, "is no figure"),
    ],
)
def test_a_run_is_not_begun_on_another_promise(tmp_path: Path, edits: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        played(tmp_path, change_file(**edits))


def test_the_page_says_what_was_promised_and_how_to_verify_it(tmp_path: Path) -> None:
    result, _ = played(tmp_path, change_file())
    page = render_report(result, paper.complete())
    assert "paper_change" in page
    assert result.change.sha256 in page
    assert f"fairlead audit verify --store ledger.db --expect {result.ledger_head}" in page


def decisions_of(directory: Path, change: str = "paper_change") -> list[Decision]:
    with Database(directory / LEDGER) as database:
        return [entry.body for entry in Ledger(database).decisions(change)]


def evidence_of(directory: Path, result: Result, metric: str, arm: str, phase: str) -> Evidence:
    with Database(directory / LEDGER) as database:
        id = result.figure(metric, arm, phase).evidence
        return Ledger(database).evidence_by_ids([id])[id]


def promised(directory: Path, **system: object) -> tuple[Promise, paper.PaperSystem]:
    made = paper.PaperSystem(**{"targets": [paper.target()], "change": change_file()} | system)
    return freeze_promise(made, paper.complete().plan, directory), made


def test_plan_and_limits_are_written_down_before_the_run(tmp_path: Path) -> None:
    promised(tmp_path)
    plan, target = (decision.reason for decision in decisions_of(tmp_path))
    assert "2 cycles of lead_in 1 s (not measured), calm 2 s, storm 2 s" in plan
    assert "judged by latency_p99" in plan
    assert target.startswith(
        "faster, in calm: relative_change of latency_p99, lower is better, limit -0.4; definition"
    )


def test_a_limit_that_is_moved_during_the_run_moves_no_verdict(tmp_path: Path) -> None:
    promise, system = promised(tmp_path, targets=[paper.target(-0.9)])
    system.targets = [paper.target(-0.1)]
    result = record_result(conclude(system, Settings(), paper.complete(), tmp_path), promise, tmp_path)
    assert [target.met for target in result.targets] == [False]
    assert decisions_of(tmp_path)[-1].verdict == "missed"


def test_one_folder_has_one_run(tmp_path: Path) -> None:
    def attempt(_: int) -> str:
        try:
            promised(tmp_path)
        except InvalidInput as error:
            return str(error)
        return "mine"

    with ThreadPoolExecutor(4) as pool:
        found = sorted(pool.map(attempt, range(4)))
    assert found.count("mine") == 1
    assert sum("another run has its ledger here" in said for said in found) == 3


def test_a_ledger_that_was_written_anew_during_the_run_is_found(tmp_path: Path) -> None:
    promise, system = promised(tmp_path)
    other = tmp_path / "other"
    promised(other, change=change_file(**{"target = 0.05": "target = 0.09"}))
    os.replace(other / LEDGER, tmp_path / LEDGER)
    with pytest.raises(LedgerBroken, match="changed since the run was promised"):
        record_result(conclude(system, Settings(), paper.complete(), tmp_path), promise, tmp_path)


def test_an_entry_that_was_edited_during_the_run_is_found(tmp_path: Path) -> None:
    promise, system = promised(tmp_path)
    with closing(sqlite3.connect(tmp_path / LEDGER)) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(
            "UPDATE fairlead_ledger SET payload = CAST(replace(payload, '-0.4', '-0.1') AS BLOB)"
        )
        connection.commit()
    with pytest.raises(LedgerBroken, match="entry 3"):
        record_result(conclude(system, Settings(), paper.complete(), tmp_path), promise, tmp_path)


def test_a_run_that_is_not_valid_meets_no_target_anywhere(tmp_path: Path) -> None:
    promise, system = promised(tmp_path)
    concluded = conclude(
        system, Settings(), paper.complete(), tmp_path, ended_early="ended early: \x1b[31mdied\x00"
    )
    result = record_result(concluded, promise, tmp_path)
    (target,) = result.targets
    assert target.met is None
    assert target.wording.endswith(": void, as the run is not valid")
    assert target.observed == pytest.approx(-0.5)
    decision = decisions_of(tmp_path)[-1]
    assert decision.verdict == "void"
    assert decision.reason.endswith("; the run is invalid: ended early:  [31mdied ")
    caveats = evidence_of(tmp_path, result, "latency_p99", "control", "calm").caveats
    assert "the run is not valid: do not use its figures" in caveats


def test_evidence_says_what_it_covers_and_how_it_was_computed(tmp_path: Path) -> None:
    result, _ = played(tmp_path, change_file())
    calm, run = (evidence_of(tmp_path, result, "latency_p50", "control", phase) for phase in ("calm", "run"))
    assert (calm.window, run.window) == ("phase calm", "run: all measured phases")
    assert "over the phase" in calm.definition
    assert "over the run" in run.definition
    assert "half-second slices" in calm.method
    calls = evidence_of(tmp_path, result, "calls", "control", "calm")
    assert calls.method == "by the system, from origin_window events"
    assert calls.confidence is None
    assert calls.query_sha256 != calm.query_sha256


def test_a_decision_says_what_to_know_before_relying_on_it(tmp_path: Path) -> None:
    promise, system = promised(tmp_path)
    result = conclude(system, Settings(), paper.complete(), tmp_path)
    wide = [
        msgspec.structs.replace(figure, low=0.0, high=9.0) if figure.metric == "latency_p99" else figure
        for figure in result.figures
    ]
    result = record_result(msgspec.structs.replace(result, figures=tuple(wide)), promise, tmp_path)
    assert result.targets[0].caveat == "the intervals overlap"
    assert decisions_of(tmp_path)[-1].reason.endswith("met; the intervals overlap")


TWICE = load_metrics(paper.PATIENCE)[0]
ODD_ARM = (paper.ARMS[0], Arm(name="treatment ", variant="treatment"))


@pytest.mark.parametrize(
    ("system", "plan", "said"),
    [
        (
            {"targets": [paper.target(phase="clam")]},
            {},
            "'clam', which is none of the phases calm, storm, run",
        ),
        ({"metrics": (paper.CALLS, TWICE)}, {}, "latency_p50: defined more than once"),
        (
            {"targets": [paper.target()], "change": None},
            {"patience": 2.0},
            "which the run computes otherwise",
        ),
        ({"name": "paper "}, {}, "space around it"),
        ({}, {"arms": ODD_ARM}, "arm: 'treatment ' has space around it"),
    ],
)
def test_what_would_cost_the_run_after_the_load_is_found_before(
    tmp_path: Path, system: dict[str, object], plan: dict[str, object], said: str
) -> None:
    with pytest.raises(InvalidInput, match=re.escape(said)):
        freeze_promise(paper.PaperSystem(**system), replace(paper.complete().plan, **plan), tmp_path)


def test_what_the_change_file_and_the_run_both_name_is_one_metric(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="defines errors otherwise than the run computes it"):
        promised(tmp_path, change=change_file(failures="errors"))


def test_the_program_is_named_by_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "played_system"
    package.mkdir()
    (package / "__init__.py").write_text("class System: ...\n")
    (package / "figures.py").write_text("LIMIT = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    system = importlib.import_module("played_system").System()
    before = program_sha256(system)
    assert program_sha256(system) == before
    (package / "figures.py").write_text("LIMIT = 2\n")
    assert program_sha256(system) != before
