"""The answer to one call: scores, whose they are, and why they are second best if they are."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["DegradedBy", "Scored"]


class DegradedBy(StrEnum):
    """Why the fallback answered."""

    QUEUE_FULL = "queue_full"
    DEADLINE_NEAR = "deadline_near"
    """Less time was left than the model's p99 and its queue need; the model was not tried."""
    STALLED = "stalled"
    """Every thread has been in one run for longer than `stalled_after`; the model was not tried."""
    TIMED_OUT = "timed_out"
    """The model was tried and its answer did not come in time."""
    SCORER_FAILED = "scorer_failed"
    INVALID_SCORES = "invalid_scores"
    """NaN, infinity, no numbers, or not one per row."""
    CLOSED = "closed"
    FORKED = "forked"
    """The process was forked after the scheduler was built: its threads exist only in the parent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """Scores in the order of the rows, and who gave them."""

    scores: tuple[float, ...]
    model_version: str
    """Version of the scorer that answered: the model's, or the fallback's when degraded."""
    reason: DegradedBy | None = None
    """Why the fallback answered; None when the model did."""

    @property
    def degraded(self) -> bool:
        return self.reason is not None
