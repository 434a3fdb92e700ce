"""Turns away what cannot be served in time, so that what is let in can be.

A service that takes in three times what its dependency can carry does not serve a third of it: everything
waits, every caller gives up before its answer comes, and the dependency works for nobody. Here a
`ConcurrencyLimit` finds out how much may be in flight; what arrives above that waits in a `CodelQueue`, by
priority and for milliseconds, or is refused before any work began.

A request is: admitted at once | queued → admitted | queued → refused (age, deadline, evicted) | refused (full).

Invariants: each admitted request holds one permit from its admission to its end, however it ends. Nobody
waits while a permit is free. A request is refused only while all permits are out. Refusing costs no task, no
call and one timer.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from types import TracebackType
from typing import Literal, get_args

from fairlead.admission.codel import CodelQueue
from fairlead.calls import ConcurrencyLimit, Gradient
from fairlead.calls.bounds import check_number, check_whole
from fairlead.calls.fastest import FastestOfLate
from fairlead.clock import SYSTEM_CLOCK, Clock, Timer
from fairlead.context import Priority, current
from fairlead.deadline import Deadline
from fairlead.errors import DeadlineExceeded, InvalidInput, Overloaded, RateLimited, Refused
from fairlead.telemetry import Counter, MetricRegistry, StateChanged

__all__ = ["Admission", "LoadShedder", "Outcome", "RefusalReason", "ShedderStats"]

_log = logging.getLogger(__name__)

RefusalReason = Literal["age", "deadline", "evicted", "full"]
"""Why a request was turned away. `age`: it waited for longer than the queue may hold it. `deadline`: its
caller could no longer be answered in time. `evicted`: it waited, and the queue was full when a request came
that is to be served before it. `full`: the queue was full of others that are."""

Outcome = Literal["success", "refused", "timeout", "unknown"]
"""How a request went, for the limit: `refused` and `timeout` shrink it, `unknown` says nothing."""

_NORMAL, _OVERLOADED = "normal", "overloaded"
_CALM = 1.0  # seconds without a refusal after which the state is called normal again
_TIMER_SLACK = 0.002  # uvloop's timers may ring that much early
_SHORTEST_RETRY, _LONGEST_RETRY = 1.0, 30.0  # Retry-After counts in whole seconds
_RETRY_SPREAD = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ShedderStats:
    """What one shedder did in this process since it was made."""

    admitted: dict[Priority, int]
    refused: dict[tuple[Priority, RefusalReason], int]
    """Refusals that happened; a pair that never did is left out."""
    left: int
    """Requests whose caller was cancelled while they queued."""


class LoadShedder:
    """Admits as much as is served in time, highest priority first. Per process; not thread-safe.

    name: of what is protected, in errors, events and metrics.
    limit: how much may be in flight; its own: one that a Policy or another shedder uses is refused. Gradient() by
        default: it follows the latency, which rises long before callers give up. Aimd() learns only from
        requests that time out, so it needs callers that say their deadline. `max_wait` of the limit is not used.
    queue: requests that may wait at once, over all priorities, 0 to 100,000.
    target, interval: seconds; a request waits `interval` at most, and `target` at most once the queue of its
        priority has not been empty for `interval`. 5 and 100 ms, as in RFC 8289; both grow where places come
        free more slowly than that. A tenth of what callers wait is a good interval.
    metrics: where counters and gauges are kept; private by default.
    on_event: called with a StateChanged when refusals begin, and when there was none for a second.

    >>> import asyncio
    >>> async def main():
    ...     shedder = LoadShedder("feed")
    ...     async with shedder.admit(Priority.CRITICAL):
    ...         return shedder.in_flight
    >>> asyncio.run(main())
    1
    """

    def __init__(
        self,
        name: str,
        *,
        limit: ConcurrencyLimit | None = None,
        queue: int = 256,
        target: float = 0.005,
        interval: float = 0.1,
        metrics: MetricRegistry | None = None,
        on_event: Callable[[StateChanged], object] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
    ) -> None:
        check_whole("LoadShedder.queue", queue, low=0, high=100_000)
        check_number("LoadShedder.target", target, above=0.0, high=60.0)
        check_number("LoadShedder.interval", interval, low=target, high=60.0)
        self.name = name
        self.limit = limit or ConcurrencyLimit(name, algorithm=Gradient(), clock=clock)
        self.limit.reserve(self, f"LoadShedder {name!r}")
        self.clock = clock
        self._bound = queue
        self._queue: CodelQueue[_Waiter] = CodelQueue(target=target, interval=interval)
        self._rng = rng or random.SystemRandom()  # workers forked later must not share its state
        self._on_event = on_event
        self._left = 0
        self._state = _NORMAL
        self._refused_at = -inf
        self._fastest = FastestOfLate()
        self._count(metrics or MetricRegistry())

    def _count(self, metrics: MetricRegistry) -> None:
        admitted = metrics.counter(
            "fairlead_admission_admitted_total", "Requests that got a permit.", labels=("shedder", "priority")
        )
        refused = metrics.counter(
            "fairlead_admission_refused_total",
            "Requests turned away before any work began.",
            labels=("shedder", "priority", "reason"),
        )
        waited = metrics.histogram(
            "fairlead_admission_queue_seconds",
            "Time in the queue of requests that were admitted from it.",
            labels=("shedder", "priority"),
        )
        named = {priority: priority.name.lower() for priority in Priority}
        self._admitted = [admitted.labels(shedder=self.name, priority=named[each]) for each in Priority]
        self._waited = [waited.labels(shedder=self.name, priority=named[each]) for each in Priority]
        self._refused: dict[tuple[Priority, RefusalReason], Counter] = {
            (each, reason): refused.labels(shedder=self.name, priority=named[each], reason=reason)
            for each in Priority
            for reason in get_args(RefusalReason)
        }
        gauges: tuple[tuple[str, str, Callable[[], float]], ...] = (
            ("fairlead_admission_limit", "Requests that may be in flight.", lambda: self.limit.limit),
            ("fairlead_admission_in_flight", "Requests in flight.", lambda: self.limit.in_flight),
            ("fairlead_admission_waiting", "Requests in the queue.", lambda: len(self._queue)),
        )
        for gauge, meaning, read in gauges:
            metrics.gauge(gauge, meaning, labels=("shedder",)).labels(shedder=self.name).track(read)

    @property
    def in_flight(self) -> int:
        """Requests that hold a permit."""
        return self.limit.in_flight

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def state(self) -> str:
        """`overloaded` if it refused one within the second before it was last asked, else `normal`."""
        return self._state

    @property
    def stats(self) -> ShedderStats:
        """The counters now."""
        return ShedderStats(
            admitted={each: int(self._admitted[each].value) for each in Priority},
            refused={key: int(counter.value) for key, counter in self._refused.items() if counter.value},
            left=self._left,
        )

    def admit(self, priority: Priority | None = None, deadline: Deadline | None = None) -> Admission:
        """`async with shedder.admit(): …` does the block when there is a place for it.

        priority, deadline: those of the current RequestContext unless given. Raises Overloaded, with
        `retry_after`, when the request is refused, and DeadlineExceeded when its deadline had passed before.
        Cancelled while it waits, it leaves the queue; cancelled later, it gives its place back.
        """
        return Admission(self, priority, deadline)

    async def _enter(self, priority: Priority, deadline: Deadline) -> None:
        limit = self.limit
        if not isinstance(
            priority, Priority
        ):  # before a place is taken: what raises after that keeps it for ever
            raise InvalidInput(f"{self.name}: {priority!r} is not a Priority")
        if deadline.at != inf:
            try:
                deadline.check(self.name)
            except DeadlineExceeded:
                self._refused[priority, "deadline"].add()
                raise
        if self._state is not _NORMAL:
            self._calm_down(self.clock.now())
        if limit.in_flight < limit.limit and not self._queue:
            limit.in_flight += 1
        else:
            await self._wait(priority, deadline)
        self._admitted[priority].add()

    async def _wait(self, priority: Priority, deadline: Deadline) -> None:
        now = self.clock.now()
        self._serve(now)
        if self.limit.in_flight < self.limit.limit:
            self.limit.in_flight += 1  # those who waited had waited for too long
            return
        if len(self._queue) >= self._bound:
            victim = self._queue.make_room(priority, now) if self._bound else None
            if victim is None:
                raise self._refusal(priority, "full", now, 0.0)
            victim.refuse("evicted")
        waiter = _Waiter(priority, now, self._useful_until(deadline, now))
        self._queue.add(waiter)
        self._arm(waiter, now)
        try:
            verdict = await waiter.verdict
        except BaseException:
            self._left += 1
            self._leave(waiter)
            raise
        finally:
            waiter.timer.cancel()
        now = self.clock.now()
        if verdict != "":
            raise self._refusal(priority, verdict, now, now - waiter.queued_at)
        self._waited[priority].observe(now - waiter.queued_at)

    def _useful_until(self, deadline: Deadline, now: float) -> float:
        if deadline.at == inf:
            return inf
        # No answer comes faster than the fastest of late; a place held by one that is hopeless is lost to the others.
        return now + deadline.remaining() - self._fastest.of_late(now)

    def _arm(self, waiter: _Waiter, now: float) -> None:
        due = self._queue.due(waiter, now)
        waiter.timer = self.clock.call_at(due, partial(self._fall_due, waiter))

    def _fall_due(self, waiter: _Waiter) -> None:
        if waiter.verdict.done():
            return
        now = self.clock.now() + _TIMER_SLACK
        if now < self._queue.due(waiter, now):
            self._arm(waiter, now)
            return
        self._queue.discard(waiter)
        waiter.refuse("deadline" if waiter.useful_until <= now else "age")

    def _leave(self, waiter: _Waiter) -> None:
        """The caller was cancelled: out of the queue, or out of the place that it was given in this very turn."""
        self._queue.discard(waiter)
        if waiter.verdict.done() and not waiter.verdict.cancelled() and waiter.verdict.result() == "":
            self._give_back()

    def _give_back(self) -> None:
        limit = self.limit
        limit.in_flight -= 1
        if self._queue:
            now = self.clock.now()
            self._queue.place_freed(now)
            self._serve(now)

    def _serve(self, now: float) -> None:
        """Sends the overdue away and hands free places to those who are next."""
        queue, limit = self._queue, self.limit
        for waiter in queue.overdue(now):
            waiter.refuse("deadline" if waiter.useful_until <= now else "age")
        while limit.in_flight < limit.limit and (following := queue.take(now)) is not None:
            if following.useful_until <= now:
                following.refuse("deadline")
            elif following.admit():
                limit.in_flight += 1

    def _refusal(self, priority: Priority, reason: RefusalReason, now: float, waited: float) -> Overloaded:
        self._refused[priority, reason].add()
        self._refused_at = now
        if self._state is _NORMAL:
            self._become(_OVERLOADED, f"{self.in_flight} in flight, {len(self._queue)} waiting: {reason}")
        drained = (self._queue.ahead_of(priority) + 1) * self._queue.gap
        base = min(max(drained, _SHORTEST_RETRY), _LONGEST_RETRY)
        # Wide enough that whole seconds, rounded up, still differ: those refused together must not return together.
        wait = base + (base + _RETRY_SPREAD) * self._rng.random()
        after = f" after {waited:.3f} s in the queue" if waited else ""
        return Overloaded(
            f"{self.name}: {self.limit.in_flight} of {self.limit.limit} requests are in flight; refused{after} "
            f"(priority {priority.name.lower()}, reason {reason}); try again in {wait:.1f} s",
            retry_after=wait,
        )

    def _calm_down(self, now: float) -> None:
        if now - self._refused_at >= _CALM:
            self._become(_NORMAL, f"no refusal for {now - self._refused_at:.1f} s")

    def _become(self, state: str, reason: str) -> None:
        previous, self._state = self._state, state
        if self._on_event is None:
            return
        event = StateChanged(
            at_utc_seconds=self.clock.utc(),
            request_id=current().request_id,
            component="load_shedder",
            name=self.name,
            previous=previous,
            current=state,
            reason=reason,
        )
        try:
            self._on_event(event)
        except Exception:  # a broken listener must not fail the request that happened to be the first refused
            _log.exception("%s: the listener %r failed", self.name, self._on_event)

    def _measure(self, began: float, found: int, outcome: Outcome) -> None:
        now = self.clock.now()
        if outcome == "success":
            self.limit.succeeded(began, found, now)
            self._fastest.note(now - began, now)
        elif outcome == "refused" or (outcome == "timeout" and now - began >= self._fastest.of_late(now)):
            # A timeout shorter than any success says nothing: callers who name 1 ms must not shrink the limit.
            self.limit.dropped(began, now)
        if self._queue:
            self._serve(now)  # the limit may have grown


class _Waiter:
    """A request in the queue; its verdict is the reason of its refusal, or "" when it is admitted."""

    __slots__ = ("priority", "queued_at", "timer", "useful_until", "verdict")

    def __init__(self, priority: Priority, queued_at: float, useful_until: float) -> None:
        self.priority = priority
        self.queued_at = queued_at
        self.useful_until = useful_until
        self.verdict: asyncio.Future[RefusalReason | Literal[""]] = asyncio.get_running_loop().create_future()
        self.timer: Timer

    def admit(self) -> bool:
        """Wakes the request; False if its caller has left, or its event loop was closed around it."""
        if self.verdict.done() or self.verdict.get_loop().is_closed():
            return False
        self.verdict.set_result("")
        return True

    def refuse(self, reason: RefusalReason) -> None:
        if not (self.verdict.done() or self.verdict.get_loop().is_closed()):
            self.verdict.set_result(reason)


class Admission:
    """One request's place in the service, as an async context manager; entered once.

    How the block ends tells the limit how the request went: a TimeoutError or a Refused (but RateLimited) is a
    drop, a normal end a success, anything else says nothing. `measure` tells it earlier.
    """

    __slots__ = ("_began", "_deadline", "_found", "_measured", "_priority", "_shedder")

    def __init__(self, shedder: LoadShedder, priority: Priority | None, deadline: Deadline | None) -> None:
        self._shedder = shedder
        self._priority = priority
        self._deadline = deadline
        self._measured = True  # until it was entered, there is nothing to measure

    async def __aenter__(self) -> Admission:
        if not self._measured:
            raise InvalidInput(f"{self._shedder.name}: an admission is entered once; call admit() again")
        shedder, context = self._shedder, current()
        await shedder._enter(
            context.priority if self._priority is None else self._priority,
            context.deadline if self._deadline is None else self._deadline,
        )
        self._began = shedder.clock.now()
        self._found = shedder.limit.in_flight
        self._measured = False
        return self

    def measure(self, outcome: Outcome) -> None:
        """Tells the limit now how the request went, and how long it took; the place is kept until the block ends.

        For answers that go on, such as streams: their length says nothing about what lies behind. Only the
        first call counts.
        """
        if not self._measured:
            self._measured = True
            self._shedder._measure(self._began, self._found, outcome)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.measure(_outcome_of(error))
        self._shedder._give_back()


def _outcome_of(error: BaseException | None) -> Outcome:
    if error is None:
        return "success"
    if isinstance(error, TimeoutError):
        return "timeout"
    # Who asked for more than their share did not find the service overloaded.
    return "refused" if isinstance(error, Refused) and not isinstance(error, RateLimited) else "unknown"
