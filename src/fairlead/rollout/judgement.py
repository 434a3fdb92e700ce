"""What one look means for the rollout: advance, hold or rollback. A pure function of plan, state and look.

In this order, the first that holds:

    a person wants it rolled back                          rollback
    a guardrail failed                                     rollback
    neither arm reports                                    hold, frozen         rollback after `patience`
    treatment is silent while control reports              hold                 rollback after `silence`
    paused                                                 hold                 rollback after `patience`
    no guardrail has a figure                              hold; then frozen    rollback after `patience`
    not baked, or too few units                            hold
    the split is not as planned                            hold                 rollback after the longest bake
    every guardrail that can pass here has passed          advance, or hold at a manual gate (rollback after `patience`)
    at a gate, one no longer passes                        hold at the gate     rollback after `patience`
    an absolute limit is broken, not yet for its time      hold                 it fails in its time, or passes
    longest bake over: none has shown harm                 advance, if the plan says so
    longest bake over                                      rollback

Guardrails are thus live in gates, pauses and holds, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fairlead.rollout.guardrail import Evaluation
from fairlead.rollout.plan import RolloutPlan
from fairlead.rollout.state import RolloutState

__all__ = ["Judgement", "Look", "judge"]

SAMPLE_RATIO_ALPHA = 0.001
"""As for every experiment (`statistics.sample_ratio`): each split is checked, and a false alarm voids a good one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What was seen at one look."""

    evaluations: tuple[Evaluation, ...]
    guarded_seconds: float
    """Of this stage, in which guardrails were evaluated."""
    units: Mapping[str, int] = field(default_factory=dict)
    sample_ratio_p: float | None = None
    silent: Mapping[str, float] = field(default_factory=dict)
    """By arm: seconds for which it has been silent, where that is longer than chance allows."""
    blind_seconds: float = 0.0
    """For which no guardrail has had a figure; 0: one has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """A decision, before it is carried out."""

    verdict: Literal["advance", "hold", "rollback"]
    reason: str
    """In a sentence, for the person who reads it at night."""
    state: Literal["", "baking", "gate", "frozen"] = ""
    ground: Literal["", "pass", "no_harm_seen", "person"] = ""
    guardrails: tuple[str, ...] = ()
    """Those it stands on."""
    page: str = ""
    """What to call a person for; empty: nothing."""


def judge(plan: RolloutPlan, state: RolloutState, look: Look, *, waited: float) -> Judgement:
    """The decision after this look. waited: seconds in the state's phase, by a clock that does not jump."""
    if state.rollback_asked:
        return _rollback(f"{state.wish_by or 'somebody'} asked for it: {state.rollback_asked}")
    failed = [each for each in look.evaluations if each.verdict == "FAIL"]
    if failed:
        return _failed(plan, failed)
    if len(look.silent) == 2:
        return _frozen(
            plan,
            state,
            waited,
            "neither arm reports; frozen until events arrive",
            f"no events of either arm for {min(look.silent.values()):.0f} s",
            page="neither arm reports: telemetry is down, or the service",
        )
    if plan.treatment in look.silent:
        seconds = look.silent[plan.treatment]
        if seconds >= plan.silence:
            return _rollback(
                f"{plan.treatment} has been silent for {seconds:.0f} s while {plan.control} reports"
            )
        return _hold(state, f"{plan.treatment} is silent while {plan.control} reports")
    why = next((each.detail for each in look.evaluations if each.detail), "no data")
    page = f"no guardrail has a figure: {why}" if look.blind_seconds >= plan.stale_after else ""
    if state.paused:
        if waited > plan.patience:
            return _rollback(f"paused for more than {plan.patience:g} s")
        return Judgement(verdict="hold", reason="paused", page=page)
    if page:
        return _frozen(
            plan, state, waited, f"no guardrail has a figure ({why}); frozen until one has", page, page=page
        )
    if look.blind_seconds:
        return _hold(state, f"no guardrail has a figure ({why})")
    return _ending(plan, state, look, waited)


def _frozen(
    plan: RolloutPlan, state: RolloutState, waited: float, reason: str, fact: str, *, page: str
) -> Judgement:
    # A pause does not end by a freeze, and has the same deadline.
    if state.phase in ("frozen", "paused") and waited > plan.patience:
        return _rollback(f"{fact}, and nobody came within {plan.patience:g} s")
    return Judgement(
        verdict="hold", reason=reason, state="frozen", page=page if state.phase != "frozen" else ""
    )


