"""How long must it run, and what can it find? From one's own history, before anyone is exposed.

History shows how much units vary, and how much of that their past explains; everything else follows. Each metric is
sized at each stage of the rollout, with and without its covariates: at 1 % of the traffic most stages can see a
disaster and nothing smaller, and it is better to know before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fairlead.calls.bounds import check_number
from fairlead.errors import InvalidInput, NotEstimable
from fairlead.experiment.comparison import Arms, compare_arms, plain_effect
from fairlead.experiment.plan import HISTORY, ExperimentPlan
from fairlead.metrics import Family, Metric
from fairlead.statistics import mean_effect, minimum_detectable_effect, power, sample_size
from fairlead.statistics.sequential_means import watched_alpha
from fairlead.statistics.tails import critical_value

if TYPE_CHECKING:  # what is written by hand is sized without a warehouse
    from fairlead.experiment.units import Units

__all__ = ["Design", "MetricDesign", "Spread", "StageDesign", "design_experiment", "spreads_of"]

_LONGEST = 3650.0
"""Days, beyond which an experiment is not one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """What one unit contributes to the uncertainty of a metric."""

    figure: float
    """The metric today, in its unit."""
    deviation: float
    """What stands for one unit's standard deviation, in the metric's unit; above 0."""
    adjusted: float | None = None
    """The same after covariates; None without them."""
    n: int = 0
    """Units of history behind it; 0: written by hand."""
    caveat: str = ""

    @property
    def variance_reduction(self) -> float | None:
        """What covariates take out of the variance, 0–1."""
        return None if self.adjusted is None else 1 - (self.adjusted / self.deviation) ** 2


@dataclass(frozen=True, kw_only=True, slots=True)
class StageDesign:
    """One metric at one share of the traffic."""

    share: float
    """Treatment's share of the units, 0–1."""
    bake: float | None
    """Days that the stage is planned for; None: not said."""
    days_needed: float | None
    """Until the effect asked for is found with the plan's power; None: never, or none is asked for."""
    units_needed: int | None
    """Units in both arms for that."""
    detectable: float | None
    """The relative effect found within `bake`; None without one."""
    power: float | None = None
    """The chance of finding the effect asked for within `bake`, 0–1; None where one of both is not said."""
    days_needed_adjusted: float | None = None
    """The same with covariates."""
    detectable_adjusted: float | None = None
    power_adjusted: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricDesign:
    """One metric, sized."""

    metric: Metric
    spread: Spread | None
    """None where history cannot tell; `reason` says why."""
    wanted: float | None
    """The relative effect that is asked for; None: none is."""
    stages: tuple[StageDesign, ...]
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """What an experiment can find."""

    units_per_day: float
    alpha: float
    """Of one look; where the experiment is watched, that of a look as wide as its bound."""
    power: float
    metrics: tuple[MetricDesign, ...]
    caveats: tuple[str, ...]


def spreads_of(units: Units) -> dict[str, Spread | str]:
    """By metric, how much units vary; or why that cannot be said. units: of `history`, made with variant=None."""
    family = units.measure()
    found: dict[str, Spread | str] = {}
    for metric in units.metrics:
        try:
            found[metric.name] = _spread(metric, family, units)
        except NotEstimable as error:
            found[metric.name] = str(error)
    return found


def design_experiment(
    plan: ExperimentPlan,
    spreads: Mapping[str, Spread | str],
    *,
    units_per_day: float,
    stages: Sequence[tuple[float, float | None]] = ((0.5, None),),
) -> Design:
    """Sizes every metric of the plan at every stage.

    spreads: from `spreads_of`, or written by hand. units_per_day: new units, both arms together, taken as constant.
    stages: treatment's share of them, 0–1, and the days planned; None: not said. The effect asked for is the plan's
    mde on the primary metric, and the margin on the others: found is then that treatment, alike in truth, is not worse
    by that. Raises InvalidInput.
    """
    check_number("units_per_day", units_per_day, above=0.0)
    for share, bake in stages:
        if not 0 < share < 1:
            raise InvalidInput(
                f"stage {share!r}: the share of an experiment lies between 0 and 1; nobody is left to compare"
            )
        if bake is not None:
            check_number("days of a stage", bake, above=0.0)
    alpha = watched_alpha(plan.alpha) if plan.sequential else plan.alpha
    one_sided = watched_alpha(plan.alpha, one_sided=True) if plan.sequential else plan.alpha
    metrics = []
    for metric in plan.metrics:
        spread = spreads.get(metric.name, "no history of it")
        wanted = _wanted(plan, metric, spread if isinstance(spread, Spread) else None)
        if not isinstance(spread, Spread):
            metrics.append(MetricDesign(metric=metric, spread=None, wanted=wanted, stages=(), reason=spread))
            continue
        # Whether it is worse by more than its margin is asked on one side, with all of alpha.
        on_one_side = metric.name in plan.margins and metric.name != plan.primary.name
        level = 2 * one_sided if on_one_side else alpha  # both tails of it are then one of that size
        sized = tuple(
            _stage(plan, min(0.999, level), spread, wanted, share, bake, units_per_day)
            for share, bake in stages
        )
        metrics.append(MetricDesign(metric=metric, spread=spread, wanted=wanted, stages=sized))
    caveats = ["units a day are taken as constant; who returns is no new unit, so later days bring fewer"]
    if plan.sequential:
        caveats.append("watched: sized for the bound at its tightest")
    if plan.conversion_window is not None:
        caveats.append(
            f"days of entering; outcomes are whole {plan.conversion_window / 86400:g} days after the last of them"
        )
    return Design(
        units_per_day=units_per_day,
        alpha=alpha,
        power=plan.power,
        metrics=tuple(metrics),
        caveats=tuple(caveats),
    )


