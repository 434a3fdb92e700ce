"""ManualClock against a model that keeps a plain list and always looks through all of it."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fairlead.clock import ManualClock, Timer

QUARTERS = st.integers(-8, 40).map(lambda quarters: quarters / 4)  # exact in binary, and often equal
SPANS = st.integers(0, 24).map(lambda quarters: quarters / 4)


class Boom(Exception):
    pass


@dataclass
class Planned:
    """One timer of the model: when, what it does besides being logged, and whether it is still to come."""

    name: int
    when: float
    spawns: float | None = None
    """Sets another timer this long after its own run."""
    blocks: float = 0.0
    """Advances the clock from within."""
    cancels: int | None = None
    raises: bool = False
    pending: bool = True


class Model:
    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Planned] = []
        self.log: list[tuple[int, float]] = []

    def add(self, planned: Planned) -> None:
        self.timers.append(planned)

    def advance(self, seconds: float) -> int:
        """How many callbacks raised, those inside the callbacks not counted."""
        end = self.now + seconds
        raised = 0
        while due := [each for each in self.timers if each.pending and each.when <= max(end, self.now)]:
            first = min(due, key=lambda each: (each.when, each.name))
            first.pending = False
            self.now = max(self.now, first.when)
            self.log.append((first.name, self.now))
            if first.cancels is not None and first.cancels < len(self.timers):
                self.timers[first.cancels].pending = False
            if first.spawns is not None:
                self.add(Planned(len(self.timers), self.now + first.spawns))
            if first.blocks:
                self.advance(first.blocks)
            raised += first.raises
        self.now = max(self.now, end)
        return raised


class ClockMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.model = Model()
        self.timers: list[Timer] = []
        self.log: list[tuple[int, float]] = []

    def set_timer(self, planned: Planned) -> None:
        name = len(self.timers)

        def run() -> None:
            self.log.append((name, self.clock.now()))
            if planned.cancels is not None and planned.cancels < len(self.timers):
                self.timers[planned.cancels].cancel()
            if planned.spawns is not None:
                self.set_timer(Planned(len(self.timers), self.clock.now() + planned.spawns))
            if planned.blocks:
                self.move(planned.blocks)
            if planned.raises:
                raise Boom

        self.timers.append(self.clock.call_at(planned.when, run))

    def move(self, seconds: float) -> int:
        try:
            self.clock.advance(seconds)
        except Boom:
            return 1
        except ExceptionGroup as group:
            return len(group.exceptions)
        return 0

    @rule(
        ahead=QUARTERS,
        spawns=st.none() | SPANS,
        blocks=st.just(0.0) | SPANS,
        cancels=st.none() | st.integers(0, 20),
        raises=st.booleans(),
    )
    def call_at(
        self, ahead: float, spawns: float | None, blocks: float, cancels: int | None, raises: bool
    ) -> None:
        planned = (len(self.timers), self.clock.now() + ahead, spawns, blocks, cancels, raises)
        self.set_timer(Planned(*planned))
        self.model.add(Planned(*planned))

    @rule(which=st.integers(0, 20))
    def cancel(self, which: int) -> None:
        if which < len(self.timers):
            self.timers[which].cancel()
            self.model.timers[which].pending = False

    @rule(seconds=SPANS)
    def advance(self, seconds: float) -> None:
        assert self.move(seconds) == self.model.advance(seconds)

    @invariant()
    def same_history(self) -> None:
        assert (self.log, self.clock.now()) == (self.model.log, self.model.now)

    @invariant()
    def time_never_goes_back_and_no_timer_runs_twice(self) -> None:
        moments = [moment for _, moment in self.log]
        assert moments == sorted(moments)
        assert len({name for name, _ in self.log}) == len(self.log)


TestClockModel = ClockMachine.TestCase
TestClockModel.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
