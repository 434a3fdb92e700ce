"""What a server's clock shows, as far as one can know from here, without asking again.

Entries of a shared tier carry moments of the server's clock, because the clocks of the hosts that read and
write them differ. A reply that holds the server's time was made between sending and receiving, so the offset
between the two clocks lies within an interval as wide as that round trip. Intervals of several replies are
intersected, and widen with age, because clocks drift. Where they no longer meet, the server's clock was set:
the latest alone counts then.

Invariant: `earliest` errs towards early and `latest` towards late, so a bound that is translated with the one
that hurts its holder is never stretched by the error.
"""

from __future__ import annotations

from math import inf

__all__ = ["ServerTime"]

_DRIFT = 200e-6
"""Seconds per second by which two clocks may drift apart: twice a bad quartz; NTP slews by 500e-6 at most, for
minutes."""
_OLD = 1.0
"""Seconds after which a measurement no longer bounds the drift since; its slack covers that long."""
_SLACK = _DRIFT * _OLD


class ServerTime:
    """Translates between this process's monotonic seconds and a server's UTC."""

    __slots__ = ("_at", "_high", "_low")

    def __init__(self) -> None:
        self._low = -inf
        self._high = inf
        self._at = 0.0

    def is_old(self, now: float) -> bool:
        """Whether it must be measured again before a moment is translated."""
        return self._high == inf or now - self._at > _OLD

    def measured(self, server: float, sent: float, received: float) -> None:
        """Takes note that the server's clock showed `server` at some moment from `sent` to `received`."""
        low, high = server - received - _SLACK, server - sent + _SLACK
        widened = _DRIFT * max(0.0, received - self._at)
        self._low = max(low, self._low - widened)
        self._high = min(high, self._high + widened)
        if self._low > self._high:
            self._low, self._high = low, high
        self._at = received

    def earliest(self, moment: float) -> float:
        """The server's time at `moment`, early by at most the error."""
        return moment + self._low

    def latest(self, moment: float) -> float:
        """The server's time at `moment`, late by at most the error."""
        return moment + self._high

    @property
    def shift(self) -> float:
        """Added to a moment of the server's clock gives the moment here, early by at most the error."""
        return -self._high

    @property
    def late_shift(self) -> float:
        """As `shift`, late by at most the error."""
        return -self._low
