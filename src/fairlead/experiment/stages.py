"""Several stages with different shares, one effect: compared within each stage, and only then put together.

At 5 % on a quiet Monday and 50 % on a busy Friday, treatment has mostly Friday's users and control has both days'.
Pooled, the difference between the days becomes an effect of the change (Simpson's paradox), however fair each day's
split was. So each arm's figure is the average of its stages' figures, with one weight a stage for both arms: then both
weigh the days alike. The weight is n·m/(n + m) of a stage with n and m units, the inverse of the variance of its effect
where users vary alike: a stage of 1 % counts for as little as it can tell, and no outcome decides by how much.

Source: the stratified estimator of a mean, Cochran, Sampling Techniques, 3rd ed. 1977, chapter 5 (its variance is the
weighted sum of the strata's); the weights are those of Mantel and Haenszel for strata of unequal arms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.errors import MissingExtra, TooFewUnits
from fairlead.experiment.plan import ExperimentPlan, Stage
from fairlead.statistics import Moments

try:
    import ibis
except ImportError as missing:
    raise MissingExtra(missing.name or "ibis-framework", "warehouse") from missing

__all__ = ["stage_weights", "stratified"]

FOREVER = 1e300
"""An end that never comes, as engines compare it."""
NO_STAGE = "0"
"""The value of the grouping `stage` of those who entered in none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stratum:
    """Units of one stage for whom it drew with the same chances."""

    stage: int
    """Number of the stage, from 1."""
    shares: Mapping[str, float]
    """Chance of each variant; they add up to 1."""
    back: bool = False
    """Whether they had been control in a stage before."""


def normal_shares(stage: Stage) -> dict[str, float]:
    """The shares of a stage, adding up to 1."""
    total = sum(stage.shares.values())
    return {name: share / total for name, share in stage.shares.items()}


def stage_of(at: Any, plan: ExperimentPlan) -> Any:
    """The number of the stage that is open at this moment, from 1, as an expression; 0 in none."""
    found: Any = ibis.literal(0)
    for number, (stage, end) in enumerate(zip(plan.stages, plan.stage_ends, strict=True), 1):
        found = ibis.ifelse((at >= stage.opens) & (at < min(end, FOREVER)), number, found)
    return found


def strata_of(plan: ExperimentPlan) -> dict[str, Stratum]:
    """The stages as strata, where every unit is in one stage only."""
    return {
        str(number): Stratum(stage=number, shares=normal_shares(stage))
        for number, stage in enumerate(plan.stages, 1)
    }


def stage_weights(units: Mapping[tuple[str, str], int], arms: Sequence[str]) -> dict[str, float]:
    """The weight of each stage in the effect; units: by variant and stage. They add up to 1.

    Stages in which one of the two arms has fewer than two units have none. Raises TooFewUnits where no stage has both.

    >>> sizes = {("c", "1"): 99, ("t", "1"): 1, ("c", "2"): 95, ("t", "2"): 5, ("c", "3"): 50, ("t", "3"): 50}
    >>> weights = stage_weights(sizes, ("c", "t"))     # 4.75 and 25, of 29.75
    >>> {stage: round(weight, 3) for stage, weight in weights.items()}
    {'2': 0.16, '3': 0.84}
    """
    first, second = arms
    sizes = {}
    for stage in sorted({stage for _, stage in units if stage != NO_STAGE}):
        n, m = units.get((first, stage), 0), units.get((second, stage), 0)
        if min(n, m) >= 2:
            sizes[stage] = n * m / (n + m)
    total = sum(sizes.values())
    if not total:
        raise TooFewUnits(f"no stage has two units or more in each of {', '.join(arms)}; wait for data")
    return {stage: size / total for stage, size in sizes.items()}


def stratified(parts: Mapping[str, Moments], weights: Mapping[str, float]) -> Moments:
    """Moments whose means are the weighted means of the stages, and whose standard errors are those of that average.

    They are not the moments of any users, and serve estimators that look at means and their covariances alone.

    >>> quiet = Moments.from_rows(("y",), [[1.0], [3.0]])
    >>> busy = Moments.from_rows(("y",), [[5.0], [7.0]])
    >>> both = stratified({"1": quiet, "2": busy}, {"1": 0.5, "2": 0.5})
    >>> both.mean("y"), both.variance("y") / both.n     # (2 + 6) / 2, and (2/2 + 2/2) / 4
    (4.0, 0.5)
    """
    chosen = {stage: parts[stage] for stage in weights}
    columns = next(iter(chosen.values())).columns
    n = sum(part.n for part in chosen.values())
    means = tuple(sum(weights[stage] * part.mean(name) for stage, part in chosen.items()) for name in columns)
    products = tuple(
        tuple(
            n
            * (n - 1)
            * sum(weights[stage] ** 2 * part.covariance(a, b) / part.n for stage, part in chosen.items())
            for b in columns
        )
        for a in columns
    )
    return Moments(columns=columns, n=n, means=means, products=products)
