from __future__ import annotations

import re
from pathlib import Path

import pytest

from fairlead.change import new_change
from fairlead.errors import InvalidInput
from fairlead.ledger import Decision, Ledger
from fairlead.store import Database
from fairlead.trial.conclude import conclude
from fairlead.trial.definitions import load_metrics
from fairlead.trial.promise import LEDGER, freeze_promise, record_result
from fairlead.trial.report import render_report
from fairlead.trial.result import Result
from fairlead.trial.system import Settings
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
    text = text.replace('metrics."«errors»"', "metrics.errors").replace(
        "«what shall be true afterwards", "«p99 of 50 ms"
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
    return record_result(
        conclude(system, Settings(), recorded, directory), system, promise, directory
    ), system


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
    assert kinds[0] == "FrozenChange"
    assert kinds.index("Decision") > len([kind for kind in kinds if kind == "Evidence"])


def test_a_target_is_a_decision_that_stands_on_its_two_figures(tmp_path: Path) -> None:
    result, _ = played(tmp_path, change_file())
    ledger = Ledger(Database(tmp_path / LEDGER))
    decisions = [entry.body for entry in ledger.decisions("paper_change")]
    assert all(isinstance(decision, Decision) for decision in decisions)
    assert [decision.verdict for decision in decisions] == ["void" if not result.validity.valid else "met"]
    stands_on = ledger.evidence_by_ids(decisions[0].evidence)
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
