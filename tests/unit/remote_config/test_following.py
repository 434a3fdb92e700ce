from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from fairlead.clock import ManualClock
from fairlead_systems.remote_config.following import Follower
from fairlead_systems.remote_config.table import Changed, TableUnavailable


class Table:
    """A table of versions; each question is answered with at most `at_once` changes."""

    def __init__(self) -> None:
        self.version = 0
        self.at_once = 3
        self.fails = False
        self.told: list[int | None] = []
        self.refuses = 0

    async def ask(self, seen: int) -> tuple[int, list[Changed]]:
        await asyncio.sleep(0)
        if self.fails:
            raise TableUnavailable("no answer")
        last = min(self.version, seen + self.at_once)
        return self.version, [Changed(each, "user", f"u{each}") for each in range(seen + 1, last + 1)]

    async def tell(self, changes: Sequence[Changed] | None) -> None:
        if self.refuses:
            self.refuses -= 1
            raise TableUnavailable("no answer")
        self.told += [None] if changes is None else [change.version for change in changes]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now=100.0)


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def follower(table: Table, clock: ManualClock) -> Follower:
    return Follower(table.ask, table.tell, poll_every=5.0, clock=clock, rng=random.Random(1))


async def test_first_answer_forgets_all_because_nobody_knows_what_was_missed(follower, table):
    table.version = 10
    await follower.catch_up()
    assert (table.told, follower.seen) == ([None], 10)


async def test_every_change_is_handed_on_once_and_in_order(follower, table):
    await follower.catch_up()
    for version in (2, 2, 9):
        table.version = version
        await follower.catch_up()
    assert table.told == [None, *range(1, 10)]


async def test_two_at_once_hand_on_nothing_twice(follower, table):
    await follower.catch_up()
    table.version = 7
    await asyncio.gather(*(follower.catch_up() for _ in range(5)))
    assert table.told == [None, *range(1, 8)]


async def test_change_that_could_not_be_handed_on_is_handed_on_again(follower, table):
    await follower.catch_up()
    table.version, table.refuses = 2, 1
    with pytest.raises(TableUnavailable):
        await follower.catch_up()
    await follower.catch_up()
    assert table.told == [None, 1, 2]


async def test_older_table_that_took_the_place_is_begun_anew(follower, table):
    table.version = 10
    await follower.catch_up()
    table.version = 4
    await follower.catch_up()
    table.version = 5
    await follower.catch_up()
    assert (table.told, follower.forgot_all) == ([None, None, 5], 1)


async def test_more_than_can_be_followed_is_forgotten_at_once(follower, table):
    await follower.catch_up()
    table.version = 1_000_000
    await follower.catch_up()
    assert (table.told, follower.seen) == ([None, None], 1_000_000)


async def test_what_is_in_memory_counts_as_confirmed_from_the_question_on(follower, table, clock):
    assert follower.confirmed_at is None
    await follower.catch_up()
    assert follower.confirmed_at == 100.0
    table.fails = True
    clock.advance(10.0)
    with pytest.raises(TableUnavailable):
        await follower.catch_up()
    assert follower.confirmed_at == 100.0


async def test_without_a_notice_the_wait_ends_within_the_poll(follower, clock):
    waiting = asyncio.create_task(follower.wait())
    await clock.run_for(4.4)
    assert not waiting.done()
    await clock.run_for(0.6)
    assert waiting.done()


async def test_notice_ends_the_wait_at_once_also_when_it_came_before(follower, clock):
    waiting = asyncio.create_task(follower.wait())
    await clock.run_for(0.0)
    follower.notice()
    await clock.run_for(0.0)
    assert waiting.done()
    follower.notice()
    await asyncio.wait_for(follower.wait(), 1.0)


async def test_cancelled_wait_leaves_no_timer_that_wakes_the_next(follower, clock):
    waiting = asyncio.create_task(follower.wait())
    await clock.run_for(1.0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    again = asyncio.create_task(follower.wait())
    await clock.run_for(4.3)
    assert not again.done()
    again.cancel()
    await asyncio.gather(again, return_exceptions=True)
