"""One HTTP request with all its attempts: which answers are open, which one failed, when the last byte is due.

Attempts may run at once (hedges), so an answer is noted when it is complete enough to be judged, and whoever made the
request closes those that its caller does not get.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from fairlead.calls.http_semantics import failed_status, parse_retry_after
from fairlead.calls.policy import Policy

__all__ = ["Exchange"]

_Response = TypeVar("_Response")


class Exchange(Generic[_Response]):
    """What the attempts of one request leave behind."""

    __slots__ = ("_failures", "_host", "due", "failed", "open", "policy")

    def __init__(self, policy: Policy, failures: frozenset[int], host: str) -> None:
        self.policy = policy
        self._failures = failures
        self._host = host
        self.due = policy.deadline().at
        """When the last byte of the answer is due, on the policy's clock."""
        self.open: list[_Response] = []
        """Answers that nobody has closed or taken."""
        self.failed: _Response | None = None
        """The answer of the last attempt, if it counts as a failure."""

    def judge(self, response: _Response, status: int, headers: Mapping[str, str]) -> _Response:
        """The response, if it is no failure; raises FailedStatus for the policy to see."""
        self.open.append(response)
        if status not in self._failures:
            return response
        self.failed = response
        raise failed_status(
            f"{self.policy.name}: HTTP {status} from {self._host}",
            status,
            parse_retry_after(headers.get("retry-after"), headers.get("date"), self.policy.clock.utc()),
        )
