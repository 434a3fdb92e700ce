"""Who waits for a place, in which order, and for how long at most.

A queue smooths a burst; a queue that never empties smooths nothing and only makes everybody late, until each
answer comes after its caller has left. So the age of a queue is bounded, and by two bounds, as in CoDel
(Nichols and Jacobson 2012, RFC 8289) and its use in servers (Maurer, "Fail at Scale", 2015):

normal: a request may wait for `interval`, first in, first out. standing: the queue has not been empty for
`interval`; a request may wait for `target` only, last in, first out: the newest is the one whose caller still
waits. An empty queue is normal again.

There is one such queue per priority, and a place goes to the highest. The queue of the highest priority
empties often even when the one below it stands, so only the latter is cut. Where places come free slowly,
both bounds grow: to the time in which 10 and 2 places come free.

Invariant: whoever would be served last is the first to be sent away.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf
from typing import Generic, Protocol, TypeVar

from fairlead.context import Priority

__all__ = ["CodelQueue"]

_INTERVAL_PLACES = 10
_TARGET_PLACES = 2
_GAP_WEIGHT = 0.05  # of the newest gap in their average: about the last twenty count


class Waiting(Protocol):
    """What the queue knows of a request."""

    priority: Priority
    queued_at: float
    """Moment at which it began to wait."""
    useful_until: float
    """Moment after which its answer could no longer be in time; infinite for no deadline."""


_Waiter = TypeVar("_Waiter", bound=Waiting)


class _Lane(Generic[_Waiter]):
    """The queue of one priority, oldest first."""

    __slots__ = ("standing", "used_since", "waiters")

    def __init__(self) -> None:
        self.waiters: OrderedDict[_Waiter, None] = OrderedDict()
        self.used_since = inf
        """Since when it has not been empty."""
        self.standing = False


class CodelQueue(Generic[_Waiter]):
    """Waiters by priority and age. Knows no clock and no task: moments come in, decisions go out.

    target, interval: seconds, 0 < target <= interval.
    """

    def __init__(self, *, target: float, interval: float) -> None:
        self._target = target
        self._interval = interval
        self._lanes: tuple[_Lane[_Waiter], ...] = tuple(_Lane() for _ in Priority)
        self._highest_first = self._lanes[::-1]
        self._size = 0
        self.gap = 0.0
        """Seconds between two places that came free while somebody waited, averaged; 0 before there were two."""
        self._freed_at: float | None = None

    def __len__(self) -> int:
        return self._size

    def ahead_of(self, priority: Priority) -> int:
        """How many wait that would be served before a newcomer of this priority, were it last in its lane."""
        return sum(len(lane.waiters) for lane in self._lanes[priority:])

    def add(self, waiter: _Waiter) -> None:
        lane = self._lanes[waiter.priority]
        if not lane.waiters:
            lane.used_since = waiter.queued_at
            lane.standing = False
        lane.waiters[waiter] = None
        self._size += 1

    def discard(self, waiter: _Waiter) -> None:
        """Takes a waiter out, unserved, if it is still in."""
        lane = self._lanes[waiter.priority]
        if waiter in lane.waiters:
            del lane.waiters[waiter]
            self._size -= 1

    def place_freed(self, now: float) -> None:
        """Notes that a place came free, to learn how fast the queue drains."""
        if not self._size:
            self._freed_at = None
            return
        if self._freed_at is not None:
            gap = now - self._freed_at
            self.gap += (gap - self.gap) * (_GAP_WEIGHT if self.gap else 1.0)
        self._freed_at = now

    def take(self, now: float) -> _Waiter | None:
        """Takes out the one who is to be served next; None if nobody waits. Ask `overdue` first."""
        for lane in self._highest_first:
            if lane.waiters:
                waiter, _ = lane.waiters.popitem(last=self._stands(lane, now))
                self._size -= 1
                return waiter
        return None

    def overdue(self, now: float) -> list[_Waiter]:
        """Takes out those that have waited for too long, or can no longer be served in time at the head."""
        found = []
        for lane in self._lanes:
            while lane.waiters:
                oldest = next(iter(lane.waiters))
                if now < self._due(lane, oldest, now):
                    break
                found.append(oldest)
                del lane.waiters[oldest]
                self._size -= 1
        return found

    def due(self, waiter: _Waiter, now: float) -> float:
        """The moment at which the waiter is to be sent away, as things stand."""
        return self._due(self._lanes[waiter.priority], waiter, now)

    def make_room(self, priority: Priority, now: float) -> _Waiter | None:
        """Takes out whoever would be served last, to let a newcomer in; None if that is the newcomer."""
        for lane in self._lanes[: priority + 1]:
            if lane.waiters:
                stands = self._stands(lane, now)
                if lane is self._lanes[priority] and not stands:
                    return None
                waiter, _ = lane.waiters.popitem(last=not stands)
                self._size -= 1
                return waiter
        return None

    def _due(self, lane: _Lane[_Waiter], waiter: _Waiter, now: float) -> float:
        longest = self._longest_target if self._stands(lane, now) else self._longest_interval
        return min(waiter.queued_at + longest, waiter.useful_until)

    @property
    def _longest_interval(self) -> float:
        return max(self._interval, _INTERVAL_PLACES * self.gap)

    @property
    def _longest_target(self) -> float:
        return max(self._target, _TARGET_PLACES * self.gap)

    def _stands(self, lane: _Lane[_Waiter], now: float) -> bool:
        # Once standing, it stays so while it is used, although the interval moves with the gap.
        if not lane.standing and now >= lane.used_since + self._longest_interval:
            lane.standing = True
        return lane.standing
