"""Figures from samples whose answers can be worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from fairlead.lab import Ending, Samples
from fairlead.trial import Arm, Phase
from fairlead.trial import figures as figures_module
from fairlead.trial.definitions import load_metrics
from fairlead.trial.figures import WHOLE_RUN, latencies, load_figures, metric_record, of_phase
from fairlead.trial.result import Figure
from fairlead.trial.walk import Recorded

CONTROL = Arm(name="control", variant="control")
CALM = Phase(name="calm", title="calm", seconds=2.0)
STORM = Phase(name="storm", title="storm", seconds=2.0)


def figures(recorded: Recorded, phase: Phase = CALM) -> dict[str, Figure]:
    part = of_phase(recorded, CONTROL, phase)
    assert part is not None
    return {figure.metric: figure for figure in load_figures(CONTROL, phase, part, 1.0)}


def of_turn(paper: SimpleNamespace, samples: Samples) -> Recorded:
    return paper.recorded([(CONTROL, 0, samples)])


@pytest.mark.parametrize(
    "ending", [Ending.REFUSED, Ending.ERROR, Ending.TIMEOUT, Ending.NOT_SENT, Ending.UNFINISHED]
)
def test_request_without_an_answer_counts_as_slow_as_the_patience(paper: SimpleNamespace, ending: Ending):
    rows = paper.samples([1.0, 1.1], [0.002, 0.002], [Ending.OK, ending])
    assert latencies(rows, 1.0).tolist() == [0.002, 1.0]


def test_timeout_that_was_noticed_late_keeps_its_own_latency(paper: SimpleNamespace):
    rows = paper.samples([1.0], 1.2, Ending.TIMEOUT)
    assert latencies(rows, 1.0).tolist() == [1.2]


def test_failing_fast_makes_no_quantile_better(paper: SimpleNamespace):
    offsets = np.arange(1.0, 3.0, 0.01).tolist()
    half = [Ending.ERROR if number % 2 else Ending.OK for number in range(len(offsets))]
    found = figures(of_turn(paper, paper.samples(offsets, 0.001, half)))
    assert found["latency_p50"].value == 0.001
    assert found["latency_p90"].value == 1.0
    assert found["errors"].value == 0.5


def test_each_quantile_is_the_one_it_is_named_after(paper: SimpleNamespace):
    offsets = np.linspace(1.0, 2.99, 1000).tolist()
    latency = [number / 1000 for number in range(1, 1001)]
    found = figures(of_turn(paper, paper.samples(offsets, latency)))
    assert {name: found[f"latency_{name}"].value for name in ("p50", "p90", "p95", "p99")} == {
        "p50": 0.5,
        "p90": 0.9,
        "p95": 0.95,
        "p99": 0.99,
    }


def test_shares_count_every_request_of_the_phase(paper: SimpleNamespace):
    ending = [Ending.OK] * 5 + [Ending.TIMEOUT] * 2 + [Ending.REFUSED, Ending.ERROR, Ending.OK]
    degraded = [1.0, 1.0] + [0.0] * 8
    found = figures(
        of_turn(paper, paper.samples(np.linspace(1.0, 2.9, 10).tolist(), 0.1, ending, degraded=degraded))
    )
    assert found["timeouts"].value == pytest.approx(0.2)
    assert found["errors"].value == pytest.approx(0.2)
    assert found["degraded"].value == pytest.approx(0.2)
    assert found["goodput"].value == pytest.approx(6 / 2.0)
    assert {found[name].n for name in ("timeouts", "errors", "degraded", "latency_p99")} == {10}


def test_failed_request_is_not_degraded_whatever_its_header_says(paper: SimpleNamespace):
    found = figures(of_turn(paper, paper.samples([1.0, 1.5], 0.1, [Ending.ERROR, Ending.OK], degraded=1.0)))
    assert found["degraded"].value == 0.5


def test_answer_that_does_not_say_whether_it_is_degraded_counts_as_not(paper: SimpleNamespace):
    found = figures(of_turn(paper, paper.samples([1.0, 1.5], 0.1, degraded=float("nan"))))
    assert found["degraded"].value == 0.0


def test_phase_holds_the_requests_that_were_due_in_it(paper: SimpleNamespace):
    rows = paper.samples([0.0, 0.999, 1.0, 2.999, 3.0, 4.9])
    recorded = of_turn(paper, rows)
    calm, storm = of_phase(recorded, CONTROL, CALM), of_phase(recorded, CONTROL, STORM)
    assert calm is not None
    assert storm is not None
    assert calm.samples.offset.tolist() == [1.0, 2.999]
    assert storm.samples.offset.tolist() == [3.0, 4.9]


def test_request_due_at_the_very_end_belongs_to_the_last_phase(paper: SimpleNamespace):
    recorded = of_turn(paper, paper.samples([1.0, 5.0]))
    for phase in (STORM, WHOLE_RUN):
        part = of_phase(recorded, CONTROL, phase)
        assert part is not None
        assert part.samples.offset.tolist()[-1] == 5.0


def test_whole_run_is_all_measured_phases_and_not_the_lead_in(paper: SimpleNamespace):
    recorded = of_turn(paper, paper.samples([0.5, 1.5, 3.5]))
    part = of_phase(recorded, CONTROL, WHOLE_RUN)
    assert part is not None
    assert part.samples.offset.tolist() == [1.5, 3.5]
    assert part.seconds == 4.0


def test_slices_are_half_seconds_and_differ_between_cycles(paper: SimpleNamespace):
    rows = paper.samples([1.0, 1.49, 1.5, 2.0])
    part = of_phase(paper.recorded([(CONTROL, 0, rows), (CONTROL, 1, rows)]), CONTROL, CALM)
    assert part is not None
    first, second = part.slices[:4].tolist(), part.slices[4:].tolist()
    assert first[0] == first[1] != first[2] != first[3]
    assert not set(first) & set(second)
    assert part.seconds == 4.0


def test_interval_is_wider_where_neighbours_are_slow_together(paper: SimpleNamespace):
    offsets = np.linspace(1.0, 2.999, 2000)
    rng = np.random.default_rng(5)
    slow = rng.permutation(2000) < 1000
    apart = paper.samples(offsets.tolist(), np.where(slow, 0.5, 0.1).tolist(), Ending.OK)
    together = paper.samples(offsets.tolist(), np.where(offsets < 2.0, 0.5, 0.1).tolist(), Ending.OK)

    def width(rows: Samples) -> float:
        share = rows.select(np.ones(len(rows), dtype=bool))
        share.ending[rows.latency > 0.3] = Ending.ERROR
        figure = figures(of_turn(paper, share))["errors"]
        assert figure.low is not None
        assert figure.high is not None
        return figure.high - figure.low

    assert width(together) > 3 * width(apart)


def test_arm_without_a_complete_turn_has_no_samples(paper: SimpleNamespace):
    assert of_phase(paper.recorded([]), CONTROL, CALM) is None


def test_phase_without_a_request_says_so_instead_of_failing(paper: SimpleNamespace):
    found = figures(of_turn(paper, paper.samples([0.5, 3.5])))
    assert found["latency_p99"].value is None
    assert found["errors"].value is None
    assert found["goodput"].value == 0.0
    assert all(figure.caveat for figure in found.values() if figure.value is None)


def test_p999_is_left_out_until_there_are_requests_enough(
    paper: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    assert figures_module.P999_NEEDS == 200_000
    monkeypatch.setattr(figures_module, "P999_NEEDS", 1000)
    offsets = np.linspace(1.0, 2.999, 1000).tolist()
    assert "latency_p999" not in figures(of_turn(paper, paper.samples(offsets[1:])))
    assert "latency_p999" in figures(of_turn(paper, paper.samples(offsets)))


def test_every_figure_has_its_definition(paper: SimpleNamespace):
    defined = {metric.name: metric for metric in load_metrics(1.0)}
    for name in figures(paper.complete()):
        assert defined[name].definition()
    assert defined["latency_p99"].role == "primary"
    assert "counts as at least 2.5 s" in load_metrics(2.5)[0].definition()


def test_record_of_a_metric_can_be_checked_against_its_sentence():
    (first, *_) = load_metrics(1.0)
    record = metric_record(first)
    assert record.definition == first.definition()
    assert len(record.definition_sha256) == 64
    assert metric_record(load_metrics(2.0)[0]).definition_sha256 != record.definition_sha256
