"""Whom each stage of a growing rollout had still to draw: a row per unit and stage, and no unit in two arms.

A unit keeps its slot, and treatment takes the lowest ones. So a stage tosses no coin for those who had treatment
before, nor for those whom a stage of the same share or a larger one has left in control; for all others it does:

    first drawn in this stage                      treatment with the stage's share p
    control so far, last at a largest share of e   treatment with (p − e) / (1 − e): its slot is above e

Both are compared with those of their own kind only, from their first draw within the stage to the stage's end. Nobody
in either arm has had treatment before, so nothing carries over; who came back had come back from control, so whom
treatment has driven away or kept is on neither side. A unit counts as control in several stages and as treatment
once at most, and the stages' estimates are uncorrelated all the same: each draw is new to all that was seen before.

Source: a sequence of trials, each of those who are still untreated: Hernán et al. 2016, "Specifying a target trial
prevents immortal time bias", J. Clin. Epidemiol. 79 (start of follow-up = eligibility = assignment). Decision 0197.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairlead.errors import MissingExtra
from fairlead.experiment.plan import VARIANT, ExperimentPlan
from fairlead.experiment.stages import FOREVER, Stratum, normal_shares, stage_of
from fairlead.experiment.units import ENTERED, LAST, UNIT
from fairlead.metrics.warehouse_sums import run

try:
    import ibis
    import ibis.expr.types as ir
except ImportError as missing:
    raise MissingExtra(missing.name or "ibis-framework", "warehouse") from missing

__all__: list[str] = []

STAGE = "fairlead stage"
ENDS = "fairlead stage ends"
_STRATUM = "group stage"
_TREATED = "fairlead had treatment"
_LEVEL = "fairlead level"
_BACK = ", back from "
TWO_ARMS = "units in two arms"
TREATED = "had had treatment before"
SETTLED = "had no draw left: control already at this share or a larger one"
ONE_ARM = "were all given one variant"
MANY_ARMS = "came back, and which of several variants was left to them is not known"


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """Who counts in which stage."""

    rows: ir.Table
    """A row per unit and stage that had it still to draw."""
    strata: Mapping[str, Stratum]
    """By their labels, the values of the grouping `stage`."""
    left_out: tuple[Mapping[str, int], ...]
    """For each stage: how many it drew and does not count, by reason."""
    met: int
    """Units that were drawn in any stage."""


def drawn_in_stages(exposures: ir.Table, plan: ExperimentPlan, log: list[str]) -> Drawn:
    """The units of each stage. exposures: those that were drawn, of this flag."""
    shares = [normal_shares(stage) for stage in plan.stages]
    several = len({name for each in shares for name in each}) > 2
    treated = [round(1.0 - each.get(plan.control, 0.0), 9) for each in shares]
    # Levels in place of shares: numbers that were added up differently are the same share.
    levels = [sorted(set(treated)).index(share) for share in treated]
    inside = exposures.mutate(**{STAGE: stage_of(exposures["at_utc_seconds"], plan)})
    inside = inside.filter(inside[STAGE] > 0)
    variant = inside["variant"]
    rows = inside.group_by(**{UNIT: inside["targeting_key"], STAGE: inside[STAGE]}).aggregate(
        **{
            f"group {VARIANT}": variant.min(),
            LAST: variant.max(),
            ENTERED: inside["at_utc_seconds"].min(),
            _TREATED: (variant != plan.control).cast("int64").max(),
        }
    )
    level = by_stage(rows[STAGE], levels)
    before = ibis.window(group_by=UNIT, order_by=STAGE, rows=(None, -1))
    rows = rows.mutate(
        **{
            "fairlead treated before": rows[_TREATED].max().over(before).fill_null(0),
            "fairlead level before": level.max().over(before).fill_null(-1),
            _LEVEL: level,
            ENDS: by_stage(rows[STAGE], [min(end, FOREVER) for end in plan.stage_ends]),
        }
    )
    had, behind = rows["fairlead treated before"] > 0, rows["fairlead level before"]
    alone = by_stage(rows[STAGE], [int(plan.control not in each or len(each) < 2) for each in shares]) > 0
    why = ibis.cases(
        (alone, ONE_ARM),
        (rows[f"group {VARIANT}"] != rows[LAST], TWO_ARMS),
        (had, TREATED),
        ((behind >= 0) & ibis.literal(several), MANY_ARMS),
        (behind >= rows[_LEVEL], SETTLED),
        else_="",
    )
    first = [1 + levels.index(each) for each in range(len(set(levels)))]
    back = ibis.literal(_BACK) + by_stage(behind, first, start=0).cast("string")
    label = rows[STAGE].cast("string") + ibis.ifelse(behind >= 0, back, "")
    rows = rows.mutate(**{"fairlead why": why, _STRATUM: label})
    left_out: list[dict[str, int]] = [{} for _ in plan.stages]
    for found in run(rows.group_by([STAGE, "fairlead why"]).aggregate(n=rows.count()), log):
        if found["fairlead why"]:
            left_out[int(found[STAGE]) - 1][str(found["fairlead why"])] = int(found["n"])
    kept = rows.filter(rows["fairlead why"] == "")
    return Drawn(
        rows=kept.select(UNIT, STAGE, f"group {VARIANT}", ENTERED, ENDS, _STRATUM),
        strata=_strata(plan, shares, levels, several),
        left_out=tuple(left_out),
        met=int(run(inside.aggregate(n=inside["targeting_key"].nunique()), log)[0]["n"]),
    )


def _strata(
    plan: ExperimentPlan, shares: list[dict[str, float]], levels: list[int], several: bool
) -> dict[str, Stratum]:
    """Every stratum that there may be."""
    found: dict[str, Stratum] = {}
    for index, share in enumerate(shares):
        if plan.control not in share or len(share) < 2:
            continue
        number = index + 1
        found[str(number)] = Stratum(stage=number, shares=share)
        for level in sorted({each for each in levels[:index] if each < levels[index]}):
            first = levels.index(level)
            control = share[plan.control] / shares[first].get(plan.control, 1.0)
            if not several:
                (other,) = (name for name in share if name != plan.control)
                found[f"{number}{_BACK}{first + 1}"] = Stratum(
                    stage=number, shares={plan.control: control, other: 1.0 - control}, back=True
                )
    return found


def by_stage(number: Any, values: list[Any], *, start: int = 1) -> Any:
    """The value of the stage with this number."""
    found = ibis.literal(values[0])
    for each, value in enumerate(values[1:], start + 1):
        found = ibis.ifelse(number == each, value, found)
    return found
