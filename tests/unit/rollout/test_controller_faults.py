"""Sources, disks, drivers and clocks that fail under a controller: treatment never stays without a guard for long."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from fairlead.errors import BrokenDocument, DatabaseUnavailable, InvalidInput, TrafficUnavailable
from fairlead.metrics import Reading
from fairlead.rollout import Guardrail, RolloutPlan, Split, Stage
from fairlead.rollout.controller import Controller
from fairlead.rollout.entry import Asked, Had, Paged, Wanted
from fairlead.rollout.evidence import Recorded
from fairlead.rollout.people import Notice
from fairlead.rollout.state import RolloutState, fold
from fairlead.rollout.tally import Tally
from tests.unit.rollout.conftest import ERRORS

if TYPE_CHECKING:
    from tests.unit.rollout.conftest import World

Make = Callable[..., "World"]
MakePlan = Callable[..., RolloutPlan]

LIMIT = Guardrail(metric=ERRORS, above=0.1, for_seconds=120.0)


async def led(world: World, seconds: float, controller: Controller | None = None) -> RolloutState:
    """Leads the rollout turn by turn, five seconds each, for so long or to its end."""
    if controller is None:
        controller = world.controller()
        await controller.begin()
    for _ in range(round(seconds / 5)):
        if controller.state.ended:
            break
        world.clock.advance(5.0)
        await controller.step()
    return controller.state


class Ledger:
    """Takes decisions, unless it is told to fail."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, str]] = []
        self.failure: Exception | None = None

    def record(self, plan: object, rollout: str, judgement: object, looked: object, at: float) -> Recorded:
        if self.failure is not None:
            raise self.failure
        self.taken.append((judgement.verdict, judgement.reason))  # type: ignore[attr-defined]
        return Recorded()

    def unknown(self, plan: object, rollout: str, last: str) -> None:
        return None


def with_ledger(world: World, ledger: Ledger) -> Controller:
    return Controller(
        world.plan,
        journal=world.journal,
        traffic=world.traffic,
        facts=world.service,
        decisions=ledger,  # type: ignore[arg-type]
        clock=world.clock,
    )


def with_notice(world: World, notice: Notice) -> Controller:
    return Controller(
        world.plan,
        journal=world.journal,
        traffic=world.traffic,
        facts=world.service,
        clock=world.clock,
        notice=notice,
    )


