"""What a policy did that was not the straight way: counted, told and exported.

A count costs one addition, and only when something did not go straight: a call that succeeds at its first attempt
counts nothing. A scrape reads the counts where they lie. An event is built only for someone who asked for it, and a
receiver that raises harms no call. All of it is per process; Prometheus adds the processes up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

from fairlead.clock import Clock
from fairlead.telemetry.event import Event, PolicyActed, PolicyAction
from fairlead.telemetry.metrics import MetricRegistry

__all__ = ["Counts", "PolicyStats", "export_counts", "tell"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyStats:
    """What did not go straight, counted since the start, in this process."""

    retried: int
    """Attempts beyond the first."""
    retries_suppressed: int
    """Retries that a failure deserved and the budget refused."""
    timed_out: int
    """Attempts ended by their own timeout or the deadline."""
    refused: int
    """Attempts not begun: breaker open, limit full, or deadline passed."""
    hedged: int
    """Second copies sent beside a slow attempt."""
    hedges_won: int
    """Hedges whose answer came first."""
    hedges_suppressed: int
    """Hedges that a slow attempt deserved and the budget, the breaker or the limit refused."""
    fell_back: int
    """Failures that the fallback answered."""
    fallbacks_suppressed: int
    """Failures raised because the fallback budget was spent."""


class Counts:
    """The same, while they are being counted; one for a policy and those derived from it."""

    __slots__ = tuple(field.name for field in fields(PolicyStats))

    def __init__(self) -> None:
        self.retried = self.retries_suppressed = self.timed_out = self.refused = 0
        self.hedged = self.hedges_won = self.hedges_suppressed = 0
        self.fell_back = self.fallbacks_suppressed = 0

    def snapshot(self) -> PolicyStats:
        return PolicyStats(**{name: getattr(self, name) for name in self.__slots__})


def tell(
    on_event: Callable[[Event], object],
    clock: Clock,
    policy: str,
    action: PolicyAction,
    reason: str,
    attempt: int,
    request_id: str,
) -> None:
    """Hands the event over; what the receiver raises is logged."""
    try:
        on_event(
            PolicyActed(
                at_utc_seconds=clock.utc(),
                request_id=request_id,
                policy=policy,
                action=action,
                reason=reason,
                attempt=attempt,
            )
        )
    except Exception:  # a broken receiver must not fail the call that it is told of
        _log.exception("%s: the receiver %r failed", policy, on_event)


def export_counts(policy: str, counts: Counts, registry: MetricRegistry) -> None:
    """Has each count read at the scrape, under the label `what`."""
    family = registry.counter(
        "fairlead_policy_total", "What policies did that was not the straight way.", labels=("policy", "what")
    )
    for name in Counts.__slots__:
        family.labels(policy=policy, what=name).track(partial(getattr, counts, name))
