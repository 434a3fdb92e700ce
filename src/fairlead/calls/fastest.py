"""How fast the fastest success of late was: less time than that proves nothing by running out.

A deadline comes from a caller, and a caller may name a millisecond. What is cut off after a millisecond has not
failed; taken for failures, a handful of such calls would open a breaker and shrink a limit for everybody else. A
timeout counts once the call had at least as long as some call of late needed.

Two windows of ten seconds, so that what is known is 10 to 20 s old at most. Without a success in them every timeout
counts: nothing is known, and a dependency that has hung for so long must not look merely hurried.
"""

from __future__ import annotations

from math import inf

__all__ = ["FastestOfLate"]

_WINDOW = 10.0


class FastestOfLate:
    """The shortest of the successes in the last 10 to 20 s, of one process."""

    __slots__ = ("_before", "seconds", "turns_at")

    def __init__(self) -> None:
        self._before = inf
        # The hot path compares with these before it calls `note`.
        self.seconds = inf
        self.turns_at = -inf

    def note(self, seconds: float, now: float) -> None:
        """Counts a success."""
        if now >= self.turns_at:
            self._before = self.seconds if now < self.turns_at + _WINDOW else inf
            self.seconds, self.turns_at = inf, now + _WINDOW
        self.seconds = min(self.seconds, seconds)

    def of_late(self, now: float) -> float:
        """Seconds of the fastest; 0 if there was none."""
        if now >= self.turns_at + _WINDOW:
            return 0.0
        fastest = min(self.seconds, self._before)
        return fastest if fastest != inf else 0.0