# Sources of figures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [PermissionError("events"), RuntimeError("a defect")], ids=["os", "defect"])
async def test_a_source_of_events_that_breaks_neither_ends_the_guard_nor_passes(
    make_world: Make, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    world = make_world()
    controller = world.controller()
    await controller.begin()
    await led(world, 60, controller)

    async def broken(tally: object) -> None:
        raise error

    monkeypatch.setattr(world.service, "gather", broken)
    state = await led(world, 300, controller)
    assert (state.stage, state.phase) == (0, "frozen")
    assert state.evaluations[0].reason == "query_error"
    assert str(error) in state.evaluations[0].detail


async def test_a_reading_that_raises_is_a_reason(make_world: Make, make_plan: MakePlan) -> None:
    world = make_world(make_plan(guardrails=(LIMIT,)))

    def broken(guardrail: object) -> Reading:
        raise OSError("connection reset")

    world.service.reading = broken
    state = await led(world, 60)
    assert state.evaluations[0].reason == "query_error"
    assert "connection reset" in state.evaluations[0].detail


async def test_sources_that_hang_are_waited_for_no_longer_than_settle(
    make_world: Make, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(make_plan(guardrails=(LIMIT,), settle=0.02))

    async def hanging(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(world.service, "gather", hanging)
    monkeypatch.setattr(world.service, "read", hanging)
    state = await led(world, 60)
    assert state.evaluations[0].reason == "query_error"
    world.journal.ask(Asked(what="rollback", by="ann"))
    state = await led(world, 5)
    assert state.phase == "rolled_back"


async def test_figures_that_are_gone_for_good_freeze_and_are_rolled_back(
    make_world: Make, make_plan: MakePlan
) -> None:
    world = make_world(make_plan(guardrails=(LIMIT,), patience=300.0))
    world.service.reading = lambda _: Reading(value=None, reason="query_error", detail="no answer")
    state = await led(world, 200)
    assert (state.phase, state.guarded_seconds) == ("frozen", 0.0)
    state = await led(world, 400)
    assert state.phase == "rolled_back"
    assert "no guardrail has a figure: no answer" in state.reason


async def test_figures_that_come_back_thaw(make_world: Make, make_plan: MakePlan) -> None:
    world = make_world(make_plan(guardrails=(LIMIT,), stages=(Stage(share=0.1, bake=500.0),)))
    world.service.reading = lambda _: Reading(value=None, reason="stale")
    assert (await led(world, 200)).phase == "frozen"
    world.service.reading = lambda _: None
    assert (await led(world, 60)).phase == "baking"


async def test_one_event_beyond_all_bounds_ends_no_guard(
    make_world: Make, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    mean = replace(ERRORS, name="latency", kind="mean", field="latency_seconds", unit="seconds")
    world = make_world(make_plan(guardrails=(Guardrail(metric=mean, worse_by=0.5), LIMIT)))
    controller = world.controller()
    await controller.begin()
    await led(world, 60, controller)
    gather = world.service.gather

    async def with_one_more(tally: Tally) -> None:
        await gather(tally)
        event = {
            "at_utc_seconds": world.clock.utc(),
            "targeting_key": "x",
            "variant": "treatment",
            "latency_seconds": 1e200,
        }
        tally.see("request_finished", event)

    monkeypatch.setattr(world.service, "gather", with_one_more)
    world.service.treatment_errors = 0.9
    state = await led(world, 400, controller)
    assert state.phase == "rolled_back"
    assert "above 0.1" in state.reason


# Traffic and journal ------------------------------------------------------------------------------------------------


async def test_traffic_that_serves_something_else_than_was_set_is_rolled_back_in_time(
    make_world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    read = world.traffic.read

    async def stuck() -> Split:
        served = await read()
        return served if served.latched else Split(share=0.5)

    monkeypatch.setattr(world.traffic, "read", stuck)
    state = await led(world, 100)
    assert state.phase == "rolled_back"
    assert "memory serves 50.0000% and not 5.0000%" in state.reason


async def test_one_failure_to_move_traffic_back_does_not_end_a_good_rollout(
    make_world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    controller = world.controller()
    await controller.begin()
    await led(world, 100, controller)
    world.traffic.served = replace(world.traffic.served, share=0.0)
    set_, failures = world.traffic.set, [TrafficUnavailable("memory: a hiccup")]

    async def once(split: Split) -> None:
        if failures:
            raise failures.pop()
        await set_(split)

    monkeypatch.setattr(world.traffic, "set", once)
    state = await led(world, 60, controller)
    assert state.phase == "baking"
    assert world.traffic.served.share == 0.05


@pytest.mark.parametrize("kind", [Wanted, Had], ids=["wanted", "had"])
async def test_a_step_that_cannot_be_written_down_is_taken_back_in_time(
    make_world: Make, monkeypatch: pytest.MonkeyPatch, kind: type[object]
) -> None:
    world = make_world()
    append, full = world.journal.append, True

    def refusing(entries: list[object], epoch: int) -> object:
        if full and not (isinstance(entries[0], Wanted) and kind is Had):
            raise DatabaseUnavailable("fairlead.db: the disk is full")
        return append(entries, epoch)  # type: ignore[arg-type]

    monkeypatch.setattr(world.journal, "append", refusing)
    controller = world.controller()
    await controller.begin()
    task = asyncio.create_task(controller.run())
    for _ in range(100):
        await world.clock.run_for(1.0)
    assert world.traffic.served.latched
    full = False
    for _ in range(10):
        await world.clock.run_for(1.0)
    assert (await task).phase == "rolled_back"


async def test_a_driver_with_a_defect_does_not_keep_treatment(
    make_world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    await led(world, 60)
    set_, failures = world.traffic.set, [KeyError("slots"), KeyError("slots")]

    async def defective(split: Split) -> None:
        if split.latched and failures:
            raise failures.pop()
        await set_(split)

    monkeypatch.setattr(world.traffic, "set", defective)
    world.journal.ask(Asked(what="rollback", by="ann"))
    task = asyncio.create_task(world.controller().run())
    for _ in range(10):
        await world.clock.run_for(1.0)
    assert (await task).phase == "rolled_back"
    assert world.traffic.served.share == 0.0


async def test_a_decision_that_can_never_be_written_is_rolled_back_after_patience(
    make_world: Make, make_plan: MakePlan
) -> None:
    world = make_world(make_plan(patience=300.0, stages=(Stage(share=0.2, bake=40.0), Stage(share=1.0))))
    ledger = Ledger()
    ledger.failure = InvalidInput("evidence: low is no number")
    controller = with_ledger(world, ledger)
    await controller.begin()
    state = await led(world, 600, controller)
    assert state.phase == "rolled_back"
    assert "nothing could be written down" in state.reason


async def test_how_long_a_rollback_took_is_not_how_long_the_ledger_took(make_world: Make) -> None:
    world = make_world()
    await led(world, 60)
    ledger = Ledger()
    ledger.failure = DatabaseUnavailable("fairlead.db: locked")
    controller = with_ledger(world, ledger)
    began = world.clock.now()
    task = asyncio.create_task(controller.take_back("drill"))
    while not task.done():
        await world.clock.run_for(1.0)
        await asyncio.sleep(0.001)  # the ledger is asked in a thread
        if world.clock.now() > began + 20:
            ledger.failure = None
    assert task.result().phase == "rolled_back"
    assert controller.withdrawn_at is not None
    assert controller.withdrawn_at <= began + 1


async def test_an_entry_of_a_newer_version_ends_in_a_rollback_when_there_is_harm_and_in_an_error(
    make_world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    controller = world.controller()
    await controller.begin()
    await led(world, 60, controller)

    def newer(after: int = 0) -> list[object]:
        raise BrokenDocument("no entry of a rollout: kind 'blessed'")

    monkeypatch.setattr(world.journal, "read", newer)
    assert (await led(world, 60, controller)).phase == "baking"
    entries = len(world.journal._entries)
    world.service.treatment_errors = 0.9
    with pytest.raises(BrokenDocument):
        await led(world, 200, controller)
    assert world.traffic.served.latched
    monkeypatch.undo()
    assert fold("feed/1", world.journal.read()).phase == "rolled_back"
    assert len(world.journal._entries) < entries + 40


async def test_what_was_written_and_could_not_be_read_again_is_written_once(
    make_world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    await led(world, 60)
    append, read, gone = world.journal.append, world.journal.read, [False]

    def then_gone(entries: list[object], epoch: int) -> object:
        gone[0] = True
        return append(entries, epoch)  # type: ignore[arg-type]

    def once(after: int = 0) -> object:
        if gone[0]:
            gone[0] = False
            raise DatabaseUnavailable("fairlead.db: did not answer")
        return read(after)

    monkeypatch.setattr(world.journal, "append", then_gone)
    monkeypatch.setattr(world.journal, "read", once)
    world.journal.ask(Asked(what="rollback", by="ann"))
    task = asyncio.create_task(world.controller().run())
    for _ in range(20):
        await world.clock.run_for(1.0)
    assert (await task).phase == "rolled_back"
    kinds = world.kinds()
    assert (kinds.count("decided"), kinds.count("ended")) == (2, 1)  # the first is a hold


async def test_traffic_that_cannot_be_read_after_a_refusal_is_asked_again(
    make_world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    controller = world.controller()
    await controller.begin()
    await led(world, 60, controller)
    world.journal.append([Wanted(stage=1, share=0.5)], controller._epoch)
    world.traffic.served = replace(world.traffic.served, share=0.0, latched=True)
    read, failures = world.traffic.read, [TrafficUnavailable("memory: a hiccup")]

    async def once() -> Split:
        if failures:
            raise failures.pop()
        return await read()

    monkeypatch.setattr(world.traffic, "read", once)
    assert (await led(world, 20, controller)).phase == "rolled_back"


# Who leads, and what was asked --------------------------------------------------------------------------------------


async def test_what_was_wished_while_nobody_led_outranks_the_step_that_was_begun(make_world: Make) -> None:
    world = make_world()
    controller = world.controller()
    await controller.begin()
    await led(world, 60, controller)
    # Killed between the entry and the move.
    world.journal.append([Wanted(stage=1, share=0.5)], controller._epoch)
    world.journal.ask(Asked(what="rollback", by="ann"))
    before = len(world.traffic.sets)
    state = await led(world, 5)
    assert state.phase == "rolled_back"
    assert [split.share for split in world.traffic.sets[before:]] == [0.0]


@pytest.mark.parametrize("wish", ["rollback", "pause"])
@pytest.mark.parametrize("moment", ["gather", "append"])
async def test_a_wish_that_comes_during_a_look_outranks_what_the_look_decides(
    make_world: Make, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch, wish: str, moment: str
) -> None:
    world = make_world(make_plan(stages=(Stage(share=0.2, bake=40.0), Stage(share=1.0)), guardrails=(LIMIT,)))
    gather, append = world.service.gather, world.journal.append

    async def asking(tally: Tally) -> None:
        await gather(tally)
        if moment == "gather":
            world.journal.ask(Asked(what=wish, by="ann"))  # type: ignore[arg-type]

    def asked(entries: list[object], epoch: int) -> object:
        if moment == "append" and isinstance(entries[-1], Wanted) and entries[-1].stage == 1:
            world.journal.ask(Asked(what=wish, by="ann"))  # type: ignore[arg-type]
        return append(entries, epoch)  # type: ignore[arg-type]

    monkeypatch.setattr(world.service, "gather", asking)
    monkeypatch.setattr(world.journal, "append", asked)
    state = await led(world, 100)
    if wish == "rollback":
        assert state.phase == "rolled_back"
        assert max(split.share for split in world.traffic.sets) == 0.2
    else:
        assert state.phase == "paused"
        assert state.stage == (
            0 if moment == "gather" else 1
        )  # the step was written before anybody could know


async def test_a_controller_with_another_plan_does_not_stop_the_one_that_leads(
    make_world: Make, make_plan: MakePlan
) -> None:
    world = make_world()
    controller = world.controller()
    await controller.begin()
    await led(world, 30, controller)
    world.plan = make_plan(alpha=0.01)
    with pytest.raises(InvalidInput, match="another plan"):
        await world.controller("second").begin()
    state = await led(world, 30, controller)
    assert state.leader == "first"


async def test_a_rollout_that_has_ended_is_not_claimed(make_world: Make) -> None:
    world = make_world()
    world.journal.ask(Asked(what="rollback", by="ann"))
    await led(world, 5)
    entries = len(world.journal.read())
    assert (await world.controller("late").run()).phase == "rolled_back"
    assert len(world.journal.read()) == entries


# Deadlines ----------------------------------------------------------------------------------------------------------


async def test_starting_again_does_not_put_off_the_deadline_of_a_gate(
    make_world: Make, make_plan: MakePlan
) -> None:
    stages = (Stage(share=0.2, bake=40.0, gate="manual"), Stage(share=1.0, bake=0.0))
    world = make_world(make_plan(stages=stages, patience=300.0))
    state = await led(world, 200)
    assert state.phase == "gate"
    for _ in range(6):
        state = await led(world, 100)
    assert state.phase == "rolled_back"
    assert "nobody opened the gate" in state.reason


async def test_starting_again_does_not_forgive_a_limit_that_is_broken(
    make_world: Make, make_plan: MakePlan
) -> None:
    world = make_world(make_plan(guardrails=(LIMIT,)), treatment_errors=0.5)
    for _ in range(4):
        state = await led(world, 60)
    assert state.phase == "rolled_back"
    assert "errors above 0.1 for 120 s" in state.reason


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
async def test_a_service_that_is_gone_freezes_whichever_arm_reported_last(
    make_world: Make, make_plan: MakePlan, share: float
) -> None:
    for seconds in (60, 65, 70, 75, 80, 85):
        world = make_world(
            make_plan(stages=(Stage(share=share, bake=900.0),), look_every=5.0, guardrails=(LIMIT,)),
            rate=10.0,
        )
        controller = world.controller()
        await controller.begin()
        await led(world, seconds, controller)
        world.service.silent = frozenset({"control", "treatment"})
        assert (await led(world, 80, controller)).phase == "frozen"


async def test_chance_alone_does_not_make_treatment_silent(make_world: Make, make_plan: MakePlan) -> None:
    world = make_world(make_plan(stages=(Stage(share=0.0001, bake=900.0),), guardrails=(LIMIT,)), rate=10.0)
    state = await led(world, 800)
    assert state.phase == "baking"
    assert state.guarded_seconds > 700


async def test_a_pause_in_which_nothing_reports_has_its_deadline(make_world: Make) -> None:
    world = make_world()
    await led(world, 60)
    world.journal.ask(Asked(what="pause", by="ann"))
    world.service.silent = frozenset({"control", "treatment"})
    state = await led(world, 1_000)
    assert state.phase == "rolled_back"


async def test_a_moment_without_proof_does_not_end_the_wait_at_a_gate(
    make_world: Make, make_plan: MakePlan
) -> None:
    stages = (Stage(share=0.2, bake=40.0, longest=60.0, gate="manual"), Stage(share=1.0, bake=0.0))
    relative = Guardrail(metric=ERRORS, worse_by=0.2, relative=False)
    world = make_world(make_plan(stages=stages, guardrails=(relative, LIMIT)))
    controller = world.controller()
    await controller.begin()
    assert (await led(world, 200, controller)).phase == "gate"
    world.service.reading = lambda _: Reading(value=None, reason="query_error", detail="restarted")
    assert (await led(world, 40, controller)).phase == "gate"
    world.service.reading = lambda _: None
    world.journal.ask(Asked(what="advance", by="ann"))
    assert (await led(world, 40, controller)).stage == 1


# What bakes ---------------------------------------------------------------------------------------------------------


async def test_a_pause_beyond_the_longest_bake_is_not_rolled_back_when_it_ends(
    make_world: Make, make_plan: MakePlan
) -> None:
    stages = (Stage(share=0.2, bake=100.0, longest=140.0), Stage(share=1.0, bake=0.0))
    never_shown = Guardrail(metric=ERRORS, worse_by=0.02, relative=False)  # by so few units
    world = make_world(
        make_plan(stages=stages, guardrails=(never_shown,), advance_on="pass"),
        rate=1.0,
    )
    controller = world.controller()
    await controller.begin()
    await led(world, 60, controller)
    world.journal.ask(Asked(what="pause", by="ann"))
    guarded = (await led(world, 20, controller)).guarded_seconds
    state = await led(world, 200, controller)
    assert (state.phase, state.guarded_seconds) == ("paused", guarded)
    world.journal.ask(Asked(what="resume", by="ann"))
    state = await led(world, 60, controller)
    assert state.phase == "baking"
    state = await led(world, 100, controller)
    assert (state.phase, "140 s were not enough" in state.reason) == ("rolled_back", True)


async def test_a_pause_at_a_gate_ends_at_the_gate(make_world: Make, make_plan: MakePlan) -> None:
    stages = (Stage(share=0.2, bake=40.0, longest=60.0, gate="manual"), Stage(share=1.0, bake=0.0))
    world = make_world(make_plan(stages=stages, advance_on="pass", patience=2_000.0, guardrails=(LIMIT,)))
    controller = world.controller()
    await controller.begin()
    assert (await led(world, 200, controller)).phase == "gate"
    world.journal.ask(Asked(what="pause", by="ann"))
    assert (await led(world, 40, controller)).phase == "paused"
    world.service.reading = lambda _: Reading(value=None, reason="no_data", detail="a quiet minute")
    world.journal.ask(Asked(what="resume", by="ann"))
    assert (await led(world, 40, controller)).phase == "gate"


async def test_what_was_paused_before_anybody_was_served_serves_nobody(make_world: Make) -> None:
    world = make_world()
    world.journal.ask(Asked(what="pause", by="ann"))
    controller = world.controller()
    await controller.begin()
    state = await led(world, 100, controller)
    assert (state.phase, world.traffic.sets) == ("paused", [])
    world.journal.ask(Asked(what="resume", by="ann"))
    state = await led(world, 60, controller)
    assert (state.phase, world.traffic.served.share) == ("baking", 0.05)


async def test_what_was_paused_before_anybody_was_served_has_its_deadline(make_world: Make) -> None:
    world = make_world()
    world.journal.ask(Asked(what="pause", by="ann"))
    controller = world.controller()
    await controller.begin()
    state = await led(world, 700, controller)
    assert (state.phase, state.reason) == ("rolled_back", "paused for more than 600 s")


async def test_time_in_which_nothing_reports_does_not_bake(make_world: Make) -> None:
    world = make_world()
    controller = world.controller()
    await controller.begin()
    guarded = (await led(world, 100, controller)).guarded_seconds
    world.service.silent = frozenset({"control", "treatment"})
    state = await led(world, 400, controller)
    assert state.phase == "frozen"
    assert state.guarded_seconds <= guarded + 80


async def test_a_controller_that_was_stopped_for_an_hour_has_not_guarded_for_an_hour(
    make_world: Make,
) -> None:
    world = make_world()
    controller = world.controller()
    await controller.begin()
    await led(world, 60, controller)
    world.clock.advance(3_600.0)
    state = await led(world, 20, controller)
    assert state.stage == 0
    assert state.guarded_seconds <= 140


async def test_a_limit_that_is_broken_is_harm_in_the_making(make_world: Make, make_plan: MakePlan) -> None:
    stages = (Stage(share=0.2, bake=60.0, longest=60.0), Stage(share=1.0, bake=0.0))
    world = make_world(make_plan(stages=stages, guardrails=(LIMIT,)), treatment_errors=0.5)
    state = await led(world, 600)
    assert state.phase == "rolled_back"
    assert max(split.share for split in world.traffic.sets) == 0.2
    assert "errors above 0.1" in state.reason


@pytest.mark.parametrize(
    ("failed", "phase"),
    [
        ((5, 2, 2), "rolled_back"),  # 5 of 100 are shown to be too many, and 2 are not few enough
        ((2, 2, 2), "baking"),  # 2 may be chance
        ((5, 2, 1), "baking"),  # 1 is within the limit
    ],
)
async def test_a_few_events_do_not_end_what_more_of_them_have_shown(
    make_world: Make, make_plan: MakePlan, failed: tuple[int, ...], phase: str
) -> None:
    rail = Guardrail(metric=ERRORS, above=0.01, for_seconds=120.0)
    stages = (Stage(share=0.2, bake=3_000.0), Stage(share=1.0, bake=0.0))
    world = make_world(make_plan(stages=stages, guardrails=(rail,)))
    looks = itertools.cycle(failed)
    world.service.reading = lambda _: Reading(value=next(looks) / 100, n=100)
    # The controllers come and go: for how long it has been broken, is in the journal.
    states = [await led(world, 50) for _ in range(8)]
    assert phase in (states[-1].phase, "baking")
    assert ("rolled_back" in {state.phase for state in states}) == (phase == "rolled_back")


@pytest.mark.parametrize(("n", "reason"), [(0.4, "waiting"), (None, "beyond_limit"), (30.0, "beyond_limit")])
async def test_a_part_of_an_event_is_not_an_unknown_number_of_them(
    make_world: Make, make_plan: MakePlan, n: float | None, reason: str
) -> None:
    """A Prometheus extrapolates: an increase of one is 0.4 where the window has just begun."""
    world = make_world(make_plan(guardrails=(LIMIT,)))
    world.service.reading = lambda _: Reading(value=1.0, n=n)
    state = await led(world, 60)
    assert [each.reason for each in state.evaluations] == [reason]


async def test_a_stage_without_a_bake_waits_for_its_first_figure(
    make_world: Make, make_plan: MakePlan
) -> None:
    world = make_world(make_plan(stages=(Stage(share=1.0, bake=0.0),), guardrails=(LIMIT,)))
    world.service.reading = lambda _: Reading(value=None, reason="stale")
    assert (await led(world, 45)).phase == "baking"
    world.service.reading = lambda _: None
    assert (await led(world, 45)).phase == "completed"


@pytest.mark.parametrize("seconds", [-3_000.0, 3_000.0], ids=["back", "forward"])
async def test_a_wall_clock_that_is_moved_hides_no_harm(make_world: Make, seconds: float) -> None:
    world = make_world()
    controller = world.controller()
    await controller.begin()
    world.clock.advance(10_000.0)
    await led(world, 60, controller)
    world.clock.set_utc(world.clock.utc() + seconds)
    world.service._until = world.clock.utc()
    world.service.treatment_errors = 0.6
    state = await led(world, 300, controller)
    assert state.phase == "rolled_back"
    assert "worse_by" in state.reason


async def test_a_controller_that_starts_after_the_clock_was_moved_back_still_sees_harm(
    make_world: Make,
) -> None:
    world = make_world()
    await led(world, 60)
    world.clock.set_utc(world.clock.utc() - 3_000.0)
    world.service._until = world.clock.utc()
    world.service.treatment_errors = 0.6
    state = await led(world, 300)
    assert state.phase == "rolled_back"
    assert "worse_by" in state.reason


# The ledger ---------------------------------------------------------------------------------------------------------


async def test_every_rollback_stands_in_the_ledger(make_world: Make) -> None:
    for wish in (True, False):
        world, ledger = make_world(), Ledger()
        await led(world, 60)
        if wish:
            world.journal.ask(Asked(what="rollback", by="ann", why="a bad feeling"))
        else:
            world.traffic.served = replace(world.traffic.served, share=0.0, latched=True)
        controller = with_ledger(world, ledger)
        await controller.begin()
        state = await led(world, 5, controller)
        assert state.phase == "rolled_back"
        assert [verdict for verdict, _ in ledger.taken] == ["rollback"]
        assert ledger.taken[0][1] == state.reason


async def test_nothing_is_let_out_that_the_ledger_did_not_take(make_world: Make, make_plan: MakePlan) -> None:
    world, ledger = make_world(make_plan(stages=(Stage(share=0.2, bake=40.0), Stage(share=1.0)))), Ledger()
    ledger.failure = DatabaseUnavailable("fairlead.db: the disk is full")
    controller = with_ledger(world, ledger)
    await controller.begin()
    state = await led(world, 300, controller)
    assert (state.stage, state.phase) == (0, "baking")
    ledger.failure = None
    state = await led(world, 60, controller)
    assert state.stage == 1
    assert [verdict for verdict, _ in ledger.taken] == ["advance"]


async def test_a_ledger_that_is_full_delays_no_rollback_and_hears_of_it_later(make_world: Make) -> None:
    world, ledger = make_world(), Ledger()
    await led(world, 60)
    ledger.failure = DatabaseUnavailable("fairlead.db: the disk is full")
    world.journal.ask(Asked(what="rollback", by="ann"))
    task = asyncio.create_task(with_ledger(world, ledger).run())
    for _ in range(20):
        await world.clock.run_for(1.0)
        await asyncio.sleep(0.001)  # the ledger is asked in a thread
    assert world.traffic.served.latched
    ledger.failure = None
    for _ in range(200):
        await world.clock.run_for(1.0)
        await asyncio.sleep(0.001)
        if task.done():
            break
    assert (await task).phase == "rolled_back"
    assert [verdict for verdict, _ in ledger.taken] == ["rollback"]


async def test_a_ledger_that_refuses_for_good_keeps_no_rollback_from_its_end(make_world: Make) -> None:
    world, ledger = make_world(), Ledger()
    await led(world, 60)
    ledger.failure = InvalidInput("evidence: low is no number")
    world.journal.ask(Asked(what="rollback", by="ann"))
    controller = with_ledger(world, ledger)
    await controller.begin()
    assert (await led(world, 5, controller)).phase == "rolled_back"
    assert fold("feed/1", world.journal.read()).ended


async def test_a_journal_that_hangs_keeps_no_guard_from_its_look(
    make_world: Make, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairlead.rollout.controller._ANSWER", 0.02)
    world = make_world(make_plan(look_every=0.02, guardrails=(LIMIT,)))
    hung, held, read = threading.Event(), False, world.journal.read

    def hanging(after: int = 0) -> object:
        if held:
            hung.wait(10)
        return read(after)

    monkeypatch.setattr(world.journal, "read", hanging)
    monkeypatch.setattr(world.journal, "blocks", True)
    controller = world.controller()
    task = asyncio.create_task(controller.run())

    async def until(holds: Callable[[], bool]) -> None:
        for _ in range(400):
            await world.clock.run_for(1.0)
            await asyncio.sleep(0.001)  # the journal is asked in a thread
            if holds():
                return
        raise AssertionError("it never came to that")

    await until(lambda: controller.state.guarded_seconds > 0)
    held, world.service.treatment_errors = True, 0.9
    await until(lambda: world.traffic.served.latched)
    held = False
    hung.set()
    await until(task.done)
    assert (await task).phase == "rolled_back"


# Telling people ------------------------------------------------------------------------------------------------------


async def rolled_back_with(world: World, notice: Notice) -> None:
    """Rolled back by a person, led to its end by a controller that tells so."""
    controller = with_notice(world, notice)
    world.journal.ask(Asked(what="rollback", by="ann", why="a bad feeling"))
    running = asyncio.create_task(controller.run())
    for _ in range(400):
        await asyncio.sleep(0)
        world.clock.advance(0.5)
        if running.done():
            break
    assert (await running).phase == "rolled_back"


async def test_the_notice_of_a_rollback_is_waited_for_as_long_as_a_webhook_tries(
    make_world: Make,
) -> None:
    world = make_world()
    arrived: list[str] = []

    async def slow(what: str, _: RolloutState) -> None:
        await world.clock.sleep(29.0)
        arrived.append(what)

    await rolled_back_with(world, slow)
    assert arrived == ["rolled back: ann asked for it: a bad feeling"]


async def test_a_notice_that_never_comes_to_its_end_keeps_no_controller_and_is_written_down(
    make_world: Make,
) -> None:
    world = make_world()

    async def hangs(what: str, _: RolloutState) -> None:
        await asyncio.Event().wait()

    await rolled_back_with(world, hangs)
    said = [each.entry.what for each in world.journal.read() if isinstance(each.entry, Paged)]
    assert said == ["a notice failed: no answer within 35 s: rolled back: ann asked for it: a bad feeling"]


async def test_a_rollback_calls_a_person_where_control_is_beyond_the_limit_too(
    make_world: Make, make_plan: MakePlan
) -> None:
    world = make_world(make_plan(guardrails=(LIMIT,)), treatment_errors=0.5, control_errors=0.5)
    controller = world.controller()
    await controller.begin()
    state = await led(world, 400, controller)
    await asyncio.sleep(0)  # notices are on their way
    assert state.phase == "rolled_back"
    assert [what for what in world.told if "rolling back may not be enough" in what]
