"""What one arm did in the last minutes, second by second, for limits that hold alone.

Every event counts, with its weight (1 / the probability with which it was kept). A rate or a count of what did not
happen is 0 where the arm told anything at all in that time; everything else without events is no figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fairlead.metrics import Metric

__all__ = ["LastMinutes", "Recent"]

_MOST_SECONDS = 4 * 3600
_AHEAD = 3600
"""Seconds that an event's clock may be ahead; what is further ahead is no figure of the last minutes."""
_NONE_IS_ZERO = ("rate", "count")


@dataclass(frozen=True, slots=True)
class Recent:
    """A figure of one arm over the last seconds, every event alike."""

    value: float | None
    """None without events; a rate or count is 0 then, where the arm told anything at all."""
    n: int
    """Events. Of a share of events that were not all kept alike: as many as, all alike, would say as much."""


@dataclass(slots=True)
class _Second:
    n: int = 0
    """Events."""
    weight: float = 0.0
    squares: float = 0.0
    """Of the weights."""
    bad: float = 0.0
    bad_squares: float = 0.0
    total: float = 0.0
    values: dict[float, float] = field(default_factory=dict)


class LastMinutes:
    """Of one metric and arm. Not thread-safe; four hours at most, whatever clocks say."""

    def __init__(self, metric: Metric) -> None:
        self._kind, self._q = metric.kind, metric.q
        self.asks_who_reports = metric.kind in _NONE_IS_ZERO
        """Whether `reported` is to be called for the arm's events of every kind."""
        self._seconds: dict[int, _Second] = {}
        self._reported: dict[int, None] = {}

    def reported(self, at: float) -> None:
        """The arm told something."""
        self._reported[math.floor(at)] = None
        _make_room(self._reported)

    def keep(self, at: float, success: bool, value: float, weight: float) -> None:
        """An event that counts."""
        one = self._seconds.get(second := math.floor(at))
        if one is None:
            one = self._seconds[second] = _Second()
            _make_room(self._seconds)
        one.n += 1
        one.weight += weight
        one.squares += weight * weight
        if success:
            one.bad += weight
            one.bad_squares += weight * weight
        if math.isfinite(value):
            one.total += weight * value
        if self._kind in ("quantile", "maximum"):
            one.values[value] = one.values.get(value, 0.0) + weight

    def figure(self, until: float, window: float) -> Recent:
        """The metric over the last `window` seconds before `until`."""
        for kept in (self._seconds, self._reported):
            _leave_out_ahead(kept, until)
        wanted = range(math.ceil(until - window), math.ceil(until))
        seconds = [one for second in wanted if (one := self._seconds.get(second)) is not None]
        n = sum(one.n for one in seconds)
        if not n:
            none = self.asks_who_reports and any(second in self._reported for second in wanted)
            return Recent(0.0 if none else None, 0)
        weight = math.fsum(one.weight for one in seconds)
        match self._kind:
            case "proportion":
                return _share(seconds, weight, n)
            case "rate":
                return Recent(weight / window, n)
            case "count":
                return Recent(weight, n)
            case "mean":
                return Recent(sum(one.total for one in seconds) / weight, n)
            case "quantile" | "maximum":
                return Recent(self._ranked(seconds, weight), n)
        return Recent(None, 0)  # a ratio or a total is no figure of single events; it takes a reading

    def _ranked(self, seconds: Sequence[_Second], weight: float) -> float:
        values: dict[float, float] = {}
        for one in seconds:
            for value, count in one.values.items():
                values[value] = values.get(value, 0.0) + count
        ordered = sorted(values)
        if self._q is not None:
            rank = weight * self._q * (1 - 1e-15)
            for value in ordered:
                rank -= values[value]
                if rank <= weight * 1e-12:
                    return value
        return ordered[-1]


def _share(seconds: Sequence[_Second], weight: float, n: int) -> Recent:
    """Failures are never sampled: twenty beside two hundred successes that stand for 20,000 are twenty of 20,000.

    So `n` is p·(1 − p) over the variance of the weighted share, a ratio of two estimated totals (delta method).
    """
    share = math.fsum(one.bad for one in seconds) / weight
    bad = math.fsum(one.bad_squares for one in seconds)
    good = math.fsum(one.squares for one in seconds) - bad
    variance = ((1 - share) ** 2 * bad + share**2 * good) / weight**2
    alike = share * (1 - share) / variance if variance > 0 else 0.0
    return Recent(share, round(alike) if alike >= 1 else n)


def _make_room(seconds: dict[int, Any]) -> None:
    if len(seconds) > _MOST_SECONDS:
        for old in sorted(seconds)[: _MOST_SECONDS // 4]:
            del seconds[old]


def _leave_out_ahead(seconds: dict[int, Any], until: float) -> None:
    """A clock that is wrong, or was until now, would keep the right seconds out."""
    if seconds and max(seconds) >= until + _AHEAD:
        for second in [second for second in seconds if second >= until + _AHEAD]:
            del seconds[second]
