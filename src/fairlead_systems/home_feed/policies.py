"""How the treatment calls each of its downstreams: one policy each, and what stands in its place when a mechanism is
switched off.
"""

from __future__ import annotations

from collections.abc import Callable

from fairlead.calls import CircuitBreaker, ConcurrencyLimit, Hedge, Policy, Retry, RetryBudget
from fairlead.clock import Clock
from fairlead.telemetry import Event, MetricRegistry
from fairlead_systems.home_feed.clients import DownstreamError
from fairlead_systems.home_feed.control import ATTEMPTS
from fairlead_systems.home_feed.mechanisms import Mechanisms

__all__ = ["Policies"]


class Policies:
    """Makes policies and exports what they count; each is per process."""

    def __init__(
        self,
        uses: Mechanisms,
        on_event: Callable[[Event], object] | None,
        registry: MetricRegistry | None,
        clock: Clock,
    ) -> None:
        self._uses = uses
        self._on_event = on_event
        self._registry = registry
        self._clock = clock

    def make(self, name: str, timeout: float, attempt_timeout: float, *, hedged: bool = False) -> Policy:
        """timeout: of the control, which makes ATTEMPTS of that length. hedged: another copy beside a slow call."""
        uses = self._uses
        retry = Retry(
            attempts=2,
            on=(DownstreamError, TimeoutError),
            base=0.005,
            cap=0.02,
            budget=RetryBudget(clock=self._clock),
        )
        if not uses.retry_budget:
            retry = Retry(
                attempts=ATTEMPTS, on=(DownstreamError, TimeoutError), base=0.0, cap=0.0, budget=None
            )
        breaker = CircuitBreaker(
            name, minimum_calls=10, window=2.0, open_for=0.2, open_for_cap=1.0, clock=self._clock
        )
        policy = Policy(
            name=name,
            timeout=timeout if uses.deadline else timeout * ATTEMPTS,
            attempt_timeout=attempt_timeout if uses.deadline else timeout,
            idempotent=True,  # all downstreams are only read
            retry=retry,
            hedge=Hedge(quantile=0.95, minimum_calls=50) if hedged and uses.hedge else None,
            breaker=breaker if uses.breaker else None,
            limit=ConcurrencyLimit(name, clock=self._clock) if uses.adaptive_limit else None,
            on_event=self._on_event,
            clock=self._clock,
        )
        if self._registry is not None:
            policy.export(self._registry)
        return policy
