from __future__ import annotations

from math import inf

import pytest

from fairlead.migration import Stage
from tests.property.migration_schedules import KEY, World, explore, neighbours


def in_step() -> World:
    """Both stores have one row, as after a backfill and a few writes."""
    world = World()
    for rows in (world.old, world.new):
        rows.rows[KEY], rows.versions[KEY] = {"value": "before"}, 4
    return world


def left_by_live() -> World:
    """A process died in live between its two writes: the old store is ahead, by a write nobody was promised."""
    world = in_step()
    world.old.rows[KEY], world.old.versions[KEY] = {"value": "half"}, 12
    world.old.marks.add(KEY)
    return world


def left_by_ramp_down() -> World:
    """The old store was down in ramp-down: the new one is ahead, by a write that was acknowledged."""
    world = in_step()
    world.new.rows[KEY], world.new.versions[KEY] = {"value": "ahead"}, 11
    world.new.marks.add(KEY)
    return world


STARTS = {
    "in step": (in_step, neighbours()),
    "left by live": (
        left_by_live,
        [
            pair
            for pair in neighbours()
            if {Stage.LIVE, Stage.RAMP_DOWN} & set(pair) and Stage.COMPLETE not in pair
        ],
    ),
    "left by ramp-down": (
        left_by_ramp_down,
        [pair for pair in neighbours() if min(pair, key=lambda s: s.number).number >= 3],
    ),
}
CASES = [
    pytest.param(start, one, two, id=f"{one} beside {two}, {name}")
    for name, (start, pairs) in STARTS.items()
    for one, two in pairs
    if one.number <= two.number
]


@pytest.mark.parametrize(("start", "one", "two"), CASES)
def test_two_writers_lose_nothing_whatever_their_order_and_two_faults(start, one: Stage, two: Stage):
    for world in explore(
        start, [lambda w: w.write(one, "A"), lambda w: w.write(two, None)], faults=2, switches=3
    ):
        world.check(world.finish())


@pytest.mark.parametrize(("start", "one", "two"), CASES)
def test_two_writers_and_a_reconciliation_lose_nothing_in_any_order(start, one: Stage, two: Stage):
    processes = [lambda w: w.write(one, "A"), lambda w: w.write(two, "B"), lambda w: w.reconcile()]
    for world in explore(start, processes, faults=0, switches=4):
        world.check(world.finish())


async def write_twice(world: World, stage: Stage) -> None:
    await world.write(stage, "A")
    await world.write(stage, None)


@pytest.mark.parametrize(("start", "one", "two"), CASES)
def test_a_deleted_row_stays_deleted_beside_a_writer_and_a_reconciliation(start, one: Stage, two: Stage):
    processes = [lambda w: write_twice(w, one), lambda w: w.write(two, "B"), lambda w: w.reconcile()]
    for world in explore(start, processes, faults=1, switches=2):
        world.check(world.finish())


@pytest.mark.parametrize(("start", "one", "two"), [case for case in CASES if "in step" in str(case.id)])
def test_without_faults_no_reader_sees_a_row_older_than_what_was_acknowledged(start, one: Stage, two: Stage):
    async def read_twice(world: World) -> None:
        await world.read(two)
        await world.read(one)

    for world in explore(
        start, [lambda w: w.write(one, "B"), lambda w: write_twice(w, two), read_twice], faults=0, switches=3
    ):
        world.check_reads()


def not_copied_yet() -> World:
    world = World()
    world.old.rows[KEY] = {"value": "before"}
    return world


@pytest.mark.parametrize("stage", [Stage.OFF, Stage.DUAL_WRITE, Stage.SHADOW_READ])
@pytest.mark.parametrize("value", ["A", None], ids=["a write", "a deletion"])
def test_a_backfill_never_undoes(stage: Stage, value: object):
    processes = [lambda w: w.write(stage, value), lambda w: w.copy(), lambda w: w.reconcile()]
    for world in explore(not_copied_yet, processes, faults=1, switches=3):
        final = world.finish()
        world.check(final)
        if not any(write.acknowledged < inf for write in world.writes):
            assert final in ("before", value)
