"""A plan played over recorded traffic: seldom wrong, soon right, and never silent on what it could not do."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from fairlead.errors import InvalidInput
from fairlead.rollout import Guardrail, RolloutPlan, Stage
from fairlead.rollout.simulate import Harm, simulate_rollout
from tests.unit.rollout.conftest import ERRORS, LATENCY

MakePlan = Callable[..., RolloutPlan]
STAGES = (Stage(share=0.1, bake=100.0), Stage(share=0.5, bake=100.0), Stage(share=1.0, bake=0.0))
Events = list[tuple[str, dict[str, object]]]


def recording(units: int = 2_000, seconds: float = 100.0, errors: float = 0.02) -> Events:
    rng = random.Random(3)
    return [
        (
            "request_finished",
            {
                "at_utc_seconds": 1_750_000_000.0 + seconds * index / units,
                "targeting_key": f"user-{rng.randrange(units)}",
                "status": 500 if rng.random() < errors else 200,
                "latency_seconds": rng.lognormvariate(-3, 0.5),
            },
        )
        for index in range(units)
    ]


def test_without_harm_few_are_rolled_back_and_with_it_nearly_all(make_plan: MakePlan) -> None:
    plan = make_plan(stages=STAGES, guardrails=(Guardrail(metric=ERRORS, worse_by=0.01, relative=False),))
    events = recording()
    same = simulate_rollout(plan, events, repeats=40)
    worse = simulate_rollout(plan, events, repeats=10, harm=Harm(errors=0.2))
    assert same.rolled_back <= 6  # 5 % of 40, and five standard deviations of chance
    assert worse.rolled_back == 10
    assert worse.by_stage.get("10 %", 0) >= 8
    assert all(0 < seconds <= 200 for seconds in worse.seconds)
    assert all(0 < exposed < 1_000 for exposed in worse.exposed)


def test_a_slow_treatment_is_found_by_its_quantile(make_plan: MakePlan) -> None:
    plan = make_plan(stages=STAGES, guardrails=(Guardrail(metric=LATENCY, worse_by=0.1),))
    found = simulate_rollout(plan, recording(), repeats=5, harm=Harm(slower=3.0))
    assert found.rolled_back == 5
    assert found.harm == "300 % slower"


def test_one_seed_gives_one_result(make_plan: MakePlan) -> None:
    plan = make_plan(stages=STAGES)
    events = recording(500)
    twice = [simulate_rollout(plan, events, repeats=5, harm=Harm(errors=0.3), seed=9) for _ in range(2)]
    assert twice[0] == twice[1]
    shuffled = random.Random(1).sample(events, len(events))
    assert (
        simulate_rollout(plan, shuffled, repeats=5, harm=Harm(errors=0.3), seed=9).rolled_back
        == twice[0].rolled_back
    )


def test_what_is_not_played_is_said(make_plan: MakePlan) -> None:
    rails = (Guardrail(metric=ERRORS, worse_by=0.02, relative=False), Guardrail(metric=ERRORS, above=0.1))
    plan = make_plan(stages=(Stage(share=0.1, bake=250.0),), guardrails=rails)
    found = simulate_rollout(plan, recording(300), repeats=1)
    assert "gone through up to 3 times" in found.caveats[0]
    assert found.caveats[1] == "absolute limits are not played"


@pytest.mark.parametrize(
    "events", [[], [("request_finished", {"at_utc_seconds": 1.0, "status": 200})]], ids=["none", "no unit"]
)
def test_a_recording_without_units_is_refused(make_plan: MakePlan, events: Events) -> None:
    with pytest.raises(InvalidInput, match="no event that a guardrail beside control counts"):
        simulate_rollout(make_plan(stages=STAGES), events)


def test_a_plan_that_compares_nothing_is_refused(make_plan: MakePlan) -> None:
    with pytest.raises(InvalidInput, match="nothing is compared with control"):
        simulate_rollout(make_plan(stages=(Stage(share=1.0, bake=1.0),)), recording(10))
