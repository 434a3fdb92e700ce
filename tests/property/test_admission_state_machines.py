"""Rate limiter and load shedder against models that keep everything and think slowly.

Times are multiples of 1/64 s, so that every sum of times is exact.
"""

from __future__ import annotations

import asyncio
import random
from fractions import Fraction

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fairlead.admission import Admission, LoadShedder, RateLimit, RateLimiter
from fairlead.calls import Bulkhead
from fairlead.clock import ManualClock, settle
from fairlead.context import Priority
from fairlead.deadline import Deadline
from fairlead.errors import Overloaded

TICKS = st.integers(1, 256)


class BucketMachine(RuleBasedStateMachine):
    """The model refills its buckets by exact arithmetic and remembers who was seen last."""

    RATE, BURST, CLIENTS = 4, 6, 3

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.limiter = RateLimiter(
            RateLimit(rate=float(self.RATE), burst=self.BURST), clients=self.CLIENTS, clock=self.clock
        )
        self.now = Fraction(0)
        self.buckets: dict[str, tuple[Fraction, Fraction]] = {}  # tokens, when; the last seen is the last

    @rule(client=st.sampled_from("abcde"), quarters=st.integers(0, 32))
    def ask(self, client: str, quarters: int) -> None:
        cost = Fraction(quarters, 4)
        tokens, when = self.buckets.get(client, (Fraction(self.BURST), self.now))
        tokens = min(Fraction(self.BURST), tokens + (self.now - when) * self.RATE)
        allowed = cost <= tokens
        decision = self.limiter.check(client, float(cost))
        assert decision.allowed is allowed
        if allowed:
            tokens -= cost
        elif cost <= self.BURST:
            assert decision.retry_after is not None
            assert abs(decision.retry_after - float((cost - tokens) / self.RATE)) < 1e-6
        else:
            assert decision.retry_after is None
        assert decision.remaining == tokens // 1
        if client in self.buckets or tokens < self.BURST:
            self.buckets.pop(client, None)
            if tokens < self.BURST or not allowed:
                self.buckets[client] = (tokens, self.now)
        if len(self.buckets) > self.CLIENTS:
            del self.buckets[next(iter(self.buckets))]

    @rule(ticks=TICKS)
    def wait(self, ticks: int) -> None:
        self.clock.advance(ticks / 64)
        self.now += Fraction(ticks, 64)

    @invariant()
    def memory_is_bounded(self) -> None:
        assert len(self.limiter) <= self.CLIENTS


class ShedderMachine(RuleBasedStateMachine):
    """The model counts places and knows who may not overtake whom; what it leaves open, it checks by invariants."""

    PLACES, QUEUE, TARGET, INTERVAL = 2, 3, 0.125, 0.5

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = ManualClock()
        self.shedder = LoadShedder(
            "svc",
            limit=Bulkhead("svc", calls=self.PLACES),
            queue=self.QUEUE,
            target=self.TARGET,
            interval=self.INTERVAL,
            clock=self.clock,
            rng=random.Random(1),
        )
        self.holding: list[Admission] = []
        self.asking: list[tuple[asyncio.Task[Admission], Priority, float, float]] = []
        self.asked = self.refused = self.left = 0

    def teardown(self) -> None:
        for task, *_ in self.asking:
            task.cancel()
        self.run(settle())
        self.collect()
        while self.holding:
            self.run(self.holding.pop().__aexit__(None, None, None))
        assert (self.shedder.in_flight, self.shedder.waiting) == (0, 0)
        assert sum(self.shedder.stats.admitted.values()) + self.refused + self.left == self.asked
        self.loop.close()

    def run(self, work: object) -> object:
        return self.loop.run_until_complete(work)  # type: ignore[arg-type]

    def collect(self) -> None:
        """Who was admitted, refused or left since the last look."""
        waiting = []
        for entry in self.asking:
            task = entry[0]
            if not task.done():
                waiting.append(entry)
            elif task.cancelled():
                self.left += 1
            elif (error := task.exception()) is not None:
                assert isinstance(error, Overloaded)
                assert error.retry_after is not None
                self.refused += 1
            else:
                self.holding.append(task.result())
        self.asking = waiting

    @rule(priority=st.sampled_from(Priority), ticks=st.none() | TICKS)
    def ask(self, priority: Priority, ticks: int | None) -> None:
        free = len(self.holding) < self.PLACES
        deadline = Deadline.never(self.clock) if ticks is None else Deadline.after(ticks / 64, self.clock)
        waited_before = len(self.asking)
        lowest = min((entry[1] for entry in self.asking), default=None)
        task = self.loop.create_task(self.shedder.admit(priority, deadline).__aenter__())
        self.asking.append((task, priority, self.clock.now(), deadline.at))
        self.asked += 1
        self.run(settle())
        self.collect()
        if free:
            assert task.done()
            assert task.exception() is None
        elif waited_before < self.QUEUE:
            assert not task.done() or ticks is not None
        elif lowest is not None and lowest < priority:
            assert not task.done() or ticks is not None  # somebody lower made room
        elif lowest is not None and lowest > priority:
            assert task.done()

    @precondition(lambda self: self.holding)
    @rule(data=st.data(), error=st.sampled_from([None, ValueError(), asyncio.CancelledError()]))
    def end(self, data: st.DataObject, error: BaseException | None) -> None:
        admission = self.holding.pop(data.draw(st.integers(0, len(self.holding) - 1)))
        before = {task: priority for task, priority, *_ in self.asking}
        self.run(admission.__aexit__(type(error) if error else None, error, None))
        self.run(settle())
        admitted = [priority for task, priority in before.items() if task.done() and task.exception() is None]
        self.collect()
        for priority in admitted:
            assert all(priority >= still for _, still, *_ in self.asking)

    @precondition(lambda self: self.asking)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.asking[data.draw(st.integers(0, len(self.asking) - 1))][0].cancel()
        self.run(settle())
        self.collect()

    @rule(ticks=TICKS)
    def wait(self, ticks: int) -> None:
        self.run(self.clock.run_for(ticks / 64))
        self.collect()

    @invariant()
    def counts_agree_and_no_place_is_free_while_somebody_waits(self) -> None:
        assert self.shedder.in_flight == len(self.holding) <= self.PLACES
        assert self.shedder.waiting == len(self.asking) <= self.QUEUE
        if self.asking:
            assert len(self.holding) == self.PLACES

    @invariant()
    def nobody_waits_for_too_long(self) -> None:
        now, longest = self.clock.now(), max(self.INTERVAL, 10 * self.shedder._queue.gap)
        for _, _, since, deadline in self.asking:
            assert now <= since + longest + 0.01
            assert now <= deadline + 0.01


_SETTINGS = settings(max_examples=100, stateful_step_count=50, deadline=None)

TestTokenBucket = BucketMachine.TestCase
TestTokenBucket.settings = _SETTINGS
TestLoadShedder = ShedderMachine.TestCase
TestLoadShedder.settings = _SETTINGS
