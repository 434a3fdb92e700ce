"""A figure and how far to trust it.

Invariant: `low` and `high` are both numbers or both None; None always comes with a `caveat` that says why.
No field is ever NaN. A latency may be infinite: the quantile lies among the requests that never came back.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

from fairlead.errors import InvalidInput

__all__ = ["Estimate"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """One figure with its interval."""

    value: float | None
    """The estimate, in the unit of the data; None when there are no data."""
    low: float | None
    """Lower end of the two-sided interval; None when the data cannot carry one."""
    high: float | None
    """Upper end of the two-sided interval; None when the data cannot carry one."""
    n: int
    """Observations behind it."""
    clusters: int | None
    """Groups that count as independent; None when each observation does."""
    confidence: float
    """Coverage that the interval aims at, 0–1."""
    method: str
    """How the interval was found, as a report prints it."""
    caveat: str = ""
    """What a reader must know before relying on it; empty when nothing."""


def checked_confidence(confidence: float) -> float:
    """`confidence` as a float. Raises InvalidInput outside 0.5 to 0.9999."""
    if (
        isinstance(confidence, bool)
        or not isinstance(confidence, int | float)
        or not 0.5 <= confidence <= 0.9999
    ):
        raise InvalidInput(f"confidence {confidence!r} is not a number from 0.5 to 0.9999")
    return float(confidence)


def normal_quantile(confidence: float) -> float:
    """Half-width, in standard errors, of a two-sided interval from the normal distribution."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)
