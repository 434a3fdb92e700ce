"""Winsorising: a few users with absurd values must not decide.

One user who leaves a stream running for a week can carry more variance than the other 100,000 together. The
values beyond a cap are set to the cap. What is estimated is then the mean of the *capped* metric, which is
another, usually more useful, quantity than the mean; a report must say so.

The cap is one number for both arms, from both arms' values together: a cap of its own for each arm would
hide exactly the change in the tail that treatment made.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fairlead.errors import InvalidInput, TooFewUnits
from fairlead.statistics.clusters import FloatArray
from fairlead.statistics.tails import is_number

__all__ = ["pooled_cap", "winsorise"]


def pooled_cap(control: ArrayLike, treatment: ArrayLike, *, q: float = 0.999) -> float:
    """The cap: the q-quantile of the units of both arms together (the smallest value with a share q below it).

    control, treatment: shape (n,), one value per unit. q: 0.5 to below 1. Raises InvalidInput, TooFewUnits
    when fewer than ten units lie beyond the cap, which would then be one user's value.

    >>> pooled_cap(range(1, 501), range(501, 1001), q=0.99)
    990.0
    """
    if not is_number(q) or not 0.5 <= q < 1:
        raise InvalidInput(f"q {q!r} is not a number from 0.5 to below 1; 0.999 caps one unit in a thousand")
    values = np.concatenate([_column(control), _column(treatment)])
    if len(values) * (1 - q) < 10 - 1e-9:
        raise TooFewUnits(
            f"{len(values)} units leave {len(values) * (1 - q):.1f} beyond the {q:g} quantile, 10 needed; lower q"
        )
    return float(np.quantile(values, q, method="inverted_cdf"))


def winsorise(values: ArrayLike, cap: float) -> FloatArray:
    """The values, none above `cap`; shape (n,). Raises InvalidInput for NaN and for a cap that is no number.

    >>> winsorise([1.0, 250.0, 7.0], 100.0).tolist()
    [1.0, 100.0, 7.0]
    """
    if not is_number(cap):
        raise InvalidInput(f"cap {cap!r} is not a finite number")
    return np.minimum(_column(values), cap)


def _column(values: ArrayLike) -> FloatArray:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or np.isnan(data).any():
        raise InvalidInput("values: pass one number per unit, and none NaN")
    return data
