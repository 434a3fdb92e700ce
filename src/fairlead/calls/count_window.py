"""The outcomes of the last N calls, whatever their age.

A window of seconds forgets a dependency that is called once a minute before it has seen enough of it; a window
of calls does not. Only failures and slow calls are kept, by the number of the call: successes between them are
one addition, so the hot path of a success is the same as with `RollingWindow`.

Invariant: `total` counts the calls since the last look, of which only the last may have failed or been slow,
because whoever counts such a call looks at once.
"""

from __future__ import annotations

from collections import deque
from math import inf

__all__ = ["CountWindow"]


class CountWindow:
    """Counts over the last `size` calls, in the shape of a RollingWindow."""

    __slots__ = ("_failed", "_seen", "_size", "_slow", "part", "slow", "total", "turns_at")

    def __init__(self, size: int) -> None:
        self._size = size
        self._failed: deque[int] = deque()
        self._slow: deque[int] = deque()
        self.turns_at = inf
        self.reset(0.0)

    def reset(self, now: float) -> None:
        """Forgets everything."""
        self._seen = 0
        self._failed.clear()
        self._slow.clear()
        self.total = self.part = self.slow = 0

    def turn(self, now: float) -> None:
        """Does nothing: time moves this window no further."""

    def counts(self, now: float) -> tuple[int, int]:
        """(calls, failures) among the last `size`."""
        self._look()
        return min(self._seen, self._size), len(self._failed)

    def slow_calls(self, now: float) -> int:
        """How many of the last `size` were slow."""
        self._look()
        return len(self._slow)

    def _look(self) -> None:
        self._seen += self.total
        if self.part:
            self._failed.append(self._seen)
        if self.slow:
            self._slow.append(self._seen)
        self.total = self.part = self.slow = 0
        for numbers in (self._failed, self._slow):
            while numbers and numbers[0] <= self._seen - self._size:
                numbers.popleft()
