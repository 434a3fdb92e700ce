"""A deadline is a moment, decided once, at the edge, and carried through every call.

Timeouts that each layer sets for itself add up: three layers of one second and two retries keep a worker busy for six
seconds for a client that left after one. A deadline does not add up. It is absolute and monotonic; each layer asks what
remains, refuses to begin when nothing does, and hands the remainder on.

Across HTTP the remainder travels in `x-request-timeout-ms`, whole milliseconds. A remainder, not a moment: two
machines' clocks need not agree. The price is that the time on the wire is not counted. No header, no deadline: a caller
that would wait for ever sends none, and what it calls decides for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import DeadlineExceeded, InvalidInput

__all__ = ["TIMEOUT_HEADER", "Deadline"]

TIMEOUT_HEADER = "x-request-timeout-ms"

_LONGEST_MS = 86_400_000  # a day: longer budgets are a caller's mistake and would only hide one


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment after which the answer is worthless.

    >>> from fairlead.clock import ManualClock
    >>> clock = ManualClock()
    >>> deadline = Deadline.after(0.5, clock)
    >>> clock.advance(0.4); round(deadline.remaining(), 3)
    0.1
    """

    at: float
    """Monotonic seconds of `clock`; infinite for "no deadline"."""
    clock: Clock = SYSTEM_CLOCK

    def __post_init__(self) -> None:
        if self.at != self.at:  # it would compare false with every moment
            raise InvalidInput(
                "a deadline at NaN never expires: pass a number of seconds, infinity for no deadline"
            )

    @classmethod
    def after(cls, timeout: float, clock: Clock = SYSTEM_CLOCK) -> Deadline:
        """The deadline `timeout` seconds from now. Zero or less has already passed; NaN raises InvalidInput."""
        return cls(clock.now() + timeout, clock)

    @classmethod
    def never(cls, clock: Clock = SYSTEM_CLOCK) -> Deadline:
        """No deadline, in the shape of one."""
        return cls(inf, clock)

    @classmethod
    def from_header(cls, value: str | None, clock: Clock = SYSTEM_CLOCK) -> Deadline | None:
        """The caller's deadline from `x-request-timeout-ms`; None when absent.

        Raises InvalidInput for anything but 1 to 8 ASCII digits, at most a day, between spaces or tabs.
        """
        if value is None:
            return None
        digits = value.strip(" \t")  # str.strip() alone would take line ends and U+00A0 along
        if not (len(digits) <= 8 and digits.isascii() and digits.isdigit()) or int(digits) > _LONGEST_MS:
            raise InvalidInput(
                f"{TIMEOUT_HEADER}: {value[:32]!r} is not a whole number of milliseconds up to {_LONGEST_MS}"
            )
        return cls.after(int(digits) / 1000, clock)

    def to_header(self) -> str | None:
        """The remainder for the next hop; None for no deadline: leave the header out, as `from_header` reads it.

        Whole milliseconds, rounded down so that no hop gains time: "0" if less than one remains. More than a day is
        sent as a day, the most that `from_header` takes.
        """
        if self.at == inf:
            return None
        return str(int(min(max(self.remaining(), 0.0) * 1000, _LONGEST_MS)))

    def remaining(self) -> float:
        """Seconds left; negative once it has passed, infinite for no deadline."""
        return self.at - self.clock.now()

    def expired(self) -> bool:
        """Whether the moment has come; at the very moment it has."""
        return self.at <= self.clock.now()

    def sooner(self, timeout: float | None) -> Deadline:
        """The earlier of this deadline and `timeout` seconds from now."""
        if timeout is None:
            return self
        other = Deadline.after(timeout, self.clock)
        return other if other.at < self.at else self

    def check(self, what: str) -> None:
        """Raises DeadlineExceeded if the moment has passed, so that `what` never begins."""
        left = self.remaining()
        if left <= 0:
            raise DeadlineExceeded(
                f"{what}: the deadline passed {-left * 1000:.0f} ms ago, so it was not started"
            )
