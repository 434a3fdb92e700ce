"""How many units of each arm lie beyond control's quantile of the moment before: what shows a quantile to be worse.

Which arm a unit is in was drawn whatever its latency. Of those that take longer than control's p99 *was*, treatment
has its share by chance, at any time of day; so they can be counted as failed units are, by the same e-value.

    moment    ten seconds, or from look to look where that is less; by the events' own clocks
    before    control's newest values of earlier moments; 2,000 of p99, 20 of which lie beyond it
    beyond    above that quantile where lower is better, below it where higher is; what lies at it is not

What was told since the last look is taken in the order of its moments, in whichever order it arrived; what is told
later than that is held against a limit of later, which is as fair to both arms. Before control has had as many values
as one of which is expected to lie beyond (100 of p99), nothing is counted, of either arm.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, deque

from fairlead.metrics import Metric

__all__ = ["Exceedances", "fewest_of_control", "tail"]

_MOMENT = 10.0
_BEYOND_BEFORE = 20
"""Values beyond the quantile that control's past shall hold: enough for a limit, and few enough to follow the day."""
_FEWEST = 20
"""Values of control without which nothing is counted, whatever the quantile."""


class Exceedances:
    """Counts them for one metric and stage. Not thread-safe; some 100 bytes for each value before, at most."""

    def __init__(self, metric: Metric, *, look_every: float = _MOMENT) -> None:
        """metric: a quantile. look_every: seconds from look to look."""
        assert metric.q is not None  # noqa: S101 - a quantile has its q
        self._q, self._above = metric.q, metric.better == "lower"
        self._fewest = fewest_of_control(metric)
        self._enough = max(_FEWEST, round(_BEYOND_BEFORE / tail(metric)))
        self._length = min(_MOMENT, look_every)
        self._told: dict[float, tuple[Counter[float], Counter[float]]] = {}
        self._moment = math.nan
        self._limit = math.nan  # nothing is beyond it
        self._now: Counter[float] = Counter()
        self._before: deque[Counter[float]] = deque()
        # The same values, sorted: a quiet service's limit costs no more than its few new ones.
        self._pool: list[float] = []
        self._control = self._treatment = 0

    def add(self, at: float, treated: bool, value: float, times: int = 1) -> None:
        """A unit's value, at that second; counted by the next `counts`."""
        arms = self._told.setdefault(at // self._length, (Counter(), Counter()))
        arms[treated][value] += times

    def counts(self) -> tuple[int, int]:
        """How many of control's and of treatment's units lay beyond, of all that were told so far."""
        for moment in sorted(self._told):
            if moment != self._moment:
                self._begin(moment)
            control, treatment = self._told[moment]
            self._control += self._beyond(control)
            self._treatment += self._beyond(treatment)
            self._now.update(control)
        self._told = {}
        return self._control, self._treatment

    def _beyond(self, values: Counter[float]) -> int:
        limit = self._limit
        if self._above:
            return sum(times for value, times in values.items() if value > limit)
        return sum(times for value, times in values.items() if value < limit)

    def _begin(self, moment: float) -> None:
        """The moment before belongs to the past; the limit of this one is settled, and stays while it lasts."""
        if self._now:
            self._before.append(self._now)
            for value, times in self._now.items():
                place = bisect_left(self._pool, value)
                self._pool[place:place] = [value] * times
        while self._before and len(self._pool) - self._before[0].total() >= self._enough:
            for value, times in self._before.popleft().items():
                place = bisect_left(self._pool, value)
                del self._pool[place : place + times]
        self._moment, self._now = moment, Counter()
        n = len(self._pool)
        self._limit = self._pool[math.ceil(n * self._q - 1e-9) - 1] if n >= self._fewest else math.nan


def tail(metric: Metric) -> float:
    """Share of control's units that a quantile leaves on the worse side."""
    assert metric.q is not None  # noqa: S101 - a quantile has its q
    return 1 - metric.q if metric.better == "lower" else metric.q


def fewest_of_control(metric: Metric) -> int:
    """Values of control before which nothing is counted: as many as one of which is expected to lie beyond."""
    return max(_FEWEST, round(1 / tail(metric)))
