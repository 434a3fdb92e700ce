"""One safe call: deadline, retries, breaker and limit, fused into one object with at most one timer.

`Policy` is the whole; `Retry` and `Hedge` with their `RetryBudget`, `CircuitBreaker`, `ConcurrencyLimit` and
`Fallback` are its parts; breaker, limit and budgets also stand alone. `Batcher` turns many single loads of one
loop turn into one. `own_instance` copies a failure for each of those who wait for it.

All state is per process, belongs to the thread of one event loop, and outlives the loop: nothing here is
bound to it.
"""

from __future__ import annotations

from fairlead.calls.batch import Batcher, BatcherStats, MissingKey
from fairlead.calls.bulkhead import Bulkhead
from fairlead.calls.circuit_breaker import BreakerState, CircuitBreaker
from fairlead.calls.concurrency_limit import ConcurrencyLimit
from fairlead.calls.exception_copy import own_instance
from fairlead.calls.fallback import Fallback, FallbackBudget, degraded_calls
from fairlead.calls.hedge import Hedge
from fairlead.calls.limit_algorithm import Aimd, Gradient
from fairlead.calls.policy import Policy
from fairlead.calls.retry import Retry, RetryBudget
from fairlead.calls.stats import PolicyStats

__all__ = [
    "Aimd",
    "Batcher",
    "BatcherStats",
    "BreakerState",
    "Bulkhead",
    "CircuitBreaker",
    "ConcurrencyLimit",
    "Fallback",
    "FallbackBudget",
    "Gradient",
    "Hedge",
    "MissingKey",
    "Policy",
    "PolicyStats",
    "Retry",
    "RetryBudget",
    "degraded_calls",
    "own_instance",
]
