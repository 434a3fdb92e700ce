"""One object around one call: deadline > retry > breaker > limit, fused.

Stacked decorators each add a coroutine, a timer and a view of the failure that the others do not share:
the breaker counts the caller's cancellation, the retry sleeps past the deadline, the limit counts the time
spent asleep. Fused, they agree. The retry is outermost, then the breaker, and the limit innermost: both
see each attempt by itself.

The first step of the coroutine is driven by hand. If it finishes there, no timer was ever set; if it
suspends, one timer is set for whichever comes first, the end of the attempt or of the call.

Invariant: whatever ends a call (a result, a failure, our timeout, the caller's cancellation, the loop's
end), its permits are given back, its timer is gone, and the ambient context is the one it found.
"""

from __future__ import annotations

import functools
import random
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from math import inf
from types import CoroutineType
from typing import Any, ParamSpec, TypeVar, cast

from fairlead.calls.attempt_context import AttemptContext
from fairlead.calls.bounds import check_number
from fairlead.calls.circuit_breaker import CircuitBreaker
from fairlead.calls.concurrency_limit import ConcurrencyLimit
from fairlead.calls.expiry import Expiry, as_coroutine, resume
from fairlead.calls.retry import Retry
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.context import _current  # request_context() costs five times the set and reset it stands for
from fairlead.errors import CircuitOpen, DeadlineExceeded, InvalidInput, Overloaded, Refused
from fairlead.telemetry.event import StateChanged

