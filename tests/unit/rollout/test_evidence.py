"""What the ledger keeps of a decision: the difference of the quantiles, its bound, and what showed it to be worse."""

from __future__ import annotations

import dataclasses
from typing import cast

from fairlead.ledger import Decision, Evidence, Ledger
from fairlead.rollout import Guardrail, Stage
from fairlead.rollout.entry import Looked
from fairlead.rollout.evidence import DecisionLog
from fairlead.rollout.guardrail import evaluate_beside_control
from fairlead.rollout.judgement import Judgement
from tests.unit.rollout.conftest import LATENCY, plan
from tests.unit.rollout.test_guardrail import values


class Kept:
    """A ledger that only remembers."""

    def __init__(self) -> None:
        self.evidence: list[Evidence] = []
        self.decisions: list[Decision] = []

    def record_evidence(self, evidence: Evidence) -> str:
        self.evidence.append(evidence)
        return f"{len(self.evidence):064x}"

    def record_decision(self, decision: Decision) -> str:
        self.decisions.append(decision)
        return "d"


def test_a_quantiles_evidence_is_its_difference_and_says_what_the_e_value_counted() -> None:
    rail = Guardrail(metric=LATENCY, worse_by=0.1)
    rollout = plan(guardrails=(rail,), stages=(Stage(share=0.5, bake=60.0),))
    control, treatment = values((0.1, 9_900), (0.2, 100)), values((0.1, 9_700), (0.4, 300))
    control, treatment = dataclasses.replace(control, bad=98), dataclasses.replace(treatment, bad=290)
    found = evaluate_beside_control(rollout, rail, control, treatment, share=0.5, past=())
    kept = Kept()
    DecisionLog(cast(Ledger, kept), by="test").record(
        rollout,
        "feed/1",
        Judgement(verdict="rollback", reason="harm"),
        Looked(stage=0, guarded_seconds=60.0, evaluations=(found,)),
        1_000.0,
    )
    *arms, effect = kept.evidence
    assert [(each.arm, each.value, each.n) for each in arms] == [
        ("control", 0.1, 10_000), ("treatment", 0.4, 10_000),
    ]  # fmt: skip
    assert (effect.statistic, effect.unit) == ("relative effect on the 99th percentile", "ratio")
    assert effect.value == found.effect == 3.0
    assert effect.high == found.bound
    assert (
        "the e-value counts units beyond the quantile of control a moment before: 98 of control, 290 of treatment"
        in effect.caveats
    )


def test_evidence_of_made_users_is_of_no_controlled_design() -> None:
    rail = Guardrail(metric=LATENCY, worse_by=0.1)
    rollout = plan(guardrails=(rail,), stages=(Stage(share=0.5, bake=60.0),))
    arms = values((0.1, 1_000)), values((0.1, 1_000))
    found = evaluate_beside_control(rollout, rail, *arms, share=0.5, past=())
    designs = {}
    for simulated in (False, True):
        kept = Kept()
        DecisionLog(cast(Ledger, kept), by="test", simulated=simulated).record(
            rollout,
            "feed/1",
            Judgement(verdict="advance", reason="no harm seen"),
            Looked(stage=0, guarded_seconds=60.0, evaluations=(found,)),
            1_000.0,
        )
        designs[simulated] = {each.design for each in kept.evidence}
    assert designs == {False: {"controlled"}, True: {"simulated"}}
