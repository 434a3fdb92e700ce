"""CUPED: take out of a metric what was known of each user before the experiment.

Half of the spread of watch time is that some people watch more than others, and that was so last week too.
Subtracting theta · (last week's value − its mean) leaves the effect where it is and takes the known half out
of its variance, so the same certainty comes with half the users.

Theta, once and for all: the slopes of the least-squares regression of the metric on the covariates *within
arms*, the products of both arms added (the common slope of an analysis of covariance). It uses all users and
is not moved by the effect itself. The covariates must have been measured before exposure: one that treatment
can change takes part of the effect away with it.

A user without history is no gap: give 0 for the covariate, and a second covariate that is 1 for those users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fairlead.errors import ConstantCovariate, InvalidInput, TooFewUnits
from fairlead.statistics.clusters import FloatArray
from fairlead.statistics.effect import Effect, compare, linear_figure, welch_degrees
from fairlead.statistics.hypothesis import NO_DIFFERENCE, Hypothesis
from fairlead.statistics.means import mean_effect
from fairlead.statistics.moments import Moments
from fairlead.statistics.ratios import Linearised, linearised_ratio, ratio_effect

__all__ = ["Cuped", "cuped_effect", "cuped_ratio_effect"]

_COLLINEAR = 1e-10
"""Least eigenvalue of the covariates' correlations; below it one is a copy of others but for rounding."""

Covariate = str | tuple[str, str]
"""A column; or a ratio of sums, (numerator, denominator)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cuped:
    """An adjusted effect, and what the adjustment did."""

    effect: Effect
    """After the adjustment. Its two figures are the arms' adjusted values."""
    unadjusted: Effect
    """The same comparison without covariates."""
    theta: tuple[float, ...]
    """The slope of each covariate, in their order."""
    variance_reduction: float
    """1 − adjusted / unadjusted variance of the effect; may be slightly below 0 where nothing is explained."""


def cuped_effect(
    control: Moments,
    treatment: Moments,
    column: str,
    covariates: Sequence[Covariate],
    *,
    hypothesis: Hypothesis = NO_DIFFERENCE,
    confidence: float = 0.95,
) -> Cuped:
    """The difference of two means, adjusted by one or more covariates.

    Raises ConstantCovariate where one does not vary, or is a linear function of the others; TooFewUnits,
    ZeroVariance (also where the covariates explain everything); InvalidInput without covariates.

    Source: Deng, Xu, Kohavi and Walker, "Improving the sensitivity of online controlled experiments by
    utilizing pre-experiment data", WSDM 2013: theta = cov(Y, X)/var(X) over both arms, and the variance falls
    by the share ρ² that X explains. The common slope within arms and several covariates: the analysis of
    covariance, as in Lin, Annals of Applied Statistics 7, 2013, who shows that it stays consistent whatever
    the true relation.

    >>> rows = [[1.0, 1.0], [2.0, 2.0], [3.0, 4.0], [4.0, 3.0]]
    >>> c = Moments.from_rows(("y", "x"), rows)
    >>> t = Moments.from_rows(("y", "x"), [[y + 1, x] for y, x in rows])
    >>> found = cuped_effect(c, t, "y", ["x"])
    >>> round(found.theta[0], 12), round(found.effect.effect, 12)  # products 4, squares 5 in either arm: 8/10
    (0.8, 1.0)
    >>> round(found.variance_reduction, 12)  # ρ = 4/5
    0.64
    """
    plain = mean_effect(control, treatment, column, hypothesis=hypothesis, confidence=confidence)
    forms = [_mean_form(arm, column) for arm in (control, treatment)]
    return _adjusted((control, treatment), forms, covariates, plain)


def cuped_ratio_effect(
    control: Moments,
    treatment: Moments,
    numerator: str,
    denominator: str,
    covariates: Sequence[Covariate],
    *,
    hypothesis: Hypothesis = NO_DIFFERENCE,
    confidence: float = 0.95,
) -> Cuped:
    """The difference of two ratios of sums, adjusted; the usual covariate is last week's ratio, a pair.

    Numerator and denominator are replaced by the linearised unit of the delta method, and so are covariates
    that are pairs; the rest is `cuped_effect`. Raises what it and `ratio_effect` raise.

    Source: Deng et al. 2013, on metrics whose unit of analysis is not the unit of randomisation; the
    linearisation as in `ratio_effect`.

    >>> rows = [[1.0, 2.0, 1.0, 2.0], [1.0, 4.0, 1.0, 4.0], [2.0, 4.0, 2.0, 4.0], [0.0, 2.0, 1.0, 2.0]]
    >>> c = Moments.from_rows(("clicks", "views", "old_clicks", "old_views"), rows)
    >>> found = cuped_ratio_effect(c, c, "clicks", "views", [("old_clicks", "old_views")])
    >>> found.effect.effect, round(found.variance_reduction, 3)
    (0.0, 0.223)
    """
    plain = ratio_effect(
        control, treatment, numerator, denominator, hypothesis=hypothesis, confidence=confidence
    )
    forms = [linearised_ratio(arm, numerator, denominator) for arm in (control, treatment)]
    return _adjusted((control, treatment), forms, covariates, plain)


