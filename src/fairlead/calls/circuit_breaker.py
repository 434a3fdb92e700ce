"""Stop calling what does not answer, and find out gently when it does again.

Without it, a dead dependency costs each request a full timeout, and the requests that wait hold memory,
connections and permits until the caller dies too.

closed: all calls pass; outcomes are counted over the last seconds, or the last calls; one that finds at least
`minimum_calls`, of which `failure_ratio` failed or `slow_ratio` were slow, opens the breaker. open: every call
is refused at once, for `open_for` seconds, longer after each failed probe. half_open: at most
`half_open_permits` calls pass as probes; when all have succeeded the breaker closes, when one fails it opens
again.

Invariant: every permit ends in exactly one of success, failure or nothing. A cancelled call is nothing:
the caller left, which says nothing about the dependency; a cancelled probe gives its permit back. Our own
timeout is a failure, unless it left less time than any success of late took (`fastest`). A call in flight for
longer than its patience counts as a failure already, so a dependency that hangs opens the breaker before its
timeouts return. Outcomes of calls that began before the last change of state are ignored.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from math import inf
from types import TracebackType

from fairlead.calls.bounds import check_number, check_whole
from fairlead.calls.count_window import CountWindow
from fairlead.calls.rolling_window import RollingWindow
from fairlead.calls.stats import count_words
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.context import current
from fairlead.errors import CircuitOpen, InvalidInput
from fairlead.telemetry.event import StateChanged
from fairlead.telemetry.metrics import MetricRegistry

__all__ = ["BreakerPermit", "BreakerState", "CircuitBreaker"]

_log = logging.getLogger(__name__)

_LONGEST = 86_400.0


class BreakerState(StrEnum):
    """Where a breaker stands; see the module."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """Refuses calls to a dependency that keeps failing. One per dependency and process; not thread-safe.

    name: of the dependency, in errors and events.
    failure_ratio: share of failed calls in the window that opens it, above 0 up to 1.
    minimum_calls: calls in the window below which it never opens. 20: two failures at night are no outage.
    window: seconds of outcomes looked at; without effect once `last_calls` is set.
    last_calls: looks at so many calls instead, whatever their age. For a dependency called so seldom that
        `minimum_calls` never fit into seconds. None: the window is one of time.
    slow_call: seconds after which a call that returned, well or not, was slow; a slow probe has failed. None:
        latency opens nothing. A call that never suspended is never slow.
    slow_ratio: share of slow calls in the window that opens it, above 0 up to 1.
    open_for: seconds of refusal before the first probe; doubles after each failed probe, up to
        `open_for_cap`, and up to a fifth longer at random, so that the workers of a fleet do not probe in
        step.
    half_open_permits: probes that must all succeed to close it, and the most that run at once.
    hung_after: seconds in flight after which a call counts as failed even though it has not returned.
        None: age counts only through the attempt's own timeout, where a Policy sets one. Set it near the
        p99.9 to open before the timeouts return.
    is_failure: which exceptions speak against the dependency; the others count as success, because it
        answered. None: every Exception.
    on_event: called with a StateChanged at each change; it must not block.
    """

    def __init__(
        self,
        name: str,
        *,
        failure_ratio: float = 0.5,
        minimum_calls: int = 20,
        window: float = 10.0,
        last_calls: int | None = None,
        slow_call: float | None = None,
        slow_ratio: float = 0.5,
        hung_after: float | None = None,
        open_for: float = 5.0,
        open_for_cap: float = 60.0,
        half_open_permits: int = 3,
        is_failure: Callable[[Exception], bool] | None = None,
        on_event: Callable[[StateChanged], object] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
    ) -> None:
        check_number("CircuitBreaker.failure_ratio", failure_ratio, above=0.0, high=1.0)
        check_whole("CircuitBreaker.minimum_calls", minimum_calls, low=1, high=1_000_000)
        check_number("CircuitBreaker.window", window, above=0.0, high=_LONGEST)
        check_number("CircuitBreaker.open_for", open_for, above=0.0, high=_LONGEST)
        check_number("CircuitBreaker.open_for_cap", open_for_cap, low=open_for, high=_LONGEST)
        check_whole("CircuitBreaker.half_open_permits", half_open_permits, low=1, high=10_000)
        check_number("CircuitBreaker.slow_ratio", slow_ratio, above=0.0, high=1.0)
        if slow_call is not None:
            check_number("CircuitBreaker.slow_call", slow_call, above=0.0, high=_LONGEST)
        if hung_after is not None:
            check_number("CircuitBreaker.hung_after", hung_after, above=0.0, high=_LONGEST)
        if last_calls is not None:
            check_whole("CircuitBreaker.last_calls", last_calls, low=1, high=1_000_000)
            if minimum_calls > last_calls:
                raise InvalidInput(
                    f"CircuitBreaker.minimum_calls: {minimum_calls} never fit into last_calls = {last_calls}, "
                    "so it would never open; lower the one or raise the other"
                )
        self.name = name
        self.clock = clock
        self.hung_after = hung_after
        self._slow_call = inf if slow_call is None else slow_call
        self._slow_ratio = slow_ratio
        self._failure_ratio = failure_ratio
        self._minimum_calls = minimum_calls
        self._open_for = open_for
        self._open_for_cap = open_for_cap
        self._half_open_permits = half_open_permits
        self._is_failure = is_failure
        self._rng = rng or random.SystemRandom()  # workers forked later must not share its state
        self._listeners: tuple[Callable[[StateChanged], object], ...] = (on_event,) if on_event else ()
        # Policy asks only from this moment on; before it, a call passes and a success is one more in `outcomes`.
        # Never later than the end of the bucket or the first call to fall due, and in the past unless closed.
        self.passes_until = -inf
        self.generation = 0
        self.outcomes = RollingWindow(window, clock.now()) if last_calls is None else CountWindow(last_calls)
        self._closed = True
        self._due = inf
        self._state = BreakerState.CLOSED
        self._open_until = 0.0
        self._failed_probes = 0
        self._free_permits = 0
        self._proven = 0
        self.refused = 0
        """Calls refused since the start."""
        self.changes = dict.fromkeys(BreakerState, 0)
        """How often it became each state since the start."""
        # In flight, by patience: within one patience, order of start is order of falling due.
        self._ages: dict[float, dict[object, tuple[float, int]]] = {}

    @property
    def state(self) -> BreakerState:
        """The state as the last call found or left it; an open breaker turns half_open when it is next
        asked."""
        return self._state

    @property
    def in_flight(self) -> int:
        """Calls whose age is being watched."""
        return sum(map(len, self._ages.values()))

    def refuses(self) -> bool:
        """Whether a call now would be refused, because it is open and no probe is due. Asks nothing, counts nothing."""
        return self._state is BreakerState.OPEN and self.clock.now() < self._open_until

    def subscribe(self, on_event: Callable[[StateChanged], object]) -> None:
        """Adds a receiver of state changes; the same one is added once."""
        if on_event not in self._listeners:
            self._listeners += (on_event,)

    def export(self, registry: MetricRegistry) -> None:
        """Shows its refusals and changes of state in `registry`; Policy.export does it for its own breaker."""
        refused = registry.counter("fairlead_breaker_refused_total", "Calls refused.", labels=("breaker",))
        refused.labels(breaker=self.name).track(lambda: self.refused)
        changes = registry.counter(
            "fairlead_breaker_changes_total", "Changes of state, by the new one.", labels=("breaker", "state")
        )
        count_words(
            changes, self.name, {each: partial(self.changes.__getitem__, each) for each in BreakerState}
        )

    def permit(self) -> BreakerPermit:
        """For use without a Policy: `with breaker.permit(): await call()`; raises CircuitOpen on entry.

        A timeout belongs inside the block: outside it, its cancellation looks like the caller's and counts
        nothing.
        """
        return BreakerPermit(self)

    def judge(self, error: BaseException | None) -> bool | None:
        """True for a success, False for a failure, None for what says nothing (cancellation, interpreter
        exit)."""
        if error is None:
            return True
        if not isinstance(error, Exception):
            return None
        if self._is_failure is None:
            return False
        try:
            return not self._is_failure(error)
        except Exception:  # a broken predicate must not lose the permit of the call that it judges
            _log.exception("%s: is_failure failed for %r", self.name, error)
            return False

    def ask(self, now: float) -> int | None:
        """Lets a call begin, or raises CircuitOpen. Returns the generation of a probe, None for any other
        call.
        """
        if now >= self._due:
            self._count_overdue(now)
        if self._closed:
            if now >= self.outcomes.turns_at:
                self.outcomes.turn(now)
            self.passes_until = min(self._due, self.outcomes.turns_at)
            return None
        if self._state is BreakerState.OPEN:
            if now < self._open_until:
                wait = self._open_until - now
                self.refused += 1
                raise CircuitOpen(
                    f"{self.name}: the circuit is open; next probe in {wait:.1f} s", retry_after=wait
                )
            self._free_permits = self._half_open_permits
            self._proven = 0
            self._become(BreakerState.HALF_OPEN, f"{self._half_open_permits} probes allowed")
        if not self._free_permits:
            self.refused += 1
            raise CircuitOpen(f"{self.name}: the circuit is half open and all its probes are out")
        self._free_permits -= 1
        return self.generation

    def record(self, generation: int, success: bool | None, now: float, began: float = inf) -> None:
        """Ends a permit: True success, False failure, None neither. began: when the call did, if that is known."""
        if generation != self.generation:
            return
        if self._state is BreakerState.OPEN:
            # Nobody holds a permit of an open breaker: this call saw it open in its own first step, by a call
            # nested in it, and no probe has failed.
            return
        slow = now - began > self._slow_call
        if self._closed:
            if success is None:
                return
            window = self.outcomes
            if now >= window.turns_at:
                window.turn(now)
            window.total += 1
            if slow or not success:
                window.slow += slow
                window.part += not success
                self._open_if_failing(now)
        elif success is None:
            self._free_permits += 1
        elif not success or slow:
            self._failed_probes += 1
            self._open(now, f"a probe took {now - began:.3f} s" if success else "a probe failed")
        else:
            self._proven += 1
            if self._proven == self._half_open_permits:
                self._failed_probes = 0
                self.outcomes.reset(now)
                self._become(BreakerState.CLOSED, f"{self._proven} of {self._proven} probes succeeded")

    def watch(self, call: object, generation: int, now: float) -> float:
        """Begins to count the age of a call in flight; returns the patience to hand to `unwatch`."""
        patience = self.hung_after or inf
        if not self._closed:
            # A probe that hangs without a timeout would otherwise hold the breaker half open for ever.
            patience = min(patience, self._open_for)
        if patience != inf:
            ages = self._ages.get(patience)
            if ages is None:
                ages = self._ages[patience] = {}
            ages[call] = (now + patience, generation)
            if now + patience < self._due:
                self._due = now + patience
                self.passes_until = min(self.passes_until, self._due)
        return patience

    def unwatch(self, call: object, patience: float) -> bool:
        """Ends it; False if the call has been counted as a failure already, so its outcome must not be."""
        return patience == inf or self._ages[patience].pop(call, None) is not None

    def _count_overdue(self, now: float) -> None:
        overdue = []
        self._due = inf
        for ages in self._ages.values():
            for call, (due, generation) in ages.items():
                if due > now:
                    self._due = min(self._due, due)
                    break
                overdue.append((ages, call, generation))
        for ages, call, generation in overdue:
            del ages[call]
            self.record(generation, False, now)

    def _open_if_failing(self, now: float) -> None:
        calls, failures = self.outcomes.counts(now)
        if calls < self._minimum_calls:
            return
        if failures >= self._failure_ratio * calls:
            reason = f"{failures} of {calls} calls failed"
        elif self._slow_call != inf and (slow := self.outcomes.slow_calls(now)) >= self._slow_ratio * calls:
            reason = f"{slow} of {calls} calls took longer than {self._slow_call:g} s"
        else:
            return
        self._failed_probes = 0
        self._open(now, reason)

    def _open(self, now: float, reason: str) -> None:
        wait = min(self._open_for_cap, self._open_for * 2.0 ** min(self._failed_probes, 32))
        wait *= 1.0 + 0.2 * self._rng.random()
        self._open_until = now + wait
        self._become(BreakerState.OPEN, f"{reason}; next probe in {wait:.1f} s")

    def _become(self, state: BreakerState, reason: str) -> None:
        previous, self._state = self._state, state
        self.changes[state] += 1
        self._closed = state is BreakerState.CLOSED
        self.passes_until = -inf
        self.generation += 1
        event = StateChanged(
            at_utc_seconds=self.clock.utc(),
            request_id=current().request_id,
            component="circuit_breaker",
            name=self.name,
            previous=previous,
            current=state,
            reason=reason,
        )
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # a broken listener must not fail the request that happened to trip the breaker
                _log.exception("%s: the listener %r failed", self.name, listener)


class BreakerPermit:
    """One call's passage through a breaker, as a context manager; the block's exception is its outcome.

    One block at a time: of two at once, only one outcome would be counted, and a probe's permit be lost.
    """

    __slots__ = ("_began", "_breaker", "_generation", "_patience")

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker
        self._generation: int | None = None

    def __enter__(self) -> BreakerPermit:
        breaker = self._breaker
        if self._generation is not None:
            raise InvalidInput(f"{breaker.name}: a permit is for one block at a time; call permit() for each")
        now = breaker.clock.now()
        probe = breaker.ask(now)
        self._generation = breaker.generation if probe is None else probe
        self._patience = breaker.watch(self, self._generation, now)
        self._began = now
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        breaker = self._breaker
        generation, self._generation = self._generation, None
        if generation is not None and breaker.unwatch(self, self._patience):
            breaker.record(generation, breaker.judge(error), breaker.clock.now(), self._began)