def _ending(plan: RolloutPlan, state: RolloutState, look: Look, waited: float) -> Judgement:
    """Whether the stage may end; nothing is wrong with it."""
    stage = plan.stages[state.stage]
    # A stage without a bake is not given up on by its first look, which may have come before the first event.
    longest = stage.most if stage.longest is not None else max(stage.most, plan.stale_after)
    over = look.guarded_seconds >= longest
    fewest = min((look.units.get(arm, 0) for arm in (plan.control, plan.treatment)), default=0)
    short = stage.compares and fewest < stage.minimum_units
    mismatch = look.sample_ratio_p is not None and look.sample_ratio_p < SAMPLE_RATIO_ALPHA
    if look.guarded_seconds < stage.bake:
        return _hold(state, "baking")
    if mismatch:
        if over:
            return _rollback("the split is not as planned (sample ratio), so nothing could be shown")
        return _hold(
            state, "the split is not as planned (sample ratio): nothing counts until it is explained"
        )
    open_ones = [each for each in look.evaluations if each.verdict != "PASS" and each.reason != "no_control"]
    if not short and not open_ones:
        applies = any(each.verdict == "PASS" for each in look.evaluations)
        passed = "every guardrail passed" if applies else "no guardrail applies to this stage"
        return _gate(plan, state, waited, passed, "pass")
    waiting = ", ".join(f"{each.guardrail} ({each.reason})" for each in open_ones[:4])
    said = f"{fewest} of {stage.minimum_units} units" if short else f"not yet shown: {waiting}"
    harmless = not short and all(each.reason == "waiting" for each in open_ones)
    if over and harmless and plan.advance_on == "no_harm_seen":
        return _gate(plan, state, waited, f"no guardrail has shown harm; {said}", "no_harm_seen")
    if state.phase == "gate" and waited > plan.patience:
        return _rollback(f"nobody opened the gate within {plan.patience:g} s")
    breaking = any(each.reason in ("beyond_limit", "control_unhealthy") for each in open_ones)
    if not over or breaking or state.phase == "gate":
        return _hold(state, said)
    return _rollback(f"{longest:g} s were not enough: {said}")


def _gate(
    plan: RolloutPlan,
    state: RolloutState,
    waited: float,
    reason: str,
    ground: Literal["pass", "no_harm_seen"],
) -> Judgement:
    if plan.stages[state.stage].gate == "automatic" or state.gate_open:
        by_person = " and " + state.wish_by + " opened the gate" if state.gate_open else ""
        return Judgement(verdict="advance", reason=f"{reason}{by_person}", ground=ground)
    if state.phase == "gate" and waited > plan.patience:
        return _rollback(f"nobody opened the gate within {plan.patience:g} s")
    return Judgement(
        verdict="hold",
        reason=f"{reason}; a person opens the gate: fairlead rollout advance {plan.name}",
        state="gate",
        page="a gate waits for a person" if state.phase != "gate" else "",
    )


def _failed(plan: RolloutPlan, failed: list[Evaluation]) -> Judgement:
    first = failed[0]
    unit = plan.guardrail(first.guardrail).metric.unit
    said = f"{first.guardrail}: {plan.treatment} {_figure(first.treatment, unit)}"
    if first.control is not None:
        said += f" against {_figure(first.control, unit)} of {plan.control}"
    if first.reason == "harm":
        if first.beyond_control or first.beyond_treatment:
            said += (
                f"; beyond the quantile of {plan.control} a moment before: {first.beyond_treatment:,} of "
                f"{first.n_treatment:,} against {first.beyond_control:,} of {first.n_control:,} units"
            )
        said += f" (e-value {math.exp(min(50.0, first.log_wealth)):,.0f}, {math.exp(first.log_needed):,.0f} needed)"
    more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
    sick = next((each for each in failed if each.detail), None)
    # Wherever the reason is read, in a notice at night above all.
    runbooks = dict.fromkeys(plan.guardrail(each.guardrail).runbook for each in failed)
    runbook = "".join(f"; runbook {each}" for each in list(filter(None, runbooks))[:3])
    return Judgement(
        verdict="rollback",
        reason=f"{said}{more}{runbook}",
        guardrails=tuple(each.guardrail for each in failed),
        page=f"{plan.control} is beyond the limit of {sick.guardrail} too; rolling back may not be enough{runbook}"
        if sick
        else "",
    )


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "?"
    return f"{value:.3%}" if unit == "ratio" else f"{value:.4g} {unit}"


def _hold(state: RolloutState, reason: str) -> Judgement:
    # Who waits for a person goes on waiting, by the same deadline.
    return Judgement(verdict="hold", reason=reason, state="gate" if state.phase == "gate" else "baking")


def _rollback(reason: str) -> Judgement:
    return Judgement(verdict="rollback", reason=reason)
