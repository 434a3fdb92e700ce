"""Can the expected traffic show the effect that is hoped for? Asked of every metric before anyone waits for it.

    mean, ratio, formula   standard_deviation of one unit, as measured (with a covariate: of what it leaves)
    proportion             √(p(1 − p)) of the baseline
    quantile               √(q(1 − q)) / density at the quantile; the deviation of single values says nothing about it
    maximum, rate, count   refused: in an experiment they grow with the share that an arm has

A unit with several events counts as one, which errs on the safe side for shares and quantiles. An experiment that is
looked at before the end (`sequential`) pays for it: its bound at its tightest is the one computed with here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from fairlead.change.experiment import experiment_plan
from fairlead.change.finding import Raw, Severity
from fairlead.change.sections import ChangeFile, ExperimentTable, MetricTable, parse_limit
from fairlead.errors import InvalidInput
from fairlead.statistics.power import (
    minimum_detectable_effect,
    proportion_deviation,
    quantile_deviation,
    sample_size,
)
from fairlead.statistics.sequential_means import watched_alpha

__all__ = ["deviation_of", "enough_traffic"]

_GROWS = ("count", "rate", "maximum")


def enough_traffic(file: ChangeFile) -> Iterator[Raw]:
    """Findings about `[experiment]`, and about effects that it is too small to see."""
    experiment = file.experiment
    controlled = {name: table for name, table in file.metrics.items() if table.design == "controlled"}
    if experiment is None:
        if any(table.role == "primary" for table in controlled.values()):
            yield "missing", "error", "experiment", "experiment is missing: unit, mde, units_per_day and days"
        return
    unusable = list(_numbers(experiment))
    yield from unusable
    if not experiment.unit:
        yield "missing", "error", "experiment.unit", "unit is missing: what is randomised, such as user"
    for name, table in controlled.items():
        yield from _kind(name, table, experiment, file)
        if not unusable and table.kind not in _GROWS:
            yield from _effect(name, table, experiment, file)
    if controlled and not unusable:
        try:
            file.definitions()
        except InvalidInput:  # said by the check of the metrics
            return
        try:
            experiment_plan(file)
        except InvalidInput as error:
            yield (
                "untestable",
                "error",
                "experiment",
                f"the experiment cannot be analysed as it is planned: {error}",
            )


def _numbers(experiment: ExperimentTable) -> Iterator[Raw]:
    for key, low, high in (("alpha", 1e-6, 0.5), ("power", 0.5, 0.9999), ("split", 0.001, 0.999)):
        value = getattr(experiment, key)
        if not low <= value <= high:
            yield (
                "untestable",
                "error",
                f"experiment.{key}",
                f"{key} is {value:g}, outside {low:g} to {high:g}",
            )
    for key, wanted in (
        ("mde", "the smallest relative effect worth finding: 0.02 is 2 %"),
        ("units_per_day", "new units a day, both arms together"),
        ("days", "how long it may run"),
    ):
        value = getattr(experiment, key)
        if value is None or not value > 0:
            yield "untestable", "error", f"experiment.{key}", f"{key} is missing or not above 0: {wanted}"
    for key in ("mde", "non_inferiority"):
        value = getattr(experiment, key)
        if value is not None and value >= 1:
            yield (
                "untestable", "error", f"experiment.{key}",
                f"{key} is {value:g}, which is {value:.0%}: it is a ratio, so {value:g} % is {value / 100:g}",
            )  # fmt: skip


def _kind(name: str, table: MetricTable, experiment: ExperimentTable, file: ChangeFile) -> Iterator[Raw]:
    """Whether two arms can be compared by it at all."""
    at = f"metrics.{name}"
    if table.kind in _GROWS and (table.role == "primary" or _limits(name, file)):
        instead = (
            "a quantile" if table.kind == "maximum" else f"a mean per {experiment.unit or 'user'}, or a share"
        )
        yield (
            "untestable", "error", f"{at}.kind",
            f"{name}: a {table.kind} grows with the share that an arm has, so arms cannot be compared by it: "
            f"use {instead}",
        )  # fmt: skip
    if experiment.unit and table.unit_of_analysis != experiment.unit and not table.unit_field:
        yield (
            "untestable", "error", f"{at}.unit_of_analysis",
            f"{name} is analysed per {table.unit_of_analysis}, while each {experiment.unit} is randomised: intervals "
            f"would be too short; set unit_of_analysis = {experiment.unit!r} and unit_field, the field that names it",
        )  # fmt: skip


def _effect(name: str, table: MetricTable, experiment: ExperimentTable, file: ChangeFile) -> Iterator[Raw]:
    at = f"metrics.{name}"
    severity: Severity = "error" if table.role == "primary" else "warning"
    wanted = _wanted(name, table, experiment, file)
    if wanted is None or wanted == 0:
        if table.role == "primary" and table.baseline == 0:
            yield (
                "untestable",
                "error",
                f"{at}.baseline",
                f"{name}: mde is relative, and nothing is relative to 0",
            )
        elif table.role == "guardrail":
            what = "a limit or a margin" if table.baseline else "a baseline above 0"
            yield "untestable", "warning", at, f"{name}: without {what} nobody can say what the traffic shows"
        return
    try:
        deviation = deviation_of(table)
    except InvalidInput as error:
        yield "untestable", severity, at, f"{name}: {error}"
        return
    if deviation is None:
        yield "untestable", severity, *_without(name, table)
        return
    if not 1e-100 < deviation < 1e100:  # also keeps the arithmetic below from leaving the floats
        yield (
            "untestable",
            severity,
            at,
            f"{name}: a spread of {deviation:.3g} is no metric's: look at the units",
        )
        return
    hoped = (
        abs(table.target - table.baseline)
        if table.target is not None and table.baseline is not None
        else None
    )
    if table.role == "primary" and hoped is not None and hoped < wanted * (1 - 1e-9):
        yield (
            "untestable", "warning", f"{at}.target",
            f"{name}: the target is {hoped:.3g} away, and the experiment is planned for {wanted:.3g}: "
            "it may well miss what is promised; lower mde",
        )  # fmt: skip
    yield from _too_small(name, table, experiment, deviation, wanted)


def _without(name: str, table: MetricTable) -> tuple[str, str]:
    """Path and message where the spread is not known."""
    at = f"metrics.{name}"
    if table.kind == "quantile":
        return f"{at}.density", (
            f"{name}: density is missing, so nobody can say what the traffic shows: of last week's values, the share "
            f"between two near the quantile, divided by their distance in {table.unit}"
        )
    if table.kind == "proportion":
        return (
            f"{at}.baseline",
            f"{name}: a share of exactly 0 or 1 has no spread to plan with; give a real one",
        )
    return f"{at}.standard_deviation", (
        f"{name}: standard_deviation of one {table.unit_of_analysis} is missing, so nobody can say what the "
        "traffic shows; measure it on last week"
    )


def _too_small(
    name: str, table: MetricTable, experiment: ExperimentTable, deviation: float, effect: float
) -> Iterator[Raw]:
    assert experiment.units_per_day and experiment.days  # noqa: S101,PT018 - checked before; for the type checker
    units = min(experiment.units_per_day * experiment.days, 10**12)
    arms = max(2, round(units * (1 - experiment.split))), max(2, round(units * experiment.split))
    # Whether a guardrail is worse by more than its limit is asked on one side, with all of alpha.
    guards = table.role == "guardrail"
    alpha = experiment.alpha
    if experiment.sequential:
        alpha = watched_alpha(alpha, one_sided=guards)
    seen = minimum_detectable_effect(
        standard_deviation=deviation,
        n_control=arms[0],
        n_treatment=arms[1],
        alpha=alpha,
        power=experiment.power,
        two_sided=not guards,
    )
    if seen <= effect:
        return
    try:
        needed = sample_size(
            standard_deviation=deviation,
            effect=effect,
            alpha=alpha,
            power=experiment.power,
            treatment_share=experiment.split,
            two_sided=not guards,
        ).total
        more = f"{needed:,} units, {math.ceil(needed / experiment.units_per_day):,} days"
    except InvalidInput:
        more = "more units than there are"
    relative = f" ({seen / abs(table.baseline):.1%} of the baseline)" if table.baseline else ""
    covariate = "" if experiment.covariate else "use a covariate, "
    yield (
        "untestable", "error" if table.role == "primary" else "warning", f"metrics.{name}",
        f"{name}: {sum(arms):,} units in {experiment.days:,} days show no less than {seen:.3g}{relative}, "
        f"and {effect:.3g} is asked for, which needs {more}: run longer, {covariate}or ask for a larger effect",
    )  # fmt: skip


def _limits(name: str, file: ChangeFile) -> list[str]:
    return [
        guardrail.worse_by
        for guardrail in (file.rollout.guardrails if file.rollout else ())
        if guardrail.metric == name and guardrail.worse_by
    ]


def _wanted(name: str, table: MetricTable, experiment: ExperimentTable, file: ChangeFile) -> float | None:
    """The effect to be seen: the mde on the primary metric; on others the tightest limit, or else the margin."""
    baseline = abs(table.baseline or 0.0)
    if table.role == "primary":
        return (experiment.mde or 0.0) * baseline
    found = []
    for text in _limits(name, file):
        try:
            limit = parse_limit(text)
        except InvalidInput:  # said by the check of the rollout
            continue
        found.append(limit.amount * baseline if limit.relative else limit.amount)
    if not found and experiment.non_inferiority is not None:
        found.append(experiment.non_inferiority * baseline)
    return min((each for each in found if each > 0), default=None)


def deviation_of(table: MetricTable) -> float | None:
    """What stands for one unit's standard deviation; None where it is not known. Raises InvalidInput."""
    if table.kind == "quantile":
        if table.standard_deviation is not None:
            raise InvalidInput(
                "the standard deviation of single values says nothing about a quantile; give density in its place"
            )
        if table.density is None or table.q is None:
            return None
        return quantile_deviation(table.q, density=table.density)
    if table.density is not None:
        raise InvalidInput(f"a {table.kind} has no density; give standard_deviation in its place")
    if table.standard_deviation is not None:
        if not table.standard_deviation > 0:
            raise InvalidInput("standard_deviation is not above 0")
        return table.standard_deviation
    if table.kind == "proportion" and table.baseline is not None and 0 < table.baseline < 1:
        return proportion_deviation(table.baseline)
    return None
