"""Two processes with a cache each and one tier between them, on virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Hashable
from typing import Any

import pytest

from fairlead.cache import Cache, CacheEvent, Entry, Freshness, MemoryStore
from fairlead.cache.second_tier import SecondTier
from fairlead.clock import ManualClock, settle
from fairlead.context import RequestContext, request_context
from fairlead.deadline import Deadline
from fairlead.errors import DeadlineExceeded, InvalidInput
from fairlead.telemetry import MetricRegistry
from fairlead.telemetry.prometheus import render
from tests.unit.cache.shared_tier import Shared, SharedPlane, SharedStore

PLAIN = Freshness(ttl=60.0, jitter=0.0)
STALE = Freshness(ttl=60.0, jitter=0.0, stale_while_revalidate=60.0, stale_if_error=600.0)


class Process:
    """A cache, its tier, and an origin that counts."""

    def __init__(self, shared: Shared, plane: SharedPlane, clock: ManualClock, **settings: Any) -> None:
        self.store = SharedStore(shared, clock.now)
        self.tier = SecondTier(self.store, backplane=plane, clock=clock, rng=random.Random(1), **settings)
        self.cache = Cache(second=self.tier, clock=clock, rng=random.Random(1))
        self.clock = clock
        self.loads = 0
        self.value: Any = "value"
        self.takes = 0.0
        self.fails = False

    async def load(self) -> Any:
        self.loads += 1
        if self.takes:
            await self.clock.sleep(self.takes)
        if self.fails:
            raise ConnectionError("origin")
        return self.value

    async def ask(self, key: Hashable = "k", freshness: Freshness = PLAIN, tags: tuple[str, ...] = ()) -> Any:
        return await self.cache.get_or_load(key, self.load, freshness, tags)


@pytest.fixture
def shared() -> Shared:
    return Shared()


@pytest.fixture
def plane() -> SharedPlane:
    return SharedPlane()


@pytest.fixture
def here(shared: Shared, plane: SharedPlane, clock: ManualClock) -> Process:
    return Process(shared, plane, clock, memory_ttl=600.0)


@pytest.fixture
def there(shared: Shared, plane: SharedPlane, clock: ManualClock) -> Process:
    return Process(shared, plane, clock, memory_ttl=600.0)


async def loaded(
    process: Process, key: Hashable = "k", freshness: Freshness = PLAIN, tags: tuple[str, ...] = ()
) -> None:
    await process.ask(key, freshness, tags)
    await settle()
    process.clock.advance(0.001)


async def test_what_one_process_loaded_another_need_not(here: Process, there: Process) -> None:
    await loaded(here)
    found = await there.cache.lookup("k", there.load, PLAIN)
    assert (found.value, found.source, there.loads) == ("value", "second", 0)
    assert found.age == pytest.approx(0.001)
    again = await there.cache.lookup("k", there.load, PLAIN)
    assert again.source == "hit"
    assert there.cache.stats.loads == 0


async def test_callers_share_the_question_to_the_second_tier(here: Process, there: Process) -> None:
    await loaded(here)
    await asyncio.gather(*(there.ask() for _ in range(100)))
    assert there.store.calls == [("get_many", 1)]


async def test_callers_share_the_question_also_when_memory_does_not_keep_the_answer(
    here: Process, there: Process, clock: ManualClock
) -> None:
    await loaded(here)
    small = Cache(MemoryStore(max_bytes=1), second=SecondTier(there.store, clock=clock), clock=clock)
    found = await asyncio.gather(*(small.lookup("k", there.load, PLAIN) for _ in range(100)))
    assert [each.source for each in found] == ["second"] + ["joined"] * 99
    assert there.store.calls == [("get_many", 1)]
    assert (small.stats.misses, small.stats.joined, small.stats.loads) == (100, 99, 0)
    await small.close()


async def test_a_caller_that_comes_after_a_removal_does_not_get_the_answer_to_an_older_question(
    here: Process, there: Process, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await loaded(here)
    await there.ask("another key")  # listens from now on
    get, late = there.tier.get, []

    async def and_then_remove(key: Hashable) -> Entry[Any] | None:
        found = await get(key)
        monkeypatch.undo()
        await here.cache.remove(key)
        there.value = "new"
        clock.advance(0.001)
        await settle()
        late.append(asyncio.create_task(there.ask()))
        await settle()
        return found

    monkeypatch.setattr(there.tier, "get", and_then_remove)
    assert await there.ask() == "value"  # asked before the removal
    assert await late[0] == "new"


async def test_a_multi_get_asks_the_second_tier_once_and_loads_what_it_lacks_in_one_call(
    here: Process, there: Process
) -> None:
    for n in range(10):
        await loaded(here, n)
    batches: list[list[int]] = []

    async def load_many(keys: list[int]) -> dict[int, str]:
        batches.append(keys)
        return dict.fromkeys(keys, "loaded")

    answers = await there.cache.get_many(range(15), load_many, PLAIN)
    assert answers == {n: "value" if n < 10 else "loaded" for n in range(15)}
    assert there.store.calls[0] == ("get_many", 15)
    assert there.store.count("get_many") == 1
    assert batches == [list(range(10, 15))]


async def test_the_age_of_a_value_counts_from_its_load_wherever_that_was(
    here: Process, there: Process, clock: ManualClock
) -> None:
    await loaded(here)
    await clock.run_for(50.0)
    await there.ask()
    await clock.run_for(9.9)
    there.value = "new"
    assert await there.ask() == "value"
    await clock.run_for(0.2)
    assert await there.ask() == "new"


async def test_memory_asks_the_second_tier_again_after_its_own_ttl(
    shared: Shared, plane: SharedPlane, clock: ManualClock
) -> None:
    here, there = (Process(shared, plane, clock, memory_ttl=5.0) for _ in range(2))
    plane.cut = True
    await loaded(here)
    await there.ask()
    await here.cache.set("k", "set", PLAIN)
    await settle()
    assert await there.ask() == "value"  # the message was lost
    await clock.run_for(5.0)
    assert await there.ask() == "set"
    assert there.loads == 0
    await here.cache.close()
    await there.cache.close()


async def test_a_stale_value_of_the_second_tier_is_served_while_one_refresh_runs(
    here: Process, there: Process, clock: ManualClock
) -> None:
    await loaded(here, freshness=STALE)
    await clock.run_for(70.0)
    there.value = "new"
    found = await there.cache.lookup("k", there.load, STALE)
    assert (found.value, found.source) == ("value", "second")
    assert found.staleness == pytest.approx(10.001)
    await settle()
    assert await there.ask(freshness=STALE) == "new"
    assert there.loads == 1


async def test_a_refresh_takes_what_another_process_has_refreshed(
    here: Process, there: Process, clock: ManualClock
) -> None:
    await loaded(here, freshness=STALE)
    await there.ask(freshness=STALE)
    await clock.run_for(70.0)
    here.value = "new"
    await here.ask(freshness=STALE)
    await settle()
    assert await there.ask(freshness=STALE) == "value"
    await settle()
    assert await there.ask(freshness=STALE) == "new"
    assert there.loads == 0


async def test_an_old_value_of_the_second_tier_stands_in_for_a_load_that_fails(
    here: Process, there: Process, clock: ManualClock
) -> None:
    await loaded(here, freshness=STALE)
    await clock.run_for(300.0)
    there.fails = True
    found = await there.cache.lookup("k", there.load, STALE)
    assert (found.value, found.source) == ("value", "stale_error")
    await clock.run_for(400.0)
    with pytest.raises(ConnectionError):
        await there.ask(freshness=STALE)


async def test_an_early_refresh_takes_no_copy_of_what_it_is_to_replace(
    here: Process, there: Process, clock: ManualClock
) -> None:
    early = Freshness(ttl=60.0, jitter=0.0, early_refresh=10.0)
    here.takes = 1.0
    asking = asyncio.create_task(here.ask(freshness=early))
    await clock.run_for(1.0)
    await asking
    await there.ask(freshness=early)
    here.value, there.value = "new", "new"
    await clock.run_for(58.0)
    for _ in range(50):
        await there.ask(freshness=early)
    await settle()
    assert there.cache.stats.early_refreshes >= 1
    assert there.loads == 1
    assert await there.ask(freshness=early) == "new"
    for _ in range(50):
        await here.ask(freshness=early)
    await settle()
    assert here.cache.stats.early_refreshes >= 1
    assert here.loads == 1  # its refresh found what the other one had loaded
    assert await here.ask(freshness=early) == "new"


@pytest.mark.parametrize("verb", ["remove", "remove_tag", "clear", "apply"])
async def test_what_one_process_removes_is_gone_in_the_other(
    here: Process, there: Process, verb: str
) -> None:
    await loaded(here, tags=("t", "u"))
    await there.ask()
    there.value = "new"
    if verb == "remove":
        await here.cache.remove("k")
    elif verb == "remove_tag":
        await here.cache.remove_tag("t")
    elif verb == "clear":
        await here.cache.clear()
    else:
        assert await here.cache.apply(CacheEvent(key="k", generation=1, kind="remove"))
    await settle()
    here.clock.advance(0.001)
    assert await there.ask() == "new"
    assert here.tier.stats.heard == 0  # one's own message is not for oneself


async def test_what_one_process_expires_is_stale_in_the_other(here: Process, there: Process) -> None:
    await loaded(here, freshness=STALE)
    await there.ask(freshness=STALE)
    await here.cache.expire("k")
    await settle()
    there.clock.advance(0.001)
    there.value = "new"
    found = await there.cache.lookup("k", there.load, STALE)
    assert (found.value, found.source) == ("value", "stale")


async def test_what_one_process_sets_the_other_reads(here: Process, there: Process) -> None:
    await loaded(here)
    await there.ask()
    await here.cache.set("k", "set", PLAIN)
    await settle()
    assert await there.ask() == "set"
    assert there.loads == 0


async def test_a_load_in_flight_is_not_kept_when_another_process_removes_its_key(
    here: Process, there: Process, clock: ManualClock
) -> None:
    there.takes = 1.0
    there.value = "old"
    asking = asyncio.create_task(there.ask())
    await clock.run_for(0.5)
    await here.cache.remove("k")
    await clock.run_for(0.5)
    assert await asking == "old"
    there.value, there.takes = "new", 0.0
    assert await there.ask() == "new"
    assert await here.ask() == "new"


async def test_a_removal_during_the_question_to_the_second_tier_is_not_undone_by_its_answer(
    here: Process, clock: ManualClock
) -> None:
    await loaded(here)
    here.cache._store.drop("k")
    asking = asyncio.create_task(here.ask())
    await asyncio.sleep(0)
    here.value = "new"
    await here.cache.remove("k")
    await asking
    clock.advance(0.001)
    assert await here.ask() == "new"


async def test_a_removal_between_the_answer_of_the_second_tier_and_its_reader_is_not_undone(
    here: Process, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await loaded(here)
    here.cache._store.drop("k")
    get = here.tier.get

    async def and_then_remove(key: Hashable) -> Entry[Any] | None:
        found = await get(key)
        monkeypatch.undo()
        await here.cache.remove(key)
        return found

    monkeypatch.setattr(here.tier, "get", and_then_remove)
    assert await here.ask() == "value"  # asked before the removal
    here.value = "new"
    clock.advance(0.001)
    assert await here.ask() == "new"


async def test_a_caller_cancelled_while_it_asks_the_second_tier_leaves_the_question_to_the_next(
    here: Process, there: Process
) -> None:
    await loaded(here)
    first, second = (asyncio.create_task(there.ask()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == "value"
    assert there.loads == 0
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_caller_with_less_time_than_the_tiers_budget_keeps_its_deadline(
    here: Process, there: Process, clock: ManualClock
) -> None:
    await loaded(here)
    there.store.hung = True
    with request_context(RequestContext(deadline=Deadline.after(there.tier.budget / 2, clock))):
        asking = asyncio.create_task(there.ask())
    await clock.run_for(there.tier.budget / 2)
    with pytest.raises(DeadlineExceeded):
        await asking
    there.store.hung = False
    await there.cache.close()


async def test_after_a_gap_in_the_messages_everything_in_memory_is_asked_anew(
    here: Process, there: Process, plane: SharedPlane, clock: ManualClock
) -> None:
    await loaded(here)
    await there.ask()
    plane.lose_connections()
    await here.cache.remove("k")
    there.value = "new"
    assert await there.ask() == "value"  # nobody told it
    await clock.run_for(1.0)
    assert await there.ask() == "new"
    assert there.tier.stats.gaps == 1
    await here.cache.close()
    await there.cache.close()


async def test_a_message_that_cannot_be_read_means_that_everything_may_have_changed(
    here: Process, there: Process, plane: SharedPlane
) -> None:
    await loaded(here)
    await there.ask()
    for junk in (b"", b"\xc1", b"\x94\x01\xa1x\xa3odd\xc0", b"\x01"):
        await plane.publish([junk])
    assert len(there.cache._store) == 0


async def test_a_key_that_no_message_can_carry_clears_the_memory_of_the_others(
    here: Process, there: Process
) -> None:
    key = ("k", frozenset({1}))
    await loaded(here, key)
    await there.ask(key)
    await here.cache.remove(key)
    await settle()
    assert len(there.cache._store) == 0


async def test_without_the_second_tier_loads_go_on(here: Process, clock: ManualClock) -> None:
    here.store.down = True
    assert [await here.ask(n) for n in range(5)] == ["value"] * 5
    assert here.tier.stats.skipped == 4
    assert await here.ask(0) == "value"
    assert here.loads == 5


async def test_close_ends_every_task(here: Process) -> None:
    await loaded(here)
    await here.cache.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
def fleet(shared: Shared, plane: SharedPlane, clock: ManualClock) -> list[Process]:
    return [Process(shared, plane, clock, lease_for=5.0) for _ in range(4)]


async def test_with_a_lease_one_process_loads_for_all(fleet: list[Process], clock: ManualClock) -> None:
    for process in fleet:
        process.takes = 1.0
    asking = [asyncio.create_task(process.ask()) for process in fleet for _ in range(50)]
    await clock.run_for(1.1)
    assert await asyncio.gather(*asking) == ["value"] * 200
    assert sum(process.loads for process in fleet) == 1


async def test_a_holder_that_never_comes_back_holds_the_others_up_for_the_lease(
    fleet: list[Process], clock: ManualClock
) -> None:
    gone, left = fleet[0], fleet[1]
    assert await gone.tier.acquire("k")
    asking = asyncio.create_task(left.ask())
    await clock.run_for(4.9)
    assert not asking.done()
    await clock.run_for(0.2)
    assert await asking == "value"
    assert left.loads == 1


async def test_a_load_that_fails_gives_its_lease_back(fleet: list[Process], clock: ManualClock) -> None:
    fleet[0].fails = True
    with pytest.raises(ConnectionError):
        await fleet[0].ask()
    await settle()
    asking = asyncio.create_task(fleet[1].ask())
    await settle()
    assert asking.done()


async def test_loads_go_ahead_without_a_lease_when_the_tier_is_away(
    fleet: list[Process], clock: ManualClock
) -> None:
    for process in fleet:
        process.store.down = True
        assert await process.ask() == "value"
    assert [process.loads for process in fleet] == [1, 1, 1, 1]


def test_a_tier_stands_behind_one_cache(here: Process) -> None:
    with pytest.raises(InvalidInput, match="give each cache its own"):
        Cache(second=here.tier)


async def test_a_value_that_came_between_the_look_and_the_lease_is_not_loaded_again(
    fleet: list[Process], clock: ManualClock
) -> None:
    first, second = fleet[:2]
    first.takes = 1.0
    asking = asyncio.create_task(first.ask())
    await clock.run_for(0.5)
    acquire = second.tier.acquire

    async def slowly(key: Hashable) -> str | None:
        await clock.sleep(0.6)  # in which the first one stores its value and gives the lease back
        return await acquire(key)

    second.tier.acquire = slowly  # type: ignore[method-assign]
    late = asyncio.create_task(second.ask())
    await clock.run_for(2.0)
    assert (await asking, await late) == ("value", "value")
    assert second.loads == 0
    assert second.store.shared.leases == {}


async def test_the_counts_of_both_tiers_are_read_at_the_scrape(here: Process, there: Process) -> None:
    registry = MetricRegistry()
    there.cache.export(registry)
    await loaded(here)
    await there.ask()
    await there.ask()
    text = render(registry)
    assert 'fairlead_cache_total{cache="cache",what="hits"} 1' in text
    assert 'fairlead_cache_total{cache="cache",what="loads"} 0' in text
    assert 'fairlead_cache_entries{cache="cache"} 1' in text
    assert 'fairlead_cache_second_tier_total{cache="cache",tier="second tier",what="hits"} 1' in text
    assert "last_error" not in text


async def test_a_change_that_is_refused_is_refused_again_and_not_taken_for_applied(
    shared: Shared, plane: SharedPlane, clock: ManualClock
) -> None:
    process = Process(shared, plane, clock)
    event = CacheEvent(key=range(3), generation=1, value="v", freshness=PLAIN)
    for _ in range(2):
        with pytest.raises(InvalidInput):
            await process.cache.apply(event)
    assert (process.cache.stats.events_applied, process.cache.stats.events_ignored) == (0, 0)


async def test_the_soft_timeout_counts_from_the_call_however_long_the_tier_takes(
    here: Process, there: Process, clock: ManualClock
) -> None:
    soft = Freshness(ttl=1.0, jitter=0.0, stale_if_error=600.0, soft_timeout=0.01)
    await loaded(here, freshness=soft)
    clock.advance(2.0)
    here.store.hung = True
    asking = asyncio.create_task(here.cache.lookup("k", here.load, soft))
    await clock.run_for(0.01)
    assert (await asking).source == "stale_slow"
    here.store.hung = False
    await here.cache.close()
