"""One attempt: within its deadline, through the breaker, under the limit; how it begins, and how it ends.

`Policy` makes calls of attempts; here is what they have in common, apart from the hot path that `Policy.call` writes
out. `Attempt` is the same for a block: one attempt, neither repeated nor replaced, because a block cannot be run again.

Invariant: an attempt that began tells breaker and limit once how it ended, and gives its permits back.
"""

from __future__ import annotations

from asyncio import CancelledError, current_task
from collections.abc import Callable, Coroutine
from contextvars import Token
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from fairlead.calls.attempt_context import AttemptContext
from fairlead.calls.circuit_breaker import BreakerPermit, CircuitBreaker
from fairlead.calls.concurrency_limit import ConcurrencyLimit, is_drop
from fairlead.calls.expiry import Expiries, Expiry, resume
from fairlead.calls.fastest import FastestOfLate
from fairlead.calls.retry import RetryBudget
from fairlead.calls.stats import Counts, tell
from fairlead.clock import Clock
from fairlead.context import (
    RequestContext,
    _current,  # request_context() costs five times the set and reset it stands for
)
from fairlead.deadline import Deadline
from fairlead.errors import CircuitOpen, DeadlineExceeded, InvalidInput, Overloaded, Refused
from fairlead.telemetry.event import Event, PolicyAction

if TYPE_CHECKING:
    from fairlead.calls.hedge import Race

__all__ = ["TIMER_SLACK", "Attempt", "Attempts", "Expired"]

_T = TypeVar("_T")

TIMER_SLACK = 0.002
"""A caller's timer for the same moment may fire this much before our own would have: loops count in milliseconds."""


class Expired(Exception):
    """Our timer ended the attempt; the cancellation that it caused is the cause."""


