"""Breaker, retry budget and limit against models that keep everything and think slowly.

Times are multiples of 1/4 s and windows of 10 buckets are 10 s long, so that every sum of times is exact.
"""

from __future__ import annotations

import asyncio
import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fairlead.calls import BreakerState, CircuitBreaker, ConcurrencyLimit, FallbackBudget, RetryBudget
from fairlead.calls.circuit_breaker import BreakerPermit
from fairlead.calls.concurrency_limit import LimitPermit
from fairlead.clock import ManualClock
from fairlead.errors import CircuitOpen, Overloaded

WINDOW = 10.0
QUARTERS = st.integers(1, 60).map(lambda quarters: quarters / 4)


def bucket(moment: float) -> int:
    return int(moment // 1.0)


class NoJitter(random.Random):
    def random(self) -> float:
        return 0.0


class BreakerMachine(RuleBasedStateMachine):
    """The model keeps each outcome with its moment, and each call in flight with its start."""

    MINIMUM, RATIO, OPEN_FOR, CAP, PERMITS, HUNG = 4, 0.5, 2.0, 8.0, 2, 3.0
    SLOW_CALL, SLOW_RATIO = 1.0, 0.75
    LAST_CALLS: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.breaker = CircuitBreaker(
            "dep",
            failure_ratio=self.RATIO,
            minimum_calls=self.MINIMUM,
            window=WINDOW,
            last_calls=self.LAST_CALLS,
            slow_call=self.SLOW_CALL,
            slow_ratio=self.SLOW_RATIO,
            open_for=self.OPEN_FOR,
            open_for_cap=self.CAP,
            half_open_permits=self.PERMITS,
            hung_after=self.HUNG,
            clock=self.clock,
            rng=NoJitter(),
        )
        self.state = BreakerState.CLOSED
        self.era = 0
        self.era_began = 0.0
        self.outcomes: list[tuple[float, bool, bool]] = []  # moment, success, slow
        self.open_until = 0.0
        self.failed_probes = 0
        self.out = 0
        self.proven = 0
        # permit, due, era, counted, began
        self.flying: list[tuple[BreakerPermit, float, int, bool, float]] = []

    # The model

    def model_change(self, state: BreakerState) -> None:
        self.state = state
        self.era += 1

    def model_open(self) -> None:
        self.open_until = self.clock.now() + min(self.CAP, self.OPEN_FOR * 2**self.failed_probes)
        self.model_change(BreakerState.OPEN)

    def recent(self) -> list[tuple[float, bool, bool]]:
        if self.LAST_CALLS is not None:
            return self.outcomes[-self.LAST_CALLS :]
        here = bucket(self.clock.now() - self.era_began)
        return [each for each in self.outcomes if bucket(each[0] - self.era_began) > here - 10]

    def model_record(self, era: int, success: bool | None, slow: bool = False) -> None:
        now = self.clock.now()
        if era != self.era:
            return
        if self.state is BreakerState.CLOSED:
            if success is None:
                return
            self.outcomes.append((now, success, slow))
            recent = self.recent()
            failures = sum(not good for _, good, _ in recent)
            slows = sum(late for _, _, late in recent)
            if (
                (slow or not success)
                and len(recent) >= self.MINIMUM
                and (failures >= self.RATIO * len(recent) or slows >= self.SLOW_RATIO * len(recent))
            ):
                self.failed_probes = 0
                self.model_open()
        elif success is None:
            self.out -= 1
        elif success and not slow:
            self.proven += 1
            if self.proven == self.PERMITS:
                self.outcomes = []
                self.era_began = now
                self.model_change(BreakerState.CLOSED)
        else:
            self.failed_probes += 1
            self.model_open()

    def model_ask(self) -> bool:
        now = self.clock.now()
        self.flying = sorted(self.flying, key=lambda call: call[1])
        for index, (permit, due, era, counted, began) in enumerate(self.flying):
            if due <= now and not counted:
                self.flying[index] = (permit, due, era, True, began)
                self.model_record(era, False)
        if self.state is BreakerState.OPEN and now >= self.open_until:
            self.out = self.proven = 0
            self.model_change(BreakerState.HALF_OPEN)
        if self.state is BreakerState.OPEN:
            return False
        if self.state is BreakerState.HALF_OPEN:
            if self.out == self.PERMITS:
                return False
            self.out += 1
        return True

    # What can happen

    @rule()
    def begin(self) -> None:
        allowed = self.model_ask()
        try:
            permit = self.breaker.permit().__enter__()
        except CircuitOpen:
            assert not allowed
        else:
            assert allowed
            patience = self.HUNG if self.state is BreakerState.CLOSED else min(self.HUNG, self.OPEN_FOR)
            now = self.clock.now()
            self.flying.append((permit, now + patience, self.era, False, now))

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), outcome=st.sampled_from([None, ConnectionError(), asyncio.CancelledError()]))
    def end(self, data: st.DataObject, outcome: BaseException | None) -> None:
        permit, _, era, counted, began = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        if not counted:
            neutral = isinstance(outcome, asyncio.CancelledError)
            slow = self.clock.now() - began > self.SLOW_CALL
            self.model_record(era, None if neutral else outcome is None, slow)
        permit.__exit__(type(outcome) if outcome else None, outcome, None)

    @rule(seconds=QUARTERS)
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def same_state(self) -> None:
        assert self.breaker.state is self.state

    @invariant()
    def never_more_probes_than_permits(self) -> None:
        probes = [call for call in self.flying if call[2] == self.era and not call[3]]
        if self.state is BreakerState.HALF_OPEN:
            assert len(probes) + self.proven <= self.PERMITS


