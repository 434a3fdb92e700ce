"""Many questions, one alpha.

Twenty metrics that nothing has moved give one "significant" result at 5 %. Adjusted p-values can be compared
with alpha as if there had been one question.

    bonferroni, holm        the chance of even one false alarm is at most alpha (holm rejects at least as much)
    benjamini_hochberg      the expected share of false alarms among those raised is at most alpha: for
                            exploring, not for deciding
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fairlead.errors import InvalidInput
from fairlead.statistics.clusters import FloatArray

__all__ = ["benjamini_hochberg", "bonferroni", "holm"]


def bonferroni(p_values: Sequence[float]) -> tuple[float, ...]:
    """Each p-value times their number, at most 1. Any dependence. Raises InvalidInput.

    >>> bonferroni([0.01, 0.04])
    (0.02, 0.08)
    """
    p = _checked(p_values)
    return _result(np.minimum(1.0, p * len(p)))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down adjustment. Any dependence. Raises InvalidInput.

    Source: Holm, Scandinavian Journal of Statistics 6, 1979.

    >>> holm([0.01, 0.04, 0.03])  # 3 · 0.01; 2 · 0.03; then no less than the one before
    (0.03, 0.06, 0.06)
    """
    p = _checked(p_values)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return _result(_unsorted(np.minimum(1.0, steps), order))


def benjamini_hochberg(p_values: Sequence[float]) -> tuple[float, ...]:
    """The step-up adjustment for the false discovery rate; for independent or positively dependent tests.

    Source: Benjamini and Hochberg, JRSS B 57, 1995. Raises InvalidInput.

    >>> benjamini_hochberg([0.01, 0.04, 0.03])  # 3/1 · 0.01; 3/2 · 0.03 and 3/3 · 0.04, of which the smaller
    (0.03, 0.04, 0.04)
    """
    p = _checked(p_values)
    order = np.argsort(p, kind="stable")
    steps = p[order] * len(p) / np.arange(1, len(p) + 1)
    return _result(_unsorted(np.minimum(1.0, np.minimum.accumulate(steps[::-1])[::-1]), order))


def _checked(p_values: Sequence[float]) -> FloatArray:
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise InvalidInput("p_values: pass a row of numbers from 0 to 1; leave out what was not computed")
    return p


def _unsorted(values: FloatArray, order: np.ndarray[tuple[int], np.dtype[np.intp]]) -> FloatArray:
    result = np.empty_like(values)
    result[order] = values
    return result


def _result(values: FloatArray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