__all__ = ["Policy", "PolicyStats"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_LONGEST = 86_400.0

# A caller's timer for the same moment may fire this much before our own would have: loops count in
# milliseconds.
_TIMER_SLACK = 0.002


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyStats:
    """What did not go straight, counted since the start, in this process."""

    retried: int
    """Attempts beyond the first."""
    retries_suppressed: int
    """Retries that a failure deserved and the budget refused."""
    timed_out: int
    """Attempts ended by their own timeout or the deadline."""
    refused: int
    """Attempts not begun: breaker open, limit full, or deadline passed."""


class Policy:
    """Calls a coroutine function within a deadline, retrying, refusing and limiting as told.

    name: of the call, in errors.
    timeout: seconds for the call with all its attempts and waits; an earlier ambient deadline prevails.
        None: only the ambient deadline bounds it.
    attempt_timeout: seconds for one attempt. None: an attempt may use all that remains.
    retry, breaker, limit: None leaves that part out. Breaker, limit and retry budget may be shared by
    policies. on_event: receives the breaker's changes of state.

    >>> import asyncio
    >>> async def answer(question):
    ...     return 42
    >>> asyncio.run(Policy(name="oracle", timeout=0.3).call(answer, "why"))
    42
    """

    __slots__ = (
        "_attempt_timeout",
        "_breaker",
        "_budget_window",
        "_clock",
        "_limit",
        "_now",
        "_patience",
        "_refused",
        "_retried",
        "_retry",
        "_rng",
        "_suppressed",
        "_timed_out",
        "_timeout",
        "name",
    )

    def __init__(
        self,
        *,
        name: str,
        timeout: float | None = None,
        attempt_timeout: float | None = None,
        retry: Retry | None = None,
        breaker: CircuitBreaker | None = None,
        limit: ConcurrencyLimit | None = None,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        on_event: Callable[[StateChanged], object] | None = None,
    ) -> None:
        if timeout is not None:
            check_number("Policy.timeout", timeout, above=0.0, high=_LONGEST)
        if attempt_timeout is not None:
            check_number("Policy.attempt_timeout", attempt_timeout, above=0.0, high=_LONGEST)
        budget = retry.budget if retry else None
        for part in (breaker, limit, budget):
            if part is not None and part.clock is not clock:
                raise InvalidInput(
                    f"Policy {name!r}: its {type(part).__name__} reads another clock; pass both one"
                )
        self.name = name
        self._timeout = inf if timeout is None else timeout
        self._attempt_timeout = inf if attempt_timeout is None else attempt_timeout
        self._patience = attempt_timeout or timeout
        self._retry = retry
        self._budget_window = budget.earnings if budget else None
        self._breaker = breaker
        self._limit = limit
        self._clock = clock
        self._now = clock.now
        self._rng = rng or random.Random()
        self._retried = self._suppressed = self._timed_out = self._refused = 0
        if breaker is not None and on_event is not None:
            breaker.subscribe(on_event)

    @property
    def stats(self) -> PolicyStats:
        return PolicyStats(
            retried=self._retried,
            retries_suppressed=self._suppressed,
            timed_out=self._timed_out,
            refused=self._refused,
        )

    def __call__(self, fn: Callable[_P, Awaitable[_T]]) -> Callable[_P, Coroutine[Any, Any, _T]]:
        """As a decorator: each call of the function goes through this policy."""

        @functools.wraps(fn)
        async def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            return await self.call(fn, *args, **kwargs)

        return guarded

    async def call(self, fn: Callable[_P, Awaitable[_T]], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """The result of `fn(*args, **kwargs)`, which is called once per attempt.

        Raises CircuitOpen, Overloaded or DeadlineExceeded before anything began; DeadlineExceeded when
        time ran out, caused by the last failure; else the last attempt's own exception, with a note on why
        it was the last. Cancelling it cancels the attempt and counts for nothing.
        """
        began = now = self._now()
        request = _current.get()
        deadline = request.deadline
        request_end = deadline.at if deadline.clock is self._clock else now + deadline.remaining()
        end = now + self._timeout
        if request_end < end:
            end = request_end
        if end <= now:
            self._refused += 1
            raise DeadlineExceeded(
                f"{self.name}: the deadline passed {(now - end) * 1000:.0f} ms ago, so it was not started"
            )
        window = self._budget_window
        if window is not None:
            if now >= window.turns_at:
                window.turn(now)
            window.total += 1
        breaker = self._breaker
        limit = self._limit
        attempt = 1
        generation = 0
        failure: Exception | None = None
        while True:
            if breaker is not None:
                generation = breaker.generation
                if not breaker.closed or now >= breaker.due:
                    generation = self._ask(breaker, now, failure)
            if limit is not None:
                if limit.in_flight < limit.limit:
                    limit.in_flight += 1
                else:
                    await self._wait_for_permit(limit, generation, now, end, failure)
                    now = self._now()
            attempt_end = now + self._attempt_timeout
            if end < attempt_end:
                attempt_end = end
            token = None
            if attempt_end < request_end:
                token = _current.set(AttemptContext(request, attempt_end, self._clock))
            try:
                try:
                    coroutine = fn(*args, **kwargs)
                    if type(coroutine) is not CoroutineType:
                        coroutine = as_coroutine(coroutine)
                    waits_for = coroutine.send(None)
                except StopIteration as stop:
                    if breaker is not None:
                        outcomes = breaker.outcomes
                        if breaker.closed and now < outcomes.turns_at:
                            outcomes.total += 1
                        else:
                            breaker.record(generation, True, now)
                    return cast(_T, stop.value)
                except BaseException as error:
                    if breaker is not None:
                        breaker.record(generation, breaker.judge(error), now)
                    if limit is not None and isinstance(error, Refused):
                        limit.dropped(now, now)
                    raise
                try:
                    return await self._finish(coroutine, waits_for, generation, now, attempt_end)
                except _Expired as expired:
                    raise self._deadline_exceeded(began, end, attempt) from failure or expired.__cause__
            except Exception as error:
                delay = self._wait_before_retry(error, attempt, end)
                if delay is None:
                    raise
                failure = error
            finally:
                if limit is not None:
                    limit.give_back()
                if token is not None:
                    try:  # noqa: SIM105 - suppress() would cost as much as the reset
                        _current.reset(token)
                    except ValueError:
                        pass  # closed by the garbage collector, in a context that is not ours
            await self._clock.sleep(delay)
            now = self._now()
            attempt += 1

    async def _finish(
        self,
        coroutine: Coroutine[Any, Any, _T],
        waits_for: object,
        generation: int,
        began: float,
        attempt_end: float,
    ) -> _T:
        """The result of an attempt that suspended; raises _Expired if our timer, and only it, ended it."""
        breaker = self._breaker
        limit = self._limit
        found = limit.in_flight if limit is not None else 0
        patience = inf if breaker is None else breaker.watch(coroutine, self._patience, generation, began)
        expiry = None
        result = None
        failure: BaseException | None = None
        try:
            if attempt_end != inf:
                expiry = Expiry(attempt_end, self._clock)
            result = await resume(coroutine, waits_for)
        except BaseException as error:
            failure = error
            coroutine.close()  # it has ended, unless no timer could be set for it
        only_ours = expiry is not None and expiry.close()
        now = self._now()
        cancelled = isinstance(failure, CancelledError)
        expired = (expiry is not None and expiry.expired) or (cancelled and now >= attempt_end - _TIMER_SLACK)
        if breaker is not None and breaker.unwatch(coroutine, patience):
            breaker.record(generation, False if expired else breaker.judge(failure), now)
        if limit is not None:
            if expired or isinstance(failure, TimeoutError | Refused):
                limit.dropped(began, now)
            elif failure is None:
                limit.succeeded(began, found, now)
        if failure is None:
            return cast(_T, result)
        try:
            if only_ours and cancelled:
                raise _Expired from failure
            raise failure
        finally:
            del (
                failure
            )  # the frame in its traceback refers to it: a cycle that keeps the call's arguments alive

    def _ask(self, breaker: CircuitBreaker, now: float, failure: Exception | None) -> int:
        try:
            return breaker.ask(now)
        except CircuitOpen as refusal:
            self._refused += 1
            if failure is None:
                raise
            reason = str(refusal)
        # Not the refusal: it says that nothing was begun, and an attempt has been.
        failure.add_note(f"{self.name}: not tried again: {reason}")
        raise failure

    async def _wait_for_permit(
        self, limit: ConcurrencyLimit, generation: int, now: float, end: float, failure: Exception | None
    ) -> None:
        try:
            await limit.wait_for_permit(now, end)
            return
        except BaseException as error:
            if self._breaker is not None:
                self._breaker.record(generation, None, now)
            if not isinstance(error, Overloaded):
                raise
            self._refused += 1
            if failure is None:
                raise
            reason = str(error)
        failure.add_note(f"{self.name}: not tried again: {reason}")
        raise failure

    def _wait_before_retry(self, error: Exception, attempt: int, end: float) -> float | None:
        """Seconds to sleep before the next attempt, whose token is then taken; None if there is to be
        none."""
        retry = self._retry
        if retry is None or not retry.retries(error):
            return None
        wait = retry.wait_before(attempt + 1, self._rng)
        left = end - self._now()
        if attempt >= retry.attempts:
            reason = "no more are allowed"
        elif wait >= left:
            reason = f"{max(left, 0.0):.3f} s remain, and the next would begin in {wait:.3f} s"
        elif retry.budget is not None and not retry.budget.take():
            self._suppressed += 1
            reason = f"the retry budget is spent (ratio {retry.budget.ratio:g})"
        else:
            self._retried += 1
            return wait
        error.add_note(f"{self.name}: attempt {attempt} of {retry.attempts} was the last: {reason}")
        return None

    def _deadline_exceeded(self, began: float, end: float, attempt: int) -> DeadlineExceeded:
        self._timed_out += 1
        now = self._now()
        attempts = f"{attempt} attempt" + "s" * (attempt > 1)
        if now < end - _TIMER_SLACK:
            limit = f"attempt {attempt} took longer than its {self._attempt_timeout:g} s"
        else:
            limit = f"no answer within {end - began:.3f} s"
        return DeadlineExceeded(f"{self.name}: {limit}; gave up after {now - began:.3f} s and {attempts}")


class _Expired(Exception):
    """Our timer ended the attempt; the cancellation that it caused is the cause."""