class CountingBreakerMachine(BreakerMachine):
    """The same, over the last calls instead of the last seconds."""

    LAST_CALLS = 6


class BudgetMachine(RuleBasedStateMachine):
    """The model keeps the moment of every first attempt and every retry."""

    RATIO, FLOOR = 0.25, 0.5

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.budget = RetryBudget(
            ratio=self.RATIO, floor_per_second=self.FLOOR, window=WINDOW, clock=self.clock
        )
        self.firsts: list[float] = []
        self.retries: list[float] = []

    def recent(self, moments: list[float]) -> int:
        return sum(bucket(moment) > bucket(self.clock.now()) - 10 for moment in moments)

    @rule(times=st.integers(1, 30))
    def first_attempts(self, times: int) -> None:
        for _ in range(times):
            self.budget.first_attempt()
            self.firsts.append(self.clock.now())

    @rule(times=st.integers(1, 8))
    def retry(self, times: int) -> None:
        for _ in range(times):
            allowed = (
                self.recent(self.retries) + 1 <= self.RATIO * self.recent(self.firsts) + self.FLOOR * WINDOW
            )
            assert self.budget.take() == allowed
            if allowed:
                self.retries.append(self.clock.now())

    @rule(seconds=QUARTERS)
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def the_load_is_bounded(self) -> None:
        # In any window, and so over all time: the floor buys FLOOR per second, and one window's worth at the start.
        bound = self.RATIO * len(self.firsts) + self.FLOOR * (self.clock.now() + 2 * WINDOW)
        assert len(self.retries) <= bound


class FallbackBudgetMachine(RuleBasedStateMachine):
    """The model keeps the moment of every call and every answer."""

    RATIO, BURST = 0.125, 3

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.budget = FallbackBudget(ratio=self.RATIO, burst=self.BURST, window=WINDOW, clock=self.clock)
        self.calls: list[float] = []
        self.answers: list[float] = []

    def recent(self, moments: list[float]) -> int:
        return sum(bucket(moment) > bucket(self.clock.now()) - 10 for moment in moments)

    @rule(times=st.integers(1, 30))
    def calls_come(self, times: int) -> None:
        for _ in range(times):
            self.budget.count_call()
            self.calls.append(self.clock.now())

    @rule(times=st.integers(1, 8))
    def calls_fail(self, times: int) -> None:
        for _ in range(times):
            allowed = self.recent(self.answers) + 1 <= self.RATIO * self.recent(self.calls) + self.BURST
            assert self.budget.take() == allowed
            if allowed:
                self.answers.append(self.clock.now())

    @rule(seconds=QUARTERS)
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def what_is_available_is_what_the_model_has_left(self) -> None:
        left = int(self.RATIO * self.recent(self.calls) + self.BURST) - self.recent(self.answers)
        assert self.budget.available == max(0, left)


class LimitMachine(RuleBasedStateMachine):
    """The model counts; the limit must agree, and stay within its bounds."""

    MINIMUM, MAXIMUM = 2, 12

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.limit = ConcurrencyLimit(
            "dep", initial=4, minimum=self.MINIMUM, maximum=self.MAXIMUM, clock=self.clock
        )
        self.flying: list[tuple[LimitPermit, int]] = []
        self.loop = asyncio.new_event_loop()

    def teardown(self) -> None:
        self.loop.close()

    @rule()
    def begin(self) -> None:
        free = len(self.flying) < self.limit.limit
        try:
            permit = self.loop.run_until_complete(self.limit.permit().__aenter__())
        except Overloaded:
            assert not free
        else:
            assert free
            self.flying.append((permit, len(self.flying) + 1))

    @precondition(lambda self: self.flying)
    @rule(
        data=st.data(),
        outcome=st.sampled_from([None, TimeoutError(), ValueError(), asyncio.CancelledError()]),
    )
    def end(self, data: st.DataObject, outcome: BaseException | None) -> None:
        permit, found = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        before = self.limit.limit
        self.loop.run_until_complete(permit.__aexit__(type(outcome) if outcome else None, outcome, None))
        if outcome is None:
            assert before <= self.limit.limit <= before + 1
            if found * 2 < before:
                assert self.limit.limit == before  # it was not used
        elif isinstance(outcome, TimeoutError):
            assert self.limit.limit <= before
        else:
            assert self.limit.limit == before

    @rule(seconds=QUARTERS)
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def counts_and_bounds_hold(self) -> None:
        assert self.limit.in_flight == len(self.flying)
        assert self.MINIMUM <= self.limit.limit <= self.MAXIMUM


_SETTINGS = settings(max_examples=150, stateful_step_count=60, deadline=None)

TestBreaker = BreakerMachine.TestCase
TestBreaker.settings = _SETTINGS
TestCountingBreaker = CountingBreakerMachine.TestCase
TestCountingBreaker.settings = _SETTINGS
TestFallbackBudget = FallbackBudgetMachine.TestCase
TestFallbackBudget.settings = _SETTINGS
TestRetryBudget = BudgetMachine.TestCase
TestRetryBudget.settings = _SETTINGS
TestConcurrencyLimit = LimitMachine.TestCase
TestConcurrencyLimit.settings = _SETTINGS
