"""Cells and changes as people read them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from fairlead.trial import Arm, Settings
from fairlead.trial.conclude import conclude
from fairlead.trial.result import Figure, TargetRecord
from fairlead.trial.summary import ablations, cell, outcome_in_words, phase_tables


def figure(
    value: float | None, low: float | None = None, high: float | None = None, **more: object
) -> Figure:
    caveat = "" if value is not None else "nothing"
    return Figure(metric="m", arm="a", phase="p", value=value, low=low, high=high, n=1, caveat=caveat)


@pytest.mark.parametrize(
    ("shown", "unit", "text"),
    [
        (None, "seconds", "–"),
        (figure(None), "seconds", "–"),
        (figure(0.1), "seconds", "100 ms"),
        (figure(0.1, 0.09, 0.12), "seconds", "100 ms [90 ms – 120 ms]"),
        (figure(0.0, 0.0, 0.0), "ratio", "0 %"),
        (figure(3.0), "concurrent loads", "3"),
    ],
)
def test_cell_shows_value_and_interval_or_a_dash(shown: Figure | None, unit: str, text: str):
    assert cell(shown, unit) == text


def test_tables_cover_each_measured_phase_then_the_whole_run(paper: SimpleNamespace, tmp_path: Path):
    result = conclude(paper.system(), Settings(), paper.complete(), tmp_path)
    tables = phase_tables(result)
    assert [table.title for table in tables] == ["calm", "storm", "whole run"]
    calm = tables[0]
    assert calm.arms == ("control", "treatment")
    assert calm.requests == (400, 400)
    rows = {title: (cells, change) for title, cells, change in calm.rows}
    assert rows["latency p99"][0][0].startswith("100 ms")
    assert rows["latency p99"][1] == "−50 %"
    assert rows["errors"][1] == "0.0 pp"
    assert rows["goodput"][1] == "0 %"


@pytest.mark.parametrize(
    ("control", "treatment", "change"),
    [(0.1, 0.0999, "0 %"), (0.1, 0.1001, "0 %"), (0.1, 0.2, "+100 %"), (0.1, 0.05, "−50 %")],
)
def test_change_has_a_sign_only_where_there_is_one(
    paper: SimpleNamespace, tmp_path: Path, control: float, treatment: float, change: str
):
    first, second = paper.arms
    recorded = paper.recorded([(first, 0, paper.steady(control)), (second, 0, paper.steady(treatment))])
    result = conclude(paper.system(), Settings(), recorded, tmp_path)
    rows = {title: change for title, _, change in phase_tables(result)[0].rows}
    assert rows["latency p50"] == change


def test_change_from_nothing_is_no_percentage(paper: SimpleNamespace, tmp_path: Path):
    first, second = paper.arms
    recorded = paper.recorded([(first, 0, paper.steady()), (second, 0, paper.steady())])
    for turn in recorded.turns:
        turn.observed["calm"] = {"calls": 0.0 if turn.arm is first else 3.0}
    result = conclude(paper.system(), Settings(), recorded, tmp_path)
    rows = {title: change for title, _, change in phase_tables(result)[0].rows}
    assert rows["calls"] == "from 0"


def test_run_without_turns_has_tables_without_rows(paper: SimpleNamespace, tmp_path: Path):
    result = conclude(paper.system(), Settings(), paper.recorded([]), tmp_path, ended_early="no")
    assert [(table.rows, table.requests) for table in phase_tables(result)] == [((), (0, 0))] * 3


def test_ablations_set_every_arm_beside_the_targets(paper: SimpleNamespace, tmp_path: Path):
    arms = (*paper.arms, Arm(name="without-it", variant="treatment", without=("it",)))
    recorded = paper.recorded([(arm, 0, paper.steady()) for arm in arms], arms)
    result = conclude(paper.system(targets=[paper.target()]), Settings(), recorded, tmp_path)
    table = ablations(result)
    assert table is not None
    assert table.columns == ("latency p99, calm", "degraded, whole run")
    assert [name for name, _ in table.rows] == ["control", "treatment", "without-it"]
    assert ablations(conclude(paper.system(), Settings(), paper.complete(), tmp_path)) is None


@pytest.mark.parametrize(
    ("met", "wording", "words"),
    [
        (True, "2 s → 1 s: −50 %, needs at most −40 %: met", "2 s → 1 s: −50 %, needs at most −40 %"),
        (
            None,
            "no figure → 1 s: not judged, the control has no figure",
            "no figure → 1 s: not judged, the control has no figure",
        ),
    ],
)
def test_outcome_of_a_target_is_told_without_its_mark_and_with_its_reason(
    met: bool | None, wording: str, words: str
):
    target = TargetRecord(
        metric="m", phase="p", statement="s", source="s", met=met, observed=None, wording=wording
    )
    assert outcome_in_words(target) == words


def test_a_caveat_marks_its_cell_and_stands_under_its_table_once(paper: SimpleNamespace, tmp_path: Path):
    result = conclude(paper.system(), Settings(), paper.complete(), tmp_path)
    caveats = iter(("too few data: 3.5 values expected", "too few data: 1.2 values expected"))
    figures = tuple(
        msgspec.structs.replace(each, caveat=next(caveats))
        if (each.metric, each.phase) == ("latency_p90", "calm")
        else msgspec.structs.replace(each, caveat="")
        for each in result.figures
    )
    calm = phase_tables(msgspec.structs.replace(result, figures=figures))[0]
    cells = {title: cells for title, cells, _ in calm.rows}
    assert all(each.endswith("†") for each in cells["latency p90"])
    assert not any("†" in each for each in cells["latency p50"])
    assert calm.caveats == ("too few data",)
