from __future__ import annotations

import asyncio

import pytest

from fairlead.errors import InvalidInput, Overloaded, StageRefused, StoreUnavailable
from fairlead.migration import Backfill, Migration, Stage, Throttle, verify
from tests.unit.migration.test_dual_write import Setup, failing

ROWS = {f"k{number:04d}": {"n": number} for number in range(1000)}


async def dual() -> tuple[Setup, Migration]:
    setup = Setup()
    setup.old.shared.rows |= ROWS
    return setup, await setup.at(Stage.DUAL_WRITE)


async def finish(setup: Setup, backfill: Backfill, *, within: float) -> float:
    """Seconds until it ended."""
    began = setup.clock.now()
    task = asyncio.create_task(backfill.run())
    while not task.done() and setup.clock.now() - began < within:
        await setup.clock.run_for(0.05)
    assert task.done(), backfill.progress
    await task
    return setup.clock.now() - began


async def test_every_row_is_copied_at_the_rate():
    setup, migration = await dual()
    backfill = Backfill(migration, throttle=Throttle(rows_per_second=100.0, batch=50))
    seconds = await finish(setup, backfill, within=20.0)
    assert setup.new.shared.rows == ROWS
    assert 9.0 <= seconds <= 10.5
    assert (backfill.progress.copied, backfill.progress.total, backfill.progress.eta_seconds) == (
        1000,
        1000,
        0.0,
    )


