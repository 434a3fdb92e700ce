"""What a policy did that was not the straight way: counted, told and exported.

A count costs one addition, and only when something did not go straight: a call that succeeds at its first attempt
counts nothing. A scrape reads the counts where they lie. An event is built only for someone who asked for it, and a
receiver that raises harms no call. All of it is per process; Prometheus adds the processes up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial

from fairlead.clock import Clock
from fairlead.errors import DeadlineExceeded, Refused
from fairlead.telemetry.event import Event, PolicyActed, PolicyAction
from fairlead.telemetry.metrics import Counter, Family, MetricRegistry

__all__ = ["REFUSALS", "Counts", "Measures", "PolicyStats", "count_words", "export_counts", "tell"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyStats:
    """What did not go straight, counted since the start, in this process."""

    retried: int
    """Attempts beyond the first."""
    retries_suppressed: int
    """Retries that a failure deserved and the budget refused."""
    timed_out: int
    """Attempts ended by their own timeout or the deadline, and answers that began in time and did not end in time."""
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


_COUNTED = tuple(field.name for field in fields(PolicyStats))
REFUSALS = ("CircuitOpen", "DeadlineExceeded", "Overloaded")
"""Class names of what a policy raises before an attempt begins."""


class Counts:
    """The same, while they are being counted; one for a policy and those derived from it."""

    __slots__ = (*_COUNTED, "refused_for")

    def __init__(self) -> None:
        self.refused_for = dict.fromkeys(REFUSALS, 0)
        """The same as `refused`, by class name of the refusal."""
        self.retried = self.retries_suppressed = self.timed_out = self.refused = 0
        self.hedged = self.hedges_won = self.hedges_suppressed = 0
        self.fell_back = self.fallbacks_suppressed = 0

    def snapshot(self) -> PolicyStats:
        return PolicyStats(**{name: getattr(self, name) for name in _COUNTED})


class Measures:
    """How the calls of one policy ended, and how long they took, kept in a registry."""

    __slots__ = ("cancelled", "duration", "failed", "refused", "succeeded", "timed_out")

    def __init__(self, policy: str, registry: MetricRegistry) -> None:
        calls = registry.counter(
            "fairlead_policy_calls_total",
            "Calls that ended, before any fallback: succeeded, failed, timed_out, refused unbegun, or cancelled.",
            labels=("policy", "ending"),
        )
        bound_owners(calls, 5)
        self.succeeded = calls.labels(policy=policy, ending="succeeded")
        self.failed = calls.labels(policy=policy, ending="failed")
        self.timed_out = calls.labels(policy=policy, ending="timed_out")
        self.refused = calls.labels(policy=policy, ending="refused")
        self.cancelled = calls.labels(policy=policy, ending="cancelled")
        self.duration = registry.histogram(
            "fairlead_policy_call_duration_seconds",
            "Time of a call with all its attempts and waits, unless it was refused or cancelled.",
            labels=("policy",),
        ).labels(policy=policy)

    def count(self, error: BaseException, seconds: float) -> None:
        """A call that raised."""
        if isinstance(error, DeadlineExceeded):
            self.timed_out.add()
        elif isinstance(error, Refused):
            self.refused.add()
            return
        elif isinstance(error, Exception):
            self.failed.add()
        else:
            self.cancelled.add()
            return
        self.duration.observe(seconds)


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
    """Has each count read at the scrape, under the labels `what` and `reason`."""
    count_words(
        registry.counter(
            "fairlead_policy_total",
            "What policies did that was not the straight way.",
            labels=("policy", "what"),
        ),
        policy,
        {name: partial(getattr, counts, name) for name in _COUNTED},
    )
    count_words(
        registry.counter(
            "fairlead_policy_refused_total",
            "Attempts not begun, by what was raised.",
            labels=("policy", "reason"),
        ),
        policy,
        {reason: partial(counts.refused_for.__getitem__, reason) for reason in REFUSALS},
    )


def bound_owners(family: Family[Counter], words: int) -> None:
    """Makes the bound of a new family one of owners, of whom each has all its `words`."""
    if not family.children():
        family.max_label_sets *= words


def count_words(family: Family[Counter], owner: str, reads: Mapping[str, Callable[[], float]]) -> None:
    """Has one counter per word read at the scrape; the family's labels are the owner and the word."""
    bound_owners(family, len(reads))
    name, word = family.label_names
    for each, read in reads.items():
        family.labels(**{name: owner, word: each}).track(read)
