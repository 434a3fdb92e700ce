"""One object around one call: deadline > retry > breaker > limit, fused.

Stacked decorators each add a coroutine, a timer and a view of the failure that the others do not share:
the breaker counts the caller's cancellation, the retry sleeps past the deadline, the limit counts the time
spent asleep. Fused, they agree. The retry is outermost, then the breaker, and the limit innermost: both
see each attempt by itself.

The first step of the coroutine is driven by hand. If it finishes there, no timer was ever set; if it
suspends, one timer is set for whichever comes first, the end of the attempt or of the call.

Invariant: whatever ends a call (a result, a failure, our timeout, the caller's cancellation, the loop's
end), its permits are given back, no timer can touch it any more, and the ambient context is the one it found.
"""

from __future__ import annotations

import functools
import random
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from math import inf
from types import CoroutineType
from typing import Any, ParamSpec, TypeVar

from fairlead.calls.attempt_context import AttemptContext
from fairlead.calls.bounds import check_number
from fairlead.calls.circuit_breaker import CircuitBreaker
from fairlead.calls.concurrency_limit import ConcurrencyLimit
from fairlead.calls.expiry import Expiries, Suspended, as_coroutine, first_step, resume
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
        "_clock",
        "_earnings",
        "_expiries",
        "_first_timeout",
        "_limit",
        "_now",
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
        self._first_timeout = min(self._timeout, self._attempt_timeout)
        self._expiries = Expiries(clock)
        self._retry = retry
        self._earnings = budget.earnings if budget else None
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
        # This is the hot path, so what would read better as six methods is written out: each would cost as much as
        # the breaker and the limit together. docs/decisions/0030 has the figures.
        began = now = self._now()
        request = _current.get()
        deadline = request.deadline
        request_end = deadline.at if deadline.clock is self._clock else now + deadline.remaining()
        if request_end <= now:
            raise self._too_late(now - request_end)
        if (window := self._earnings) is not None:
            if now >= window.turns_at:
                window.turn(now)
            window.total += 1
        breaker = self._breaker
        limit = self._limit
        attempt_timeout = self._first_timeout
        attempt = 1
        failure: Exception | None = None
        probe = token = None
        while True:
            if breaker is not None and now >= breaker.passes_until:
                probe = self._ask(breaker, now, failure)
            if limit is not None:
                if limit.in_flight < limit.limit:
                    limit.in_flight += 1
                else:
                    end = min(began + self._timeout, request_end)
                    now = await self._wait_for_permit(limit, probe, now, end, failure)
                    attempt_timeout = min(attempt_timeout, end - now)
            attempt_end = now + attempt_timeout
            if attempt_end < request_end:
                token = _current.set(AttemptContext(request, attempt_end, self._clock))  # type: ignore[arg-type]
            else:
                attempt_end = request_end
            try:
                try:
                    coroutine = fn(*args, **kwargs) if kwargs else fn(*args)  # type: ignore[call-arg]
                    if type(coroutine) is not CoroutineType:
                        coroutine = as_coroutine(coroutine)
                    result = first_step(coroutine)
                except BaseException as error:
                    self._failed_at_once(error, probe, now)
                    raise
                if type(result) is Suspended:
                    return await self._finish(coroutine, result.waits_for, probe, now, attempt_end)
                if breaker is not None:
                    if probe is None:
                        breaker.outcomes.total += 1
                    else:
                        breaker.record(probe, True, now)
                return result  # type: ignore[return-value]
            except _Expired as expired:
                end = min(began + self._timeout, request_end)
                cause = failure or expired.__cause__
                failure = self._deadline_exceeded(began, end, attempt)
                failure.__cause__ = cause
                delay = self._wait_before_retry(failure, attempt, end)
                if delay is None:
                    raise failure from cause
            except Exception as error:
                end = min(began + self._timeout, request_end)
                delay = self._wait_before_retry(error, attempt, end)
                if delay is None:
                    raise
                failure = error
            finally:
                if limit is not None:
                    limit.in_flight -= 1
                    if limit.waiters:
                        limit.wake()
                if token is not None:
                    try:  # noqa: SIM105 - suppress() would cost as much as the reset
                        _current.reset(token)
                    except ValueError:
                        pass  # closed by the garbage collector, in a context that is not ours
            await self._clock.sleep(delay)
            now = self._now()
            if now >= end:
                raise self._not_again(
                    failure, f"the deadline passed {(now - end) * 1000:.0f} ms ago, in the wait"
                )
            attempt_timeout = min(self._attempt_timeout, end - now)
            attempt += 1
            probe = token = None

    async def _finish(
        self,
        coroutine: Coroutine[Any, Any, _T],
        waits_for: object,
        probe: int | None,
        began: float,
        attempt_end: float,
    ) -> _T:
        """The result of an attempt that suspended; raises _Expired if our timer, and only it, ended it."""
        breaker = self._breaker
        limit = self._limit
        found = limit.in_flight if limit is not None else 0
        generation = 0
        patience = inf
        if breaker is not None:
            generation = breaker.generation if probe is None else probe
            if breaker.slow_after is not None or probe is not None:
                patience = breaker.watch(coroutine, generation, began)
        expiry = None
        try:
            if attempt_end != inf:
                expiry = self._expiries.add(attempt_end, breaker, generation, coroutine, patience)
            result = await resume(coroutine, waits_for)
        except BaseException as error:
            coroutine.close()  # it has ended, unless no timer could be set for it
            only_ours = expiry is not None and self._expiries.close(expiry)
            expired = expiry is not None and expiry.expired
            if not expired and breaker is not None and breaker.unwatch(coroutine, patience):
                # Late: a caller's timer for the same moment came first. That is no whim of the caller.
                late = isinstance(error, CancelledError) and self._now() >= attempt_end - _TIMER_SLACK
                breaker.record(generation, False if late else breaker.judge(error), self._now())
            if limit is not None and (expired or isinstance(error, TimeoutError | Refused)):
                limit.dropped(began, self._now())
            if only_ours and isinstance(error, CancelledError):
                raise _Expired from error
            raise
        now = self._now()
        if expiry is not None:
            self._expiries.close(expiry)
            if expiry.expired:  # and the coroutine swallowed that, so its result stands
                if limit is not None:
                    limit.dropped(began, now)
                return result
        if breaker is not None and (patience == inf or breaker.unwatch(coroutine, patience)):
            breaker.record(generation, True, now)
        if limit is not None:
            limit.succeeded(began, found, now)
        return result

    def _failed_at_once(self, error: BaseException, probe: int | None, now: float) -> None:
        if (breaker := self._breaker) is not None:
            breaker.record(breaker.generation if probe is None else probe, breaker.judge(error), now)
        if self._limit is not None and isinstance(error, Refused):
            self._limit.dropped(now, now)

    def _too_late(self, late: float) -> DeadlineExceeded:
        self._refused += 1
        return DeadlineExceeded(
            f"{self.name}: the deadline passed {late * 1000:.0f} ms ago, so it was not started"
        )

    def _ask(self, breaker: CircuitBreaker, now: float, failure: Exception | None) -> int | None:
        try:
            return breaker.ask(now)
        except CircuitOpen as refusal:
            self._refused += 1
            if failure is None:
                raise
            reason = str(refusal)
        raise self._not_again(failure, reason)

    async def _wait_for_permit(
        self, limit: ConcurrencyLimit, probe: int | None, now: float, end: float, failure: Exception | None
    ) -> float:
        try:
            await limit.wait_for_permit(now, end)
            now = self._now()
            if now < end:
                return now
            limit.give_back()  # it was granted in time, and this task woke too late
            raise self._too_late(now - end)
        except BaseException as error:
            if self._breaker is not None and probe is not None:
                self._breaker.record(
                    probe, None, now
                )  # nothing was sent, so the probe's permit is free again
            if isinstance(error, Overloaded):
                self._refused += 1
            elif not isinstance(error, DeadlineExceeded):
                raise
            if failure is None:
                raise
            reason = str(error)
        raise self._not_again(failure, reason)

    def _not_again(self, failure: Exception, reason: str) -> Exception:
        """The failure of the last attempt: a refusal would say that nothing was begun, and an attempt has
        been.
        """
        failure.add_note(f"{self.name}: not tried again: {reason}")
        return failure

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
            return DeadlineExceeded(
                f"{self.name}: attempt {attempt} took longer than {self._attempt_timeout:g} s, "
                f"{now - began:.3f} s into the call"
            )
        return DeadlineExceeded(
            f"{self.name}: no answer within {end - began:.3f} s; given up after {now - began:.3f} s and {attempts}"
        )


class _Expired(Exception):
    """Our timer ended the attempt; the cancellation that it caused is the cause."""
