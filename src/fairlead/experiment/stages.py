"""Several stages with different shares, one effect: compared within each stage, and only then put together.

At 5 % on a quiet Monday and 50 % on a busy Friday, treatment has mostly Friday's users and control has both days'.
Pooled, the difference between the days becomes an effect of the change (Simpson's paradox), however fair each day's
split was. So each arm's figure is the average of its stages' figures, weighted by how many units entered in each
stage in all arms together: then both arms weigh the days alike.

Source: the stratified estimator of a mean, Cochran, Sampling Techniques, 3rd ed. 1977, chapter 5; its variance is the
weighted sum of the strata's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fairlead.errors import TooFewUnits
from fairlead.statistics import Moments

__all__ = ["stage_weights", "stratified"]


def stage_weights(units: Mapping[tuple[str, str], int], arms: Sequence[str]) -> dict[str, float]:
    """The share of each stage among the units; units: by variant and stage. Stages in which an arm has fewer than two
    units have none. Raises TooFewUnits where no stage has both.
    """
    stages = sorted({stage for _, stage in units if stage != "0"})
    sizes = {
        stage: sum(count for (_, at), count in units.items() if at == stage)
        for stage in stages
        if all(units.get((arm, stage), 0) >= 2 for arm in arms)
    }
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
