"""One object around one call: fallback > deadline > retry > hedge > breaker > limit, fused.

Stacked decorators each add a coroutine, a timer and a view of the failure that the others do not share:
the breaker counts the caller's cancellation, the retry sleeps past the deadline, the limit counts the time
spent asleep. Fused, they agree. The limit is innermost, then the breaker: both see each attempt by itself, a
hedge's as well.

The first step of the coroutine is driven by hand. If it finishes there, no timer was ever set; if it
suspends, one timer is set for whichever comes first, the end of the attempt or of the call.

Invariant: whatever ends a call (a result, a failure, our timeout, the caller's cancellation, the loop's
end), its permits are given back, no timer can touch it any more, and the ambient context is the one it found.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Awaitable, Callable, Coroutine
from inspect import isawaitable
from math import inf
from types import CoroutineType
from typing import Any, ParamSpec, TypeVar, cast

from fairlead.calls.attempt import TIMER_SLACK, Attempt, Attempts, Expired
from fairlead.calls.attempt_context import AttemptContext
from fairlead.calls.bounds import check_number
from fairlead.calls.circuit_breaker import BreakerState, CircuitBreaker
from fairlead.calls.concurrency_limit import ConcurrencyLimit
from fairlead.calls.expiry import Suspended, as_coroutine, first_step
from fairlead.calls.fallback import Fallback, FallbackBudget, mark_degraded
from fairlead.calls.hedge import Hedge, Hedging, Second
from fairlead.calls.retry import Retry, RetryBudget, asked_to_wait
from fairlead.calls.stats import Measures, PolicyStats, export_counts
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.context import _current  # request_context() costs five times the set and reset it stands for
from fairlead.deadline import Deadline
from fairlead.errors import DeadlineExceeded, InvalidInput, Refused
from fairlead.telemetry.event import Event
from fairlead.telemetry.metrics import MetricRegistry

__all__ = ["Policy"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_LONGEST = 86_400.0


class Policy(Attempts):
    """Calls a coroutine function within a deadline, retrying, hedging, refusing and limiting as told.

    name: of the call, in errors, events and metrics; one of its own for each policy.
    timeout: seconds for the call with all its attempts and waits; an earlier ambient deadline prevails.
        None: only the ambient deadline bounds it.
    attempt_timeout: seconds for one attempt. None: an attempt may use all that remains.
    retry, breaker, limit, hedge, fallback: None leaves that part out. Breaker, limit and budgets may be shared
        by policies.
    idempotent: whether the call may be served twice. False: only a Refused, which says that nothing was begun,
        is retried, and nothing is hedged. `replayable` and `once` are this policy with the other answer.
    on_event: receives a PolicyActed for each retry, hedge, refusal and fallback, and the breaker's changes of
        state. It must not block; what it raises is logged.

    >>> import asyncio
    >>> async def answer(question):
    ...     return 42
    >>> asyncio.run(Policy(name="oracle", timeout=0.3).call(answer, "why"))
    42
    """

    __slots__ = (
        "_attempt_timeout",
        "_budget",
        "_fallback",
        "_fallback_budget",
        "_hedger",
        "_hedging",
        "_measures",
        "_other",
        "_retry",
        "_rng",
        "_single",
        "_timeout",
        "idempotent",
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
        hedge: Hedge | None = None,
        fallback: Fallback | None = None,
        idempotent: bool = False,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        if timeout is not None:
            check_number("Policy.timeout", timeout, above=0.0, high=_LONGEST)
        if attempt_timeout is not None:
            check_number("Policy.attempt_timeout", attempt_timeout, above=0.0, high=_LONGEST)
        budget = retry.budget if retry else None
        if hedge is not None:
            if hedge.budget is not None and budget is not None and hedge.budget is not budget:
                raise InvalidInput(
                    f"Policy {name!r}: retries and hedges share one budget; give it to one of them, or both"
                )
            budget = hedge.budget or budget or RetryBudget(clock=clock)
        fallback_budget = (fallback.budget or FallbackBudget(clock=clock)) if fallback else None
        for part in (breaker, limit, budget, fallback_budget):
            if part is not None and part.clock is not clock:
                raise InvalidInput(
                    f"Policy {name!r}: its {type(part).__name__} reads another clock; pass both one"
                )
        super().__init__(
            name=name,
            timeout=inf if timeout is None else timeout,
            attempt_timeout=inf if attempt_timeout is None else attempt_timeout,
            budget=budget,
            breaker=breaker,
            limit=limit,
            clock=clock,
            on_event=on_event,
        )
        self.idempotent = idempotent
        self._timeout = inf if timeout is None else timeout
        self._attempt_timeout = inf if attempt_timeout is None else attempt_timeout
        self._retry = retry
        self._budget = budget
        self._hedger = Hedging(self, hedge, budget, self._attempt_timeout) if hedge and budget else None
        self._hedging = self._hedger if idempotent else None
        self._fallback = fallback
        self._fallback_budget = fallback_budget
        self._rng = rng or random.SystemRandom()  # workers forked later must not share its state
        self._other: Policy | None = None
        self._single: Policy | None = None
        self._measures: Measures | None = None
        if fallback is not None:
            self.__class__ = FallingBack  # so that the hot path of all others need not look for one

    def deadline(self) -> Deadline:
        """When a call that begins now is due: after `timeout`, or at the request's deadline if that is earlier."""
        now = self._now()
        request = _current.get().deadline
        request_end = request.at if request.clock is self.clock else now + request.remaining()
        return Deadline(min(now + self._timeout, request_end), self.clock)

    @property
    def once(self) -> Policy:
        """This policy, with the same state, for calls that must not be served twice."""
        return self._the_other() if self.idempotent else self

    @property
    def replayable(self) -> Policy:
        """This policy, with the same state, for calls that may be served twice: GET, PUT, DELETE, a lookup."""
        return self if self.idempotent else self._the_other()

    def _the_other(self) -> Policy:
        other = self._other
        if other is None:
            other = self._other = self._twin()
            other.idempotent = not self.idempotent
            other._hedging = self._hedger if other.idempotent else None
            other._other = self
        return other

    def _twin(self) -> Policy:
        twin = object.__new__(type(self))
        for slot in (*Attempts.__slots__, *Policy.__slots__):
            setattr(twin, slot, getattr(self, slot))
        twin._other = twin._single = None
        return twin

    @property
    def stats(self) -> PolicyStats:
        """What did not go straight since the start, `once` and `replayable` together."""
        return self._counts.snapshot()

    @property
    def maximum_amplification(self) -> float:
        """Attempts per call that the dependency sees at worst: 1 + ratio with a budget, else Retry.attempts.

        A budget's floor comes on top: its `floor_per_second` attempts per second and process.
        """
        retry, budget = self._retry, self._budget
        unbounded = retry.attempts if retry is not None and retry.budget is None else 1
        return unbounded + (budget.ratio if budget is not None else 0.0)

    def export(self, registry: MetricRegistry) -> None:
        """Shows in `registry` what the policy and its breaker count, and from now on how its calls end and when.

        The counts are read at each scrape; the duration costs a call 0.7 to 0.9 µs (`python -m bench telemetry`).
        Once, at the start: a second registry would get the durations instead of the first.
        """
        from fairlead.calls.measured import measure  # it derives from Policy

        measure(self, registry)
        export_counts(self.name, self._counts, registry)
        amplification = registry.gauge(
            "fairlead_policy_maximum_amplification",
            "Attempts per call at worst.",
            labels=("policy",),
            merge="max",
        )
        amplification.labels(policy=self.name).set(self.maximum_amplification)
        if (limit := self._limit) is not None:
            in_flight = registry.gauge("fairlead_policy_in_flight", "Attempts in flight.", labels=("policy",))
            in_flight.labels(policy=self.name).track(lambda: limit.in_flight)
            most = registry.gauge("fairlead_policy_limit", "Attempts allowed in flight.", labels=("policy",))
            most.labels(policy=self.name).track(lambda: limit.limit)
        if (breaker := self._breaker) is not None:
            refusing = registry.gauge(
                "fairlead_policy_circuit_open",
                "1 unless the circuit is closed.",
                labels=("policy",),
                merge="max",
            )
            refusing.labels(policy=self.name).track(lambda: breaker.state is not BreakerState.CLOSED)
            breaker.export(registry)

    def __call__(self, fn: Callable[_P, Awaitable[_T]]) -> Callable[_P, Coroutine[Any, Any, _T]]:
        """As a decorator: each call of the function goes through this policy."""

        @functools.wraps(fn)
        async def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            return await self.call(fn, *args, **kwargs)

        return guarded

    async def run(self, awaitable: Awaitable[_T]) -> _T:
        """The result of an awaitable, within the deadline, the breaker and the limit.

        It can be awaited once, so it is neither retried nor hedged; the fallback applies. A coroutine that was
        refused is closed unstarted; a task or future goes on without us. A fallback's function gets the failure
        alone.
        """
        single = self._single
        if single is None:
            single = self._single = self._twin()
            single._retry = single._hedging = None
        try:
            return await single.call(functools.partial(as_coroutine, awaitable))
        finally:
            if isinstance(awaitable, Coroutine):
                awaitable.close()

    def attempt(self) -> Attempt:
        """`async with policy.attempt():` makes the block one attempt, within the deadline, the breaker and the limit.

        A block cannot be run again or replaced: no retry, no hedge, no fallback.
        """
        return Attempt(self)

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
        request_end = deadline.at if deadline.clock is self.clock else now + deadline.remaining()
        if request_end <= now:
            raise self._too_late(now - request_end)
        window = self._earnings
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
            if window is not None:  # the original attempt, which is sent now, earns; what was refused did not
                if now >= window.turns_at:
                    window.turn(now)
                window.total += 1
                window = None
            attempt_end = now + attempt_timeout
            if attempt_end < request_end:
                token = _current.set(AttemptContext(request, attempt_end, self.clock))  # type: ignore[arg-type]
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
                    if self._hedging is None:
                        return await self._finish(coroutine, result.waits_for, probe, now, attempt_end)
                    end = min(began + self._timeout, request_end)
                    second = Second(fn, args, kwargs, request, request_end, end)
                    return await self._hedging.finish(
                        coroutine, result.waits_for, probe, now, attempt_end, second
                    )
                if breaker is not None:
                    if probe is None:
                        breaker.outcomes.total += 1
                    else:
                        breaker.record(probe, True, now)
                return result  # type: ignore[return-value]
            except Expired as expired:
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
            await self.clock.sleep(delay)
            now = self._now()
            if now >= end:
                raise self._not_again(
                    failure, f"the deadline passed {(now - end) * 1000:.0f} ms ago, in the wait"
                )
            attempt_timeout = min(self._attempt_timeout, end - now)
            attempt += 1
            probe = token = None

    def _wait_before_retry(self, error: Exception, attempt: int, end: float) -> float | None:
        """Seconds to sleep before the next attempt, whose token is then taken; None if there is to be
        none."""
        retry = self._retry
        if retry is None or not retry.retries(error):
            return None
        if not self.idempotent and not isinstance(error, Refused):
            self._not_again(error, "it may have begun, and the policy was not told that it is idempotent")
            return None
        asked = asked_to_wait(error)
        wait = asked + retry.wait_before(attempt + 1, self._rng)
        left = end - self._now()
        if attempt >= retry.attempts:
            reason = "no more are allowed"
        elif asked > retry.cap:
            reason = f"it asks to be left alone for {asked:.3f} s, and a wait may last {retry.cap:g} s"
        elif wait >= left:
            reason = f"{max(left, 0.0):.3f} s remain, and the next would begin in {wait:.3f} s"
        elif retry.budget is not None and not retry.budget.take():
            self._counts.retries_suppressed += 1
            reason = f"the retry budget is spent (ratio {retry.budget.ratio:g})"
        else:
            self._counts.retried += 1
            self._tell("retried", type(error).__name__, attempt)
            return wait
        error.add_note(f"{self.name}: attempt {attempt} of {retry.attempts} was the last: {reason}")
        return None

    def _deadline_exceeded(self, began: float, end: float, attempt: int) -> DeadlineExceeded:
        self._counts.timed_out += 1
        now = self._now()
        attempts = f"{attempt} attempt" + "s" * (attempt > 1)
        if now < end - TIMER_SLACK:
            return DeadlineExceeded(
                f"{self.name}: attempt {attempt} took longer than {self._attempt_timeout:g} s, "
                f"{now - began:.3f} s into the call"
            )
        return DeadlineExceeded(
            f"{self.name}: no answer within {end - began:.3f} s; given up after {now - began:.3f} s and {attempts}"
        )


class FallingBack(Policy):
    """A policy with a fallback."""

    __slots__ = ()

    async def call(self, fn: Callable[_P, Awaitable[_T]], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        fallback = cast(Fallback, self._fallback)
        budget = cast(FallbackBudget, self._fallback_budget)
        budget.count_call()
        try:
            return await super().call(fn, *args, **kwargs)
        except Exception as error:
            if not fallback.answers(error):
                raise
            if not budget.take():
                self._counts.fallbacks_suppressed += 1
                error.add_note(
                    f"{self.name}: no fallback: its budget is spent ({budget.ratio:g} of the calls of "
                    f"{budget.window:g} s, and {budget.burst})"
                )
                raise
            try:
                answer = fallback.make(error, args, kwargs)
                if isawaitable(answer):
                    answer = await answer
            except Exception as broken:  # the call's failure is the one to raise, with the cause that it has
                error.add_note(f"{self.name}: its fallback failed too: {type(broken).__name__}: {broken}")
            else:
                self._counts.fell_back += 1
                mark_degraded(self.name, error)
                self._tell("fell_back", type(error).__name__)
                return cast(_T, answer)
            raise
