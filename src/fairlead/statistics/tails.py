"""Tail areas and their inverses, for the normal and for Student's t distribution.

A p-value computed as 1 − F(z) is 0 from z = 8.3 on, and a report that prints 0 claims what no data show.
Here the tail itself is computed, so that p-values stay positive down to 1e-300.
"""

from __future__ import annotations

import math
import sys

from scipy import special

__all__: list[str] = []

LEAST = sys.float_info.min
"""What a p-value that is smaller still is given as: 2.2e-308."""


def upper_tail(statistic: float, degrees: float | None) -> float:
    """P(T >= statistic), above 0; degrees None for the normal distribution.

    >>> round(upper_tail(1.959964, None), 6), upper_tail(37.0, None) > 1e-300
    (0.025, True)
    """
    if degrees is None:
        tail = float(special.ndtr(-statistic))
    elif statistic * statistic < 1e8 * degrees:
        tail = float(special.stdtr(degrees, -statistic))
    else:
        # Far out a t variable falls off as a power; the incomplete beta function does not lose it there.
        part = float(special.betainc(degrees / 2, 0.5, degrees / (degrees + statistic * statistic))) / 2
        tail = part if statistic > 0 else 1 - part
    return min(1.0, max(LEAST, tail))


def two_tails(statistic: float, degrees: float | None) -> float:
    """P(|T| >= |statistic|), above 0."""
    return min(1.0, 2 * upper_tail(abs(statistic), degrees))


def critical_value(tail: float, degrees: float | None) -> float:
    """The value that T exceeds with probability `tail`, 0 < tail < 1.

    >>> round(critical_value(0.025, None), 6), round(critical_value(0.025, 10.0), 3)
    (1.959964, 2.228)
    """
    value = special.ndtri(tail) if degrees is None else special.stdtrit(degrees, tail)
    return -float(value)


def chi_square_tail(statistic: float, degrees: float) -> float:
    """P(X >= statistic) of a chi-square variable, above 0.

    >>> round(chi_square_tail(3.841459, 1), 6), chi_square_tail(1380.0, 1) > 1e-302
    (0.05, True)
    """
    return max(LEAST, float(special.chdtrc(degrees, statistic)))


def is_number(value: object) -> bool:
    """Whether it is a finite int or float, and no bool."""
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
