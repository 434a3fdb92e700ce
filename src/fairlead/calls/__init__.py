"""One safe call: deadline, retries, breaker and limit, fused into one object with at most one timer."""

from __future__ import annotations

from fairlead.calls.exception_copy import own_instance

__all__ = ["own_instance"]
