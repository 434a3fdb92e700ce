from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from fairlead.clock import ManualClock, settle
from fairlead.errors import InvalidInput, StageRefused, StoreUnavailable
from fairlead.migration import Migration, Stage
from fairlead.telemetry import MetricRegistry, StateChanged
from tests.unit.migration.memory import MemoryStore, Rows

ROW, OTHER = {"text": "a"}, {"text": "b"}


class Setup:
    """A migration of one process between two stores in memory, with a stage that the test sets."""

    def __init__(self, stage: str = "off", old: Rows | None = None, new: Rows | None = None) -> None:
        self.wanted: str | None = stage
        self.clock = ManualClock()
        self.old, self.new = MemoryStore(old), MemoryStore(new)
        self.events: list[StateChanged] = []
        self.metrics = MetricRegistry()
        self.migration = Migration(
            "orders",
            old=self.old,
            new=self.new,
            stage=lambda: self.wanted,
            metrics=self.metrics,
            on_event=self.events.append,
            clock=self.clock,
        )

    async def at(self, stage: Stage) -> Migration:
        """Walks to a stage with all that the steps ask for."""
        self.wanted = "off"
        migration = await self.migration.__aenter__()
        for each in Stage:
            if each is Stage.LIVE:
                for store in (self.old, self.new):
                    store.shared.notes["orders/stage"] = '{"stage":"shadow-read","permits":["live"]}'
            if each is Stage.COMPLETE:
                await migration.permit(each, confirm=True)
            self.wanted = each
            await migration.read("no such key")
            assert migration.stage is each, migration.refusal
            if each is stage:
                break
        self.old.calls.clear()
        self.new.calls.clear()
        return migration

    def counted(self, name: str) -> dict[str, float]:
        families = {family.name: family for family in self.metrics.snapshot().families}
        return {labels[-1]: value for labels, value in families[name].values.items() if value}


def failing(*names: str) -> Callable[[str, str], Awaitable[None]]:
    async def gate(name: str, when: str) -> None:
        if name in names and when == "before":
            raise StoreUnavailable("down")

    return gate


async def hanging(name: str, when: str) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("stage", "writes_old", "writes_new", "reads"),
    [
        (Stage.OFF, True, False, "old"),
        (Stage.DUAL_WRITE, True, True, "old"),
        (Stage.SHADOW_READ, True, True, "old"),
        (Stage.LIVE, True, True, "new"),
        (Stage.RAMP_DOWN, True, True, "new"),
        (Stage.COMPLETE, False, True, "new"),
    ],
)
async def test_each_stage_writes_and_reads_its_stores(
    stage: Stage, writes_old: bool, writes_new: bool, reads: str
):
    setup = Setup()
    migration = await setup.at(stage)
    await migration.write("k", ROW)
    assert ("k" in setup.old.shared.rows, "k" in setup.new.shared.rows) == (writes_old, writes_new)
    {"old": setup.old, "new": setup.new}[reads].shared.rows["k"] = OTHER
    assert await migration.read("k") == OTHER
    await migration.delete("k")
    assert await migration.read("k") is None
    await migration.close()


@pytest.mark.parametrize("stage", [Stage.DUAL_WRITE, Stage.SHADOW_READ, Stage.RAMP_DOWN])
async def test_a_second_store_that_fails_costs_the_caller_nothing_and_leaves_a_mark(stage: Stage):
    setup = Setup()
    migration = await setup.at(stage)
    first, second = (setup.old, setup.new) if stage is not Stage.RAMP_DOWN else (setup.new, setup.old)
    second.gate = failing("apply")
    await migration.write("k", ROW)
    assert first.shared.marks == {"k"}
    assert setup.counted("fairlead_migration_writes_total") == {"marked": 1.0}
    second.gate = None
    done = await migration.reconcile()
    assert (done.carried, done.failed, done.left) == (1, 0, 0)
    assert second.shared.rows == {"k": ROW}


async def test_in_live_a_second_store_that_fails_fails_the_write_and_the_row_arrives_later():
    setup = Setup()
    migration = await setup.at(Stage.LIVE)
    setup.new.gate = failing("apply")
    with pytest.raises(StoreUnavailable):
        await migration.write("k", ROW)
    setup.new.gate = None
    assert await migration.read("k") is None
    await migration.reconcile()
    assert await migration.read("k") == ROW
    await migration.close()


