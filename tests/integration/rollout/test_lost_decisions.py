"""Decisions that the ledger has and the journal has not: nobody has to guess which of them took place."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from fairlead.clock import ManualClock
from fairlead.errors import DatabaseUnavailable
from fairlead.ledger import Decision, Ledger
from fairlead.rollout import Controller, DecisionLog, Journal
from fairlead.rollout.entry import Asked, Decided, Looked
from fairlead.rollout.judgement import Judgement
from fairlead.store import Database
from tests.unit.rollout.conftest import ServedInMemory, Service, plan

PLAN = plan()


class Rollout:
    """One rollout of a small service, led by one controller after another."""

    def __init__(self, database: Database) -> None:
        self.clock = ManualClock()
        self.traffic = ServedInMemory()
        self.service = Service(self.clock, self.traffic)
        self.ledger = Ledger(database)
        self.journal = Journal.start(database, PLAN, by="ann", clock=self.clock)
        self.decisions = DecisionLog(self.ledger, by="test")

    def controller(self) -> Controller:
        return Controller(
            PLAN,
            journal=self.journal,
            traffic=self.traffic,
            facts=self.service,
            decisions=self.decisions,
            clock=self.clock,
        )

    async def led(self, controller: Controller, seconds: int) -> None:
        for _ in range(seconds // 5):
            self.clock.advance(5.0)
            await controller.step()

    def recorded(self, verdict: Literal["advance", "rollback"]) -> str:
        """As by a controller that was killed before it wrote the journal."""
        looked = Looked(stage=0, guarded_seconds=60.0, evaluations=())
        judgement = Judgement(verdict=verdict, reason="it said so")
        return self.decisions.record(PLAN, self.journal.rollout, judgement, looked, self.clock.utc()).decision

    def decided(self) -> list[Decision]:
        return [each.body for each in self.ledger.decisions(PLAN.name) if isinstance(each.body, Decision)]

    def verdicts(self) -> list[str]:
        return [each.verdict for each in self.decided()]


@pytest.fixture
def rollout(tmp_path: Path) -> Iterator[Rollout]:
    with Database(tmp_path / "fairlead.db") as database:
        database.migrate()
        yield Rollout(database)


async def test_an_advance_that_was_lost_is_taken_back_once(rollout: Rollout) -> None:
    first = rollout.controller()
    await first.begin()
    await rollout.led(first, 50)
    rollout.recorded("advance")
    for _ in range(3):
        await rollout.controller().begin()
    assert rollout.verdicts() == ["advance", "hold"]
    assert "was not carried out" in rollout.decided()[-1].reason
    assert rollout.traffic.served.share == 0.05


async def test_a_rollback_that_was_lost_is_carried_out_and_not_decided_again(rollout: Rollout) -> None:
    first = rollout.controller()
    await first.begin()
    await rollout.led(first, 50)
    lost = rollout.recorded("rollback")
    second = rollout.controller()
    await second.begin()
    assert second.state.phase == "rolled_back"
    assert rollout.traffic.served.latched
    assert rollout.verdicts() == ["rollback"]
    assert second.state.decision == lost
    assert "it said so" in second.state.reason


async def test_a_decision_of_another_rollout_of_the_change_is_no_lost_one(rollout: Rollout) -> None:
    rollout.decisions.record(
        PLAN, f"{rollout.journal.rollout}1", Judgement(verdict="rollback", reason="another"),
        Looked(stage=0, guarded_seconds=60.0, evaluations=()), rollout.clock.utc(),
    )  # fmt: skip
    controller = rollout.controller()
    await controller.begin()
    await rollout.led(controller, 50)
    assert controller.state.phase == "baking"


async def test_a_rollback_after_an_advance_that_could_not_be_written_takes_the_advance_back(
    rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = rollout.controller()
    await controller.begin()
    await rollout.led(controller, 50)
    append = rollout.journal.append

    def full(entries: tuple[object, ...], epoch: int) -> object:
        if any(isinstance(entry, Decided) and entry.verdict == "advance" for entry in entries):
            raise DatabaseUnavailable("fairlead.db: the disk is full")
        return append(entries, epoch)  # type: ignore[arg-type]

    monkeypatch.setattr(rollout.journal, "append", full)
    while not rollout.verdicts():
        await rollout.led(controller, 20)
    rollout.journal.ask(Asked(what="rollback", by="ann", why="complaints"))
    await rollout.led(controller, 5)
    assert rollout.verdicts()[-2:] == ["hold", "rollback"]
    assert rollout.verdicts().count("rollback") == 1


async def test_a_rollback_whose_writing_was_not_known_is_decided_once(
    rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = rollout.controller()
    await controller.begin()
    await rollout.led(controller, 50)
    record, answers = (
        rollout.decisions.record,
        [DatabaseUnavailable("no answer; whether it was written is not known")],
    )

    def late(*args: object) -> object:
        recorded = record(*args)  # type: ignore[arg-type]
        if answers:
            raise answers.pop()
        return recorded

    monkeypatch.setattr(rollout.decisions, "record", late)
    rollout.journal.ask(Asked(what="rollback", by="ann", why="complaints"))
    step = asyncio.create_task(controller.step())
    while not step.done():
        await rollout.clock.run_for(1.0)
        await asyncio.sleep(0.001)
    assert controller.state.phase == "rolled_back"
    assert rollout.verdicts() == ["rollback"]
    (written,) = (
        each.entry
        for each in rollout.journal.read()
        if isinstance(each.entry, Decided) and each.entry.decision
    )
    assert written.decision == [*rollout.ledger.decisions(PLAN.name)][-1].id
