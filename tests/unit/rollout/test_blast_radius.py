"""What a plan would do before it starts: whom it reaches, and how long each guardrail needs to see harm."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest

from fairlead.cli.rollout_view import print_blast_radius
from fairlead.rollout import Guardrail, Stage
from fairlead.rollout.blast_radius import blast_radius
from fairlead.rollout.exceedances import Exceedances
from fairlead.rollout.guardrail import evaluate_beside_control
from fairlead.rollout.tally import ArmSeen, rounded
from tests.unit.rollout.conftest import ERRORS, LATENCY, plan

KNOWN = dataclasses.replace(ERRORS, baseline=0.01)
SLOW = Guardrail(metric=LATENCY, worse_by=0.1)
STAGES = (Stage(share=0.05, bake=600.0), Stage(audience="internal", share=0.05), Stage(share=1.0))


def needed(guardrail: Guardrail, share: float = 0.5, rate: float | None = 100.0) -> float | None:
    made = plan(stages=(Stage(share=share), Stage(share=1.0)), guardrails=(guardrail,), expected_rate=rate)
    return blast_radius(made)[0].needed_seconds[guardrail.name]


def test_a_quantile_needs_no_baseline_to_say_when_it_sees_harm():
    found = needed(SLOW)
    assert found is not None
    assert needed(Guardrail(metric=LATENCY, worse_by=0.2)) < found < needed(SLOW, 0.01)  # type: ignore[operator]
    assert needed(SLOW, rate=None) is None


@pytest.mark.parametrize(
    "guardrail",
    [
        Guardrail(metric=ERRORS, worse_by=0.002, relative=False),
        Guardrail(metric=KNOWN, worse_by=0.6, relative=False),
        Guardrail(metric=KNOWN, worse_by=1e-15, relative=False),
        Guardrail(metric=dataclasses.replace(LATENCY, q=0.05, better="higher"), worse_by=0.1),
        Guardrail(metric=dataclasses.replace(LATENCY, kind="mean", q=None), worse_by=0.1),
    ],
    ids=["no baseline", "no proportion", "more units than there are", "no tail known", "no deviation known"],
)
def test_what_cannot_be_said_is_not_known(guardrail: Guardrail):
    assert needed(guardrail) is None


def test_slow_treatments_are_found_in_the_time_that_was_said():
    """Played with the product's own counts and judgement; four of five is what the time promises."""
    rate, share, times = 2_000.0, 0.5, 1.2
    seconds = needed(SLOW, share, rate)
    assert seconds is not None
    made = plan(stages=(Stage(share=share, bake=seconds),), guardrails=(SLOW,), expected_rate=rate)
    rng = random.Random(3)
    found = 0
    for _ in range(12):
        counted, arms = Exceedances(LATENCY, look_every=seconds / 20), (ArmSeen(), ArmSeen())
        for number in range(round(seconds * rate)):
            treated = rng.random() < share
            value = rounded(-math.log(rng.random()) * (times if treated else 1.0))
            arms[treated].units += 1
            arms[treated].values[value] += 1
            counted.add(number / rate, treated, value)
        arms[0].bad, arms[1].bad = counted.counts()
        judged = evaluate_beside_control(
            made, SLOW, *arms, share=share, past=(), tuned_for=round(seconds * rate)
        )
        found += judged.verdict == "FAIL"
    assert found >= 5  # of a chance of 0.8, fewer are found once in 1,700 times


def test_a_stage_that_ends_before_anything_is_seen_is_said(capsys: pytest.CaptureFixture[str]):
    guardrails = (SLOW, Guardrail(metric=KNOWN, worse_by=0.02, relative=False))
    made = plan(stages=STAGES, guardrails=guardrails, expected_rate=20.0)
    print_blast_radius(made)
    shown = capsys.readouterr().out
    assert (
        "note: stage 5 % ends after 30m at most, and latency_p99 worse_by 10 % sees harm of twice its"
        in shown
    )
    assert "and errors" not in shown
    assert list(blast_radius(made)[2].blind) == []
