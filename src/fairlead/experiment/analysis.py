"""From units to a result: health first, then effects, then what is exploratory.

    units → split, health → effects by metric and variant → adjusted over metrics → verdicts
                          → segments, fairness, the course over time

A broken split voids every verdict; the figures stay, for whoever looks for the cause. One metric decides. Others of
its role are adjusted together (Holm); segments are exploratory, adjusted among themselves (Benjamini and Hochberg),
and have no verdict at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from fairlead import __version__
from fairlead.errors import InvalidInput, TooFewUnits
from fairlead.experiment.calendar import CalendarEntry
from fairlead.experiment.comparison import Arms, Compared, compare_arms, harm_and_safety, used_covariates
from fairlead.experiment.fairness import MOST_GROUPS, judge_fairness
from fairlead.experiment.health import check_health, split_of, stage_results
from fairlead.experiment.plan import STEP, VARIANT, ExperimentPlan
from fairlead.experiment.result import (
    ArmResult,
    CupedResult,
    ExperimentResult,
    FairnessResult,
    MarginResult,
    MetricResult,
    SequentialResult,
    StepResult,
    Verdict,
)
from fairlead.experiment.segments import largest_values, merged_values, segment_results
from fairlead.experiment.stages import NO_STAGE, stage_weights, stratified
from fairlead.experiment.units import Units
from fairlead.metrics import Family, Metric
from fairlead.statistics import Effect, Moments, holm, minimum_detectable_effect
from fairlead.statistics.sequential_means import watched_alpha
from fairlead.statistics.tails import critical_value

__all__ = ["analyse"]

_NOT_POOLED = (
    "shares changed while it ran: segments, fairness and the course over time are not shown, as they would "
    "pool users of "
    "different stages"
)


def analyse(
    plan: ExperimentPlan,
    units: Units,
    *,
    calendar: Sequence[CalendarEntry] = (),
    data_sha256: str | None = None,
) -> ExperimentResult:
    """The experiment, analysed as planned. Blocks.

    Raises TooFewUnits where an arm has none, InvalidInput where the variants are not those of the plan.
    """
    family = units.measure()
    counts = {group[0]: n for group, n in sorted(family.units.items())}
    if plan.control not in counts:
        raise InvalidInput(
            f"no unit has the variant {plan.control!r}; there are {', '.join(map(repr, counts)) or 'none'}: "
            f"name control"
        )
    variants = [name for name in counts if name != plan.control]
    if not variants:
        raise TooFewUnits(
            f"all {counts[plan.control]:,} units have the variant {plan.control!r}: nothing to compare"
        )
    by_stage = (
        {(group[1], group[0]): n for group, n in units.measure((VARIANT, "stage"), metrics=()).units.items()}
        if units.strata
        else {}
    )
    # They are in no stage, and so in no effect.
    early = {"units that entered in no stage": sum(n for (at, _), n in by_stage.items() if at == NO_STAGE)}
    split = split_of(plan, counts, by_stage, units.strata)
    by_step = _by_number(units, STEP)
    health = check_health(
        plan,
        split,
        units.measure((VARIANT, "stage")) if plan.stages else family,
        excluded=units.excluded,
        by_step=by_step,
        entered=units.entered,
        calendar=calendar,
    )
    void = any(check.verdict == "failed" for check in health)
    metrics = _metrics(plan, units, family, variants, void)
    return ExperimentResult(
        name=plan.name,
        fairlead_version=__version__,
        control=plan.control,
        variants=tuple(variants),
        alpha=plan.alpha,
        power=plan.power,
        sequential=plan.sequential,
        units=sum(counts.values()) - sum(early.values()) if units.distinct is None else units.distinct,
        sample_ratio=split,
        health=health,
        excluded={reason: count for reason, count in {**units.excluded, **early}.items() if count},
        metrics=metrics,
        segments=() if plan.stages else tuple(segment_results(plan, units, variants)),
        fairness=() if plan.stages else tuple(_fairness(plan, units, variants, void)),
        steps=() if plan.stages else tuple(_course(plan, units, variants)),
        caveats=(*family.caveats.get("", ()), *((_NOT_POOLED,) if plan.stages else ())),
        stages=stage_results(plan, units, split, by_stage),
        query_sha256=family.query_sha256,
        data_sha256=data_sha256,
    )


def _by_number(units: Units, grouping: str) -> dict[tuple[int, str], int]:
    if grouping not in units.groupings:
        return {}
    found = units.measure((VARIANT, grouping), metrics=())
    return {(int(group[1]), group[0]): n for group, n in found.units.items()}


def _staged_arms(plan: ExperimentPlan, metric: Metric, units: Units, variant: str) -> Arms | None:
    """The arms stage by stage, and averaged over them; shares that changed are never pooled."""
    family = units.measure((VARIANT, "stage"), metrics=[metric.name])
    moments = family.moments[metric.name]
    sizes = {(name, stage): part.n for (name, stage), part in moments.items()}
    try:
        weights = stage_weights(sizes, (plan.control, variant))
    except TooFewUnits:
        return None
    parts = {name: {stage: moments[(name, stage)] for stage in weights} for name in (plan.control, variant)}
    columns = units.columns[metric.name]
    return Arms(
        metric=metric,
        columns=columns,
        control=stratified(parts[plan.control], weights),
        treatment=stratified(parts[variant], weights),
        stages=tuple(
            Arms(
                metric=metric,
                columns=columns,
                control=parts[plan.control][stage],
                treatment=parts[variant][stage],
            )
            for stage in weights
        ),
    )


def _arms(plan: ExperimentPlan, metric: Metric, family: Family, units: Units, variant: str) -> Arms | None:
    if metric.kind == "quantile":
        if plan.stages:  # quantiles are not averaged
            return None
        control = plan.control
        estimates = family.quantiles.get(metric.name, {})
        if (control,) not in estimates or (variant,) not in estimates:
            return None
        return Arms(
            metric=metric, control_quantile=estimates[(control,)], treatment_quantile=estimates[(variant,)]
        )
    if plan.stages:
        return _staged_arms(plan, metric, units, variant)
    moments = family.moments[metric.name]
    control = plan.control
    if (control,) not in moments or (variant,) not in moments:
        return None
    return Arms(
        metric=metric,
        columns=units.columns[metric.name],
        control=moments[(control,)],
        treatment=moments[(variant,)],
    )


def _metrics(
    plan: ExperimentPlan, units: Units, family: Family, variants: Sequence[str], void: bool
) -> tuple[MetricResult, ...]:
    results: list[MetricResult] = []
    compared: list[tuple[Arms | None, Compared]] = []
    for metric in units.metrics:
        for variant in variants:
            arms = _arms(plan, metric, family, units, variant)
            found = (
                Compared(
                    reason="a quantile is not averaged over stages with different shares"
                    if plan.stages and metric.kind == "quantile"
                    else "an arm has no value of it"
                )
                if arms is None
                else compare_arms(arms, alpha=plan.alpha, tuned_for=plan.planned_units)
            )
            compared.append((arms, found))
            results.append(_result(plan, metric, variant, arms, found, family))
    roles = [_role(plan, metric) for metric in units.metrics for _ in variants]
    adjusted = _adjusted(plan, results, roles)
    final = []
    for result, role, p_value, (arms, found) in zip(results, roles, adjusted, compared, strict=True):
        margin = _margin(plan, result.name, arms)
        final.append(
            msgspec.structs.replace(
                result,
                role=role,
                adjusted_p_value=p_value,
                margin=margin,
                verdict=_verdict(plan, role, result, found.effect, p_value, margin, void, arms),
            )
        )
    return tuple(final)


def _role(plan: ExperimentPlan, metric: Metric) -> str:
    return "primary" if metric.name == plan.primary.name else metric.role


def _adjusted(
    plan: ExperimentPlan, results: Sequence[MetricResult], roles: Sequence[str]
) -> list[float | None]:
    """Holm's adjustment within each role: the primary metric pays for its variants only."""
    adjusted: list[float | None] = [None] * len(results)
    for role in dict.fromkeys(roles):
        at = [
            index
            for index, result in enumerate(results)
            if roles[index] == role and _p_of(plan, result) is not None
        ]
        for index, p_value in zip(at, holm([_p_of(plan, results[i]) or 1.0 for i in at]), strict=True):
            adjusted[index] = p_value
    return adjusted


