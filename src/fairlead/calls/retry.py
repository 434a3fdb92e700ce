"""Try again, but never so much that the retries are the outage.

A dependency that slows down makes its callers time out; callers that each retry three times offer it four
times the load at the moment it can bear least. So each retry needs a token from a `RetryBudget`, which is
earned by first attempts and shared by all calls to the dependency: in an outage the extra load is `ratio`,
not `attempts - 1`. An empty budget suppresses new attempts, never the original.

Waiting is capped exponential backoff with full jitter, so that calls that failed together do not return
together (Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015). A dependency that says how
long to wait (`Retry-After`) is not asked sooner. A retry is not begun when the deadline leaves no room for it, and
cancellation is never caught.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from fairlead.calls.bounds import check_number, check_whole
from fairlead.calls.rolling_window import RollingWindow
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import InvalidInput

__all__ = ["Failures", "Retry", "RetryBudget", "asked_to_wait", "check_failures", "matches"]

Failures = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]
"""Which failures are meant: exception types, or a predicate."""

_LONGEST = 86_400.0


class RetryBudget:
    """How many retries and hedges all its policies together may add to their first attempts.

    In any `window`, retries + hedges <= ratio * first attempts + floor_per_second * window. It counts per process:
    eight workers with a floor of 1/s may add 8/s between them.

    ratio: retries per first attempt, 0-1. 0.1: an outage adds at most 10 % load.
    floor_per_second: retries allowed however few first attempts there are, so that a quiet service, or one
        just started, can retry at all. 0.5: 5 in the default window.
    window: seconds over which first attempts earn and retries count. 10: long enough to smooth a burst, short
        enough that a quiet night does not bank retries for the morning.

    >>> budget = RetryBudget(ratio=0.5, floor_per_second=0.0)
    >>> budget.first_attempt(); budget.first_attempt()
    >>> budget.take(), budget.take()
    (True, False)
    """

    __slots__ = ("clock", "earnings", "floor_per_second", "ratio", "suppressed", "window")

    def __init__(
        self,
        *,
        ratio: float = 0.1,
        floor_per_second: float = 0.5,
        window: float = 10.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        check_number("RetryBudget.ratio", ratio, low=0.0, high=1.0)
        check_number("RetryBudget.floor_per_second", floor_per_second, low=0.0, high=1e6)
        check_number("RetryBudget.window", window, above=0.0, high=_LONGEST)
        self.ratio = ratio
        self.floor_per_second = floor_per_second
        self.window = window
        self.clock = clock
        self.suppressed = 0
        """Retries refused since the start."""
        self.earnings = RollingWindow(window, clock.now())

    @property
    def maximum_amplification(self) -> float:
        """Attempts per first attempt that the dependency sees at worst: 1 + ratio.

        On top of that come `floor_per_second` attempts per second and process, which matter only to a
        dependency that is called little.
        """
        return 1.0 + self.ratio

    @property
    def available(self) -> int:
        """Retries that could be taken now."""
        first_attempts, taken = self.earnings.counts(self.clock.now())
        # The tiny addition keeps 10 * 0.1 from being a hair less than 1.
        allowed = self.ratio * first_attempts + self.floor_per_second * self.window + 1e-9
        return max(0, int(allowed) - taken)

    def first_attempt(self) -> None:
        """Counts an original attempt that is sent, which earns `ratio` of a retry and is never refused."""
        now = self.clock.now()
        if now >= self.earnings.turns_at:
            self.earnings.turn(now)
        self.earnings.total += 1

    def take(self) -> bool:
        """Takes the token for one retry, or returns False: do not retry."""
        if self.available < 1:
            self.suppressed += 1
            return False
        self.earnings.part += 1
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """Which failures are tried again, how often, and how long after."""

    on: Failures
    """Exception types, or a predicate. No default: only you know which failures of this call are passing. An
    attempt that ran into its timeout is a TimeoutError. Cancellation never gets here. Of a call that is not
    `idempotent`, only a Refused is repeated, which says that nothing was begun."""
    attempts: int = 3
    """Attempts in all, the first included, 1-20. 3: what one retry does not cure, the third seldom does."""
    base: float = 0.05
    """Upper bound of the first wait, seconds; it doubles with each further wait."""
    cap: float = 2.0
    """Upper bound of the backoff, seconds. A failure that asks for a longer wait (its `retry_after`) is not
    repeated at all: earlier would be against its word, and later is too late for whoever waits."""
    budget: RetryBudget | None = None
    """Shared by everything that calls the same dependency. None: only `attempts` bounds the load, which
    under an outage is `attempts` times the usual."""

    def __post_init__(self) -> None:
        check_whole("Retry.attempts", self.attempts, low=1, high=20)
        check_number("Retry.base", self.base, low=0.0, high=_LONGEST)
        check_number("Retry.cap", self.cap, low=self.base, high=_LONGEST)
        check_failures("Retry.on", self.on)

    def retries(self, error: Exception) -> bool:
        """Whether this failure is worth another attempt, other bounds aside."""
        return matches(self.on, error)

    def wait_before(self, attempt: int, rng: random.Random) -> float:
        """Seconds of backoff before attempt 2, 3, ...: uniform between 0 and the capped, doubled bound."""
        return rng.uniform(0.0, min(self.cap, self.base * 2.0 ** (attempt - 2)))


def asked_to_wait(error: Exception) -> float:
    """Seconds that the failure asks its callers to stay away: its `retry_after`; 0 if it names none."""
    seconds = getattr(error, "retry_after", None)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:  # also NaN
        return 0.0
    return inf if seconds > _LONGEST else float(seconds)  # an int may be too large for a float


def check_failures(name: str, on: object) -> None:
    """Raises InvalidInput unless `on` is Failures."""
    for kind in on if isinstance(on, tuple) else (on,) if isinstance(on, type) else ():
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise InvalidInput(f"{name}: {kind!r} is not a subclass of Exception; cancellation is no failure")
    if not isinstance(on, type | tuple) and not callable(on):
        raise InvalidInput(f"{name}: {on!r} is neither exception types nor a predicate")


def matches(on: Failures, error: Exception) -> bool:
    """Whether `error` is one of those meant."""
    if isinstance(on, type | tuple):
        return isinstance(error, on)
    return on(error)
