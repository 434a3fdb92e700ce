"""The shared tier behind its budget: late, failing, gone and back, on virtual time and a store in memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

from fairlead.cache.entry import Entry
from fairlead.cache.second_tier import SecondTier
from fairlead.clock import ManualClock, settle
from fairlead.testing.store_contract import StoreContract, Stores
from tests.unit.cache.shared_tier import Shared, SharedStore, entry, put, read


class TestTheStoreOfTheseTests(StoreContract):
    @pytest.fixture
    def stores(self) -> Stores:
        shared = Shared()
        return SharedStore(shared), SharedStore(shared)


@pytest.fixture
def store(clock: ManualClock) -> SharedStore:
    return SharedStore(Shared(), clock.now)


@pytest.fixture
def tier(clock: ManualClock, store: SharedStore) -> SecondTier:
    return SecondTier(store, clock=clock, rng=random.Random(1))


async def test_reads_of_one_turn_of_the_loop_are_one_question(tier: SecondTier, store: SharedStore) -> None:
    await asyncio.gather(*(tier.get(n) for n in range(64)))
    assert store.calls == [("get_many", 64)]
    assert tier.stats.misses == 64


async def test_writes_wait_for_nobody_and_go_out_together(
    tier: SecondTier, store: SharedStore, clock: ManualClock
) -> None:
    for n in range(64):
        tier.put(n, entry(n, clock))
    assert store.calls == []
    await settle()
    assert store.calls == [("put_many", 64)]
    assert await read(tier, 63) == 63


async def test_a_hung_tier_costs_its_budget_once_and_then_nothing(
    tier: SecondTier, store: SharedStore, clock: ManualClock
) -> None:
    store.hung = True
    first = asyncio.create_task(read(tier, "k"))
    await clock.run_for(0.029)
    assert not first.done()
    await clock.run_for(0.001)
    assert await first == "absent"
    asked = store.count("get_many")
    for _ in range(10):
        with pytest.raises(StopIteration) as ended:
            tier.get("k").send(None)  # does not suspend
        assert ended.value.value is None
    assert store.count("get_many") == asked
    assert (tier.stats.errors, tier.stats.skipped) == (1, 10)


async def test_a_refused_tier_is_a_miss_and_is_left_alone(
    tier: SecondTier, store: SharedStore, clock: ManualClock
) -> None:
    store.down = True
    assert [await read(tier, "k"), await read(tier, "k")] == ["absent", "absent"]
    assert (tier.stats.errors, tier.stats.skipped) == (1, 1)
    assert "shared: down" in tier.stats.last_error


async def test_probes_are_run_by_the_tier_and_double_up_to_their_cap(
    tier: SecondTier, store: SharedStore, clock: ManualClock
) -> None:
    store.down = True
    await tier.get("k")
    await clock.run_for(60.0)
    # 0.1, 0.2 … 3.2, then each 5 s, and up to a fifth later
    assert 14 <= store.count("get_many") - 1 <= 18
    store.down = False
    await clock.run_for(6.0)
    assert tier.is_trusted
    await put(tier, "k", "v", clock)
    assert await read(tier, "k") == "v"


async def test_a_tier_that_answers_too_late_is_not_trusted_again(
    tier: SecondTier, store: SharedStore, clock: ManualClock
) -> None:
    store.hung = True
    task = asyncio.create_task(tier.get("k"))
    await clock.run_for(30.0)
    await task
    assert not tier.is_trusted


async def test_an_invalidation_waits_for_its_answer(
    tier: SecondTier, store: SharedStore, clock: ManualClock
) -> None:
    await put(tier, "k", "v", clock)
    await tier.invalidate("remove", "k")
    assert store.shared.entries == {}
    assert tier.stats.owed == 0


async def test_an_invalidation_of_a_hung_tier_waits_for_the_budget_and_is_owed(
    tier: SecondTier, store: SharedStore, clock: ManualClock
) -> None:
    store.hung = True
    telling = asyncio.create_task(tier.invalidate("remove", "k"))
    await clock.run_for(0.029)
    assert not telling.done()
    await clock.run_for(0.001)
    assert telling.done()
    assert tier.stats.owed == 1


async def test_what_is_owed_is_replayed_before_the_tier_is_trusted_again(
    tier: SecondTier, store: SharedStore, clock: ManualClock
) -> None:
    await put(tier, "removed", "old", clock)
    await put(tier, "expired", "old", clock)
    await put(tier, "tagged", "old", clock, "t")
    store.down = True
    await tier.get("k")
    await tier.invalidate("remove", "removed")
    await tier.invalidate("expire", "expired")
    await tier.invalidate("remove_tag", "t")
    assert tier.stats.owed == 3
    store.down = False
    store.calls.clear()
    await clock.run_for(0.2)
    assert [verb for verb, _ in store.calls] == ["invalidate", "get_many"]
    assert (tier.stats.replayed, tier.stats.owed, tier.is_trusted) == (3, 0, True)
    assert [await read(tier, key) for key in ("removed", "tagged")] == ["absent", "absent"]
    found = await tier.get("expired")
    assert found is not None
    assert found.fresh_until <= clock.now()


async def test_what_a_tier_that_answers_would_not_take_is_not_seen_by_this_process(
    tier: SecondTier, store: SharedStore, clock: ManualClock
) -> None:
    await put(tier, "removed", "old", clock)
    await put(tier, "expired", "old", clock)
    await put(tier, "tagged", "old", clock, "t")
    await put(tier, "other", "other", clock)
    store.read_only = True
    await tier.invalidate("remove", "removed")
    await tier.invalidate("expire", "expired")
    await tier.invalidate("remove_tag", "t")
    assert tier.is_trusted
    assert [await read(tier, key) for key in ("removed", "tagged", "other")] == ["absent", "absent", "other"]
    found = await tier.get("expired")
    assert found is not None
    assert found.fresh_until <= clock.now()
    await tier.invalidate("clear")
    assert await read(tier, "other") == "absent"
    clock.advance(0.001)
    await put(tier, "other", "new", clock)
    assert await read(tier, "other") == "new"
    store.read_only = False
    await clock.run_for(10.0)
    assert tier.stats.owed == 0
    assert await read(tier, "removed") == "absent"


async def test_the_newest_debt_of_a_key_is_kept_and_a_removal_is_not_weakened(
    tier: SecondTier, store: SharedStore, clock: ManualClock
) -> None:
    store.down = True
    await tier.get("k")
    await tier.invalidate("remove", "k")
    clock.advance(0.001)
    await tier.invalidate("expire", "k")
    assert tier.stats.owed == 1
    store.down = False
    await put(tier, "k", "old", clock)
    store.shared.entries[str, "k"] = entry("later", clock)
    await clock.run_for(1.0)
    assert await read(tier, "k") == "later"  # it was loaded after both
    assert tier.stats.replayed == 1


async def test_more_debts_than_are_kept_become_one_clear(store: SharedStore, clock: ManualClock) -> None:
    tier = SecondTier(store, clock=clock, most_owed=10, rng=random.Random(1))
    await put(tier, "kept", "old", clock)
    store.down = True
    await tier.get("k")
    for n in range(11):
        await tier.invalidate("remove", n)
    assert (tier.stats.owed, tier.stats.collapsed) == (1, 1)
    store.down = False
    await clock.run_for(1.0)
    assert tier.is_trusted
    assert await read(tier, "kept") == "absent"
    await tier.close()


async def test_a_debt_is_forgotten_once_no_entry_can_be_as_old(
    store: SharedStore, clock: ManualClock
) -> None:
    tier = SecondTier(store, clock=clock, owed_for=100.0, rng=random.Random(1))
    store.down = True
    await tier.invalidate("remove", "k")
    await clock.run_for(111.0)
    assert tier.stats.owed == 0
    store.down = False
    await clock.run_for(6.0)
    assert tier.stats.replayed == 0
    await tier.close()


async def test_a_set_that_could_not_be_written_is_owed_as_a_removal(
    tier: SecondTier, store: SharedStore, clock: ManualClock
) -> None:
    await put(tier, "k", "old", clock)
    store.down = True
    await tier.get("other")
    tier.put("k", entry("new", clock), replaces=True)
    assert (tier.stats.dropped_writes, tier.stats.owed) == (1, 1)
    store.down = False
    await clock.run_for(1.0)
    assert await read(tier, "k") == "absent"


async def test_a_write_that_fails_on_its_way_is_dropped_and_counted(
    tier: SecondTier, store: SharedStore, clock: ManualClock
) -> None:
    store.down = True
    tier.put("a", entry("v", clock))
    tier.put("b", entry("v", clock), replaces=True)
    await settle()
    assert (tier.stats.dropped_writes, tier.stats.owed) == (2, 1)
    assert tier.is_trusted  # a full server that reads well is worth asking


async def test_more_writes_than_may_wait_are_dropped_and_counted(
    store: SharedStore, clock: ManualClock
) -> None:
    tier = SecondTier(store, clock=clock, most_writes=5, rng=random.Random(1))
    for n in range(8):
        tier.put(n, entry("v", clock))
    assert tier.stats.dropped_writes == 3
    await tier.close()
    assert store.calls == [("put_many", 5)]


async def test_a_write_that_hangs_is_given_up(
    tier: SecondTier, store: SharedStore, clock: ManualClock
) -> None:
    store.hung = True
    tier.put("k", entry("v", clock))
    await clock.run_for(2.0)
    assert tier.stats.dropped_writes == 1
    store.hung = False
    await put(tier, "k", "v", clock)
    assert await read(tier, "k") == "v"


async def test_a_cancelled_reader_harms_no_other(
    tier: SecondTier, store: SharedStore, clock: ManualClock
) -> None:
    await put(tier, "k", "v", clock)
    readers = [asyncio.create_task(read(tier, "k")) for _ in range(5)]
    await asyncio.sleep(0)
    readers[0].cancel()
    assert await asyncio.gather(*readers[1:]) == ["v"] * 4
    assert readers[0].cancelled()


async def test_close_delivers_what_waits_and_leaves_no_task(
    tier: SecondTier, store: SharedStore, clock: ManualClock
) -> None:
    tier.put("k", entry("v", clock))
    await tier.close()
    assert (store.calls, store.closed) == ([("put_many", 1)], 1)
    store.down = True
    await tier.get("k")
    await tier.invalidate("remove", "k")
    await tier.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    store.down = False
    await tier.get("k")
    await clock.run_for(10.0)
    assert tier.stats.owed == 0
    assert await read(tier, "k") == "absent"
    await tier.close()


def test_another_loop_starts_with_the_debts_and_without_the_tasks_of_the_last(
    tier: SecondTier, store: SharedStore, clock: ManualClock
) -> None:
    async def leave() -> None:
        store.down = True
        await tier.get("k")
        await tier.invalidate("remove", "k")
        tier.put("k", entry("v", clock))

    async def arrive() -> object:
        store.down = False
        await tier.get("k")
        await clock.run_for(10.0)
        found = await read(tier, "k")
        await tier.close()
        return found, tier.stats.owed

    asyncio.run(leave())
    assert asyncio.run(arrive()) == ("absent", 0)


async def test_a_removal_that_is_settled_while_a_read_is_on_its_way_still_hides_what_it_removed(
    clock: ManualClock,
) -> None:
    class Slow(SharedStore):
        """Looks at once and answers late: a second question, about tags, comes between."""

        async def get_many(self, keys: Sequence[Any]) -> list[Entry[Any] | None]:
            found = [self._get(key) for key in keys]
            await late.wait()
            return found

    late = asyncio.Event()
    tier = SecondTier(Slow(Shared(), clock.now), clock=clock, rng=random.Random(1))
    tier.put("k", entry("old", clock))
    await settle()
    clock.advance(0.001)
    before = asyncio.create_task(tier.get("other"))  # so that the question leaves before the removal
    removal = asyncio.create_task(tier.invalidate("remove", "k"))
    after = asyncio.create_task(tier.get("k"))
    await removal
    assert tier.stats.owed == 0
    late.set()
    assert await after is None
    await before
    await tier.close()


async def test_a_question_of_ten_thousand_keys_has_the_budget_for_each_part(
    tier: SecondTier, store: SharedStore, clock: ManualClock
) -> None:
    def slowly(keys: Sequence[object]) -> None:
        clock.advance(len(keys) * 20e-6)  # 20 µs a key: together seven times the budget

    store.while_reading = slowly
    await asyncio.gather(*(tier.get(n) for n in range(10_000)))
    assert (tier.stats.misses, tier.stats.errors, tier.stats.skipped) == (10_000, 0, 0)
    assert max(n for _, n in store.calls) <= 500


async def test_a_hung_tier_costs_a_long_question_one_budget(
    tier: SecondTier, store: SharedStore, clock: ManualClock
) -> None:
    store.hung = True
    asked = asyncio.gather(*(tier.get(n) for n in range(1_200)))
    await clock.run_for(0.031)
    assert await asked == [None] * 1_200
    assert (tier.stats.errors, tier.stats.skipped) == (500, 700)
    assert store.calls[0] == ("get_many", 500)


async def test_a_tier_that_closes_lets_those_go_whose_part_was_not_asked_yet(
    tier: SecondTier, store: SharedStore
) -> None:
    store.hung = True
    asked = asyncio.gather(*(tier.get(n) for n in range(1_200)))
    await settle()
    await tier.close(timeout=0.0)
    await settle()
    assert await asked == [None] * 1_200


async def test_a_set_is_seen_by_its_process_before_it_is_written(
    tier: SecondTier, store: SharedStore, clock: ManualClock
) -> None:
    tier.put("k", entry("old", clock), replaces=True)
    await settle()
    clock.advance(1.0)
    store.hung = True
    tier.put("other", entry("o", clock), replaces=True)
    await settle()  # that one is on its way, so the next waits behind it
    store.hung = False
    tier.put("k", entry("new", clock), replaces=True)
    assert await read(tier, "k") == "new"
    await clock.run_for(3.0)
    assert tier._writes.sets == {}
    assert await read(tier, "k") == "new"


@pytest.mark.parametrize("kind", ["remove", "remove_tag", "clear"])
async def test_a_set_that_waits_to_be_written_does_not_outlive_its_removal(
    tier: SecondTier, store: SharedStore, clock: ManualClock, kind: Any
) -> None:
    store.hung = True
    tier.put("other", entry("o", clock), replaces=True)
    await settle()
    store.hung = False
    tier.put("k", entry("new", clock, "t"), replaces=True)
    await tier.invalidate(kind, {"remove": "k", "remove_tag": "t", "clear": None}[kind])
    assert await read(tier, "k") == "absent"
    await clock.run_for(3.0)
    assert await read(tier, "k") == "absent"


@pytest.mark.parametrize("removed", [False, True])
async def test_a_read_that_comes_back_after_a_set_was_written_does_not_bring_what_it_replaced(
    tier: SecondTier, store: SharedStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    tier.put("k", entry("old", clock), replaces=True)
    await settle()
    clock.advance(1.0)

    async def slowly(keys: Sequence[Any]) -> Any:
        await settle()  # the reply, made before the write, is on its way while that ends
        return [old]

    put_many = store.put_many

    async def later(puts: Sequence[Any]) -> int:
        await settle(5)
        return await put_many(puts)

    old = store._get("k")
    monkeypatch.setattr(store, "get_many", slowly)
    monkeypatch.setattr(store, "put_many", later)
    tier.put("k", entry("new", clock), replaces=True)
    reading = asyncio.create_task(read(tier, "k"))
    await settle(10)
    assert tier._writes.sets == {}
    if removed:
        await tier.invalidate("remove", "k")
    assert await reading == ("absent" if removed else "new")
