"""The rules of a judgement, in their order: each is met with everything below it true as well."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from fairlead.errors import InvalidInput
from fairlead.rollout import Guardrail, RolloutPlan, Stage
from fairlead.rollout.guardrail import Evaluation
from fairlead.rollout.judgement import Look, judge
from fairlead.rollout.state import RolloutState
from tests.unit.rollout.conftest import ERRORS, LATENCY, plan

RAIL = Guardrail(metric=ERRORS, worse_by=0.02, relative=False)
LIMIT = Guardrail(metric=ERRORS, above=0.1, for_seconds=600.0)
STAGE = Stage(share=0.05, bake=100.0, longest=300.0, minimum_units=50)
PLAN = plan(stages=(STAGE, Stage(share=1.0)), guardrails=(RAIL, LIMIT), patience=600.0, silence=120.0)
MANUAL = replace(PLAN, stages=(replace(STAGE, gate="manual"), Stage(share=1.0)))
STRICT = replace(PLAN, advance_on="pass")
BAKING = RolloutState(rollout="feed/1", phase="baking", stage_began_utc_seconds=0.0)


def found(verdict: str, reason: str = "", rail: Guardrail = RAIL, **more: object) -> Evaluation:
    return Evaluation(guardrail=rail.name, verdict=verdict, reason=reason, **more)  # type: ignore[arg-type]


PASSED = found("PASS")
WAITING = found("INCONCLUSIVE", "waiting")
BROKEN = found("INCONCLUSIVE", "beyond_limit", LIMIT)
NO_FIGURE = found("INCONCLUSIVE", "query_error", LIMIT, detail="no answer")
FAILED = found("FAIL", "harm", treatment=0.5, control=0.01)
BOTH = {"control": 200.0, "treatment": 200.0}
MANY = {"control": 950, "treatment": 50}


def look(
    *evaluations: Evaluation,
    guarded: float = 100.0,
    units: dict[str, int] = MANY,
    split: float | None = 0.5,
    silent: dict[str, float] | None = None,
    blind: float = 0.0,
) -> Look:
    return Look(
        evaluations=evaluations or (PASSED,),
        guarded_seconds=guarded,
        units=units,
        sample_ratio_p=split,
        silent=silent or {},
        blind_seconds=blind,
    )


ASKED = replace(BAKING, rollback_asked="a bad feeling", wish_by="ann")
FROZEN, GATE = replace(BAKING, phase="frozen"), replace(BAKING, phase="gate")
PAUSED = replace(BAKING, phase="paused", paused=True)
OPEN = replace(GATE, gate_open=True, wish_by="ann")


@dataclass(frozen=True)
class Rule:
    name: str
    state: RolloutState
    look: Look
    verdict: str
    said: str
    to: str = ""
    waited: float = 0.0
    plan: RolloutPlan = PLAN
    ground: str = ""
    paged: str = ""


# Each rule's look also breaks, or fulfils, what stands below it.
RULES = [
    Rule("asked", ASKED, look(FAILED, silent=BOTH), "rollback", "ann asked for it: a bad feeling"),
    Rule("failed", PAUSED, look(PASSED, FAILED, silent=BOTH), "rollback", "50.000% against 1.000% of control"),
    Rule("two failed", BAKING, look(FAILED, FAILED), "rollback", "and 1 more"),
    Rule(
        "both sick", BAKING, look(found("FAIL", rail=LIMIT, treatment=1.0, detail="control is beyond the limit too")),
        "rollback", "errors above", paged="rolling back may not be enough",
    ),
    Rule("silent", BAKING, look(NO_FIGURE, silent=BOTH), "hold", "neither arm", to="frozen", paged="telemetry is down"),
    Rule("silent still", FROZEN, look(silent=BOTH), "hold", "neither arm", to="frozen", waited=600.0),
    Rule("silent too long", FROZEN, look(silent=BOTH), "rollback", "nobody came within 600 s", waited=601.0),
    Rule("paused and silent", PAUSED, look(silent=BOTH), "hold", "neither arm", to="frozen", paged="telemetry is down"),
    Rule("paused, silent too long", PAUSED, look(silent=BOTH), "rollback", "nobody came", waited=601.0),
    Rule("treatment silent", BAKING, look(silent={"treatment": 119.0}, blind=90.0), "hold", "is silent", to="baking"),
    Rule("treatment gone", PAUSED, look(silent={"treatment": 120.0}), "rollback", "silent for 120 s while control"),
    Rule("silent at a gate", GATE, look(silent={"treatment": 60.0}), "hold", "is silent", to="gate"),
    Rule("paused", PAUSED, look(guarded=999.0), "hold", "paused", waited=600.0),
    Rule("paused and blind", PAUSED, look(NO_FIGURE, blind=60.0), "hold", "paused", paged="no guardrail has a figure"),
    Rule("paused too long", PAUSED, look(), "rollback", "paused for more than 600 s", waited=601.0),
    Rule("blind", BAKING, look(NO_FIGURE, guarded=999.0, blind=59.0), "hold", "(no answer)", to="baking"),
    Rule(
        "blind for long", BAKING, look(NO_FIGURE, guarded=999.0, blind=60.0), "hold", "frozen until one has",
        to="frozen", paged="no guardrail has a figure: no answer",
    ),
    Rule("blind too long", FROZEN, look(NO_FIGURE, blind=700.0), "rollback", "nobody came within", waited=601.0),
    Rule("not baked", BAKING, look(guarded=99.0, split=1e-9), "hold", "baking", to="baking"),
    Rule("split", BAKING, look(split=0.0009, units={}), "hold", "sample ratio", to="baking"),
    Rule("split, over", BAKING, look(split=0.0009, guarded=300.0), "rollback", "sample ratio"),
    Rule("split is a little off", BAKING, look(split=0.001), "advance", "every guardrail passed", ground="pass"),
    Rule("passed", BAKING, look(PASSED, found("INCONCLUSIVE", "no_control")), "advance", "passed", ground="pass"),
    Rule("passed after its bake", BAKING, look(guarded=299.0), "advance", "passed", ground="pass"),
    Rule("passed at a gate", BAKING, look(), "hold", "fairlead rollout advance feed", plan=MANUAL, to="gate",
         paged="a gate waits"),
    Rule("waits at a gate", GATE, look(guarded=9e9), "hold", "a person", plan=MANUAL, to="gate", waited=600.0),
    Rule("nobody came", GATE, look(guarded=9e9), "rollback", "nobody opened the gate", plan=MANUAL, waited=601.0),
    Rule("opened", OPEN, look(), "advance", "and ann opened the gate", plan=MANUAL, ground="pass", waited=999.0),
    Rule("doubt at a gate", GATE, look(WAITING, guarded=9e9), "hold", "not yet shown", plan=STRICT, to="gate"),
    Rule("doubt for too long", GATE, look(NO_FIGURE, PASSED, guarded=9e9), "rollback", "nobody opened", waited=601.0),
    Rule("too few units", BAKING, look(units={"control": 900, "treatment": 49}), "hold", "49 of 50 units", to="baking"),
    Rule("too few units, over", BAKING, look(units={}, guarded=300.0), "rollback", "300 s were not enough: 0 of 50"),
    Rule("not shown", BAKING, look(WAITING, guarded=299.0), "hold", "not yet shown: errors", to="baking"),
    Rule("no harm", BAKING, look(WAITING, guarded=300.0), "advance", "has shown harm", ground="no_harm_seen"),
    Rule("no harm, to a gate", BAKING, look(WAITING, guarded=300.0), "hold", "has shown harm", plan=MANUAL, to="gate",
         paged="a gate waits"),
    Rule("has to pass", BAKING, look(WAITING, guarded=300.0), "rollback", "not enough: not yet shown", plan=STRICT),
    Rule("one has no figure", BAKING, look(WAITING, NO_FIGURE, guarded=300.0), "rollback", "(query_error)"),
    Rule("broken, not yet for its time", BAKING, look(WAITING, BROKEN, guarded=9e9), "hold", "(beyond_limit)",
         to="baking"),
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_first_rule_that_holds_decides(rule: Rule):
    judgement = judge(rule.plan, rule.state, rule.look, waited=rule.waited)
    assert judgement.verdict == rule.verdict
    assert rule.said in judgement.reason
    assert (judgement.state, judgement.ground) == (rule.to, rule.ground)
    assert rule.paged in judgement.page
    assert bool(rule.paged) == bool(judgement.page)


def test_a_person_is_called_once_for_a_freeze_and_once_for_a_gate():
    assert judge(PLAN, FROZEN, look(silent=BOTH), waited=1.0).page == ""
    assert judge(MANUAL, GATE, look(), waited=1.0).page == ""


def test_a_stage_that_no_guardrail_watches_does_not_say_that_they_passed():
    seen = Look(evaluations=(), guarded_seconds=100.0)
    dark = replace(PLAN, stages=(Stage(bake=60.0),))
    judgement = judge(dark, BAKING, seen, waited=0.0)
    assert (judgement.verdict, judgement.reason) == ("advance", "no guardrail applies to this stage")


def test_a_stage_that_compares_nothing_needs_no_units():
    only = replace(PLAN, stages=(Stage(share=1.0, bake=10.0, minimum_units=50),))
    assert judge(only, BAKING, look(units={}, split=None), waited=0.0).verdict == "advance"


def test_a_stage_without_a_bake_is_not_given_up_on_by_its_first_look():
    only = replace(STRICT, stages=(Stage(share=1.0, bake=0.0),))
    assert judge(only, BAKING, look(NO_FIGURE, PASSED, guarded=0.0), waited=0.0).verdict == "hold"
    assert judge(only, BAKING, look(NO_FIGURE, PASSED, guarded=60.0), waited=0.0).verdict == "rollback"
    at_once = replace(only, stages=(Stage(share=1.0, bake=0.0, longest=0.0),))
    assert judge(at_once, BAKING, look(NO_FIGURE, PASSED, guarded=0.0), waited=0.0).verdict == "rollback"


def test_a_quantiles_rollback_says_how_many_units_lay_beyond_controls():
    rail = Guardrail(metric=LATENCY, worse_by=0.1)
    failed = found(
        "FAIL", "harm", rail, treatment=0.45, control=0.3, n_control=9_500, n_treatment=500, beyond_control=96,
        beyond_treatment=21, log_wealth=5.0, log_needed=3.0,
    )  # fmt: skip
    decided = judge(replace(PLAN, guardrails=(rail,)), BAKING, look(failed), waited=0.0)
    assert decided.verdict == "rollback"
    assert decided.reason == (
        "latency_p99 worse_by 10 %: treatment 0.45 seconds against 0.3 seconds of control; beyond the quantile of "
        "control a moment before: 21 of 500 against 96 of 9,500 units (e-value 148, 20 needed)"
    )


def test_whoever_reads_of_a_rollback_is_told_each_runbook_once():
    rails = (replace(RAIL, runbook="https://runbooks/feed"), replace(LIMIT, runbook="https://runbooks/feed"))
    plan = replace(PLAN, guardrails=rails)
    failed = look(FAILED, found("FAIL", "beyond_limit", LIMIT, detail="control is beyond the limit too"))
    judgement = judge(plan, BAKING, failed, waited=0.0)
    assert judgement.reason.endswith("and 1 more; runbook https://runbooks/feed")
    assert judgement.page.endswith("rolling back may not be enough; runbook https://runbooks/feed")
    assert "runbook" not in judge(PLAN, BAKING, failed, waited=0.0).reason


@pytest.mark.parametrize("runbook", ["two\nlines", "x" * 257], ids=["two lines", "long"])
def test_a_runbook_is_one_line(runbook: str):
    with pytest.raises(InvalidInput, match="runbook: write one printable line"):
        replace(RAIL, runbook=runbook)