@pytest.mark.parametrize("stage", [Stage.DUAL_WRITE, Stage.LIVE, Stage.RAMP_DOWN])
async def test_a_first_store_that_fails_fails_the_write_and_nothing_is_written(stage: Stage):
    setup = Setup()
    migration = await setup.at(stage)
    (setup.new if stage is Stage.RAMP_DOWN else setup.old).gate = failing("write")
    with pytest.raises(StoreUnavailable):
        await migration.write("k", ROW)
    assert setup.old.shared.rows == setup.new.shared.rows == {}


async def test_a_second_store_that_hangs_costs_its_timeout_a_few_times_and_then_nothing():
    setup = Setup()
    migration = await setup.at(Stage.DUAL_WRITE)
    setup.new.gate = hanging
    waited: list[float] = []
    for number in range(30):
        before = setup.clock.now()
        task = asyncio.create_task(migration.write(f"k{number}", ROW))
        await settle()
        while not task.done():
            await setup.clock.run_for(0.1)
        await task
        waited.append(setup.clock.now() - before)
    assert max(waited) <= 1.2
    assert waited[-5:] == [0.0] * 5
    assert len(setup.old.shared.marks) == 30


async def test_a_write_that_is_cancelled_between_the_stores_is_carried_by_a_reconciliation():
    setup = Setup()
    migration = await setup.at(Stage.DUAL_WRITE)
    setup.new.gate = hanging
    task = asyncio.create_task(migration.write("k", ROW))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    setup.new.gate = None
    await migration.reconcile()
    assert setup.new.shared.rows == {"k": ROW}


async def test_marks_of_writes_that_both_stores_have_go_away_by_themselves():
    setup = Setup()
    migration = await setup.at(Stage.DUAL_WRITE)
    for number in range(20):
        await migration.write(f"k{number}", ROW)
    await migration.close()
    assert setup.old.shared.marks == set()


async def test_one_row_that_the_other_store_refuses_does_not_keep_the_others_from_being_carried():
    setup = Setup()
    migration = await setup.at(Stage.DUAL_WRITE)
    setup.new.gate = failing("apply")
    for number in range(5):
        await migration.write(f"k{number}", ROW)
    setup.new.gate = None
    apply = setup.new.apply

    async def refuses(rows, **settings):
        if any(row.key == "k2" for row in rows):
            raise InvalidInput("k2 is refused")
        return await apply(rows, **settings)

    setup.new.apply = refuses  # type: ignore[method-assign]
    done = await migration.reconcile()
    assert (done.carried, done.failed, done.left, done.errors) == (4, 1, 1, ("k2 is refused",))


async def test_a_reconciliation_gives_up_on_a_store_that_is_down():
    setup = Setup()
    migration = await setup.at(Stage.DUAL_WRITE)
    setup.new.gate = failing("apply")
    for number in range(200):
        setup.old.shared.marks.add(f"k{number}")
        setup.old.shared.versions[f"k{number}"] = 2
    done = await migration.reconcile()
    assert (done.carried, done.failed, done.left) == (0, 10, 200)


async def test_a_jump_is_refused_and_the_process_goes_on_as_before():
    setup = Setup()
    migration = await setup.at(Stage.OFF)
    setup.wanted = "live"
    await migration.write("k", ROW)
    assert migration.stage is Stage.OFF
    assert "go to dual-write first" in migration.refusal
    assert setup.new.shared.rows == {}
    setup.wanted = "dual-write"
    await migration.write("k", ROW)
    assert (migration.stage, migration.refusal) == (Stage.DUAL_WRITE, "")
    assert [(event.previous, event.current) for event in setup.events] == [("", "off"), ("off", "dual-write")]


@pytest.mark.parametrize("wanted", ["Live", "", "offf"])
async def test_a_word_that_is_no_stage_is_refused_and_the_process_goes_on(wanted: str):
    setup = Setup()
    migration = await setup.at(Stage.DUAL_WRITE)
    setup.wanted = wanted
    await migration.write("k", ROW)
    assert migration.stage is Stage.DUAL_WRITE
    assert "is no stage" in migration.refusal


