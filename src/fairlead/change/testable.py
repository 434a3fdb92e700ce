"""Can the expected traffic show the effect that is hoped for? Asked of every metric before anyone waits for it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from fairlead.change.sections import ChangeFile, ExperimentTable, MetricTable, parse_limit
from fairlead.errors import InvalidInput
from fairlead.statistics.power import minimum_detectable_effect, proportion_deviation, sample_size

__all__ = ["untestable"]

_Raw = tuple[str, Literal["error", "warning"], str, str]


def untestable(file: ChangeFile, experiment: ExperimentTable) -> Iterator[_Raw]:
    """Findings about effects that this experiment is too small to see."""
    for key, wanted in (
        ("mde", "the smallest relative effect worth finding: 0.02 is 2 %"),
        ("units_per_day", "new units a day, both arms together"),
        ("days", "how long it may run"),
    ):
        value = getattr(experiment, key)
        if value is None or not value > 0:
            yield "untestable", "error", f"experiment.{key}", f"{key} is missing or not above 0: {wanted}"
            return
    assert experiment.units_per_day and experiment.days and experiment.mde  # noqa: S101,PT018 - checked above; for the type checker
    units = min(experiment.units_per_day * experiment.days, 10**12)
    arms = max(2, round(units * (1 - experiment.split))), max(2, round(units * experiment.split))
    for name, table in file.metrics.items():
        if table.design != "controlled" or table.kind in ("count", "rate", "maximum"):
            continue
        wanted_effect = _wanted(name, table, file)
        at = f"metrics.{name}"
        if wanted_effect is None:
            if table.role != "secondary":
                what = "a limit or a margin" if table.baseline else "a baseline"
                yield (
                    "untestable",
                    "warning",
                    at,
                    f"{name}: without {what} nobody can say what the traffic shows",
                )
            continue
        try:
            deviation = _deviation(table)
        except InvalidInput as error:
            yield "untestable", "warning", at, f"{name}: {error}"
            continue
        if deviation is None:
            severity: Literal["error", "warning"] = "error" if table.role == "primary" else "warning"
            yield (
                "untestable", severity, f"{at}.standard_deviation",
                f"{name}: standard_deviation of one {table.unit_of_analysis} is missing, so nobody can say what the "
                "traffic shows; measure it on last week",
            )  # fmt: skip
            continue
        yield from _too_small(name, table, experiment, arms, deviation, wanted_effect)


def _too_small(
    name: str,
    table: MetricTable,
    experiment: ExperimentTable,
    arms: tuple[int, int],
    deviation: float,
    effect: float,
) -> Iterator[_Raw]:
    assert experiment.units_per_day  # noqa: S101 - the caller checked; for the type checker
    seen = minimum_detectable_effect(
        standard_deviation=deviation,
        n_control=arms[0],
        n_treatment=arms[1],
        alpha=experiment.alpha,
        power=experiment.power,
    )
    if seen <= abs(effect):
        return
    try:
        needed = sample_size(
            standard_deviation=deviation,
            effect=effect,
            alpha=experiment.alpha,
            power=experiment.power,
            treatment_share=experiment.split,
        ).total
        days = f"{needed:,} units, {math.ceil(needed / experiment.units_per_day):,} days"
    except InvalidInput:
        days = "more units than there are"
    relative = f" ({seen / abs(table.baseline):.1%} of the baseline)" if table.baseline else ""
    yield (
        "untestable", "error" if table.role == "primary" else "warning", f"metrics.{name}",
        f"{name}: {sum(arms):,} units in {experiment.days} days show no less than {seen:.3g}{relative}, "
        f"and {abs(effect):.3g} is asked for, which needs {days}: "
        "run longer, use a covariate, or ask for a larger effect",
    )  # fmt: skip


def _wanted(name: str, table: MetricTable, file: ChangeFile) -> float | None:
    """The effect to be seen: the mde on the primary metric; on a guardrail what its limit, or the margin, forbids."""
    assert file.experiment is not None  # noqa: S101 - the caller has it; for the type checker
    share = file.experiment.mde if table.role == "primary" else file.experiment.non_inferiority
    for guardrail in file.rollout.guardrails if file.rollout else ():
        if guardrail.metric == name and table.role != "primary" and guardrail.worse_by:
            try:
                limit = parse_limit(guardrail.worse_by)
            except InvalidInput:  # said by the check of the rollout
                continue
            if not limit.relative:
                return limit.amount
            share = limit.amount
    return None if share is None or not table.baseline else share * table.baseline


def _deviation(table: MetricTable) -> float | None:
    if table.standard_deviation is not None:
        if not (math.isfinite(table.standard_deviation) and table.standard_deviation > 0):
            raise InvalidInput("standard_deviation is not a number above 0")
        return table.standard_deviation
    if table.kind == "proportion" and table.baseline is not None and 0 < table.baseline < 1:
        return proportion_deviation(table.baseline)
    return None