class Attempts:
    """The parts that all attempts of a policy share, and the ways into and out of them."""

    __slots__ = (
        "_breaker",
        "_counts",
        "_earnings",
        "_fastest",
        "_first_timeout",
        "_limit",
        "_now",
        "_on_event",
        "clock",
        "expiries",
        "name",
    )

    def __init__(
        self,
        *,
        name: str,
        timeout: float,
        attempt_timeout: float,
        budget: RetryBudget | None,
        breaker: CircuitBreaker | None,
        limit: ConcurrencyLimit | None,
        clock: Clock,
        on_event: Callable[[Event], object] | None,
    ) -> None:
        self.name = name
        self._first_timeout = min(timeout, attempt_timeout)
        self.expiries = Expiries(clock)
        """The ends of what is in flight: of attempts, and of answers that outlive theirs."""
        self._fastest = FastestOfLate()
        self._earnings = budget.earnings if budget else None
        self._breaker = breaker
        self._limit = limit
        self.clock = clock
        self._now = clock.now
        self._on_event = on_event
        self._counts = Counts()
        if limit is not None:
            limit.share(self.expiries)
        if breaker is not None and on_event is not None:
            breaker.subscribe(on_event)

    async def _finish(
        self,
        coroutine: Coroutine[Any, Any, _T],
        waits_for: object,
        probe: int | None,
        began: float,
        attempt_end: float,
        race: Race | None = None,
    ) -> _T:
        """The result of an attempt that suspended; raises Expired if our timer, and only it, ended it."""
        breaker = self._breaker
        limit = self._limit
        found = limit.in_flight if limit is not None else 0
        generation = 0
        patience = inf
        if breaker is not None:
            generation = breaker.generation if probe is None else probe
            if breaker.hung_after is not None or probe is not None:
                patience = breaker.watch(coroutine, generation, began)
        expiry = None
        hurried = attempt_end - began < self._first_timeout and self._hurried(began, attempt_end)
        try:
            if attempt_end != inf or (limit is not None and current_task() is not None):
                told = None if hurried else breaker
                expiry = self.expiries.add(attempt_end, told, generation, coroutine, patience)
            result = await resume(coroutine, waits_for)
        except BaseException as error:
            coroutine.close()  # it has ended, unless no timer could be set for it
            beaten = race is not None and race.beaten
            if self._ended(
                error, coroutine, expiry, generation, patience, began, attempt_end, hurried, beaten
            ):
                raise Expired from error
            raise
        now = self._now()
        if expiry is not None:
            self.expiries.close(expiry)
            if expiry.expired:  # and the coroutine swallowed that, so its result stands
                self._overran(coroutine, generation, patience, began, now, hurried)
                return result
        fastest = self._fastest
        if now - began < fastest.seconds or now >= fastest.turns_at:
            fastest.note(now - began, now)
        if breaker is not None and (patience == inf or breaker.unwatch(coroutine, patience)):
            breaker.record(generation, True, now, began)
        if limit is not None:
            limit.succeeded(began, found, now)
        return result

    def _ended(
        self,
        error: BaseException,
        call: object,
        expiry: Expiry | None,
        generation: int,
        patience: float,
        began: float,
        attempt_end: float,
        hurried: bool,
        beaten: bool = False,
    ) -> bool:
        """Tells breaker and limit of an attempt that raised; True if our timer, and only it, cancelled it."""
        breaker = self._breaker
        now = self._now()
        only_ours = expiry is not None and self.expiries.close(expiry)
        expired = expiry is not None and expiry.expired
        cancelled = isinstance(error, CancelledError)
        silent = beaten or (hurried and (expired or cancelled or isinstance(error, TimeoutError)))
        if (hurried or not expired) and breaker is not None and breaker.unwatch(call, patience):
            # Late: a caller's timer for the same moment came first. That is no whim of the caller.
            late = cancelled and now >= attempt_end - TIMER_SLACK
            success = None if silent else False if late else breaker.judge(error)
            breaker.record(generation, success, now, began)
        if self._limit is not None and not silent and (expired or is_drop(error)):
            self._limit.dropped(began, now)
        return only_ours and isinstance(error, CancelledError)

    def _hurried(self, began: float, attempt_end: float) -> bool:
        """Whether an attempt has less time than any success of late needed, so that its timeout says nothing."""
        return attempt_end - began < self._fastest.of_late(began)

    def _overran(
        self, call: object, generation: int, patience: float, began: float, now: float, hurried: bool
    ) -> None:
        """Tells breaker and limit of an attempt that swallowed our cancellation and returned."""
        if not hurried:  # the breaker was told when the timer fired
            if self._limit is not None:
                self._limit.dropped(began, now)
        elif self._breaker is not None and self._breaker.unwatch(call, patience):
            self._breaker.record(generation, None, now, began)

    def _failed_at_once(self, error: BaseException, probe: int | None, now: float) -> None:
        if (breaker := self._breaker) is not None:
            breaker.record(breaker.generation if probe is None else probe, breaker.judge(error), now)
        if self._limit is not None and isinstance(error, Refused):
            self._limit.dropped(now, now)

    def _earn(self, now: float) -> None:
        """Counts an original attempt that is sent now, for the retry budget."""
        if (window := self._earnings) is not None:
            if now >= window.turns_at:
                window.turn(now)
            window.total += 1

    def _too_late(self, late: float) -> DeadlineExceeded:
        self._refuse("DeadlineExceeded")
        return DeadlineExceeded(
            f"{self.name}: the deadline passed {late * 1000:.0f} ms ago, so it was not started"
        )

    def begin_stream(self, deadline: Deadline) -> BreakerPermit | None:
        """For an answer that comes as a stream: asks the deadline and the breaker, whose permit lasts as long as it."""
        left = deadline.remaining()
        if left <= 0.0:
            raise self._too_late(-left)
        if self._breaker is None:
            return None
        try:
            return self._breaker.permit().__enter__()
        except CircuitOpen:
            self._refuse("CircuitOpen")
            raise

    def count_late(self) -> None:
        """Counts an answer that began in time and did not end in time."""
        self._counts.timed_out += 1

    def _refuse(self, reason: str) -> None:
        self._counts.refused += 1
        self._counts.refused_for[reason] += 1
        self._tell("refused", reason)

    def _ask(self, breaker: CircuitBreaker, now: float, failure: Exception | None) -> int | None:
        try:
            return breaker.ask(now)
        except CircuitOpen as refusal:
            self._refuse("CircuitOpen")
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
                # Nothing was sent, so the probe's permit is free again.
                self._breaker.record(probe, None, now)
            if isinstance(error, Overloaded):
                self._refuse("Overloaded")
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

    def _tell(
        self, action: PolicyAction, reason: str, attempt: int = 1, request: RequestContext | None = None
    ) -> None:
        if self._on_event is not None:
            request_id = (request or _current.get()).request_id
            tell(self._on_event, self.clock, self.name, action, reason, attempt, request_id)


