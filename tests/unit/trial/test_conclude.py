"""What a record allows to say, and when it allows nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fairlead.errors import InvalidInput
from fairlead.lab import Ending
from fairlead.trial import Settings
from fairlead.trial.conclude import conclude
from fairlead.trial.result import Result
from fairlead.trial.walk import Recorded


@pytest.fixture
def concluded(paper: SimpleNamespace, tmp_path: Path):
    def make(recorded: Recorded, ended_early: str = "", **system: object) -> Result:
        return conclude(paper.system(**system), Settings(seed=7), recorded, tmp_path, ended_early=ended_early)

    return make


def test_complete_punctual_run_is_valid(paper: SimpleNamespace, concluded):
    result = concluded(paper.complete())
    assert result.validity.valid
    assert result.validity.reasons == ()
    assert result.validity.requests == 2000
    assert result.validity.send_lag_p99_seconds == pytest.approx(0.001)
    assert (result.seed, result.cycles, result.design) == (7, 2, "load_test")


@pytest.mark.parametrize(("limit", "met"), [(-0.4, True), (-0.5, True), (-0.6, False)])
def test_target_is_judged_from_the_figures_of_its_phase(paper: SimpleNamespace, concluded, limit, met):
    result = concluded(paper.complete(), targets=[paper.target(limit)])
    (judged,) = result.targets
    assert (judged.metric, judged.phase, judged.met) == ("latency_p99", "calm", met)
    assert judged.observed == pytest.approx(-0.5)
    assert judged.wording.endswith("met" if met else "missed")


def test_target_of_an_arm_that_never_ran_is_not_judged(paper: SimpleNamespace, concluded):
    recorded = paper.recorded([(paper.arms[0], 0, paper.steady())])
    (judged,) = concluded(recorded, targets=[paper.target()]).targets
    assert judged.met is None
    assert "the treatment has no figure" in judged.wording


def test_missed_target_leaves_the_run_valid(paper: SimpleNamespace, concluded):
    result = concluded(paper.complete(), targets=[paper.target(-0.99)])
    assert result.targets[0].met is False
    assert result.validity.valid


def test_every_measured_phase_and_the_whole_run_have_figures_of_load_and_system(
    paper: SimpleNamespace, concluded
):
    result = concluded(paper.complete())
    for phase in ("calm", "storm", "run"):
        for arm in ("control", "treatment"):
            assert result.figure("latency_p99", arm, phase) is not None
            assert result.figure("calls", arm, phase) is not None
    assert {figure.phase for figure in result.figures} == {"calm", "storm", "run"}
    whole = result.figure("calls", "control", "run")
    assert whole is not None
    assert whole.value == 4.0  # two phases in two cycles; the lead-in is left out


def test_every_figure_has_its_metric_and_every_metric_its_definition(paper: SimpleNamespace, concluded):
    result = concluded(paper.complete())
    defined = {metric.name: metric.definition for metric in result.metrics}
    assert {figure.metric for figure in result.figures} <= set(defined)
    assert all(defined.values())


def test_late_sends_make_the_run_invalid_and_name_the_turn(paper: SimpleNamespace, concluded):
    recorded = paper.recorded(
        [(paper.arms[0], 0, paper.steady()), (paper.arms[1], 1, paper.steady(lag=0.05))]
    )
    validity = concluded(recorded).validity
    assert not validity.valid
    (reason,) = validity.reasons
    assert reason.startswith("treatment, cycle 2: ")
    assert "50.0 ms" in reason


def test_arm_without_one_answer_makes_the_run_invalid(paper: SimpleNamespace, concluded):
    recorded = paper.recorded(
        [(paper.arms[0], 0, paper.steady(ending=Ending.ERROR)), (paper.arms[1], 0, paper.steady())]
    )
    validity = concluded(recorded).validity
    assert validity.reasons == ("control, cycle 1: not one answer; see its log in logs/",)


def test_requests_that_were_never_sent_make_the_run_invalid(paper: SimpleNamespace, concluded):
    ending = [Ending.OK] * 499 + [Ending.NOT_SENT]
    recorded = paper.recorded([(paper.arms[0], 0, paper.steady(ending=ending))])
    assert "never sent" in concluded(recorded).validity.reasons[0]


def test_run_that_ended_early_keeps_its_figures_and_is_not_valid(paper: SimpleNamespace, concluded):
    result = concluded(paper.complete(), "ended early: interrupted")
    assert not result.validity.valid
    assert result.validity.reasons == ("ended early: interrupted",)
    assert result.figure("latency_p99", "control", "calm") is not None


def test_run_without_a_turn_says_so_and_has_no_figures(paper: SimpleNamespace, concluded):
    result = concluded(paper.recorded([]), "ended early: interrupted", targets=[paper.target()])
    assert result.figures == ()
    assert result.targets[0].met is None
    assert result.validity.reasons == (
        "ended early: interrupted",
        "no arm went through a whole cycle",
    )


def test_evidence_is_what_lies_in_the_run_folder(paper: SimpleNamespace, concluded, tmp_path: Path):
    (tmp_path / "events" / "feed-control").mkdir(parents=True)
    (tmp_path / "events" / "feed-control" / "feed-1.jsonl").write_bytes(b"{}\n")
    (tmp_path / "flags.json").write_bytes(b"{}")
    assert [each.path for each in concluded(paper.complete()).evidence] == [
        "events/feed-control/feed-1.jsonl",
        "flags.json",
    ]


def test_machine_is_named(paper: SimpleNamespace, concluded):
    machine = concluded(paper.complete()).machine
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.memory_bytes > 2**20


@pytest.mark.parametrize(("metrics", "said"), [((), "not defined"), (None, "measured twice")])
def test_figure_without_a_definition_or_beside_another_is_refused(
    paper: SimpleNamespace, concluded, monkeypatch: pytest.MonkeyPatch, metrics, said
):
    if metrics is None:
        once = paper.system.measure
        monkeypatch.setattr(paper.system, "measure", lambda *args: once(*args) * 2)
    with pytest.raises(InvalidInput, match=f"figure calls of control, calm: it was .*{said}"):
        concluded(paper.complete(), **({} if metrics is None else {"metrics": metrics}))


def test_run_takes_as_long_as_it_took_whatever_the_clock_says(paper: SimpleNamespace, concluded):
    recorded = paper.complete()
    recorded.started_at = 4e9  # somebody set the clock back during the run
    assert 0 <= concluded(recorded).run_seconds < 60


def test_absolute_target_says_when_the_interval_holds_its_limit(paper: SimpleNamespace, concluded):
    ending = ([Ending.ERROR] + [Ending.OK] * 49) * 10
    recorded = paper.recorded(
        [(arm, cycle, paper.steady(ending=ending)) for arm in paper.arms for cycle in (0, 1)]
    )
    phase, target = paper.target(metric="errors")
    (judged,) = concluded(
        recorded, targets=[(phase, replace(target, relation="absolute", limit=0.021))]
    ).targets
    assert (judged.met, judged.caveat) == (True, "the interval holds the limit")


def test_target_judged_from_too_few_requests_says_so(paper: SimpleNamespace, concluded):
    few = paper.samples([0.5, 1.5, 3.5], 0.1)
    recorded = paper.recorded([(arm, cycle, few) for arm in paper.arms for cycle in (0, 1)])
    (judged,) = concluded(recorded, targets=[paper.target()]).targets
    assert (judged.met, judged.caveat) == (False, "no interval: see the caveats of its figures")
