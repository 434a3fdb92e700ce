"""A figure with all that is needed to judge it, or to compute it again.

Two teams that both say "p99 fell by 12 %" mean different things when one means the server and the other the client.
So a figure is recorded with its whole definition, or not at all. A number is finite or None; None always comes with a
caveat that says why, so that a later reader does not take a hole for a zero.
"""

from __future__ import annotations

from typing import get_args

import msgspec
from msgspec.structs import force_setattr

from fairlead.errors import InvalidInput
from fairlead.ledger.bounds import (
    MOST_CAVEATS,
    checked_finite,
    checked_hash,
    checked_many,
    checked_name,
    checked_prose,
    checked_whole,
)
from fairlead.metrics.metric import Design, Side

__all__ = ["Evidence"]


class Evidence(msgspec.Struct, frozen=True, kw_only=True, tag="evidence", tag_field="kind"):
    """One figure. Raises InvalidInput naming the field that is missing or wrong."""

    change: str
    """Name of the change that it was measured for."""
    metric: str
    """Name of the metric."""
    definition: str
    """All the number depends on, in a sentence: `Metric.definition()`."""
    statistic: str
    """What was computed: "0.99 quantile", "mean", "relative effect on the mean"."""
    arm: str
    """Whose figure it is: "control", "treatment", or both, as in "treatment / control − 1"."""
    value: float | None
    """In `unit`; None with a caveat."""
    unit: str
    """As `Metric.unit`: "seconds", "ratio" (0–1), "feeds per second"."""
    side: Side
    """Where it was observed: server or client."""
    window: str
    """The span that it covers."""
    segment: str
    """Whom it covers; "all requests" is one, too."""
    unit_of_analysis: str
    """What one observation is: request, user, session."""
    n: int
    """Observations behind it, in that unit."""
    low: float | None
    """Lower end of the interval, in `unit`; None with a caveat, also where a one-sided interval has none."""
    high: float | None
    """Upper end of the interval, in `unit`; None with a caveat, also where a one-sided interval has none."""
    confidence: float | None
    """Coverage that the interval aims at, 0–1; None when neither end is given."""
    design: Design
    """What it can prove; only `controlled` shows a cause for users."""
    method: str
    """How figure and interval were computed, as a report prints it."""
    query_sha256: str
    """SHA-256 of the query or program that computed it."""
    data_sha256: str
    """SHA-256 of the data that it read, or of the list of their hashes."""
    measured_at_utc_seconds: float
    """When it was computed; seconds since 1970, UTC."""
    caveats: tuple[str, ...] = ()
    """What a reader must know before relying on it, a sentence each, at most 100."""

    def __post_init__(self) -> None:
        # What was checked is put back: equal evidence has equal bytes, and so the same id, be it 3 or 3.0, a list or a
        # tuple, Python's or numpy's.
        for name in ("change", "metric", "statistic", "arm", "unit", "window", "segment", "unit_of_analysis"):
            force_setattr(self, name, checked_name(name, getattr(self, name)))
        for name in ("definition", "method"):
            force_setattr(self, name, checked_prose(name, getattr(self, name)))
        for name, known in (("side", get_args(Side)), ("design", get_args(Design))):
            if getattr(self, name) not in known:
                raise InvalidInput(f"{name}: {getattr(self, name)!r:.80} is none of {', '.join(known)}")
            force_setattr(self, name, checked_name(name, getattr(self, name)))
        for name in ("query_sha256", "data_sha256"):
            force_setattr(self, name, checked_hash(name, getattr(self, name)))
        caveats = checked_many("caveats", self.caveats, MOST_CAVEATS)
        force_setattr(self, "caveats", tuple(checked_prose("caveats", each) for each in caveats))
        force_setattr(self, "n", checked_whole("n", self.n))
        force_setattr(
            self,
            "measured_at_utc_seconds",
            checked_finite("measured_at_utc_seconds", self.measured_at_utc_seconds),
        )
        for name in ("value", "low", "high", "confidence"):
            if (number := getattr(self, name)) is not None:
                force_setattr(self, name, checked_finite(name, number))
        self._check_interval()

    def _check_interval(self) -> None:
        for name in ("value", "low", "high"):
            if getattr(self, name) is None and not self.caveats:
                raise InvalidInput(f"{name}: it is None, and no caveat says why; add one to caveats")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise InvalidInput(f"low: {self.low:g} lies above high, {self.high:g}; exchange them")
        if (self.confidence is None) != (self.low is None and self.high is None):
            raise InvalidInput("confidence: it is given with an interval, and only then")
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise InvalidInput(f"confidence: {self.confidence:g} is not between 0 and 1; 95 % is 0.95")
