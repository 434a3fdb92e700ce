"""Late cycles: left out whole in a long run, fatal in a short one."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from fairlead.trial.validity import judge


def run_of(paper: SimpleNamespace, cycles: int, late: set[tuple[int, int]]):
    """A record of `cycles` cycles in which the turns (arm number, cycle) of `late` were sent late."""
    turns = [
        (arm, cycle, paper.steady(lag=0.05 if (number, cycle) in late else 0.001))
        for cycle in range(cycles)
        for number, arm in enumerate(paper.arms)
    ]
    recorded = paper.recorded(turns)
    recorded.plan = replace(recorded.plan, cycles=cycles)
    return recorded


def test_one_late_cycle_in_twenty_is_left_out_for_every_arm_and_named(paper: SimpleNamespace):
    judged = judge(run_of(paper, 20, {(1, 7)}))
    assert judged.validity.valid
    assert {turn.cycle for turn in judged.kept.turns} == set(range(20)) - {7}
    assert len(judged.kept.turns) == 2 * 19
    (named,) = judged.validity.left_out
    assert named.startswith("treatment, cycle 8: requests were sent late")
    assert judged.validity.requests == sum(len(turn.samples) for turn in judged.kept.turns)


def test_two_late_cycles_in_twenty_make_the_run_invalid_and_keep_its_record(paper: SimpleNamespace):
    recorded = run_of(paper, 20, {(0, 3), (1, 7)})
    judged = judge(recorded)
    assert not judged.validity.valid
    assert len(judged.validity.reasons) == 2
    assert judged.validity.left_out == ()
    assert judged.kept is recorded


def test_a_short_run_forgives_nothing(paper: SimpleNamespace):
    assert not judge(run_of(paper, 3, {(0, 1)})).validity.valid


def test_both_arms_late_in_one_cycle_are_one_cycle(paper: SimpleNamespace):
    judged = judge(run_of(paper, 20, {(0, 7), (1, 7)}))
    assert judged.validity.valid
    assert len(judged.validity.left_out) == 2
