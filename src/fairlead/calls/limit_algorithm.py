"""How a concurrency limit moves: two rules, both driven only by what calls experience.

A fixed limit is right for one day's hardware and one day's traffic. Both rules here grow the limit while the
dependency keeps up and cut it when it does not. Both grow only when the limit is used: a limit that nobody
touches has learnt nothing, and growing it would leave it useless on the day of the burst.

`Aimd`: at most one more per round trip, and a cut by a factor when calls are dropped (time out, or are refused
behind us); additive increase with multiplicative decrease converges to a fair share (Chiu and Jain 1989).
`Gradient`: compares the round-trip time of the last calls with a base line and shrinks in proportion when it
grows beyond a tolerance, before anything times out (after Netflix concurrency-limits, Gradient2Limit). The
base line is a long average over times in which the limit was not reached. A limit that is reached for long
would learn its own queue as normal, and grow with it without end; so there the base line is measured anew, now
and then, at half the limit. Never at one call at a time: that would stop the dependency to look at it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import expm1, inf
from typing import Protocol

from fairlead.calls.bounds import check_number

__all__ = ["Aimd", "Gradient", "LimitAlgorithm", "LimitRule"]


class LimitRule(Protocol):
    """The state of one limit's algorithm."""

    def succeeded(self, limit: float, seconds: float, in_flight: int, now: float) -> float:
        """The limit after a call that took `seconds` and found `in_flight` calls, itself included."""
        ...

    def dropped(self, limit: float, began: float, now: float) -> float:
        """The limit after a call that began at `began` and timed out or was refused by the dependency."""
        ...


class LimitAlgorithm(Protocol):
    """Settings that can begin a rule; one limit asks once, so settings may be shared and rules are not."""

    def begin(self) -> LimitRule: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Aimd:
    """Additive increase, multiplicative decrease: for dependencies that refuse or time out when
    overloaded."""

    cut: float = 0.7
    """Factor on the limit when calls are dropped, 0.1-0.99; at most once per round trip, however many
    drop."""

    def __post_init__(self) -> None:
        check_number("Aimd.cut", self.cut, low=0.1, high=0.99)

    def begin(self) -> LimitRule:
        return _AimdRule(self.cut)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gradient:
    """Follows the round-trip time: for dependencies that queue, and so slow down long before they refuse."""

    tolerance: float = 1.5
    """Round-trip time over its long average that is still taken as normal, 1-10."""
    smoothing: float = 0.2
    """Share of each new estimate that enters the limit, above 0 up to 1."""
    headroom: float = 4.0
    """Calls allowed to queue at the dependency, 0-1000; what the limit grows by while nothing slows down."""
    long_window: float = 60.0
    """Time constant of the long average, seconds. Longer than any burst, shorter than a change of
    hardware."""
    probe_every: float = 10.0
    """Seconds at the limit after which the base line is measured anew, for about two round trips at half the
    limit; 50 round trips if that is longer, so that a probe takes 2 % of the capacity at most."""
    cut: float = 0.7
    """As in Aimd: a dropped call has no round-trip time that could be compared."""

    def __post_init__(self) -> None:
        check_number("Gradient.tolerance", self.tolerance, low=1.0, high=10.0)
        check_number("Gradient.smoothing", self.smoothing, above=0.0, high=1.0)
        check_number("Gradient.headroom", self.headroom, low=0.0, high=1000.0)
        check_number("Gradient.long_window", self.long_window, above=0.0, high=86_400.0)
        check_number("Gradient.probe_every", self.probe_every, above=0.0, high=86_400.0)
        check_number("Gradient.cut", self.cut, low=0.1, high=0.99)

    def begin(self) -> LimitRule:
        return _GradientRule(self)


class _AimdRule:
    __slots__ = ("_cut", "_cut_at")

    def __init__(self, cut: float) -> None:
        self._cut = cut
        self._cut_at = float("-inf")

    def succeeded(self, limit: float, seconds: float, in_flight: int, now: float) -> float:
        return limit + 1.0 / limit if in_flight * 2 >= limit else limit

    def dropped(self, limit: float, began: float, now: float) -> float:
        # Calls that began before the last cut met the old limit: their failure says nothing about the new
        # one.
        if began < self._cut_at:
            return limit
        self._cut_at = now
        return limit * self._cut


class _GradientRule(_AimdRule):
    __slots__ = (
        *(
            "_base",
            "_count",
            "_most_in_flight",
            "_probe_at",
            "_probe_began",
            "_restored",
            "_settings",
            "_sum",
        ),
        "_updated_at",
    )

    def __init__(self, settings: Gradient) -> None:
        super().__init__(settings.cut)
        self._settings = settings
        self._base = 0.0
        self._updated_at = 0.0
        self._probe_at = -inf
        self._probe_began = inf
        self._restored = 0.0
        self._begin_window()

    def _begin_window(self) -> None:
        self._count = 0
        self._sum = 0.0
        self._most_in_flight = 0

    def succeeded(self, limit: float, seconds: float, in_flight: int, now: float) -> float:
        if self._probe_began != inf:
            return self._probe(limit, seconds, now)
        self._count += 1
        self._sum += seconds
        self._most_in_flight = max(self._most_in_flight, in_flight)
        # One call is noise; about half a round trip's worth of them is a measurement.
        if self._count < max(10.0, limit / 2):
            return limit
        short = self._sum / self._count
        used = self._most_in_flight * 2 >= limit
        reached = self._most_in_flight + 1 > limit
        self._begin_window()
        settings = self._settings
        if self._base == 0.0:
            self._base = short
        elif not reached or short < self._base:
            self._base += (short - self._base) * -expm1(-(now - self._updated_at) / settings.long_window)
        self._updated_at = now
        if self._base > 2.0 * short:
            # The average comes from a worse time; without this, the limit would tolerate double latency
            # till it faded
            self._base *= 0.95
        if reached and now >= self._probe_at and limit > settings.headroom:
            self._probe_began, self._restored = now, limit
            # Without its headroom, or two workers behind a limit of 16 would look like 16 slow ones.
            return (limit - settings.headroom) / 2
        gradient = max(0.5, min(1.0, settings.tolerance * self._base / short)) if short > 0.0 else 1.0
        estimate = limit * gradient + settings.headroom
        moved = limit + (estimate - limit) * settings.smoothing
        return moved if used else min(moved, limit)

    def dropped(self, limit: float, began: float, now: float) -> float:
        cut = super().dropped(limit, began, now)
        if limit > 0.0:
            self._restored *= cut / limit
        return cut

    def _probe(self, limit: float, seconds: float, now: float) -> float:
        # Calls from before the probe met the whole queue.
        if now - seconds < self._probe_began:
            return limit
        self._count += 1
        self._sum += seconds
        if self._count < max(5.0, min(20.0, limit / 2)):
            return limit
        self._base = self._sum / self._count
        self._probe_at = now + max(self._settings.probe_every, 50.0 * self._base)
        self._probe_began = inf
        self._updated_at = now
        self._begin_window()
        return self._restored
