from __future__ import annotations

import json

import pytest

from fairlead.errors import InvalidInput, UnknownFlag
from fairlead.flags import EvaluationContext, FlagSet
from fairlead.migration import Stage, flag_stage
from fairlead.migration.stage import why_no_step


def flags(
    default: str = "off", *, state: str = "ENABLED", variants: dict[str, object] | None = None
) -> FlagSet:
    document = {
        "flags": {
            "orders": {
                "state": state,
                "variants": variants or {stage.replace("-", "_"): stage for stage in Stage},
                "defaultVariant": default,
                "targeting": {"if": [{"==": [{"var": "targetingKey"}, "canary"]}, "dual_write"]},
            }
        }
    }
    return FlagSet.parse(json.dumps(document).encode(), source="flags.json")


def test_the_stage_is_the_value_of_the_flag():
    assert flag_stage(flags("shadow_read"), "orders")() == "shadow-read"


def test_one_instance_can_go_ahead_by_targeting():
    assert flag_stage(flags(), "orders", context=EvaluationContext(targeting_key="canary"))() == "dual-write"


def test_a_disabled_flag_leaves_the_stage_as_it_is():
    assert flag_stage(flags("live", state="DISABLED"), "orders")() is None


def test_an_unknown_flag_is_met_at_start_up():
    with pytest.raises(UnknownFlag, match="ordres"):
        flag_stage(flags(), "ordres")


@pytest.mark.parametrize(
    ("change", "says"),
    [({"live": "alive"}, "has the value 'alive'"), ({"live": "off"}, "no variant with the value 'live'")],
    ids=["a value that is no stage", "a stage that is missing"],
)
def test_a_flag_without_the_six_stages_is_refused(change: dict[str, str], says: str):
    variants = {stage.replace("-", "_"): str(stage) for stage in Stage} | change
    with pytest.raises(InvalidInput, match=says):
        flag_stage(flags(variants=variants), "orders")


@pytest.mark.parametrize("wanted", list(Stage))
@pytest.mark.parametrize("current", list(Stage))
def test_only_neighbours_are_a_step_apart(current: Stage, wanted: Stage):
    reason = why_no_step(current, wanted)
    assert (reason is None) == (abs(current.number - wanted.number) <= 1)
    if reason is not None:
        assert str(current) in reason
        assert str(wanted) in reason


def test_a_refused_jump_names_what_it_skips_and_the_next_step():
    assert "jumps over dual-write, shadow-read" in (why_no_step(Stage.OFF, Stage.LIVE) or "")
    assert "go to ramp-down first" in (why_no_step(Stage.COMPLETE, Stage.OFF) or "")


@pytest.mark.parametrize("stage", list(Stage)[:-1])
def test_neighbours_share_a_store_that_each_of_them_needs_for_a_write(stage: Stage):
    def needed(plan):
        return set(plan.writes if plan.needs_both else plan.writes[:1])

    following = list(Stage)[stage.number + 1]
    shared = needed(stage.plan) & needed(following.plan)
    assert shared
    assert {stage.plan.reads, following.plan.reads} & shared


def test_whoever_reads_a_store_needs_it_for_a_write():
    for stage in Stage:
        plan = stage.plan
        assert plan.reads in (plan.writes if plan.needs_both else plan.writes[:1])
