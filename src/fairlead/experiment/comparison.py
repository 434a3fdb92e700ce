"""One metric, two arms: which estimator its kind asks for, and what else is said beside the plain effect.

    share of units, one value each      score method            mean, total, count      Welch's t ratio, or many rows
    per unit        delta method            formula                 delta method quantile
    order statistics        with covariates         CUPED on any but quantile, formula

Each effect comes with its watched twin (a confidence sequence), where the method has one. What the data cannot carry
becomes a reason, never a NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fairlead.errors import NotEstimable
from fairlead.experiment.plan import Margin
from fairlead.metrics import Metric
from fairlead.metrics.source import COVARIATE
from fairlead.statistics import (
    Cuped,
    Effect,
    Estimate,
    Hypothesis,
    Moments,
    SequentialEffect,
    cuped_effect,
    cuped_ratio_effect,
    mean_effect,
    not_worse,
    proportion_effect,
    quantile_effect,
    ratio_effect,
    sequential_effect,
    smooth_effect,
)
from fairlead.statistics.hypothesis import NO_DIFFERENCE
from fairlead.statistics.tails import LEAST

__all__ = ["Arms", "Compared", "compare_arms", "harm_and_safety", "used_covariates"]

_SAME = 1e-9
"""Least eigenvalue of the covariates' correlations, below which one follows from the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arms:
    """What is known of one metric in two arms."""

    metric: Metric
    columns: tuple[str, ...] = ()
    """Columns of the outcome; those of covariates follow in the moments."""
    control: Moments | None = None
    treatment: Moments | None = None
    control_quantile: Estimate | None = None
    treatment_quantile: Estimate | None = None
    stages: tuple[Arms, ...] = ()
    """Where the shares changed: each stage by itself. The moments above are then stratified over them."""

    @property
    def covariates(self) -> tuple[str, ...]:
        """Columns of covariates."""
        return tuple(
            name for name in (self.control.columns if self.control else ()) if name.startswith(COVARIATE)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """An effect in all its forms, or the reason why there is none."""

    effect: Effect | None = None
    """After adjustment, where there are covariates."""
    cuped: Cuped | None = None
    sequential: SequentialEffect | None = None
    reason: str = ""
    """Why there is no effect."""
    caveats: tuple[str, ...] = ()


def compare_arms(
    arms: Arms, *, alpha: float, tuned_for: int | None, hypothesis: Hypothesis = NO_DIFFERENCE
) -> Compared:
    """The effect on one metric at confidence 1 − alpha; tuned_for: units at which the watched interval is tightest."""
    caveats: list[str] = []
    cuped: Cuped | None = None
    try:
        if arms.covariates and arms.metric.kind not in ("quantile", "formula"):
            try:
                cuped = _adjusted(arms, hypothesis, 1 - alpha)
            except NotEstimable as error:
                caveats.append(f"not adjusted: {error}")
        elif arms.covariates:
            caveats.append(f"not adjusted: a {arms.metric.kind} takes no covariates")
        effect = cuped.effect if cuped else plain_effect(arms, hypothesis, 1 - alpha)
    except NotEstimable as error:
        return Compared(reason=str(error), caveats=tuple(caveats))
    watched: SequentialEffect | None = None
    if arms.stages:
        caveats.append(
            "averaged over stages with different shares, each by what it can tell; e-values multiply, and have no "
            "interval"
        )
        watched = _over_stages(effect, arms, hypothesis, alpha, tuned_for)
        return Compared(effect=effect, cuped=cuped, sequential=watched, caveats=tuple(caveats))
    try:
        # The score method has no standard error; a share of units is the mean of zeros and ones.
        base = effect if effect.arm_errors is not None else _as_mean(arms, hypothesis, 1 - alpha)
        if base is not None:
            n = effect.n_control + effect.n_treatment
            watched = sequential_effect(base, tuned_for=max(2, tuned_for or n))
    except NotEstimable as error:
        caveats.append(f"no watched interval: {error}")
    return Compared(effect=effect, cuped=cuped, sequential=watched, caveats=tuple(caveats))


def _over_stages(
    effect: Effect, arms: Arms, hypothesis: Hypothesis, alpha: float, tuned_for: int | None
) -> SequentialEffect | None:
    """The product of the stages' e-values; None where no stage has one."""
    log_e = None
    for stage in arms.stages:
        found = compare_arms(stage, alpha=alpha, tuned_for=tuned_for, hypothesis=hypothesis).sequential
        if found is not None:
            log_e = found.log_e_value + (log_e or 0.0)
    if log_e is None:
        return None
    p_value = min(1.0, max(LEAST, math.exp(-min(700.0, max(0.0, log_e)))))
    always = replace(
        effect,
        low=None,
        high=None,
        relative_low=None,
        relative_high=None,
        p_value=p_value,
        method="e-values of stages",
    )
    return SequentialEffect(effect=always, log_e_value=log_e)


def harm_and_safety(
    arms: Arms, margin: Margin, *, alpha: float, tuned_for: int | None
) -> tuple[Compared, Compared]:
    """Two one-sided comparisons with the margin: that treatment is worse by more than it, and that it is not."""
    safe = not_worse(by=margin.by, better=arms.metric.better, relative=margin.relative)
    harm = Hypothesis(
        alternative="greater" if safe.alternative == "less" else "less",
        ratio=safe.ratio,
        difference=safe.difference,
    )
    return (
        compare_arms(arms, alpha=alpha, tuned_for=tuned_for, hypothesis=harm),
        compare_arms(arms, alpha=alpha, tuned_for=tuned_for, hypothesis=safe),
    )


def plain_effect(arms: Arms, hypothesis: Hypothesis = NO_DIFFERENCE, confidence: float = 0.95) -> Effect:
    """Without covariates. Raises NotEstimable."""
    metric = arms.metric
    if metric.kind == "quantile":
        assert arms.control_quantile is not None and arms.treatment_quantile is not None  # noqa: S101,PT018 - the caller has both
        return quantile_effect(
            arms.control_quantile, arms.treatment_quantile, hypothesis=hypothesis, confidence=confidence
        )
    control, treatment = _both(arms)
    formula = metric.parsed_formula
    if formula is not None:
        columns = dict(zip(formula.names, arms.columns, strict=True))

        def value(arm: Moments) -> tuple[float, Mapping[str, float]]:
            figure, gradient = formula.at(lambda name: arm.mean(columns[name]))
            return figure, {columns[name]: slope for name, slope in gradient.items()}

        return smooth_effect(
            control, treatment, value, hypothesis=hypothesis, confidence=confidence,
            method=f"delta method for {formula.text}",
        )  # fmt: skip
    if len(arms.columns) == 2:
        return ratio_effect(control, treatment, *arms.columns, hypothesis=hypothesis, confidence=confidence)
    column = arms.columns[0]
    if metric.kind == "proportion" and not arms.stages:
        return proportion_effect(
            *_successes(control, column),
            *_successes(treatment, column),
            hypothesis=hypothesis,
            confidence=confidence,
        )
    return mean_effect(control, treatment, column, hypothesis=hypothesis, confidence=confidence)


def _as_mean(arms: Arms, hypothesis: Hypothesis, confidence: float) -> Effect | None:
    if arms.metric.kind != "proportion" or len(arms.columns) != 1:
        return None
    return mean_effect(*_both(arms), arms.columns[0], hypothesis=hypothesis, confidence=confidence)


def _adjusted(arms: Arms, hypothesis: Hypothesis, confidence: float) -> Cuped:
    control, treatment = _both(arms)
    covariates = used_covariates(arms)
    if len(arms.columns) == 2:
        return cuped_ratio_effect(
            control, treatment, *arms.columns, covariates, hypothesis=hypothesis, confidence=confidence
        )
    return cuped_effect(
        control, treatment, arms.columns[0], covariates, hypothesis=hypothesis, confidence=confidence
    )


def used_covariates(arms: Arms) -> Sequence[str]:
    """Covariates that say something of their own, the first of those that say the same.

    A mark of units without a past is constant where all have one; where each has one event of a past or none, the
    mark is their number, the other way round.
    """
    control, treatment = _both(arms)
    names = arms.covariates
    within = np.zeros((len(names), len(names)))
    for arm in (control, treatment):
        if arm.n > 1:
            within += (arm.n - 1) * np.array([[arm.covariance(a, b) for b in names] for a in names])
    used: list[int] = []
    for index in range(len(names)):
        tried = [*used, index]
        scale = np.sqrt(np.diag(within)[tried])
        if not np.isfinite(scale).all() or not (scale > 0).all():
            continue
        correlations = within[np.ix_(tried, tried)] / np.outer(scale, scale)
        if np.linalg.eigvalsh(correlations)[0] > _SAME:
            used = tried
    return [names[index] for index in used] or names


def _both(arms: Arms) -> tuple[Moments, Moments]:
    assert arms.control is not None and arms.treatment is not None  # noqa: S101,PT018 - all but quantiles have moments
    return arms.control, arms.treatment


def _successes(arm: Moments, column: str) -> tuple[int, int]:
    return (round(arm.mean(column) * arm.n) if arm.n else 0), arm.n
