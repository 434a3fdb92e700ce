"""Effects within segments: where to look next, and nothing to decide by.

Twenty countries give one "significant" country by chance alone. So what is shown here is adjusted over everything
that was looked at, small segments are joined, and the first question is answered first: do the segments differ in
their effect at all?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from fairlead.experiment.comparison import Arms, compare_arms
from fairlead.experiment.plan import VARIANT, ExperimentPlan
from fairlead.experiment.result import SegmentResult
from fairlead.experiment.units import Units
from fairlead.metrics import Family
from fairlead.statistics import Effect, Moments, benjamini_hochberg
from fairlead.statistics.tails import chi_square_tail, critical_value

__all__ = ["largest_values", "merged_values", "segment_results"]

MOST_VALUES = 12
"""Values of a segment that are shown; the rest, the smaller ones, count together."""
REST = "all others"
_FEWEST_IN_SEGMENT = 50


def segment_results(plan: ExperimentPlan, units: Units, variants: Sequence[str]) -> list[SegmentResult]:
    """Effects within the values of each segment. Exploratory: adjusted together, and without a verdict."""
    found: list[tuple[SegmentResult, Effect | None]] = []
    summed = [metric for metric in units.metrics if metric.kind != "quantile"]
    for segment in plan.segments:
        family = units.measure((VARIANT, segment), metrics=[metric.name for metric in summed])
        values = largest_values(units, segment, family)
        for metric in summed:
            moments, rest = merged_values(family.moments[metric.name], values)
            for variant in variants:
                rows = []
                for value in [*values, *([rest] if any(key[1] == rest for key in moments) else [])]:
                    arms = Arms(
                        metric=metric,
                        columns=units.columns[metric.name],
                        control=moments.get((plan.control, value)),
                        treatment=moments.get((variant, value)),
                    )
                    rows.append(_segment(plan, segment, value, variant, arms))
                p_value = _heterogeneity([effect for _, effect in rows])
                found += [
                    (msgspec.structs.replace(row, heterogeneity_p_value=p_value), effect)
                    for row, effect in rows
                ]
    p_values = [row.p_value for row, _ in found if row.p_value is not None]
    adjusted = iter(benjamini_hochberg(p_values))
    return [
        row if row.p_value is None else msgspec.structs.replace(row, adjusted_p_value=next(adjusted))
        for row, _ in found
    ]


def largest_values(units: Units, segment: str, family: Family, most: int = MOST_VALUES) -> list[str]:
    """The values of a segment with the most units: numbers by size, others by name; family: by variant and segment."""
    sizes: dict[str, int] = {}
    for group, n in family.units.items():
        sizes[group[1]] = sizes.get(group[1], 0) + n
    kept = sorted(sizes, key=lambda value: (-sizes[value], value))
    if len(kept) > most:
        kept = kept[: most - 1]
    place = {value: index for index, value in enumerate(units.order.get(segment, ()), 1)}
    return sorted(kept, key=lambda value: (place.get(value, 0), value))


def merged_values(
    moments: Mapping[tuple[str, ...], Moments], values: Sequence[str]
) -> tuple[dict[tuple[str, str], Moments], str]:
    """Moments by variant and value, all other values together, and by which name: one that no value bears."""
    rest = REST if REST not in values else f"{REST}, joined"
    merged: dict[tuple[str, str], Moments] = {}
    for group, part in moments.items():
        key = (group[0], group[1] if group[1] in values else rest)
        merged[key] = merged[key] + part if key in merged else part
    return merged, rest


def _segment(
    plan: ExperimentPlan, segment: str, value: str, variant: str, arms: Arms
) -> tuple[SegmentResult, Effect | None]:
    n = [arm.n if arm is not None else 0 for arm in (arms.control, arms.treatment)]
    effect, reason = None, f"fewer than {_FEWEST_IN_SEGMENT} units in an arm"
    caveats: tuple[str, ...] = ()
    if min(n) >= _FEWEST_IN_SEGMENT:
        compared = compare_arms(arms, alpha=plan.alpha, tuned_for=None)
        effect, reason, caveats = compared.effect, compared.reason, compared.caveats
    return (
        SegmentResult(
            segment=segment,
            value=value,
            metric=arms.metric.name,
            variant=variant,
            n_control=n[0],
            n_treatment=n[1],
            effect=effect.effect if effect else None,
            effect_ci=(effect.low, effect.high) if effect else None,
            relative_effect=effect.relative_effect if effect else None,
            relative_effect_ci=(effect.relative_low, effect.relative_high) if effect else None,
            p_value=effect.p_value if effect else None,
            adjusted_p_value=None,
            heterogeneity_p_value=None,
            caveats=tuple(filter(None, caveats if effect else (*caveats, reason))),
        ),
        effect,
    )


def _heterogeneity(effects: Sequence[Effect | None]) -> float | None:
    """Cochran's Q (Biometrics 10, 1954): whether segments differ in their effect by more than chance."""
    known = [
        (effect.effect, (effect.high - effect.low) ** 2)
        for effect in effects
        if effect is not None
        and effect.low is not None
        and effect.high is not None
        and effect.high > effect.low
    ]
    if len(known) < 2:
        return None
    # Half-widths are some two standard errors; the factor is the same for all but few units.
    confidence = next(effect.confidence for effect in effects if effect is not None)
    scale = (2 * critical_value((1 - confidence) / 2, None)) ** 2
    weights = [scale / width for _, width in known]
    mean = sum(w * value for w, (value, _) in zip(weights, known, strict=True)) / sum(weights)
    q = sum(w * (value - mean) ** 2 for w, (value, _) in zip(weights, known, strict=True))
    return chi_square_tail(q, len(known) - 1)