def _p_of(plan: ExperimentPlan, result: MetricResult) -> float | None:
    if plan.sequential:
        return None if result.sequential is None else result.sequential.always_valid_p
    return result.p_value


def _result(
    plan: ExperimentPlan, metric: Metric, variant: str, arms: Arms | None, found: Compared, family: Family
) -> MetricResult:
    effect, watched = found.effect, found.sequential
    caveats = [metric.caveat, found.reason, *found.caveats, *family.caveats.get(metric.name, ())]
    if effect is not None:
        caveats.append(effect.caveat)
    if watched is not None and plan.planned_units is None and plan.sequential:
        caveats.append("watched intervals are tuned for the units that came, as the plan names no number")
    if plan.sequential and metric.kind == "quantile":
        caveats.append("a quantile has no watched form here, so a watched experiment has no verdict on it")
    n = effect.n_control + effect.n_treatment if effect else 0
    return MetricResult(
        name=metric.name,
        variant=variant,
        kind=metric.kind,
        role=metric.role,
        definition=metric.definition(),
        unit=metric.unit,
        better=metric.better,
        control=_arm_result(metric, arms, "control", effect),
        treatment=_arm_result(metric, arms, "treatment", effect),
        effect=effect.effect if effect else None,
        effect_ci=(effect.low, effect.high) if effect else None,
        relative_effect=effect.relative_effect if effect else None,
        relative_effect_ci=(effect.relative_low, effect.relative_high) if effect else None,
        p_value=effect.p_value if effect else None,
        adjusted_p_value=None,
        confidence=1 - plan.alpha,
        method=effect.method if effect else "",
        cuped=None
        if found.cuped is None
        else CupedResult(
            covariates=tuple(used_covariates(arms)) if arms else (),
            theta=found.cuped.theta,
            variance_reduction=found.cuped.variance_reduction,
            unadjusted_effect=found.cuped.unadjusted.effect,
            unadjusted_p_value=found.cuped.unadjusted.p_value,
        ),
        sequential=None
        if watched is None
        else SequentialResult(
            e_value=watched.e_value,
            always_valid_p=watched.effect.p_value,
            ci=(watched.effect.low, watched.effect.high),
            relative_ci=(watched.effect.relative_low, watched.effect.relative_high),
            tuned_for=max(2, plan.planned_units or n),
        ),
        margin=None,
        verdict="not_estimable",
        detectable=_detectable(plan, effect),
        caveats=tuple(dict.fromkeys(filter(None, caveats))),
    )