def _spread(metric: Metric, family: Family, units: Units) -> Spread:
    group = (HISTORY,)
    if metric.kind == "quantile":
        estimate = family.quantiles[metric.name].get(group)
        if estimate is None or estimate.value is None or estimate.low is None or estimate.high is None:
            raise NotEstimable(
                f"{metric.name}: {estimate.caveat if estimate else 'no values'}; bring more history"
            )
        n = estimate.clusters or estimate.n
        error = (estimate.high - estimate.low) / 2 / critical_value((1 - estimate.confidence) / 2, None)
        return _checked(metric, Spread(figure=estimate.value, deviation=error * math.sqrt(n), n=n))
    moments = family.moments[metric.name].get(group)
    if moments is None or moments.n < 2:
        raise NotEstimable(f"{metric.name}: fewer than two units have a value; bring more history")
    # The same arm twice: its effect is nothing, and the error of that shows the spread, whatever the estimator.
    both = Arms(metric=metric, columns=units.columns[metric.name], control=moments, treatment=moments)
    plain = plain_effect(both)
    if plain.arm_errors is None:
        plain = mean_effect(moments, moments, both.columns[0])
    assert plain.arm_errors is not None  # noqa: S101 - of a mean, a ratio or a formula there is one
    scale = math.sqrt(moments.n)
    adjusted, caveat = None, ""
    if both.covariates:
        found = compare_arms(both, alpha=0.05, tuned_for=None)
        if found.cuped is not None and found.cuped.effect.arm_errors is not None:
            adjusted = found.cuped.effect.arm_errors[0] * scale
        else:
            caveat = "; ".join(found.caveats)
    return _checked(
        metric,
        Spread(
            figure=plain.control,
            deviation=plain.arm_errors[0] * scale,
            adjusted=adjusted,
            n=moments.n,
            caveat=caveat,
        ),
    )


def _checked(metric: Metric, spread: Spread) -> Spread:
    if not spread.deviation > 0:
        raise NotEstimable(
            f"{metric.name}: all {spread.n:,} units of history are alike, so nothing can be sized by them"
        )
    return spread


def _wanted(plan: ExperimentPlan, metric: Metric, spread: Spread | None) -> float | None:
    if metric.name == plan.primary.name:
        return plan.mde
    margin = plan.margins.get(metric.name)
    if margin is None:
        return plan.mde
    if margin.relative:
        return margin.by
    return margin.by / spread.figure if spread is not None and spread.figure > 0 else None


def _stage(
    plan: ExperimentPlan,
    alpha: float,
    spread: Spread,
    wanted: float | None,
    share: float,
    bake: float | None,
    units_per_day: float,
) -> StageDesign:
    effect = abs(wanted * spread.figure) if wanted else 0.0

    def needed(deviation: float) -> int | None:
        if not effect > 0:
            return None
        try:
            return sample_size(
                standard_deviation=deviation,
                effect=effect,
                alpha=alpha,
                power=plan.power,
                treatment_share=share,
            ).total
        except InvalidInput:  # more units than there are
            return None

    def days(units: int | None) -> float | None:
        return None if units is None or units / units_per_day > _LONGEST else units / units_per_day

    entered = min((bake or 0.0) * units_per_day, 1e12)
    arms = round(entered * (1 - share)), round(entered * share)

    def detectable(deviation: float) -> float | None:
        if spread.figure <= 0 or min(arms) < 2:
            return None
        return (
            minimum_detectable_effect(
                standard_deviation=deviation,
                n_control=arms[0],
                n_treatment=arms[1],
                alpha=alpha,
                power=plan.power,
            )
            / spread.figure
        )

    def chance(deviation: float) -> float | None:
        if not effect > 0 or min(arms) < 2:
            return None
        return power(
            standard_deviation=deviation, effect=effect, n_control=arms[0], n_treatment=arms[1], alpha=alpha
        )

    plain = needed(spread.deviation)
    return StageDesign(
        share=share,
        bake=bake,
        units_needed=plain,
        days_needed=days(plain),
        detectable=detectable(spread.deviation),
        power=chance(spread.deviation),
        days_needed_adjusted=None if spread.adjusted is None else days(needed(spread.adjusted)),
        detectable_adjusted=None if spread.adjusted is None else detectable(spread.adjusted),
        power_adjusted=None if spread.adjusted is None else chance(spread.adjusted),
    )
