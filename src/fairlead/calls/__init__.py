"""One safe call: deadline, retries, breaker and limit, fused into one object with at most one timer.

`Policy` is the whole; `Retry` with its `RetryBudget`, `CircuitBreaker` and `ConcurrencyLimit` are its
parts, and each also stands alone. `Batcher` turns many single loads of one loop turn into one.
`own_instance` copies a failure for each of those who wait for it.

All state is per process, belongs to the thread of one event loop, and outlives the loop: nothing here is
bound to it.
"""

from __future__ import annotations

from fairlead.calls.batch import Batcher, BatcherStats, MissingKey
from fairlead.calls.bulkhead import Bulkhead
from fairlead.calls.circuit_breaker import BreakerState, CircuitBreaker
from fairlead.calls.concurrency_limit import ConcurrencyLimit
from fairlead.calls.exception_copy import own_instance
from fairlead.calls.limit_algorithm import Aimd, Gradient
from fairlead.calls.policy import Policy, PolicyStats
from fairlead.calls.retry import Retry, RetryBudget

__all__ = [
    "Aimd",
    "Batcher",
    "BatcherStats",
    "BreakerState",
    "Bulkhead",
    "CircuitBreaker",
    "ConcurrencyLimit",
    "Gradient",
    "MissingKey",
    "Policy",
    "PolicyStats",
    "Retry",
    "RetryBudget",
    "own_instance",
]
