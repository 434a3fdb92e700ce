"""Before a rollout starts: who is in it, how many, and how long each stage must bake to see anything."""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.errors import InvalidInput
from fairlead.rollout.exceedances import fewest_of_control, tail
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

    @property
    def blind(self) -> dict[str, float]:
        """Of the guardrails that would find it later than the stage has to end: after how many seconds."""
        needed = self.needed_seconds.items()
        return {
            name: seconds
            for name, seconds in needed
            if seconds is not None and seconds > self.longest_seconds
        }


def blast_radius(plan: RolloutPlan) -> tuple[Reach, ...]:
    """What a plan would do, stage by stage. Needs the plan's `expected_rate` for numbers, and baselines for errors.

    Times are those of a watched test that is tuned for them: about twice those of a single look. Those of a quantile
    suppose that latencies beyond it fall off exponentially: so many more of them lie beyond it where all are longer. A
    heavier tail hides more of that: of +20 % at p99, a lognormal one of σ 1 takes 2.7 times as long, 1/x² 4.6 times.
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
    rates = _rates(guardrail)
    if plan.expected_rate is None or rates is None:
        return None
    from fairlead.statistics import proportion_deviation, sample_size
    from fairlead.statistics.sequential_means import watched_alpha

    usual, worse = rates
    try:
        size = sample_size(
            standard_deviation=proportion_deviation(usual),
            treatment_deviation=proportion_deviation(worse),
            effect=worse - usual,
            alpha=watched_alpha(plan.alpha_each / max(1, len(plan.comparing))),
            power=_POWER,
            treatment_share=stage.share,
            two_sided=False,
        )
    except InvalidInput:  # more units than there are
        return None
    uncounted = fewest_of_control(guardrail.metric) if guardrail.metric.kind == "quantile" else 0
    return (size.total + uncounted / (1 - stage.share)) / plan.expected_rate


def _rates(guardrail: Guardrail) -> tuple[float, float] | None:
    """Share of units that count as bad, in control and in a treatment that is worse by twice the margin."""
    metric, margin = guardrail.metric, guardrail.worse_by
    assert margin is not None  # noqa: S101 - it is a guardrail beside control
    if metric.kind == "quantile" and metric.better == "lower":
        usual = tail(metric)
        return usual, usual ** (1 / (1 + 2 * margin))
    if metric.kind != "proportion" or not metric.baseline:
        return None
    effect = 2 * margin * (metric.baseline if guardrail.relative else 1.0)
    worse = metric.baseline + (effect if metric.better == "lower" else -effect)
    return (metric.baseline, worse) if 0 < worse < 1 else None
