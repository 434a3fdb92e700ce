"""What every `MigrationStore` must do, as tests that a driver's author runs against a real server.

    class TestMyStore(MigrationStoreContract):
        @pytest.fixture
        async def stores(self):
            yield MyStore(...), MyStore(...)

The two stores stand for two processes that use one table. Override `value` where rows have other fields. Every key is
new, so the table need not be empty, except that `scan` and `marked` walk over all there is.
"""

from __future__ import annotations

import asyncio
import uuid

from fairlead.migration import Key, MigrationStore, Row, Value

__all__ = ["MigrationStoreContract"]

Stores = tuple[MigrationStore, MigrationStore]
OLD, NEW = 0, 1


class MigrationStoreContract:
    """Subclass it with a fixture `stores` that yields two stores of one table with text keys."""

    def value(self, number: int) -> Value:
        """A whole row, different for each number."""
        return {"text": f"row {number}", "amount": number}

    def keys(self, count: int) -> list[Key]:
        mark = uuid.uuid4().hex
        return [f"{mark}-{number:05d}" for number in range(count)]

    async def row(self, store: MigrationStore, key: Key) -> Row:
        (row,) = await store.read([key])
        return row

    async def all_marked(self, store: MigrationStore) -> set[Key]:
        found: list[Key] = []
        while page := await store.marked(found[-1] if found else None, 3):
            found += page
        return set(found)

    async def test_an_unknown_key_has_no_row_and_version_zero(self, stores: Stores) -> None:
        (key,) = self.keys(1)
        assert await self.row(stores[0], key) == Row(key, None, 0)

    async def test_another_process_reads_the_row_with_its_version(self, stores: Stores) -> None:
        (key,) = self.keys(1)
        version = await stores[0].write(key, self.value(1), parity=OLD)
        assert version == 2
        assert await self.row(stores[1], key) == Row(key, self.value(1), version)

    async def test_rows_are_read_in_the_order_asked_for(self, stores: Stores) -> None:
        keys = self.keys(7)
        for number, key in enumerate(keys[1:]):
            await stores[0].write(key, self.value(number), parity=OLD)
        asked = [keys[5], keys[0], keys[2]]
        assert [row.key for row in await stores[1].read(asked)] == asked
        assert [row.value is None for row in await stores[1].read(asked)] == [False, True, False]
        assert list(await stores[0].read([])) == []

    async def test_each_write_gets_a_greater_number_of_its_kind(self, stores: Stores) -> None:
        (key,) = self.keys(1)
        given = [
            await stores[turn % 2].write(key, self.value(turn), parity=parity, floor=floor)
            for turn, (parity, floor) in enumerate(
                [(OLD, 0), (OLD, 0), (NEW, 0), (NEW, 0), (OLD, 0), (NEW, 40)]
            )
        ]
        assert given == [2, 4, 5, 7, 8, 41]
        assert await self.row(stores[0], key) == Row(key, self.value(5), 41)

    async def test_two_who_write_at_once_get_two_numbers_and_the_row_of_the_greater_stays(
        self, stores: Stores
    ) -> None:
        (key,) = self.keys(1)
        given = await asyncio.gather(
            *(stores[number % 2].write(key, self.value(number), parity=OLD) for number in range(12))
        )
        assert sorted(given) == list(range(2, 26, 2))
        assert await self.row(stores[0], key) == Row(key, self.value(given.index(24)), 24)

    async def test_a_deleted_row_leaves_its_version(self, stores: Stores) -> None:
        (key,) = self.keys(1)
        await stores[0].write(key, self.value(1), parity=OLD)
        assert await stores[0].write(key, None, parity=OLD) == 4
        assert await self.row(stores[1], key) == Row(key, None, 4)

    async def test_a_row_is_taken_only_if_it_is_newer(self, stores: Stores) -> None:
        (key,) = self.keys(1)
        assert await stores[0].apply([Row(key, self.value(1), 6)]) == [6]
        assert await stores[1].apply([Row(key, self.value(2), 4)]) == [6]
        assert await stores[1].apply([Row(key, self.value(3), 6)]) == [6]
        assert await self.row(stores[0], key) == Row(key, self.value(1), 6)
        assert await stores[1].apply([Row(key, self.value(4), 7)]) == [7]
        assert await self.row(stores[0], key) == Row(key, self.value(4), 7)

    async def test_a_row_that_is_older_than_a_deletion_does_not_come_back(self, stores: Stores) -> None:
        deleted, never = self.keys(2)
        await stores[0].write(deleted, self.value(1), parity=OLD)
        await stores[0].apply([Row(deleted, None, 8), Row(never, None, 2)])
        assert await stores[1].apply([Row(never, self.value(2), 0), Row(deleted, self.value(2), 4)]) == [2, 8]
        assert await stores[0].read([deleted, never]) == [Row(deleted, None, 8), Row(never, None, 2)]

    async def test_a_row_from_before_the_migration_is_taken_where_there_is_nothing(
        self, stores: Stores
    ) -> None:
        absent, written = self.keys(2)
        await stores[0].write(written, self.value(1), parity=NEW)
        rows = [Row(absent, self.value(2), 0), Row(written, self.value(3), 0)]
        assert await stores[1].apply(rows) == [0, 1]
        assert await stores[1].apply([Row(absent, self.value(4), 0)]) == [0]
        assert [row.value for row in await stores[0].read([absent, written])] == [
            self.value(2),
            self.value(1),
        ]

    async def test_many_rows_are_taken_at_once(self, stores: Stores) -> None:
        keys = self.keys(1200)
        rows = [Row(key, self.value(number), 2) for number, key in enumerate(keys)]
        assert await stores[0].apply(rows) == [2] * len(keys)
        assert [row.value for row in await stores[1].read(keys)] == [row.value for row in rows]

    async def test_batches_that_meet_in_other_orders_both_end(self, stores: Stores) -> None:
        keys = self.keys(60)
        batches = [
            [Row(key, self.value(turn), 2 + 2 * turn) for key in keys[:: (-1) ** turn]] for turn in range(6)
        ]
        await asyncio.gather(*(stores[turn % 2].apply(batch) for turn, batch in enumerate(batches)))
        assert {row.version for row in await stores[0].read(keys)} == {12}
        assert all(row.value == self.value(5) for row in await stores[0].read(keys))

    async def test_a_write_marks_its_key_and_what_is_taken_marks_none(self, stores: Stores) -> None:
        written, deleted, taken = self.keys(3)
        before = await stores[0].count_marked()
        await stores[0].write(written, self.value(1), parity=OLD)
        await stores[0].write(deleted, None, parity=OLD)
        await stores[0].apply([Row(taken, self.value(1), 2)])
        marked = await self.all_marked(stores[1])
        assert (written in marked, deleted in marked, taken in marked) == (True, True, False)
        assert await stores[1].count_marked() == before + 2

    async def test_a_mark_goes_when_the_other_store_has_that_version_and_stays_for_a_later_one(
        self, stores: Stores
    ) -> None:
        settled, written_again = self.keys(2)
        versions = {
            key: await stores[0].write(key, self.value(1), parity=OLD) for key in (settled, written_again)
        }
        await stores[1].write(written_again, self.value(2), parity=OLD)
        await stores[0].settle(versions)
        marked = await self.all_marked(stores[0])
        assert (settled in marked, written_again in marked) == (False, True)
        await stores[0].settle({})

    async def test_a_newer_row_takes_the_mark_away_and_an_older_one_does_not(self, stores: Stores) -> None:
        newer, older = self.keys(2)
        for key in (newer, older):
            await stores[0].write(key, self.value(1), parity=OLD)
        await stores[1].apply([Row(newer, self.value(2), 3), Row(older, self.value(2), 1)])
        marked = await self.all_marked(stores[0])
        assert (newer in marked, older in marked) == (False, True)

    async def test_a_marked_key_can_be_spared(self, stores: Stores) -> None:
        marked, free, absent = self.keys(3)
        await stores[0].write(marked, self.value(1), parity=NEW)
        await stores[0].apply([Row(free, self.value(1), 2)])
        rows = [Row(key, self.value(2), 8) for key in (marked, free, absent)]
        assert await stores[1].apply(rows, spare_marked=True) == [1, 8, 8]
        assert await self.row(stores[0], marked) == Row(marked, self.value(1), 1)
        assert marked in await self.all_marked(stores[0])

    async def test_a_touch_renews_the_version_and_keeps_the_row(self, stores: Stores) -> None:
        (key,) = self.keys(1)
        version = await stores[0].write(key, self.value(1), parity=NEW)
        await stores[0].settle({key: version})
        await stores[1].touch(key, version=version, parity=NEW, floor=10)
        assert await self.row(stores[0], key) == Row(key, self.value(1), 11)
        assert key in await self.all_marked(stores[0])

    async def test_a_touch_of_another_version_does_nothing(self, stores: Stores) -> None:
        (key,) = self.keys(1)
        await stores[0].write(key, self.value(1), parity=OLD)
        await stores[1].touch(key, version=0, parity=OLD, floor=10)
        assert (await self.row(stores[0], key)).version == 2

    async def test_a_touch_of_a_row_that_is_not_there_deletes_it_elsewhere(self, stores: Stores) -> None:
        (key,) = self.keys(1)
        await stores[0].touch(key, version=0, parity=OLD)
        assert await self.row(stores[1], key) == Row(key, None, 2)
        assert key in await self.all_marked(stores[1])

    async def test_a_scan_meets_every_row_once_and_no_deleted_one(self, stores: Stores) -> None:
        keys = self.keys(23)
        for number, key in enumerate(keys):
            await stores[0].write(key, self.value(number), parity=OLD)
        await stores[0].write(keys[4], None, parity=OLD)
        found: list[Row] = []
        while page := await stores[1].scan(found[-1].key if found else None, 5):
            found += page
        ours = [row for row in found if row.key in set(keys)]
        assert sorted(str(row.key) for row in ours) == [key for key in keys if key != keys[4]]
        assert {row.version for row in ours} == {2}
        assert await stores[1].count() >= 22

    async def test_a_note_is_read_by_another_process_and_replaced(self, stores: Stores) -> None:
        name = uuid.uuid4().hex
        assert await stores[0].recall(name) is None
        await stores[0].remember(name, "one")
        await stores[1].remember(name, "two é")
        assert await stores[0].recall(name) == "two é"

    async def test_a_cancelled_write_is_whole_or_absent(self, stores: Stores) -> None:
        keys = self.keys(20)
        tasks = [asyncio.create_task(stores[0].write(key, self.value(1), parity=OLD)) for key in keys]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        rows = await stores[0].read(keys)
        assert all(row in (Row(row.key, None, 0), Row(row.key, self.value(1), 2)) for row in rows)
        assert all(row.version == 2 for row in rows[1::2])

    async def test_a_closed_store_opens_again_when_it_is_used(self, stores: Stores) -> None:
        (key,) = self.keys(1)
        await stores[0].write(key, self.value(1), parity=OLD)
        await stores[0].close()
        await stores[0].close()
        assert (await self.row(stores[0], key)).version == 2
