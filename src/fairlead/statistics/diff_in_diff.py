"""Difference in differences: what to do where nothing could be randomised.

A change went to one region. Comparing it with another region mixes in what always set the two apart;
comparing it with its own past mixes in the season. The difference of both differences removes both, if the
two would have moved in parallel without the change. That cannot be proved, only doubted: the periods before
the change show whether they did so far.

The design stays `before_after`, whatever the p-value.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from fairlead.errors import InvalidInput, TooFewUnits, ZeroVariance
from fairlead.statistics.clusters import FloatArray
from fairlead.statistics.effect import Effect, compare, linear_figure, welch_degrees
from fairlead.statistics.hypothesis import NO_DIFFERENCE, Hypothesis
from fairlead.statistics.moments import Moments
from fairlead.statistics.tails import LEAST

__all__ = ["ParallelTrends", "difference_in_differences", "parallel_trends"]

_CAVEAT = (
    "not randomised: it holds only if both groups would have moved in parallel without the change, "
    "and if nothing else happened to one of them alone"
)


def difference_in_differences(
    control: Moments,
    treatment: Moments,
    *,
    before: Sequence[str],
    after: Sequence[str],
    hypothesis: Hypothesis = NO_DIFFERENCE,
    confidence: float = 0.95,
) -> Effect:
    """The change of treatment less the change of control; a column per period, a row per unit (user, shop, city).

    before, after: columns of the periods; their plain average is taken on each side. The figures of the two
    arms are their changes. Every unit has a value in every period, so its own level cancels and the variance
    is that of its change, whatever the correlation in time. Raises TooFewUnits, ZeroVariance, InvalidInput.

    Source: for two groups the interaction coefficient of the two-way regression; on the correlation in time,
    Bertrand, Duflo and Mullainathan, Quarterly Journal of Economics 119, 2004, who collapse each unit to one
    value before and one after, as here.

    >>> c = Moments.from_rows(("w1", "w2"), [[10.0, 11.0], [20.0, 23.0], [30.0, 32.0]])
    >>> t = Moments.from_rows(("w1", "w2"), [[15.0, 20.0], [25.0, 31.0], [35.0, 42.0]])
    >>> e = difference_in_differences(c, t, before=["w1"], after=["w2"])
    >>> e.control, e.treatment, e.effect, round(e.p_value, 3)   # changes 1, 3, 2 and 5, 6, 7: t = 4 / 0.8165
    (2.0, 6.0, 4.0, 0.008)
    """
    weights = _change(before, after)
    figures = tuple(
        linear_figure(arm, arm.combine(weights, "change").mean("change"), weights)
        for arm in (control, treatment)
    )
    return compare(
        *figures,
        hypothesis=hypothesis,
        confidence=confidence,
        degrees=welch_degrees(*figures),
        method="difference in differences, Welch's t on units' changes",
        caveats=(_CAVEAT,),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelTrends:
    """Whether the groups moved in parallel before the change."""

    p_value: float
    """Of "they did"; small: the design does not hold. Large is no proof that it does."""
    statistic: float
    """Hotelling's T² over all steps between periods, scaled so that a k-th of it is F with k degrees."""
    steps: tuple[float, ...]
    """By how much treatment moved more than control, between each period and the next."""
    standard_errors: tuple[float, ...]
    """Of each step."""
    could_hide: float
    """The largest step that this check would have missed half of the time at 5 %: compare it with the effect."""


def parallel_trends(control: Moments, treatment: Moments, *, before: Sequence[str]) -> ParallelTrends:
    """Checks the steps between periods before the change, all at once; needs three periods or more to say much.

    before: columns in time order, two or more. Raises TooFewUnits where a group has no more units than steps,
    ZeroVariance, InvalidInput.

    Source: the joint test that all leads are zero, as in event studies, here by Hotelling's T² (Annals of Mathematical
    Statistics 2, 1931), which for one step is Welch's t. That passing it shows little by
    itself, and biases what is reported after it: Roth, American Economic Review: Insights 4, 2022; hence
    `could_hide`.

    >>> c = Moments.from_rows(("w1", "w2"), [[10.0, 11.0], [20.0, 23.0], [30.0, 32.0]])
    >>> found = parallel_trends(c, c, before=["w1", "w2"])
    >>> found.steps, found.p_value
    ((0.0,), 1.0)
    """
    if len(before) < 2:
        raise InvalidInput(
            f"{len(before)} period(s) before the change have no trend; give two or more, in time order"
        )
    steps = [_change([one], [next_]) for one, next_ in itertools.pairwise(before)]
    k = len(steps)
    for name, arm in (("control", control), ("treatment", treatment)):
        if arm.n <= k:
            raise TooFewUnits(f"{name}: {arm.n} unit(s) for {k} step(s); add units, or join periods")
    gaps = np.array([treatment.combine(w, "s").mean("s") - control.combine(w, "s").mean("s") for w in steps])
    apart = _covariance(control, steps), _covariance(treatment, steps)
    covariance = apart[0] + apart[1]
    errors = np.sqrt(np.diag(covariance))
    if not (errors > 0).all():
        raise ZeroVariance("no unit differs from another in a step between periods; check the columns")
    scaled = covariance / np.outer(errors, errors)
    if np.linalg.eigvalsh(scaled)[0] < 1e-10:
        raise ZeroVariance("one step between periods follows from the others; leave a period out")
    z = gaps / errors
    statistic = float(z @ np.linalg.solve(scaled, z))
    # Hotelling's T² for a covariance that is known from few units, with the fewest of the steps' Welch degrees.
    (v_c, v_t) = (np.diag(part) / np.diag(covariance) for part in apart)
    degrees = float((1 / (v_c**2 / (control.n - 1) + v_t**2 / (treatment.n - 1))).min())
    statistic *= (degrees - k + 1) / degrees
    return ParallelTrends(
        p_value=max(LEAST, float(special.fdtrc(k, degrees - k + 1, statistic / k))),
        statistic=statistic,
        steps=tuple(float(gap) for gap in gaps),
        standard_errors=tuple(float(error) for error in errors),
        could_hide=float(1.959963984540054 * errors.max()),
    )


def _covariance(arm: Moments, forms: list[dict[str, float]]) -> FloatArray:
    matrix = np.array([[arm.covariance(a, b) for b in arm.columns] for a in arm.columns])
    weights = np.array([[form.get(column, 0.0) for column in arm.columns] for form in forms])
    return np.asarray(weights @ matrix @ weights.T / arm.n, dtype=np.float64)


def _change(before: Sequence[str], after: Sequence[str]) -> dict[str, float]:
    if isinstance(before, str) or isinstance(after, str) or not before or not after:
        raise InvalidInput("before and after: give the columns of the periods, in a list each")
    if len({*before, *after}) != len(before) + len(after):
        raise InvalidInput("before and after: a period is named twice")
    return {**{column: -1 / len(before) for column in before}, **{column: 1 / len(after) for column in after}}