def _arm_result(metric: Metric, arms: Arms | None, which: str, effect: Effect | None) -> ArmResult:
    moments: Moments | None = None
    if arms is not None:
        moments = arms.control if which == "control" else arms.treatment
        estimate = arms.control_quantile if which == "control" else arms.treatment_quantile
        if estimate is not None:
            return ArmResult(n=estimate.clusters or estimate.n, value=estimate.value)
    if moments is None:
        return ArmResult(n=0, value=None)
    # The arm's own figure; an adjusted one is beside it in the effect.
    if arms is not None and len(arms.columns) == 1:
        column = arms.columns[0]
        return ArmResult(
            n=moments.n,
            mean=moments.mean(column) if moments.n else None,
            sd=math.sqrt(moments.variance(column)) if moments.n > 1 else None,
        )
    figure = None if effect is None else effect.control if which == "control" else effect.treatment
    error = None if effect is None or effect.arm_errors is None else effect.arm_errors[which == "treatment"]
    return ArmResult(n=moments.n, value=figure, sd=None if error is None else error * math.sqrt(moments.n))


def _detectable(plan: ExperimentPlan, effect: Effect | None) -> float | None:
    """The relative effect that this many units would find, from the spread they showed."""
    if effect is None or effect.control <= 0 or min(effect.n_control, effect.n_treatment) < 2:
        return None
    error = effect.standard_error
    if error is None and effect.low is not None and effect.high is not None:
        error = (effect.high - effect.low) / 2 / critical_value(plan.alpha / 2, None)
    if error is None or not error > 0:
        return None
    scale = math.sqrt(1 / effect.n_control + 1 / effect.n_treatment)
    return (
        minimum_detectable_effect(
            standard_deviation=error / scale, n_control=effect.n_control, n_treatment=effect.n_treatment,
            alpha=watched_alpha(plan.alpha) if plan.sequential else plan.alpha, power=plan.power,
        )
        / effect.control
    )  # fmt: skip


def _margin(plan: ExperimentPlan, name: str, arms: Arms | None) -> MarginResult | None:
    margin = plan.margins.get(name)
    if margin is None or arms is None:
        return None
    harm, safe = (
        _p_beside_margin(plan, found)
        for found in harm_and_safety(arms, margin, alpha=plan.alpha, tuned_for=plan.planned_units)
    )
    if harm is None or safe is None:  # why is said where the effect is computed
        return None
    return MarginResult(by=margin.by, relative=margin.relative, p_not_worse=safe, p_worse=harm)