def _adjusted(
    arms: tuple[Moments, Moments], outcome: list[Linearised], covariates: Sequence[Covariate], plain: Effect
) -> Cuped:
    if isinstance(covariates, str) or not covariates:
        raise InvalidInput("covariates: name at least one column measured before exposure, in a list")
    if len(covariates) + 2 > min(arm.n for arm in arms):
        raise TooFewUnits(
            f"{len(covariates)} covariates need more than {min(arm.n for arm in arms)} units an arm"
        )
    names = [_name(covariate) for covariate in covariates]
    prior = [[_form(arm, covariate) for covariate in covariates] for arm in arms]
    within = sum((_products(arm, forms, forms) for arm, forms in zip(arms, prior, strict=True)), np.zeros(()))
    across = sum(
        (_products(arm, forms, [form]) for arm, forms, form in zip(arms, prior, outcome, strict=True)),
        np.zeros(()),
    )
    theta = _slopes(within, across[:, 0], names)
    n = sum(arm.n for arm in arms)
    common = [
        sum(arm.n * forms[k][0] for arm, forms in zip(arms, prior, strict=True)) / n
        for k in range(len(names))
    ]
    figures = []
    for arm, form, forms in zip(arms, outcome, prior, strict=True):
        weights = dict(form[1])
        value = form[0]
        for slope, (at, gradient), mean in zip(theta, forms, common, strict=True):
            value -= float(slope) * (at - mean)
            for column, weight in gradient.items():
                weights[column] = weights.get(column, 0.0) - float(slope) * weight
        figures.append(linear_figure(arm, value, weights))
    degrees = max(1.0, welch_degrees(*figures) - len(names))
    effect = compare(
        *figures,
        hypothesis=plain.hypothesis,
        confidence=plain.confidence,
        degrees=degrees,
        method=f"{plain.method}, adjusted by {', '.join(names)} (CUPED)",
    )
    before, after = plain.standard_error or 0.0, effect.standard_error or 0.0
    return Cuped(
        effect=effect,
        unadjusted=plain,
        theta=tuple(float(slope) for slope in theta),
        variance_reduction=1 - (after / before) ** 2,
    )


def _slopes(within: FloatArray, across: FloatArray, names: list[str]) -> FloatArray:
    scale = np.sqrt(np.diag(within))
    for name, size in zip(names, scale, strict=True):
        if not size > 0:
            raise ConstantCovariate(
                f"covariate {name} is the same for every unit, so it explains nothing; leave it out"
            )
    correlations = within / np.outer(scale, scale)
    if np.linalg.eigvalsh(correlations)[0] < _COLLINEAR:
        raise ConstantCovariate(
            f"covariates {', '.join(names)}: one is a linear function of the others; leave one out"
        )
    return np.asarray(np.linalg.solve(correlations, across / scale) / scale, dtype=np.float64)


def _products(arm: Moments, rows: list[Linearised], columns: list[Linearised]) -> FloatArray:
    """Centred sums of products of linear forms, shape (len(rows), len(columns))."""
    return np.array(
        [
            [
                sum(
                    a * b * arm.covariance(one, other) * (arm.n - 1)
                    for one, a in row.items()
                    for other, b in column.items()
                )
                for _, column in columns
            ]
            for _, row in rows
        ]
    )


def _form(arm: Moments, covariate: Covariate) -> Linearised:
    return _mean_form(arm, covariate) if isinstance(covariate, str) else linearised_ratio(arm, *covariate)


def _mean_form(arm: Moments, column: str) -> Linearised:
    return arm.mean(column), {column: 1.0}


def _name(covariate: Covariate) -> str:
    return covariate if isinstance(covariate, str) else "/".join(covariate)
