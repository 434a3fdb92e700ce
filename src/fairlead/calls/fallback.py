"""An answer of your own when the call has none, within a budget.

A fallback that answers everything hides an outage: error rates stay at zero while every page is a poorer one. So
fallbacks come out of a budget, a share of the calls in a window. Within it users do not see a passing failure;
beyond it the failure itself is raised, where alarms and callers can see it.

A fallback's answer looks like any other. Whoever must know (the handler that sets a header, the event of the
request) opens `degraded_calls()` around the work, and finds there which policies answered in place of what.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fairlead.calls.bounds import check_number, check_whole
from fairlead.calls.retry import Failures, check_failures, matches
from fairlead.calls.rolling_window import RollingWindow
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import InvalidInput

__all__ = ["Fallback", "FallbackBudget", "degraded_calls", "mark_degraded"]

_PROGRAM_IS_WRONG = (
    InvalidInput,
    AssertionError,
    AttributeError,
    ImportError,
    NameError,
    NotImplementedError,
    SyntaxError,
    TypeError,
)


class FallbackBudget:
    """How many calls a fallback may answer: in any `window`, at most ratio * calls + burst.

    It counts per process, and may be shared by policies.

    ratio: share of the calls, 0-1. 0.02: a bad instance behind a balancer is covered, an outage is not.
    burst: answers allowed however few calls there are, so that a quiet service can fall back at all.
    window: seconds over which calls and answers count.

    >>> budget = FallbackBudget(ratio=0.5, burst=0)
    >>> budget.count_call(); budget.count_call()
    >>> budget.take(), budget.take()
    (True, False)
    """

    __slots__ = ("_calls", "burst", "clock", "ratio", "suppressed", "window")

    def __init__(
        self, *, ratio: float = 0.02, burst: int = 10, window: float = 60.0, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        check_number("FallbackBudget.ratio", ratio, low=0.0, high=1.0)
        check_whole("FallbackBudget.burst", burst, low=0, high=1_000_000)
        check_number("FallbackBudget.window", window, above=0.0, high=86_400.0)
        self.ratio = ratio
        self.burst = burst
        self.window = window
        self.clock = clock
        self.suppressed = 0
        """Answers refused since the start."""
        self._calls = RollingWindow(window, clock.now())

    @property
    def available(self) -> int:
        """Answers that could be given now."""
        calls, answered = self._calls.counts(self.clock.now())
        # The tiny addition keeps 50 * 0.02 from being a hair less than 1.
        return max(0, int(self.ratio * calls + self.burst + 1e-9) - answered)

    def count_call(self) -> None:
        """Counts a call, however it will end."""
        now = self.clock.now()
        if now >= self._calls.turns_at:
            self._calls.turn(now)
        self._calls.total += 1

    def take(self) -> bool:
        """Takes the place of one answer, or returns False: raise the failure."""
        if self.available < 1:
            self.suppressed += 1
            return False
        self._calls.part += 1
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class Fallback:
    """What answers when the call has failed for good, and for which failures."""

    answer: object
    """The answer itself, or a function that makes it from the failure and the call's own arguments:
    `answer(error, *args, **kwargs)`, a coroutine function too. It runs after the call's time: no timer of
    this policy bounds it, so let it not wait for anything that may hang."""
    on: Failures | None = None
    """Failures to answer: exception types, or a predicate. None: every Exception but those that say that the
    program is wrong (InvalidInput, TypeError, AttributeError, NameError, AssertionError, ImportError,
    NotImplementedError, SyntaxError). Refusals and passed deadlines are failures too; cancellation is not."""
    budget: FallbackBudget | None = None
    """None: one of the policy's own, with its defaults."""

    def __post_init__(self) -> None:
        if self.on is not None:
            check_failures("Fallback.on", self.on)

    def answers(self, error: Exception) -> bool:
        """Whether this failure is one to answer, the budget aside."""
        if self.on is None:
            return not isinstance(error, _PROGRAM_IS_WRONG)
        return matches(self.on, error)

    def make(self, error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The answer, or an awaitable of it."""
        return self.answer(error, *args, **kwargs) if callable(self.answer) else self.answer


_degraded: ContextVar[dict[str, str] | None] = ContextVar("fairlead_degraded_calls", default=None)


@contextmanager
def degraded_calls() -> Iterator[Mapping[str, str]]:
    """Collects which policies fell back inside the block: policy name to class name of the failure.

    Calls of this task and of tasks started inside the block are seen. A load that a cache or a batcher shares
    among requests belongs to none of them, so put the fallback around the cache, not into the loader. Blocks
    nest: an outer one sees what an inner one saw.
    """
    outer = _degraded.get()
    found: dict[str, str] = {}
    token = _degraded.set(found)
    try:
        yield MappingProxyType(found)
    finally:
        try:  # noqa: SIM105 - as in request_context(): a generator may be closed by another task
            _degraded.reset(token)
        except ValueError:
            pass
        if outer is not None:
            outer.update(found)


def mark_degraded(policy: str, error: Exception) -> None:
    """Notes the answer for whoever collects; without a collector it is forgotten."""
    if (found := _degraded.get()) is not None:
        found[policy] = type(error).__name__