def _p_beside_margin(plan: ExperimentPlan, found: Compared) -> float | None:
    """Of a watched experiment the p-value that holds at every look, for margins as for effects."""
    if plan.sequential:
        return None if found.sequential is None else found.sequential.effect.p_value
    return None if found.effect is None else found.effect.p_value


def _verdict(
    plan: ExperimentPlan,
    role: str,
    result: MetricResult,
    effect: Effect | None,
    p_value: float | None,
    margin: MarginResult | None,
    void: bool,
    arms: Arms | None,
) -> Verdict:
    if void:
        return "void"
    if effect is None or p_value is None:
        return "not_estimable"
    # A metric that is to get better says so where it did; its margin is for where nothing was shown. Testing for a
    # difference after safety spends no error rate of its own (closed testing: Morikawa and Yoshida 1995).
    if margin is not None and (role == "guardrail" or p_value >= plan.alpha):
        if margin.p_not_worse < plan.alpha:
            return "not_worse"
        return "worse" if margin.p_worse < plan.alpha else "inconclusive"
    if p_value >= plan.alpha:
        return "inconclusive" if role == "guardrail" else "no_difference_shown"
    up = effect.effect > 0
    if arms is not None and arms.metric.ad_hoc:
        return "higher" if up else "lower"
    return "better" if up == (result.better == "higher") else "worse"


def _fairness(
    plan: ExperimentPlan, units: Units, variants: Sequence[str], void: bool
) -> Iterable[FairnessResult]:
    for fairness in plan.fairness:
        metric = next(metric for metric in units.metrics if metric.name == fairness.metric)
        if metric.kind == "quantile":
            raise InvalidInput(f"fairness: {metric.name} is a quantile, which is not compared between groups")
        family = units.measure((VARIANT, fairness.group), metrics=[metric.name])
        values = largest_values(units, fairness.group, family, MOST_GROUPS)
        moments, rest = merged_values(family.moments[metric.name], values)
        joined = sum(part.n for (_, value), part in moments.items() if value == rest)
        for variant in variants:
            groups = {
                value: Arms(
                    metric=metric,
                    columns=units.columns[metric.name],
                    control=moments.get((plan.control, value)),
                    treatment=moments.get((variant, value)),
                )
                for value in values
            }
            found = judge_fairness(fairness, variant, groups, alpha=plan.alpha)
            if joined:
                said = f"only the {len(values)} largest groups were looked at; {joined:,} units are in smaller ones"
                found = msgspec.structs.replace(found, caveats=(*found.caveats, said))
            if void:
                found = msgspec.structs.replace(found, verdict="void")
            yield found


def _course(plan: ExperimentPlan, units: Units, variants: Sequence[str]) -> Iterable[StepResult]:
    """The primary metric after each step, with all units that had entered by then."""
    if STEP not in units.groupings or units.entered is None or units.step_seconds is None:
        return
    metric = next(metric for metric in units.metrics if metric.name == plan.primary.name)
    if metric.kind == "quantile":
        return
    family = units.measure((VARIANT, STEP), metrics=[metric.name])
    moments = family.moments[metric.name]
    total = sum(family.units.values())
    steps = sorted({int(group[1]) for group in moments})
    if len(steps) < 2:
        return
    for variant in variants:
        so_far: dict[str, Moments] = {}
        for step in steps:
            for name in (plan.control, variant):
                part = moments.get((name, str(step)))
                if part is not None:
                    so_far[name] = so_far[name] + part if name in so_far else part
            arms = Arms(
                metric=metric,
                columns=units.columns[metric.name],
                control=so_far.get(plan.control),
                treatment=so_far.get(variant),
            )
            if arms.control is None or arms.treatment is None:
                continue
            found = compare_arms(arms, alpha=plan.alpha, tuned_for=plan.planned_units or total)
            watched = found.sequential
            yield StepResult(
                metric=metric.name,
                variant=variant,
                end_utc_seconds=units.entered[0] + (step + 1) * units.step_seconds,
                n=arms.control.n + arms.treatment.n,
                effect=found.effect.effect if found.effect else None,
                ci=None if watched is None else (watched.effect.low, watched.effect.high),
            )
