"""Is the experiment sound? Asked before any effect is looked at.

A broken split makes every figure after it a figure about who is missing. The checks here look for what breaks
experiments in practice: arms of the wrong size, arms that differed beforehand, arms that filled at different times,
outcomes that are missing in one arm, units that came too late to show anything, weeks that were no ordinary weeks.
One failure voids the results; a warning travels with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from fairlead.errors import NotEstimable
from fairlead.experiment.calendar import CalendarEntry, confounded
from fairlead.experiment.plan import ExperimentPlan
from fairlead.experiment.result import CheckResult, SampleRatioResult, StageResult
from fairlead.experiment.stages import Stratum, normal_shares
from fairlead.experiment.units import Units
from fairlead.metrics import Family
from fairlead.metrics.source import COVARIATE, Group
from fairlead.statistics import (
    Moments,
    chi_square,
    mean_effect,
    proportion_effect,
    sample_ratio,
    sequential_sample_ratio,
)

__all__ = ["check_health", "split_of", "stage_results"]

RARE = 0.001
"""A check fails below this p-value: it is made of every experiment, and a false alarm voids a good one."""
_DAY = 86400.0
_OF_STAGE = " of stage "


def split_of(
    plan: ExperimentPlan,
    units: Mapping[str, int],
    by_stage: Mapping[tuple[str, str], int] | None = None,
    strata: Mapping[str, Stratum] | None = None,
) -> SampleRatioResult:
    """The sizes of the arms beside the planned ones.

    by_stage: units by stratum and variant, where shares changed; strata: what each of them should be.
    """
    shares = plan.shares_of(sorted(units))
    if by_stage and strata:
        n = sum(units.values())
        parts = [(_counts(by_stage, label, stratum), stratum.shares) for label, stratum in strata.items()]
        found = sequential_sample_ratio(parts, tuned_for=max(2, plan.planned_units or n), alpha=RARE)
    elif plan.sequential:
        n = max(2, plan.planned_units or sum(units.values()))
        found = sequential_sample_ratio([(dict(units), shares)], tuned_for=n, alpha=RARE)
    else:
        found = sample_ratio(dict(units), shares, alpha=RARE)
    return SampleRatioResult(
        expected=found.expected,
        observed=found.observed,
        p_value=found.p_value,
        verdict=found.verdict,
        alpha=found.alpha,
        method=found.method,
    )


def _counts(by_stage: Mapping[tuple[str, str], int], label: str, stratum: Stratum) -> dict[str, int]:
    return {variant: by_stage.get((label, variant), 0) for variant in stratum.shares}


def stage_results(
    plan: ExperimentPlan, units: Units, split: SampleRatioResult, by_stage: Mapping[tuple[str, str], int]
) -> tuple[StageResult, ...]:
    """Each stage with its shares and who counted in it; the one period, where no more was looked at."""
    if not plan.stages:
        if units.period is None:
            return ()
        shares = plan.shares_of(sorted(split.observed))
        total = sum(shares.values())
        return (
            StageResult(
                start_utc_seconds=units.period[0], end_utc_seconds=units.period[1],
                shares={name: share / total for name, share in shares.items()},
                observed=split.observed, expected=split.expected, back=0, p_value=split.p_value, left_out={},
            ),
        )  # fmt: skip
    found = []
    for number, (stage, end) in enumerate(zip(plan.stages, plan.stage_ends, strict=True), 1):
        strata = {label: one for label, one in units.strata.items() if one.stage == number}
        parts = [(_counts(by_stage, label, one), one.shares) for label, one in strata.items()]
        n = sum(sum(counts.values()) for counts, _ in parts)
        ratio = (
            sequential_sample_ratio(parts, tuned_for=max(2, plan.planned_units or n), alpha=RARE)
            if n
            else None
        )
        found.append(
            StageResult(
                start_utc_seconds=stage.opens,
                end_utc_seconds=end if math.isfinite(end) else None,
                shares=normal_shares(stage),
                observed=ratio.observed if ratio else {},
                expected=ratio.expected if ratio else {},
                back=sum(
                    sum(_counts(by_stage, label, one).values()) for label, one in strata.items() if one.back
                ),
                p_value=ratio.p_value if ratio else None,
                left_out=dict(units.left_out[number - 1]) if units.left_out else {},
            )
        )
    return tuple(found)


def check_health(
    plan: ExperimentPlan,
    split: SampleRatioResult,
    family: Family,
    *,
    excluded: Mapping[str, int],
    by_step: Mapping[tuple[int, str], int] | None = None,
    entered: tuple[float, float] | None = None,
    calendar: Sequence[CalendarEntry] = (),
) -> tuple[CheckResult, ...]:
    """Every check that the data allow. family: by variant, and by stage where there are stages; by_step: units by step
    of time and variant.
    """
    checks = [_split(split), *_excluded(excluded, sum(split.observed.values()))]
    variants = [name for name in split.observed if name != plan.control]
    checks += _imbalance(plan, family, variants)
    checks += _missing(plan, family, variants)
    if by_step and not plan.stages:
        checks += _steps(plan, by_step, variants)
    if entered is not None:
        checks += _span(entered, plan)
        end = entered[1] + (plan.conversion_window or 0.0)
        checks += [
            CheckResult(name="calendar", verdict="warning", message=found.message)
            for found in confounded(calendar, entered[0], end)
        ]
    return tuple(checks)


def _split(split: SampleRatioResult) -> CheckResult:
    total = sum(split.observed.values())
    shares = ", ".join(
        f"{name} {count:,} ({count / total:.2%}, {split.expected[name] / total:.2%} planned)"
        if total
        else name
        for name, count in split.observed.items()
    )
    if split.verdict == "mismatch":
        return CheckResult(
            name="sample ratio",
            verdict="failed",
            p_value=split.p_value,
            message=f"{shares}: not what chance gives (p = {split.p_value:.2g}); find who is missing from which arm, "
            "and analyse anew; until then no effect is one",
        )
    message = f"{shares}; p = {split.p_value:.2g}, and below {split.alpha:g} it would void the results"
    return CheckResult(name="sample ratio", verdict="ok", p_value=split.p_value, message=message)


def _excluded(excluded: Mapping[str, int], kept: int) -> list[CheckResult]:
    checks = []
    crossed = excluded.get("units in two arms", 0)
    if crossed:
        share = crossed / (crossed + kept)
        checks.append(
            CheckResult(
                name="units in two arms",
                verdict="warning" if share > 0.001 else "ok",
                message=f"{crossed:,} ({share:.2%}) saw more than one variant and count for none"
                + ("; more than 0.1 %: who they are may depend on the variant" if share > 0.001 else ""),
            )
        )
    late = excluded.get("units whose conversion window is not over", 0)
    if late:
        checks.append(
            CheckResult(
                name="delayed outcomes",
                verdict="warning" if late > kept / 10 else "ok",
                message=f"{late:,} entered so late that their conversion window is not over, and do not count yet",
            )
        )
    return checks


def _imbalance(plan: ExperimentPlan, family: Family, variants: Sequence[str]) -> list[CheckResult]:
    """Whether arms differed in what was known before exposure."""
    asked: dict[tuple[str, str], tuple[float, float]] = {}
    for arms in family.moments.values():
        for group, control, treatment in _pairs(plan, arms, variants):
            whom = _OF_STAGE.join(group)
            for column in control.columns:
                if not column.startswith(COVARIATE) or (column, whom) in asked:
                    continue
                try:
                    found = mean_effect(control, treatment, column)
                except NotEstimable:
                    continue
                asked[column, whom] = (found.p_value, found.relative_effect or 0.0)
    if not asked:
        return []
    (column, variant), (p_value, relative) = min(asked.items(), key=lambda one: one[1][0])
    p_value = min(1.0, p_value * len(asked))
    name = column.removeprefix(COVARIATE)
    if p_value < RARE:
        return [
            CheckResult(
                name="before exposure", verdict="warning", p_value=p_value,
                message=f"{name} differed already before exposure, by {relative:+.2%} in {variant} "
                f"(p = {p_value:.2g}, of {len(asked)} looked at): the arms were not alike; adjust by it, "
                "and look for a cause",
            )
        ]  # fmt: skip
    return [
        CheckResult(
            name="before exposure", verdict="ok", p_value=p_value,
            message=f"alike in all {len(asked)} covariates; furthest apart: {name}, {relative:+.2%} in {variant}",
        )
    ]  # fmt: skip


def _pairs(
    plan: ExperimentPlan, arms: Mapping[Group, Moments], variants: Sequence[str]
) -> Iterator[tuple[Group, Moments, Moments]]:
    """Each treatment with control, within its stage: pooled, a difference between days is one between arms."""
    for group, treatment in arms.items():
        control = arms.get((plan.control, *group[1:]))
        if control is not None and group[0] in variants:
            yield group, control, treatment


def _missing(plan: ExperimentPlan, family: Family, variants: Sequence[str]) -> list[CheckResult]:
    """Whether values are missing more often in one arm."""
    checks = []
    for metric, arms in family.moments.items():
        for group, control, treatment in _pairs(plan, arms, variants):
            totals = [family.units.get((name, *group[1:]), 0) for name in (plan.control, group[0])]
            gone = [totals[0] - control.n, totals[1] - treatment.n]
            if sum(gone) <= 0 or min(totals) == 0:
                continue
            found = proportion_effect(gone[0], totals[0], gone[1], totals[1])
            uneven = found.p_value < RARE
            checks.append(
                CheckResult(
                    name="missing values", verdict="warning" if uneven else "ok", p_value=found.p_value,
                    message=f"{metric}: {found.control:.2%} of the units of {plan.control} and "
                            f"{found.treatment:.2%} of "
                    f"{_OF_STAGE.join(group)} have no value"
                    + ("; the arms then compare different units" if uneven else ""),
                )
            )  # fmt: skip
    return checks


def _steps(
    plan: ExperimentPlan, by_step: Mapping[tuple[int, str], int], variants: Sequence[str]
) -> list[CheckResult]:
    """Whether the arms filled alike over time: a launch that was late in one arm, a bot for a day."""
    steps = sorted({step for step, _ in by_step})
    if len(steps) < 2:
        return []
    checks = []
    for variant in variants:
        counts = [[by_step.get((step, name), 0) for step in steps] for name in (plan.control, variant)]
        # Expected counts below 5 make the statistic rough.
        full = [index for index in range(len(steps)) if counts[0][index] + counts[1][index] >= 20]
        if len(full) < 2:
            continue
        try:
            found = chi_square([counts[0][i] for i in full], [counts[1][i] for i in full])
        except NotEstimable:
            continue
        uneven = found.p_value is not None and found.p_value < RARE
        checks.append(
            CheckResult(
                name="entering over time", verdict="warning" if uneven else "ok", p_value=found.p_value,
                message=f"{variant} beside {plan.control} over {len(full)} steps: "
                + ("the shares moved while it ran; a stage that the plan does not know?" if uneven else "steady"),
            )
        )  # fmt: skip
    return checks


def _span(entered: tuple[float, float], plan: ExperimentPlan) -> list[CheckResult]:
    days = (entered[1] - entered[0]) / _DAY
    if not 1 <= days < 6.5:
        return []
    return [
        CheckResult(
            name="weekdays", verdict="warning",
            message=f"units entered over {days:.1f} days: not a whole week, and weekends differ",
        )
    ]  # fmt: skip
