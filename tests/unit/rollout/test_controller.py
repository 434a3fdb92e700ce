"""A rollout on virtual time: it grows while nothing is wrong, and takes treatment away when something is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from fairlead.errors import DatabaseUnavailable, InvalidInput, StaleEpoch
from fairlead.metrics import Reading
from fairlead.rollout import Guardrail, Stage
from fairlead.rollout.entry import Asked, Decided, Looked
from fairlead.rollout.state import RolloutState

if TYPE_CHECKING:
    from tests.unit.rollout.conftest import World

Make = Callable[..., "World"]


async def played(world: World, seconds: float, by: str = "first") -> RolloutState:
    """Leads the rollout for so long, or to its end."""
    task = asyncio.create_task(world.controller(by).run())
    for _ in range(round(seconds / 5)):
        await world.clock.run_for(5.0)
        if task.done():
            return task.result()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    from fairlead.rollout.state import fold

    return fold(world.journal.rollout, world.journal.read())


async def test_a_harmless_change_reaches_everybody_and_each_step_says_its_ground(make_world: Make) -> None:
    world = make_world(rate=14.0)
    state = await played(world, 20_000)
    assert state.phase == "completed"
    assert world.traffic.served.share == 1.0
    grounds = [each.entry.ground for each in world.journal.read() if isinstance(each.entry, Decided)]
    assert [ground for ground in grounds if ground][:2] == ["no_harm_seen", "pass"]


async def test_errors_of_treatment_take_it_away_at_once_and_for_good(make_world: Make) -> None:
    world = make_world(treatment_errors=0.3)
    state = await played(world, 2_000)
    assert state.phase == "rolled_back"
    assert "errors worse_by 2 pp" in state.reason
    assert world.traffic.served.share == 0.0
    assert world.traffic.served.latched
    assert state.guarded_seconds < 300


async def test_a_slow_treatment_is_caught_by_its_quantile(
    make_world: Make, make_plan: Callable[..., object]
) -> None:
    from tests.unit.rollout.conftest import LATENCY

    world = make_world(
        make_plan(guardrails=(Guardrail(metric=LATENCY, worse_by=0.1),)), slower=3.0, rate=50.0
    )
    state = await played(world, 3_000)
    assert state.phase == "rolled_back"
    assert "latency_p99 worse_by 10 %" in state.reason


async def test_silent_treatment_holds_and_is_then_rolled_back(make_world: Make) -> None:
    world = make_world(silent=frozenset({"treatment"}))
    state = await played(world, 2_000)
    assert state.phase == "rolled_back"
    assert "silent" in state.reason


async def test_two_silent_arms_freeze_and_thaw(make_world: Make) -> None:
    world = make_world()
    await played(world, 300)
    world.service.silent = frozenset({"control", "treatment"})
    state = await played(world, 400, by="second")
    assert state.phase == "frozen"
    assert world.traffic.served.share == 0.05
    world.service.silent = frozenset()
    state = await played(world, 60, by="third")
    assert state.phase == "baking"


async def test_a_freeze_that_nobody_ends_is_rolled_back(make_world: Make) -> None:
    world = make_world(silent=frozenset({"control", "treatment"}))
    state = await played(world, 5_000)
    assert state.phase == "rolled_back"
    assert "neither" not in state.reason
    assert "either arm" in state.reason


async def test_a_broken_split_is_never_advanced_on(make_world: Make) -> None:
    world = make_world(lost_to_treatment=0.5)
    state = await played(world, 5_000)
    assert state.phase == "rolled_back"
    assert "sample ratio" in state.reason


async def test_a_manual_gate_waits_for_a_person_and_stays_guarded(
    make_world: Make, make_plan: Callable[..., object]
) -> None:
    stages = (Stage(share=0.2, bake=100.0, gate="manual"), Stage(share=1.0, bake=0.0))
    world = make_world(make_plan(stages=stages))
    state = await played(world, 300)
    assert state.phase == "gate"
    world.service.treatment_errors = 0.5
    state = await played(world, 600, by="second")
    assert state.phase == "rolled_back"


async def test_a_gate_opens_when_a_person_says_so(make_world: Make, make_plan: Callable[..., object]) -> None:
    stages = (Stage(share=0.2, bake=100.0, gate="manual"), Stage(share=1.0, bake=0.0))
    world = make_world(make_plan(stages=stages))
    await played(world, 300)
    world.journal.ask(Asked(what="advance", by="ann"))
    state = await played(world, 60, by="second")
    assert state.phase == "completed"
    assert "ann opened the gate" in state.reason or world.traffic.served.share == 1.0


async def test_a_gate_that_nobody_opens_is_rolled_back(
    make_world: Make, make_plan: Callable[..., object]
) -> None:
    stages = (Stage(share=0.2, bake=100.0, gate="manual"), Stage(share=1.0, bake=0.0))
    world = make_world(make_plan(stages=stages, patience=200.0))
    state = await played(world, 4_000)
    assert state.phase == "rolled_back"
    assert "gate" in state.reason


async def test_a_pause_stops_the_bake_but_not_the_guard(make_world: Make) -> None:
    world = make_world()
    await played(world, 100)
    world.journal.ask(Asked(what="pause", by="ann"))
    state = await played(world, 400, by="second")
    assert state.phase == "paused"
    assert world.traffic.served.share == 0.05
    world.service.treatment_errors = 0.5
    state = await played(world, 500, by="third")
    assert state.phase == "rolled_back"


async def test_resume_goes_on_where_it_was(make_world: Make) -> None:
    world = make_world()
    await played(world, 100)
    world.journal.ask(Asked(what="pause", by="ann"))
    await played(world, 100, by="second")
    world.journal.ask(Asked(what="resume", by="ann"))
    state = await played(world, 20_000, by="third")
    assert state.phase == "completed"


async def test_a_wish_for_rollback_outranks_a_good_look(make_world: Make) -> None:
    world = make_world()
    await played(world, 100)
    world.journal.ask(Asked(what="rollback", by="ann", why="a bad feeling"))
    state = await played(world, 5, by="second")
    assert state.phase == "rolled_back"
    assert "ann asked for it: a bad feeling" in state.reason


async def test_a_second_controller_takes_over_and_the_first_moves_nothing(make_world: Make) -> None:
    world = make_world()
    first = world.controller("first")
    await first.begin()
    await first.step()
    second = world.controller("second")
    await second.begin()
    with pytest.raises(StaleEpoch):
        await first.step()
    assert world.traffic.served.epoch == 2


async def test_a_controller_goes_on_where_a_dead_one_stopped(make_world: Make) -> None:
    world = make_world()
    await played(world, 150)
    state = await played(world, 20_000, by="second")
    assert state.phase == "completed"
    shares = [split.share for split in world.traffic.sets]
    assert shares == sorted(shares)


async def test_traffic_found_rolled_back_stays_so(make_world: Make) -> None:
    from dataclasses import replace

    world = make_world()
    await played(world, 100)
    world.traffic.served = replace(world.traffic.served, share=0.0, latched=True)
    state = await played(world, 30, by="second")
    assert state.phase == "rolled_back"
    assert not [split for split in world.traffic.sets[-1:] if split.share]


async def test_traffic_that_somebody_moved_is_set_again_and_a_person_called(make_world: Make) -> None:
    from dataclasses import replace

    world = make_world()
    task = asyncio.create_task(world.controller().run())
    for _ in range(30):
        await world.clock.run_for(1.0)
    world.traffic.served = replace(world.traffic.served, share=0.0)
    for _ in range(15):
        await world.clock.run_for(1.0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert world.traffic.served.share == 0.05
    assert any("was wanted; set again" in each for each in world.told)


async def test_traffic_that_does_not_move_is_rolled_back_in_time(make_world: Make) -> None:
    world = make_world()
    world.traffic.failing = True
    task = asyncio.create_task(world.controller().run())
    for _ in range(100):
        await world.clock.run_for(1.0)
    assert (
        any("could not be moved" in each or "cannot be taken away" in each for each in world.told)
        or not task.done()
    )
    world.traffic.failing = False
    for _ in range(10):
        await world.clock.run_for(1.0)
    assert (await task).phase == "rolled_back"


async def test_a_journal_that_cannot_be_written_does_not_keep_treatment(
    make_world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(treatment_errors=0.5)
    append = world.journal.append
    full = False

    def refusing(entries: object, epoch: int) -> object:
        if full:
            raise DatabaseUnavailable("fairlead.db: the disk is full")
        return append(entries, epoch)  # type: ignore[arg-type]

    monkeypatch.setattr(world.journal, "append", refusing)
    task = asyncio.create_task(world.controller().run())
    for _ in range(15):
        await world.clock.run_for(1.0)
    full = True
    for _ in range(300):
        await world.clock.run_for(1.0)
    assert world.traffic.served.share == 0.0
    assert not task.done()
    full = False
    for _ in range(10):
        await world.clock.run_for(1.0)
    assert (await task).phase == "rolled_back"


async def test_another_plan_is_refused(make_world: Make, make_plan: Callable[..., object]) -> None:
    world = make_world()
    world.plan = make_plan(alpha=0.01)  # type: ignore[assignment]
    with pytest.raises(InvalidInput, match="another plan"):
        await world.controller().begin()


async def test_an_absolute_limit_needs_to_be_broken_for_its_time(
    make_world: Make, make_plan: Callable[..., object]
) -> None:
    from tests.unit.rollout.conftest import ERRORS

    rail = Guardrail(metric=ERRORS, above=0.1, for_seconds=120.0)
    world = make_world(make_plan(guardrails=(rail,)), treatment_errors=0.4, control_errors=0.4)
    state = await played(world, 1_000)
    assert state.phase == "rolled_back"
    assert state.guarded_seconds >= 120
    assert any("control is beyond the limit" in each for each in world.told)


async def test_a_reading_that_fails_never_passes(make_world: Make, make_plan: Callable[..., object]) -> None:
    from tests.unit.rollout.conftest import ERRORS

    rail = Guardrail(metric=ERRORS, above=0.1, for_seconds=60.0)
    world = make_world(
        make_plan(
            guardrails=(rail,),
            stages=(Stage(share=0.1, bake=60.0, longest=200.0), Stage(share=1.0, bake=0.0)),
        )
    )
    world.service.reading = lambda _: Reading(value=None, reason="query_error", detail="no answer within 5 s")
    state = await played(world, 1_000)
    assert state.phase != "completed"
    last = [each.entry for each in world.journal.read() if isinstance(each.entry, Looked)][-1]
    assert last.evaluations[0].reason == "query_error"
    assert last.guarded_seconds == 0.0


async def test_the_clock_on_the_wall_does_not_bake(make_world: Make) -> None:
    world = make_world()
    task = asyncio.create_task(world.controller().run())
    for _ in range(50):
        await world.clock.run_for(1.0)
    world.clock.set_utc(world.clock.utc() + 90_000)
    world.service._until = world.clock.utc()
    for _ in range(50):
        await world.clock.run_for(1.0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    from fairlead.rollout.state import fold

    state = fold(world.journal.rollout, world.journal.read())
    assert state.stage == 0
    assert 40 <= state.guarded_seconds <= 100


async def test_a_minute_without_an_event_of_a_small_arm_is_no_missing_figure(
    make_world: Make, make_plan: Callable[..., object]
) -> None:
    from tests.unit.rollout.conftest import ERRORS

    rail = Guardrail(metric=ERRORS, above=0.5, for_seconds=20.0)
    stages = (Stage(share=0.05, bake=200.0, longest=400.0), Stage(share=1.0, bake=0.0))
    world = make_world(
        make_plan(guardrails=(rail,), stages=stages, stale_after=300.0, silence=300.0), rate=0.5
    )
    state = await played(world, 2_000)
    assert state.phase == "completed"
    seen = {
        each.entry.evaluations[0].reason for each in world.journal.read() if isinstance(each.entry, Looked)
    }
    assert "waiting" in seen
