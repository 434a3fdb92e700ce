"""A second copy of a slow call, sent when the first has taken longer than most do.

One slow replica in a hundred decides the p99 of every page that asks a hundred of them. A hedge asks again once the
first attempt has run for longer than the observed quantile of its like; the first answer counts, and the other
attempt is cancelled (Dean and Barroso, "The Tail at Scale", CACM 56(2), 2013). At the quantile 0.95 that is at most
5 % more load in normal times; when everything is slow the `RetryBudget`, shared with the retries, is the bound.

The first attempt runs in its caller's task, as every other, and no task is made for a call that returns before the
delay. When the delay has passed, the second attempt gets a task; if it wins, the first is cancelled in its task, by a
request that is counted and taken back as a timeout's is.

Invariant: when the call returns, both attempts have ended and their permits are back; an attempt that the other beat
is neither success nor failure to breaker and limit.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial
from types import CoroutineType
from typing import Any, NamedTuple, TypeVar, cast

from fairlead.calls.attempt import Attempts, Expired
from fairlead.calls.attempt_context import AttemptContext
from fairlead.calls.bounds import check_number, check_whole
from fairlead.calls.circuit_breaker import BreakerState
from fairlead.calls.concurrency_limit import ConcurrencyLimit
from fairlead.calls.expiry import Suspended, as_coroutine, first_step
from fairlead.calls.retry import RetryBudget
from fairlead.context import RequestContext, _current
from fairlead.errors import CircuitOpen
from fairlead.telemetry.histogram import Histogram

__all__ = ["Hedge", "Hedging", "Race", "Second"]

_T = TypeVar("_T")

_LONGEST = 86_400.0
_EVERY = 32  # attempts between two looks at the quantile: looking costs as much as a hundred observations


@dataclass(frozen=True, kw_only=True, slots=True)
class Hedge:
    """When a second copy of an attempt is sent. Only for calls that are idempotent: both copies may be served."""

    quantile: float = 0.95
    """The share of first attempts, above 0 and below 1, that are to return before a hedge is sent. 0.95: one call
    in twenty is sent twice."""
    minimum_calls: int = 100
    """Attempts observed before the first hedge, and half of the least number that the quantile is then taken over:
    it follows the last `minimum_calls` times 5 to 10 attempts of this policy in this process. 100: five lie
    beyond the 0.95."""
    floor: float = 0.001
    """Least delay, seconds: nothing is gained by hedging what a cache answers."""
    cap: float = 10.0
    """Greatest delay, seconds."""
    budget: RetryBudget | None = None
    """Each hedge takes a token. None: the budget of the policy's retry, or else one of the policy's own."""

    def __post_init__(self) -> None:
        check_number("Hedge.quantile", self.quantile, above=0.0, high=0.9999)
        check_whole("Hedge.minimum_calls", self.minimum_calls, low=1, high=1_000_000)
        check_number("Hedge.floor", self.floor, low=0.0, high=_LONGEST)
        check_number("Hedge.cap", self.cap, low=self.floor, high=_LONGEST)


class Second(NamedTuple):
    """What a second attempt is made of."""

    fn: Callable[..., Awaitable[Any]]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    request: RequestContext
    request_end: float
    end: float
    """The moment when the call with all its attempts is over."""


class Hedging:
    """The hedges of one policy: the delay, learnt from its first attempts, and the race."""

    __slots__ = (
        "_attempt_timeout",
        "_attempts",
        "_before",
        "_count",
        "_hedge",
        "_now",
        "_span",
        "budget",
        "delay",
    )

    def __init__(self, attempts: Attempts, hedge: Hedge, budget: RetryBudget, attempt_timeout: float) -> None:
        self.budget = budget
        self.delay: float | None = None
        """Seconds from the start of an attempt to its hedge; None while too few have been seen."""
        self._attempts = attempts
        self._attempt_timeout = attempt_timeout
        self._hedge = hedge
        self._span = hedge.minimum_calls * 5
        self._before = Histogram()
        self._now = Histogram()
        self._count = 0

    def observe(self, latency: float) -> None:
        """Counts a first attempt that answered, or that ran this long and was beaten or timed out.

        Without the latter, what hedges cut short would be missing, and the quantile would sink with each.
        """
        self._now.observe(latency)
        self._count += 1
        if self._count >= self._span:
            self._before, self._now, self._count = self._now, Histogram(), 0
        if self._count % _EVERY == 0 or (self.delay is None and self._count >= self._hedge.minimum_calls):
            self._look()

    def _look(self) -> None:
        recent = Histogram()
        recent.merge(self._before)
        recent.merge(self._now)
        if recent.count >= self._hedge.minimum_calls:
            seconds = recent.quantile(self._hedge.quantile)
            self.delay = min(max(seconds, self._hedge.floor), self._hedge.cap)

    async def finish(
        self,
        coroutine: Coroutine[Any, Any, _T],
        waits_for: object,
        probe: int | None,
        began: float,
        attempt_end: float,
        second: Second,
    ) -> _T:
        """As Attempts._finish, with a second attempt beside it once the delay has passed."""
        attempts = self._attempts
        if self.delay is None or began + self.delay >= attempt_end or asyncio.current_task() is None:
            return await self._alone(coroutine, waits_for, probe, began, attempt_end)
        race = Race(partial(self._begin, second), copy_context())
        attempts.expiries.push(began + self.delay, race)
        try:
            result = await attempts._finish(coroutine, waits_for, probe, began, attempt_end, race)
        except GeneratorExit:
            self._first_ended(race)
            race.leave_second()
            raise
        except BaseException as error:
            only_ours = self._first_ended(race)
            if race.beaten or isinstance(error, Expired):
                self.observe(attempts._now() - began)
            if isinstance(error, Exception) and race.second is not None and not race.beaten:
                race.release()  # the place of the first attempt is held until the call ends
                await race.wait_for_second()
            await race.end_second()
            if race.beaten and (only_ours or isinstance(error, Exception)):
                attempts._counts.hedges_won += 1
                return cast(_T, race.answer)
            if race.failure:
                error.add_note(f"{attempts.name}: its hedge failed too: {race.failure}")
            raise
        self._first_ended(race)
        self.observe(attempts._now() - began)
        await race.end_second()
        return result

    async def _alone(
        self,
        coroutine: Coroutine[Any, Any, _T],
        waits_for: object,
        probe: int | None,
        began: float,
        attempt_end: float,
    ) -> _T:
        attempts = self._attempts
        try:
            result = await attempts._finish(coroutine, waits_for, probe, began, attempt_end)
        except Expired:
            self.observe(attempts._now() - began)
            raise
        self.observe(attempts._now() - began)
        return result

    def _first_ended(self, race: Race) -> bool:
        only_ours = race.first_ended()
        if race.due:
            self._attempts.expiries.drop()
        return only_ours

    def _begin(self, second: Second, race: Race, now: float) -> Coroutine[Any, Any, None] | None:
        """The second attempt, its permits taken, or None if there is not to be one."""
        attempts = self._attempts
        if not self._may_begin(now):
            attempts._counts.hedges_suppressed += 1
            return None
        attempts._counts.hedged += 1
        attempts._tell("hedged", "slow", request=second.request)
        if (limit := attempts._limit) is not None:
            limit.in_flight += 1
            race.limit = limit
        return self._run(second, race, now)

    def _may_begin(self, now: float) -> bool:
        breaker, limit = self._attempts._breaker, self._attempts._limit
        if breaker is not None:
            if breaker.state is not BreakerState.CLOSED:
                return False  # its probes are counted, and not for this
            try:
                breaker.ask(now)
            except CircuitOpen:
                return False
        if limit is not None and (limit.in_flight >= limit.limit or limit.waiters):
            return False
        return self.budget.take()

    async def _run(self, second: Second, race: Race, now: float) -> None:
        attempts = self._attempts
        fn, args, kwargs, request, request_end, end = second
        attempt_end = min(now + self._attempt_timeout, end)
        try:
            if attempt_end < request_end:
                _current.set(AttemptContext(request, attempt_end, attempts.clock))  # type: ignore[arg-type]
            else:
                _current.set(request)
            try:
                coroutine = fn(*args, **kwargs)
                if type(coroutine) is not CoroutineType:
                    coroutine = as_coroutine(coroutine)
                result = first_step(coroutine)
            except BaseException as error:
                attempts._failed_at_once(error, None, now)
                raise
            if type(result) is Suspended:
                result = await attempts._finish(coroutine, result.waits_for, None, now, attempt_end)
            elif (breaker := attempts._breaker) is not None:
                breaker.record(breaker.generation, True, now)
            race.answered(result)
        except Expired:
            race.failure = "it ran out of time"
        except Exception as error:  # the edge of the task: the first attempt's failure is the one raised
            race.failure = f"{type(error).__name__}: {error}"
        finally:
            race.release()


class Race:
    """Two attempts of one call: the first in the caller's task, the second, if it comes to that, in one of ours."""

    __slots__ = (
        "_before",
        "_begin",
        "_context",
        "answer",
        "beaten",
        "due",
        "failure",
        "limit",
        "second",
        "task",
    )

    def __init__(
        self, begin: Callable[[Race, float], Coroutine[Any, Any, None] | None], context: Context
    ) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a call that runs in an asyncio task can be hedged")
        self.task: asyncio.Task[Any] | None = task
        """The caller's; None once the first attempt has ended."""
        self._before = task.cancelling()
        self._begin = begin
        self._context = context
        self.due = True
        """Whether the delay has yet to pass."""
        self.second: asyncio.Task[None] | None = None
        self.limit: ConcurrencyLimit | None = None
        """Whose permit the second attempt holds."""
        self.answer: Any = None
        self.beaten = False
        """Whether the second answered while the first still ran, and the first has been cancelled for it."""
        self.failure = ""
        """How the second failed; empty while it runs, and if it answered."""

    def expire(self, now: float) -> None:
        """The delay has passed: begins the second attempt, if it may."""
        self.due = False
        if self.task is not None and (coroutine := self._begin(self, now)) is not None:
            self.second = self.task.get_loop().create_task(coroutine, context=self._context)
            self.second.add_done_callback(self._second_ended)

    def _second_ended(self, second: asyncio.Task[None]) -> None:
        self.release()  # one that is cancelled before its first step has not done it

    def release(self) -> None:
        """Gives the second attempt's permit back, once."""
        limit, self.limit = self.limit, None
        if limit is not None:
            limit.give_back()

    def answered(self, answer: Any) -> None:
        """The second attempt has its answer."""
        self.answer = answer
        self.beaten = True
        if self.task is not None:
            self.task.cancel()

    def first_ended(self) -> bool:
        """The first attempt has ended. True if that was our doing alone: the second beat it."""
        task, self.task = self.task, None
        return self.beaten and task is not None and task.uncancel() <= self._before

    async def end_second(self) -> None:
        """Cancels the second attempt, if it still runs, and waits for its end."""
        if self.second is not None:
            self.second.cancel()
            await _ended(self.second)

    async def wait_for_second(self) -> None:
        """Waits for its outcome. A caller that is cancelled meanwhile takes it along."""
        if self.second is None:
            return
        try:
            await asyncio.wait((self.second,))
        except CancelledError:
            self.second.cancel()
            await _ended(self.second)
            raise

    def leave_second(self) -> None:
        """Ends the second attempt when nobody can wait any more: the caller's coroutine is being closed."""
        if self.second is None or self.second.done():
            return
        if self.second.get_loop().is_closed():
            coroutine = self.second.get_coro()
            if isinstance(coroutine, Coroutine):
                coroutine.close()
            self.release()
        else:
            self.second.cancel()


async def _ended(task: asyncio.Task[None]) -> None:
    """Waits until it has; a cancellation that comes meanwhile is raised after that."""
    cancelled: CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
