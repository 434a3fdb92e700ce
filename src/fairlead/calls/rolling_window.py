"""Counts over the last seconds: all, and parts of them (failures and slow calls; retries of first attempts).

The window is cut into buckets; one bucket at a time falls out at the far end. Counting is therefore one
addition, and memory does not grow with the rate. The window covers its span less at most one bucket.

The hot path adds to `total`, `part` and `slow` itself, after `if now >= window.turns_at: window.turn(now)`.
"""

from __future__ import annotations

from collections import deque

__all__ = ["RollingWindow"]


class RollingWindow:
    """Counts over the last `span` seconds in `buckets` buckets, beginning at `now`."""

    __slots__ = (
        "_index",
        "_origin",
        "_past",
        "_width",
        "part",
        "past_part",
        "past_slow",
        "past_total",
        "slow",
        "total",
        "turns_at",
    )

    def __init__(self, span: float, now: float, buckets: int = 10) -> None:
        self._width = span / buckets
        self._past: deque[tuple[int, int, int]] = deque(maxlen=buckets - 1)
        self.reset(now)

    def reset(self, now: float) -> None:
        """Forgets everything and begins a bucket at `now`."""
        self._origin = now
        self._index = 0
        self._past.clear()
        self.turns_at = now + self._width
        self.total = self.part = self.slow = self.past_total = self.past_part = self.past_slow = 0

    def turn(self, now: float) -> None:
        """Closes the bucket that ended at or before `now`, and drops those that left the window."""
        # At least one: rounding may place a moment at the edge of a bucket on the near side of it.
        index = max(int((now - self._origin) / self._width), self._index + 1)
        self._past.append((self.total, self.part, self.slow))
        for _ in range(min(index - self._index - 1, self._past.maxlen or 0)):
            self._past.append((0, 0, 0))
        self._index = index
        self.turns_at = self._origin + (index + 1) * self._width
        self.total = self.part = self.slow = 0
        self.past_total = sum(total for total, _, _ in self._past)
        self.past_part = sum(part for _, part, _ in self._past)
        self.past_slow = sum(slow for _, _, slow in self._past)

    def counts(self, now: float) -> tuple[int, int]:
        """(total, part) within the window that ends at `now`."""
        if now >= self.turns_at:
            self.turn(now)
        return self.past_total + self.total, self.past_part + self.part

    def slow_calls(self, now: float) -> int:
        """How many were slow within the window that ends at `now`."""
        if now >= self.turns_at:
            self.turn(now)
        return self.past_slow + self.slow