async def test_a_flag_that_says_nothing_leaves_the_stage():
    setup = Setup()
    migration = await setup.at(Stage.LIVE)
    setup.wanted = None
    await migration.write("k", ROW)
    assert (migration.stage, migration.refusal) == (Stage.LIVE, "")


async def test_a_process_that_starts_cannot_jump_over_what_the_stores_remember():
    setup = Setup()
    await (await setup.at(Stage.DUAL_WRITE)).close()
    late = Setup("live", setup.old.shared, setup.new.shared)
    with pytest.raises(StageRefused, match="jumps over shadow-read"):
        await late.migration.__aenter__()
    late.wanted = "off"
    async with late.migration:
        assert late.migration.stage is Stage.OFF


@pytest.mark.parametrize("stage", ["shadow-read", "live", "ramp-down", "complete"])
async def test_stores_that_know_of_no_migration_are_begun_with_in_off(stage: str):
    with pytest.raises(StageRefused, match="begin in off"):
        await Setup(stage).migration.__aenter__()


async def test_live_needs_a_permit_and_the_permit_a_backfill_and_a_verification():
    setup = Setup()
    migration = await setup.at(Stage.SHADOW_READ)
    setup.wanted = "live"
    await migration.read("k")
    assert "live needs a permit" in migration.refusal
    with pytest.raises(StageRefused, match="backfill has not ended"):
        await migration.permit(Stage.LIVE)
    setup.new.shared.notes["orders/backfill"] = '{"done":true,"at":10.0}'
    with pytest.raises(StageRefused, match="nothing was verified"):
        await migration.permit(Stage.LIVE)
    setup.old.shared.notes["orders/verification"] = '{"compared":5,"differences":2,"at":20.0}'
    with pytest.raises(StageRefused, match="found 2 differences"):
        await migration.permit(Stage.LIVE)
    setup.old.shared.notes["orders/verification"] = '{"compared":5,"differences":0,"at":20.0}'
    await migration.permit(Stage.LIVE)
    setup.clock.advance(1.0)
    await migration.read("k")
    assert migration.stage is Stage.LIVE


async def test_going_back_takes_the_permit_away():
    setup = Setup()
    migration = await setup.at(Stage.LIVE)
    for stage in ("shadow-read", "dual-write", "shadow-read", "live"):
        setup.wanted = stage
        await migration.read("k")
    assert migration.stage is Stage.SHADOW_READ
    assert "needs a permit" in migration.refusal


async def test_complete_is_refused_until_somebody_confirms_it():
    setup = Setup()
    migration = await setup.at(Stage.RAMP_DOWN)
    setup.wanted = "complete"
    await migration.read("k")
    assert (migration.stage, "confirm=True" in migration.refusal) == (Stage.RAMP_DOWN, True)
    with pytest.raises(StageRefused, match="the old store no longer gets what is written"):
        await migration.permit(Stage.COMPLETE)
    await migration.permit(Stage.COMPLETE, confirm=True)
    setup.clock.advance(1.0)
    await migration.read("k")
    assert migration.stage is Stage.COMPLETE


async def test_the_way_back_to_the_old_store_waits_for_what_it_lacks():
    setup = Setup()
    migration = await setup.at(Stage.COMPLETE)
    await migration.write("k", ROW)
    for stage in (Stage.RAMP_DOWN, Stage.LIVE, Stage.SHADOW_READ):
        setup.wanted = stage
        await migration.read("other")
    assert migration.stage is Stage.LIVE
    assert "lacks 1 keys" in migration.refusal
    await migration.reconcile()
    setup.clock.advance(1.0)
    assert await migration.read("k") == ROW
    assert migration.stage is Stage.SHADOW_READ
    assert setup.old.shared.rows == {"k": ROW}
    await migration.close()


async def test_a_migration_that_was_not_entered_says_so():
    with pytest.raises(InvalidInput, match="async with migration"):
        await Setup().migration.read("k")


def test_a_migration_needs_two_stores():
    store = MemoryStore()
    with pytest.raises(InvalidInput, match="one store"):
        Migration("orders", old=store, new=store, stage=lambda: "off")
