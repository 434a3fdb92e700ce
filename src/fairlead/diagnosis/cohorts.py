"""Which requests are bad more often than the rest, and by more than chance.

Somebody who looks at thirty slices of a hundred requests finds one that is twice as bad, every time. Here every cohort
is compared with all requests outside it, and the intervals hold for all comparisons together (Bonferroni), however many
were made. Requests of one half second share a queue, so slices of time are what varies independently: the variance of
the difference is taken over them. Too few requests or slices, and a cohort is refused by name.

The heaviest first: by the bad requests that would be gone if the cohort were like the rest. A cohort is where a
problem shows, not why; an *outcome* (degraded, an error) is not even that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from fairlead.statistics.tails import critical_value

__all__ = ["Cohort", "Compared", "compare_cohorts"]

FEWEST = 30
"""Requests in a cohort, and outside it, below which a share says nothing: one of 30 is 3 %, give or take 6."""
FEWEST_SLICES = 4
"""Slices of time with the cohort in them, below which their spread is not known."""
MOST_VALUES = 30
"""Values of one dimension that are looked at, the most frequent ones. More comparisons make all intervals wider."""


class Cohort(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that share a value, against all others."""

    dimension: str
    value: str
    n: int
    share: float
    """Of bad requests in it, 0–1."""
    rest_n: int
    rest_share: float
    difference: float
    """`share` − `rest_share`."""
    low: float
    """Bounds of the difference; all cohorts' bounds hold together with 95 %."""
    high: float
    excess: float
    """Bad requests that would be gone if it were like the rest; negative where it is better."""
    worse: bool
    """The bounds lie above 0."""
    outcome: bool
    """It comes about together with a bad request, and is no property that the request had before."""


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """Every cohort that could be compared, and those that could not."""

    what: str
    """What counts as bad."""
    n: int
    bad: int
    cohorts: tuple[Cohort, ...]
    """The heaviest first."""
    comparisons: int
    """That the intervals allow for."""
    refused: tuple[str, ...]
    """Cohorts without a figure, each with the reason."""

    @property
    def worse(self) -> tuple[Cohort, ...]:
        return tuple(cohort for cohort in self.cohorts if cohort.worse)


def compare_cohorts(
    what: str,
    bad: NDArray[np.bool_],
    slices: NDArray[np.int64],
    dimensions: Mapping[str, Sequence[str]],
    *,
    outcomes: frozenset[str] = frozenset(),
    confidence: float = 0.95,
) -> Compared:
    """Compares every value of every dimension with all other requests.

    bad, slices: shape (n,), one row per request, and the slice of time it belongs to. dimensions: n values each.
    outcomes: the dimensions that are no cause.

    The difference of two shares, its variance by the delta method over slices, in which both shares vary together
    (Deng, Knoblich and Lu, KDD 2018), but at least that of independent requests (Agresti and Caffo, American
    Statistician 54, 2000), with a t quantile for the slices that the smaller side has.
    """
    _, place = np.unique(slices, return_inverse=True)
    refused: list[str] = []
    chosen: list[tuple[str, str, NDArray[np.bool_]]] = []
    for dimension, values in dimensions.items():
        chosen += _of_dimension(dimension, np.asarray(values, dtype=object), bad, place, refused)
    # Two-sided; without a comparison there is nothing to share the error between.
    level = 1.0 - (1.0 - confidence) / (2 * max(1, len(chosen)))
    cohorts = [
        _compared(dimension, value, rows, bad, place, level, dimension in outcomes)
        for dimension, value, rows in chosen
    ]
    cohorts.sort(key=lambda cohort: (not cohort.worse, -cohort.excess))
    return Compared(
        what=what,
        n=len(bad),
        bad=int(bad.sum()),
        cohorts=tuple(cohorts),
        comparisons=len(chosen),
        refused=tuple(refused),
    )


def _of_dimension(
    dimension: str,
    values: NDArray[np.object_],
    bad: NDArray[np.bool_],
    place: NDArray[np.intp],
    refused: list[str],
) -> list[tuple[str, str, NDArray[np.bool_]]]:
    names, codes, counts = np.unique(values.astype(str), return_inverse=True, return_counts=True)
    if len(names) < 2:
        return []
    order = np.argsort(-counts, kind="stable")
    found = []
    for code in order[:MOST_VALUES]:
        rows = codes == code
        fewer = min(int(counts[code]), len(values) - int(counts[code]))
        seen = min(len(np.unique(place[rows])), len(np.unique(place[~rows])))
        if fewer < FEWEST:
            refused.append(f"{dimension} = {names[code]}: {fewer} requests on one side, {FEWEST} are needed")
        elif seen < FEWEST_SLICES:
            refused.append(
                f"{dimension} = {names[code]}: {seen} half seconds on one side, {FEWEST_SLICES} are needed"
            )
        else:
            found.append((dimension, str(names[code]), rows))
    if len(names) > MOST_VALUES:
        refused.append(f"{dimension}: {len(names) - MOST_VALUES:,} rarer values were not looked at")
    if len(names) == 2 and not found:
        del refused[-1]  # both sides are short of the same requests
    if len(names) == 2 and len(found) == 2:
        # One is the other's rest: the same comparison twice would only widen all the others.
        found.sort(key=lambda each: -float(bad[each[2]].mean()))
        del found[1]
    return found


def _compared(
    dimension: str,
    value: str,
    rows: NDArray[np.bool_],
    bad: NDArray[np.bool_],
    place: NDArray[np.intp],
    level: float,
    outcome: bool,
) -> Cohort:
    slices = int(place.max()) + 1
    residual = np.zeros(slices)
    shares, independent, sign = [], 0.0, 1.0
    for side in (rows, ~rows):
        trials = np.bincount(place[side], minlength=slices).astype(float)
        hits = np.bincount(place[side], weights=bad[side], minlength=slices)
        n = float(trials.sum())
        share = float(hits.sum()) / n
        shares.append(share)
        residual += sign * (hits - share * trials) / n
        shrunk = (float(hits.sum()) + 1.0) / (n + 2.0)
        independent += shrunk * (1.0 - shrunk) / (n + 2.0)
        sign = -1.0
    seen = min(len(np.unique(place[rows])), len(np.unique(place[~rows])))
    variance = max(slices / (slices - 1) * float(np.square(residual).sum()), independent)
    half = critical_value(1 - level, seen - 1) * math.sqrt(variance)
    difference = shares[0] - shares[1]
    n = int(rows.sum())
    return Cohort(
        dimension=dimension,
        value=value,
        n=n,
        share=shares[0],
        rest_n=len(rows) - n,
        rest_share=shares[1],
        difference=difference,
        low=max(-1.0, difference - half),
        high=min(1.0, difference + half),
        excess=difference * n,
        worse=difference - half > 0,
        outcome=outcome,
    )
