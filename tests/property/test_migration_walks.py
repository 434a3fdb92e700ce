"""Two processes walk through the stages, up and down, one behind the other, while every call may fail."""

from __future__ import annotations

from collections.abc import Coroutine
from copy import deepcopy
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fairlead.migration import Stage
from tests.property.migration_schedules import KEY, World, drive

STAGES = list(Stage)
BOTH = {stage for stage in Stage if len(stage.plan.writes) == 2}
PROCESSES = st.sampled_from([0, 1])
TOLD = st.sampled_from(["", "", "", "", "before", "after", "stop", "dies"])


class Walk(RuleBasedStateMachine):
    """Up to two operations of each process, and up to two reconciliations, are under way at once."""

    @initialize(stage=st.sampled_from(STAGES))
    def begin(self, stage: Stage) -> None:
        self.world = World()
        self.world.old.rows[KEY] = {"value": "before"}
        self.target = stage
        self.stages = [stage, stage]
        if stage.number >= Stage.LIVE.number:
            drive(self.world.copy())
        self.running: list[tuple[int, Stage, Coroutine[Any, Any, None]]] = []
        self.named = 0

    def start(self, process: int, coroutine: Coroutine[Any, Any, None]) -> None:
        coroutine.send(None)
        self.running.append((process, self.stages[process], coroutine))

    @precondition(lambda self: set(self.stages) == {self.target})
    @rule(up=st.booleans())
    def set_the_flag(self, up: bool) -> None:
        # Every process is there, and so are its operations: the wait that the guide asks for. A flag that goes on
        # before that asks for a jump over a stage, which the gate refuses.
        number = self.target.number + (1 if up else -1)
        if 0 <= number < len(STAGES) and all(stage is self.target for _, stage, _ in self.running):
            self.target = STAGES[number]
            if up and self.target is Stage.LIVE:
                drive(self.world.copy())  # the permit: the backfill has ended

    @rule(process=PROCESSES)
    def take_the_stage_up(self, process: int) -> None:
        going_back = (self.stages[process], self.target) == (Stage.LIVE, Stage.SHADOW_READ)
        if not (going_back and self.world.new.marks):  # what the gate asks for
            self.stages[process] = self.target

    @rule(process=PROCESSES, deletes=st.booleans())
    def write(self, process: int, deletes: bool) -> None:
        if sum(each == process for each, _, _ in self.running) < 2:
            self.named += 1
            value = (
                None
                if deletes and all(write.value is not None for write in self.world.writes)
                else self.named
            )
            self.start(process, self.world.write(self.stages[process], value))

    @rule(process=PROCESSES)
    def copy(self, process: int) -> None:
        if self.stages[process] in (Stage.DUAL_WRITE, Stage.SHADOW_READ) and len(self.running) < 5:
            self.start(process, self.backfill())

    async def backfill(self) -> None:
        await self.world.copy()

    @rule(process=PROCESSES)
    def reconcile(self, process: int) -> None:
        if (
            len(self.stages[process].plan.writes) == 2
            and len(self.running) < 5
            and (self.world.old.marks or self.world.new.marks)
        ):
            self.start(process, self.world.reconcile())

    @precondition(lambda self: self.running)
    @rule(choice=st.integers(0, 5), told=TOLD)
    def go_on(self, choice: int, told: str) -> None:
        operation = self.running[choice % len(self.running)]
        coroutine = operation[2]
        try:
            if told != "dies":
                coroutine.send(told)
            if told in ("dies", "stop"):
                coroutine.close()
                self.running.remove(operation)
        except StopIteration:
            self.running.remove(operation)

    @invariant()
    def versions_never_collide(self) -> None:
        if hasattr(self, "world"):
            old, new = self.world.old, self.world.new
            if KEY in old.versions and old.versions.get(KEY) == new.versions.get(KEY):
                assert old.rows == new.rows

    @invariant()
    def what_was_acknowledged_so_far_would_stay(self) -> None:
        # At each moment, since the next write would cover up what went wrong before it: were all to die now, …
        if hasattr(self, "world") and set(self.stages) <= BOTH:
            world = deepcopy(self.world)
            if min(stage.number for stage in self.stages) < Stage.LIVE.number:
                drive(world.copy())
            world.check(world.finish())

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        for _, _, coroutine in self.running:
            coroutine.close()


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