class Attempt:
    """One attempt as an async context manager; the block's exception is its outcome. One block at a time."""

    __slots__ = (
        "_attempts",
        "_began",
        "_end",
        "_entered",
        "_expiry",
        "_found",
        "_generation",
        "_hurried",
        "_patience",
        "_token",
    )

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._entered = False

    async def __aenter__(self) -> Attempt:
        if self._entered:
            raise InvalidInput(
                f"{self._attempts.name}: an attempt is for one block at a time; call attempt() for each"
            )
        self._entered = True
        try:
            await self._begin()
        except BaseException:
            self._entered = False
            raise
        return self

    async def _begin(self) -> None:
        attempts = self._attempts
        breaker, limit = attempts._breaker, attempts._limit
        now = attempts._now()
        request = _current.get()
        end = request.deadline.at
        if request.deadline.clock is not attempts.clock:
            end = now + request.deadline.remaining()
        if end <= now:
            raise attempts._too_late(now - end)
        self._end = min(end, now + attempts._first_timeout)
        probe = None
        if breaker is not None and now >= breaker.passes_until:
            probe = attempts._ask(breaker, now, None)
        if limit is not None:
            now = await attempts._wait_for_permit(limit, probe, now, self._end, None)
            self._found = limit.in_flight
        attempts._earn(now)
        self._began = now
        self._patience = inf
        self._generation = 0
        if breaker is not None:
            self._generation = breaker.generation if probe is None else probe
            self._patience = breaker.watch(self, self._generation, now)
        try:
            self._hurried = attempts._hurried(now, self._end)
            told = None if self._hurried else breaker
            self._expiry = attempts.expiries.add(self._end, told, self._generation, self, self._patience)
        except BaseException:  # no task, or no loop that could set a timer: nothing begins
            if breaker is not None and breaker.unwatch(self, self._patience):
                breaker.record(self._generation, None, now)
            if limit is not None:
                limit.give_back()
            raise
        self._token: Token[RequestContext] | None = None
        if self._end < end:
            self._token = _current.set(AttemptContext(request, self._end, attempts.clock))  # type: ignore[arg-type]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        attempts = self._attempts
        self._entered = False
        if self._token is not None:
            try:  # noqa: SIM105 - closed by the garbage collector, in a context that is not ours
                _current.reset(self._token)
            except ValueError:
                pass
        try:
            if error is None:
                self._succeeded()
            elif attempts._ended(
                error,
                self,
                self._expiry,
                self._generation,
                self._patience,
                self._began,
                self._end,
                self._hurried,
            ):
                attempts._counts.timed_out += 1
                raise DeadlineExceeded(
                    f"{attempts.name}: the block was not done within {self._end - self._began:.3f} s"
                ) from error
        finally:
            if attempts._limit is not None:
                attempts._limit.give_back()

    def _succeeded(self) -> None:
        attempts = self._attempts
        limit = attempts._limit
        now = attempts._now()
        attempts.expiries.close(self._expiry)
        if self._expiry.expired:  # and the block swallowed that
            attempts._overran(self, self._generation, self._patience, self._began, now, self._hurried)
            return
        attempts._fastest.note(now - self._began, now)
        breaker = attempts._breaker
        if breaker is not None and breaker.unwatch(self, self._patience):
            breaker.record(self._generation, True, now, self._began)
        if limit is not None:
            limit.succeeded(self._began, self._found, now)