async def test_what_remains_is_foreseen_from_the_rate():
    setup, migration = await dual()
    backfill = Backfill(migration, throttle=Throttle(rows_per_second=100.0, batch=50))
    task = asyncio.create_task(backfill.run())
    await setup.clock.run_for(4.9)
    assert backfill.progress.eta_seconds == pytest.approx(5.0, abs=0.8)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_backfill_that_was_cancelled_goes_on_from_its_checkpoint():
    setup, migration = await dual()
    first = Backfill(migration, throttle=Throttle(rows_per_second=100.0, batch=50))
    task = asyncio.create_task(first.run())
    await setup.clock.run_for(5.0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    copied = first.progress.copied
    assert 0 < copied < 1000
    setup.old.calls.clear()
    again = Backfill(migration, throttle=Throttle(batch=50))
    await finish(setup, again, within=20.0)
    assert setup.old.calls.count("scan") == (1000 - copied) // 50 + 1
    assert setup.new.shared.rows == ROWS
    assert (await again.run()).done
    assert setup.old.calls.count("scan") == (1000 - copied) // 50 + 1


async def test_a_store_that_refuses_is_given_time_and_one_that_stays_away_ends_it():
    setup, migration = await dual()

    async def refuses(name: str, when: str) -> None:
        if name == "scan" and when == "before" and setup.clock.now() < 7.0:
            raise Overloaded("full", retry_after=2.0)

    setup.old.gate = refuses
    backfill = Backfill(migration, throttle=Throttle(batch=500))
    await finish(setup, backfill, within=30.0)
    assert 1 <= backfill.progress.pauses <= 4

    setup.new.gate = failing("apply")
    with pytest.raises(StoreUnavailable):
        await Backfill(migration, throttle=Throttle(patience=0.0)).run(restart=True)


async def test_a_slow_old_store_is_left_alone_for_longer_each_time():
    setup, migration = await dual()

    async def slow(name: str, when: str) -> None:
        if name == "scan" and when == "before":
            await setup.clock.sleep(0.4)

    setup.old.gate = slow
    backfill = Backfill(migration, throttle=Throttle(batch=200, slow_after=0.25, longest_pause=2.0))
    seconds = await finish(setup, backfill, within=60.0)
    assert backfill.progress.pauses == 5
    assert seconds >= 0.5 + 1.0 + 2.0 + 2.0 + 2.0


async def test_a_signal_of_the_service_pauses_it():
    setup, migration = await dual()
    backfill = Backfill(migration, may_run=lambda: setup.clock.now() >= 3.0)
    assert await finish(setup, backfill, within=30.0) >= 3.0


async def test_a_backfill_runs_only_while_both_stores_are_written_and_the_old_one_is_read():
    setup, migration = await dual()
    backfill = Backfill(migration, throttle=Throttle(rows_per_second=100.0, batch=50))
    task = asyncio.create_task(backfill.run())
    await setup.clock.run_for(2.0)
    setup.wanted = "off"
    await migration.read("k0001")
    await setup.clock.run_for(2.0)
    with pytest.raises(StageRefused, match="not in off"):
        await task


async def test_rows_that_were_written_or_deleted_meanwhile_are_not_undone():
    setup, migration = await dual()
    await migration.write("k0500", {"n": -1})
    await migration.delete("k0501")
    scan = setup.old.scan

    async def late(after, limit):
        rows = await scan(after, limit)
        if after is None:
            await migration.write("k0000", {"n": -2})
            await migration.delete("k0001")
        return rows

    setup.old.scan = late  # type: ignore[method-assign]
    await finish(setup, Backfill(migration, throttle=Throttle(batch=400)), within=20.0)
    await migration.reconcile()
    expected = ROWS | {"k0500": {"n": -1}, "k0000": {"n": -2}}
    del expected["k0501"], expected["k0001"]
    assert setup.new.shared.rows == setup.old.shared.rows == expected


async def verified(setup: Setup, migration: Migration, **settings: object):
    task = asyncio.create_task(verify(migration, **settings))
    while not task.done():
        await setup.clock.run_for(0.1)
    return await task


async def test_a_verification_counts_each_difference_and_names_no_value():
    setup, migration = await dual()
    setup.new.shared.rows |= ROWS | {"k0003": {"n": "secret"}, "x": {"n": 1}}
    del setup.new.shared.rows["k0004"], setup.new.shared.rows["k0005"]
    found = await verified(setup, migration, batch=70)
    assert (found.differences, found.missing, found.extra, found.different) == (4, 2, 1, 1)
    assert (found.compared, found.unsettled, found.fields) == (1001, 0, {"n": 1})
    assert [example.key for example in found.examples] == ["k0003", "k0004", "k0005", "x"]
    assert found.examples[0].shapes == ("int, str of 6",)
    assert "secret" not in repr(found)


async def test_differences_are_repaired_by_a_reconciliation():
    setup, migration = await dual()
    setup.new.shared.rows |= ROWS | {"k0003": {"n": "wrong"}, "x": {"n": 1}}
    del setup.new.shared.rows["k0004"]
    assert (await verified(setup, migration, repair=True)).repaired == 3
    assert (await migration.reconcile()).left == 0
    assert (await verified(setup, migration)).differences == 0
    assert setup.new.shared.rows == ROWS


async def test_a_row_that_is_written_at_each_look_is_not_called_a_difference():
    setup, migration = await dual()
    setup.new.shared.rows |= ROWS
    read = setup.old.read

    async def busy(keys):
        setup.old.shared.versions["k0007"] = setup.old.shared.versions.get("k0007", 0) + 2
        setup.old.shared.rows["k0007"] = {"n": setup.old.shared.versions["k0007"]}
        return await read(keys)

    setup.old.read = busy  # type: ignore[method-assign]
    setup.old.shared.rows["k0007"] = {"n": -1}
    found = await verified(setup, migration)
    assert (found.differences, found.unsettled) == (0, 1)


async def test_a_marked_row_that_nobody_carries_is_a_difference_in_the_end():
    setup, migration = await dual()
    setup.new.shared.rows |= ROWS
    setup.old.shared.versions["k0008"] = 2
    setup.old.shared.rows["k0008"] = {"n": 1}
    setup.old.shared.marks.add("k0008")
    found = await verified(setup, migration)
    assert (found.differences, found.examples[0].marked) == (1, True)


async def test_two_empty_stores_are_equal():
    setup = Setup()
    migration = await setup.at(Stage.DUAL_WRITE)
    assert (await Backfill(migration).run()).done
    assert (await verified(setup, migration)).differences == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"rows_per_second": 0.0},
        {"batch": 0},
        {"slow_after": float("inf")},
        {"longest_pause": 0.1},
        {"patience": -1.0},
    ],
    ids=str,
)
def test_settings_out_of_bounds_are_named(settings: dict[str, float]):
    (name,) = settings
    with pytest.raises(InvalidInput, match=f"Throttle.{name}"):
        Throttle(**settings)
