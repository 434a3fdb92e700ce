"""Error budgets of runs that are longer than a condition may be."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from fairlead.slo import Objective, RollingPeriod
from fairlead.telemetry import BufferedSink, LoadSample
from fairlead.telemetry.jsonl import JsonLinesSegments
from fairlead.trial.budgets import budgets_of
from fairlead.trial.walk import Recorded
from tests.unit.trial import conftest as paper

ANSWERED = Objective(
    name="answered",
    title="an answer",
    target=Decimal("0.9"),
    period=RollingPeriod(seconds=30 * 86400.0),
    event="load_sample",
    good='ending == "ok"',
    cause="ending",
    side="client",
    owner="the team",
    runbook="docs/runbook.md",
)


def written(directory: Path, cycles: int) -> Recorded:
    """One request an arm and cycle; those of treatment in the second cycle time out."""
    made = paper.recorded([(arm, cycle, paper.steady()) for cycle in range(cycles) for arm in paper.ARMS])
    sink = BufferedSink(JsonLinesSegments(directory / "events" / "load", prefix="load"))
    for turn in made.turns:
        late = turn.cycle == 1 and turn.arm.name == "treatment"
        sink.emit(
            LoadSample(
                at_utc_seconds=made.started_at + turn.cycle, request_id=f"{turn.arm.name}-{turn.cycle}",
                phase="calm", arm=turn.arm.name, cycle=turn.cycle, key="0", intended_seconds=1.0,
                send_lag_seconds=0.0, latency_seconds=0.1, status=200, degraded=False, staleness_seconds=None,
                age_seconds=None, ending="timeout" if late else "ok",
            )
        )  # fmt: skip
    sink.close()
    return made


def test_every_cycle_is_counted_however_many_there_are(tmp_path: Path) -> None:
    cycles = 120
    made = written(tmp_path, cycles)
    made.plan = replace(made.plan, cycles=cycles)
    found = budgets_of(paper.PaperSystem(objectives=[ANSWERED]), made, tmp_path)
    assert [(one.arm, one.valid, one.bad) for one in found] == [
        ("control", cycles, 0),
        ("treatment", cycles, 1),
    ]
    assert found[1].burn_rate == pytest.approx(1 / (0.1 * cycles))


def test_cycles_that_were_left_out_of_the_figures_are_left_out_of_the_budget(tmp_path: Path) -> None:
    made = written(tmp_path, 40)
    made.plan = replace(made.plan, cycles=40)
    made.turns = [turn for turn in made.turns if turn.cycle != 1]
    found = budgets_of(paper.PaperSystem(objectives=[ANSWERED]), made, tmp_path)
    assert [(one.valid, one.bad) for one in found] == [(39, 0), (39, 0)]
