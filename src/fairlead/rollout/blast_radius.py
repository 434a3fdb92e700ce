"""Before a rollout starts: who is in it, how many, and how long each stage must bake to see anything."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fairlead.errors import NotEstimable
from fairlead.rollout.plan import Guardrail, RolloutPlan, Stage
from fairlead.rollout.traffic import Split

__all__ = ["Reach", "blast_radius"]

_POWER = 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """One stage before it begins."""

    stage: str
    who: str
    """Whom it lets in, in words."""
    units: float | None
    """Units that meet treatment while it bakes; None where the rate is not known."""
    bake_seconds: float
    longest_seconds: float
    needed_seconds: dict[str, float | None]
    """By guardrail beside control: seconds until twice `worse_by` is found with 80 %; None where it cannot be said."""
    gate: str


def blast_radius(plan: RolloutPlan) -> tuple[Reach, ...]:
    """What a plan would do, stage by stage. Needs the plan's `expected_rate` for numbers, and baselines for times.

    Times are those of a watched test that is tuned for them: about twice those of a single look.
    """
    return tuple(_reach(plan, stage) for stage in plan.stages)


def _reach(plan: RolloutPlan, stage: Stage) -> Reach:
    rate = plan.expected_rate
    slots = Split(share=stage.share).slots
    who = f"{slots:,} of 10,000 slots of {plan.flag}" if slots else "nobody"
    if stage.audience:
        who = f"audience {stage.audience}" + (f", and {who}" if slots else "")
    return Reach(
        stage=stage.name,
        who=who,
        units=None if rate is None else rate * stage.share * stage.bake,
        bake_seconds=stage.bake,
        longest_seconds=stage.most,
        needed_seconds={
            guardrail.name: _needed(plan, guardrail, stage)
            for guardrail in plan.guardrails
            if guardrail.is_relative and stage.compares
        },
        gate=stage.gate,
    )


def _needed(plan: RolloutPlan, guardrail: Guardrail, stage: Stage) -> float | None:
    """Seconds until an effect of twice the margin is found in four of five rollouts."""
    baseline, rate = guardrail.metric.baseline, plan.expected_rate
    if rate is None or not baseline or guardrail.metric.kind != "proportion" or guardrail.worse_by is None:
        return None
    from fairlead.statistics import proportion_deviation, sample_size
    from fairlead.statistics.sequential_means import watched_alpha

    sign = 1 if guardrail.metric.better == "lower" else -1
    effect = 2 * guardrail.worse_by * (baseline if guardrail.relative else 1.0)
    worse = baseline + sign * effect
    if not 0 < worse < 1:
        return None
    try:
        size = sample_size(
            standard_deviation=proportion_deviation(baseline),
            treatment_deviation=proportion_deviation(worse),
            effect=sign * effect,
            alpha=watched_alpha(plan.alpha_each / max(1, len(plan.comparing))),
            power=_POWER,
            treatment_share=stage.share,
            two_sided=False,
        )
    except NotEstimable:
        return None
    needed = (size.control + size.treatment) / rate
    return needed if math.isfinite(needed) else None
