"""The whole load, written down before it is sent: who asks for what, and when.

Two arms that are compared get the same schedule, so that they differ in nothing else. A schedule is
immutable; phases are made by slicing, joining and merging, and each of these keeps offsets sorted and inside
the duration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fairlead.errors import InvalidInput, MissingExtra
from fairlead.lab.arrivals import FloatArray, Surge, poisson_arrivals, surge_arrivals
from fairlead.lab.limits import LONGEST_RUN, MOST_REQUESTS, number_within, whole_number_within
from fairlead.lab.popularity import IntArray, Zipf

try:
    import numpy as np
except ImportError as missing:
    raise MissingExtra("numpy", "lab") from missing

__all__ = ["Schedule"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Schedule:
    """Requests in the order in which they are due. The arrays are private copies and read-only."""

    offsets: FloatArray
    """Shape (n,), float64: seconds after the start at which each is to be sent; sorted, in [0, duration]."""
    keys: IntArray
    """Shape (n,), int64: what is asked for, 0 upwards."""
    users: IntArray
    """Shape (n,), int64: who asks, 0 upwards."""
    duration: float
    """Seconds the schedule covers, silence at its end included."""

    def __post_init__(self) -> None:
        number_within("duration", self.duration, 0.0, LONGEST_RUN, above=True)
        for name, kind in (("offsets", np.float64), ("keys", np.int64), ("users", np.int64)):
            object.__setattr__(self, name, _column(name, getattr(self, name), kind))
        n = len(self.offsets)
        if len(self.keys) != n or len(self.users) != n:
            raise InvalidInput(
                f"offsets, keys, users: lengths {n}, {len(self.keys)} and {len(self.users)} differ; "
                "give one of each per request"
            )
        if n == 0:
            return
        if not np.isfinite(self.offsets).all():
            raise InvalidInput("offsets: holds NaN or infinity; give seconds after the start")
        if (np.diff(self.offsets) < 0).any():
            raise InvalidInput("offsets: not sorted; sort the requests by the moment they are due")
        if self.offsets[0] < 0 or self.offsets[-1] > self.duration:
            raise InvalidInput(
                f"offsets: {self.offsets[0]:g} to {self.offsets[-1]:g} s "
                f"is outside the duration [0, {self.duration:g}]"
            )
        if self.keys.min() < 0 or self.users.min() < 0:
            raise InvalidInput("keys, users: negative numbers; count both from 0")

    @classmethod
    def poisson(
        cls, *, rate: float, duration: float, popularity: Zipf, users: int, rng: np.random.Generator
    ) -> Schedule:
        """Poisson arrivals, keys by `popularity`, users (0 to `users` − 1) equally active."""
        whole_number_within("users", users, 1, 2**62)
        offsets = poisson_arrivals(rate, duration, rng)
        n = len(offsets)
        return cls(
            offsets=offsets,
            keys=popularity.sample(n, rng),
            users=rng.integers(0, users, n, dtype=np.int64),
            duration=duration,
        )

    @classmethod
    def concatenate(cls, schedules: Sequence[Schedule]) -> Schedule:
        """One after the other, each beginning when the one before has used up its duration."""
        if not schedules:
            raise InvalidInput("schedules: nothing to concatenate; give at least one")
        starts = np.cumsum([0.0, *(each.duration for each in schedules)])
        return cls(
            offsets=np.concatenate(
                [each.offsets + start for each, start in zip(schedules, starts, strict=False)]
            ),
            keys=np.concatenate([each.keys for each in schedules]),
            users=np.concatenate([each.users for each in schedules]),
            duration=float(starts[-1]),
        )

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def rate(self) -> float:
        """Requests per second, averaged over the duration."""
        return len(self) / self.duration

    def slice(self, start: float, end: float) -> Schedule:
        """The requests due in [start, end), moved so that `start` is the new zero."""
        start = number_within("start", start, 0.0, self.duration)
        end = number_within("end", end, start, self.duration, above=True)
        # A request due exactly at the end belongs to the last slice, or no slice would hold it.
        side: Literal["left", "right"] = "right" if end == self.duration else "left"
        first = int(np.searchsorted(self.offsets, start, side="left"))
        last = int(np.searchsorted(self.offsets, end, side=side))
        # Subtracting two doubles can round up past their exact difference.
        offsets = np.minimum(self.offsets[first:last] - start, end - start)
        return Schedule(
            offsets=offsets, keys=self.keys[first:last], users=self.users[first:last], duration=end - start
        )

    def merge(self, other: Schedule) -> Schedule:
        """Both at once, over the longer duration."""
        order = np.argsort(np.concatenate([self.offsets, other.offsets]), kind="stable")
        return Schedule(
            offsets=np.concatenate([self.offsets, other.offsets])[order],
            keys=np.concatenate([self.keys, other.keys])[order],
            users=np.concatenate([self.users, other.users])[order],
            duration=max(self.duration, other.duration),
        )

    def with_surge(self, surge: Surge, rng: np.random.Generator) -> Schedule:
        """This schedule with the excess traffic of `surge` on top.

        The base rate is the average rate of this schedule; the users of the excess are drawn from its users.
        """
        if surge.end > self.duration:
            raise InvalidInput(f"surge: ends at {surge.end:g} s, after the schedule's {self.duration:g} s")
        if len(self) == 0:
            raise InvalidInput(
                "surge: a factor of an empty schedule is still nothing; begin with some requests"
            )
        offsets = surge_arrivals(self.rate, surge, rng)
        n = len(offsets)
        hot = np.asarray(surge.hot_keys, dtype=np.int64)
        excess = replace(
            self,
            offsets=offsets,
            keys=hot[rng.integers(0, len(hot), n)],
            users=self.users[rng.integers(0, len(self), n)],
        )
        return self.merge(excess)


def _column(name: str, values: object, kind: type[np.generic]) -> object:
    given = np.asarray(values)
    if given.ndim != 1 or given.dtype.kind not in ("iu" if kind is np.int64 else "iuf"):
        raise InvalidInput(f"{name}: shape {given.shape} of {given.dtype}; give one row of {kind.__name__}")
    if len(given) > MOST_REQUESTS:
        raise InvalidInput(f"{name}: {len(given):,} requests; one schedule holds at most {MOST_REQUESTS:,}")
    column = given.astype(kind)
    column.setflags(write=False)
    return column
