from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fairlead.cache import Cache, Freshness, Lookup, MemoryStore
from fairlead.clock import ManualClock, settle
from fairlead.context import RequestContext, current, request_context
from fairlead.deadline import Deadline
from fairlead.errors import DeadlineExceeded, InvalidInput, LoadCancelled

PLAIN = Freshness(ttl=10.0, jitter=0.0)
STALE = Freshness(ttl=10.0, jitter=0.0, stale_while_revalidate=5.0)
SAFE = Freshness(ttl=10.0, jitter=0.0, stale_if_error=60.0)


class Origin:
    """Answers with a running number, after its gate opens; fails while `error` is set."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> int:
        self.calls += 1
        answer, error = self.calls, self.error
        await self.gate.wait()
        if error is not None:
            raise error
        return answer


@pytest.fixture
async def origin() -> Origin:
    return Origin()


def returning(value: Any) -> Callable[[], Awaitable[Any]]:
    async def load() -> Any:
        return value

    return load


# Freshness


async def test_a_fresh_value_is_served_without_asking_the_origin(
    cache: Cache, clock: ManualClock, origin: Origin
) -> None:
    await cache.get_or_load("k", origin, PLAIN)
    clock.advance(9.99)
    assert await cache.get_or_load("k", origin, PLAIN) == 1
    assert origin.calls == 1
    assert (cache.stats.hits, cache.stats.misses, cache.stats.loads) == (1, 1, 1)


async def test_at_the_end_of_its_ttl_a_value_is_loaded_again(
    cache: Cache, clock: ManualClock, origin: Origin
) -> None:
    await cache.get_or_load("k", origin, PLAIN)
    clock.advance(10.0)
    assert await cache.get_or_load("k", origin, PLAIN) == 2


async def test_the_ttl_counts_from_the_end_of_the_load_and_the_age_from_its_start(
    cache: Cache, clock: ManualClock, origin: Origin
) -> None:
    origin.gate.clear()
    first = asyncio.create_task(cache.lookup("k", origin, PLAIN))
    await settle()
    clock.advance(7.0)
    origin.gate.set()
    assert (await first).age == 7.0
    clock.advance(9.0)
    assert await cache.lookup("k", origin, PLAIN) == Lookup(1, "hit", 16.0, 0.0)


async def test_jitter_only_subtracts_so_that_the_ttl_is_an_upper_bound(clock: ManualClock) -> None:
    cache = Cache(clock=clock, rng=random.Random(7))
    freshness = Freshness(ttl=10.0, jitter=0.2)
    for key in range(500):
        await cache.get_or_load(key, returning(key), freshness)
    clock.advance(7.999)
    assert sum([await cache.get(key, "gone") != "gone" for key in range(500)]) == 500
    clock.advance(1.0)
    alive = sum([await cache.get(key, "gone") != "gone" for key in range(500)])
    assert 180 < alive < 320
    clock.advance(1.001)
    assert all([await cache.get(key, "gone") == "gone" for key in range(500)])


async def test_a_ttl_of_zero_keeps_nothing_yet_concurrent_callers_share_one_load(
    cache: Cache, origin: Origin
) -> None:
    nothing = Freshness(ttl=0.0)
    assert await asyncio.gather(*(cache.get_or_load("k", origin, nothing) for _ in range(5))) == [1] * 5
    assert await cache.get_or_load("k", origin, nothing) == 2


async def test_the_wall_clock_may_jump_without_reviving_or_killing_an_entry(
    cache: Cache, clock: ManualClock, origin: Origin
) -> None:
    await cache.get_or_load("k", origin, PLAIN)
    clock.set_utc(clock.utc() + 1e9)
    assert await cache.get_or_load("k", origin, PLAIN) == 1
    clock.set_utc(0.0)
    clock.advance(10.0)
    assert await cache.get_or_load("k", origin, PLAIN) == 2


# None


async def test_none_is_a_value(cache: Cache) -> None:
    loads = 0

    async def load() -> None:
        nonlocal loads
        loads += 1

    assert await cache.get_or_load("k", load, PLAIN) is None
    assert await cache.get_or_load("k", load, PLAIN) is None
    assert await cache.get("k", "absent") is None
    assert loads == 1


async def test_a_none_lives_for_its_negative_ttl_and_has_no_stale_windows(
    cache: Cache, clock: ManualClock
) -> None:
    freshness = Freshness(
        ttl=10.0, jitter=0.0, negative_ttl=1.0, stale_while_revalidate=60.0, stale_if_error=60.0
    )
    await cache.get_or_load("k", returning(None), freshness)
    clock.advance(0.5)
    assert await cache.get_or_load("k", returning("found"), freshness) is None
    clock.advance(0.5)
    assert await cache.get_or_load("k", returning("found"), freshness) == "found"


async def test_a_none_that_is_not_stored_takes_the_place_of_an_older_value(
    cache: Cache, clock: ManualClock
) -> None:
    freshness = Freshness(ttl=10.0, jitter=0.0, negative_ttl=0.0, stale_if_error=60.0)
    await cache.get_or_load("k", returning("old"), freshness)
    clock.advance(10.0)
    assert await cache.get_or_load("k", returning(None), freshness) is None
    origin = Origin()
    origin.error = OSError("down")
    with pytest.raises(OSError, match="down"):
        await cache.get_or_load("k", origin, freshness)


# Stale while revalidate


async def test_none_is_a_value_and_is_loaded_once(cache: Cache) -> None:
    for _ in range(2):
        assert await cache.get_or_load("k", returning(None), PLAIN) is None
        assert (await cache.lookup("k", returning(None), PLAIN)).source == "hit"
    assert cache.stats.loads == 1


async def test_a_stale_value_is_served_while_one_refresh_runs(
    cache: Cache, clock: ManualClock, origin: Origin
) -> None:
    await cache.get_or_load("k", origin, STALE)
    clock.advance(12.0)
    origin.gate.clear()
    assert await cache.lookup("k", origin, STALE) == Lookup(1, "stale", 12.0, 2.0)
    assert [await cache.get_or_load("k", origin, STALE) for _ in range(20)] == [1] * 20
    await settle()
    assert origin.calls == 2
    origin.gate.set()
    await settle()
    assert (await cache.lookup("k", origin, STALE)).source == "hit"
    assert await cache.get_or_load("k", origin, STALE) == 2
    assert (cache.stats.stale_served, cache.stats.refreshes, cache.stats.max_staleness_served) == (21, 1, 2.0)


async def test_a_stale_value_is_never_served_past_its_bound_while_its_refresh_hangs(
    cache: Cache, clock: ManualClock, origin: Origin
) -> None:
    await cache.get_or_load("k", origin, STALE)
    clock.advance(14.9)
    origin.gate.clear()
    assert await cache.get_or_load("k", origin, STALE) == 1
    clock.advance(0.1)
    late = asyncio.create_task(cache.lookup("k", origin, STALE))
    await settle()
    assert not late.done()
    origin.gate.set()
    assert (await late).source == "joined"
    assert origin.calls == 2


async def test_a_failed_refresh_keeps_the_value_until_its_bound_and_then_raises(
    cache: Cache, clock: ManualClock, origin: Origin
) -> None:
    await cache.get_or_load("k", origin, STALE)
    origin.error = OSError("down")
    clock.advance(11.0)
    for _ in range(3):
        assert await cache.get_or_load("k", origin, STALE) == 1
        await settle()
    assert (origin.calls, cache.stats.refresh_failures, cache.stats.load_errors) == (4, 3, 3)
    assert cache.stats.last_error == "OSError: down"
    clock.advance(4.0)
    with pytest.raises(OSError, match="down"):
        await cache.get_or_load("k", origin, STALE)


async def test_background_refreshes_have_their_own_bound_after_a_mass_invalidation(
    clock: ManualClock,
) -> None:
    cache = Cache(clock=clock, refresh_concurrency=4)
    origin = Origin()
    for key in range(50):
        await cache.get_or_load(key, origin, STALE)
    for key in range(50):
        await cache.expire(key)
    origin.gate.clear()
    for key in range(50):
        assert (await cache.lookup(key, origin, STALE)).source == "stale"
    await settle()
    assert origin.calls == 54
    assert (cache.stats.refreshes, cache.stats.refreshes_skipped) == (4, 46)
    origin.gate.set()
    await settle()
    for key in range(4, 8):
        await cache.get_or_load(key, origin, STALE)
    await settle()
    assert origin.calls == 58


async def test_a_refresh_that_ends_within_its_first_step_frees_its_place(clock: ManualClock) -> None:
    """As under Python 3.12's eager tasks."""

    def eager(loop: asyncio.AbstractEventLoop, load: Any, **_: Any) -> Any:
        task = loop.create_future()
        with pytest.raises(StopIteration):
            load.send(None)
        task.set_result(None)
        return task

    cache = Cache(clock=clock, refresh_concurrency=1)
    await cache.set("a", 1, STALE)
    await cache.set("b", 1, STALE)
    clock.advance(11.0)
    asyncio.get_running_loop().set_task_factory(eager)
    try:
        for key in ("a", "b"):
            assert await cache.get_or_load(key, returning(2), STALE) == 1
    finally:
        asyncio.get_running_loop().set_task_factory(None)
    assert (cache.stats.refreshes, cache.stats.refreshes_skipped) == (2, 0)
    assert (await cache.get("a"), await cache.get("b")) == (2, 2)


def test_refreshes_left_behind_in_a_closed_loop_do_not_fill_the_pool(clock: ManualClock) -> None:
    cache = Cache(clock=clock, refresh_concurrency=1)

    async def ask(key: str) -> object:
        answer = await cache.get_or_load(key, asyncio.Event().wait, STALE)
        await settle()
        return answer

    async def ask_for_two() -> None:
        assert await ask("b") == "b"
        assert await ask("c") == "c"  # whose refresh finds the only place taken

    for key in "abc":
        asyncio.run(cache.set(key, key, STALE))
    clock.advance(11.0)
    first = asyncio.new_event_loop()
    assert first.run_until_complete(ask("a")) == "a"
    abandoned = asyncio.all_tasks(first)
    asyncio.run(ask_for_two())
    assert (cache.stats.refreshes, cache.stats.refreshes_skipped) == (2, 1)
    for task in abandoned:
        task.cancel()
    first.run_until_complete(settle())
    first.close()


async def test_a_full_refresh_pool_neither_stretches_the_bound_nor_holds_up_callers(
    clock: ManualClock,
) -> None:
    cache = Cache(clock=clock, refresh_concurrency=1)
    slow, fast = Origin(), Origin()
    await cache.get_or_load("slow", slow, STALE)
    await cache.get_or_load("fast", fast, STALE)
    slow.gate.clear()
    clock.advance(11.0)
    await cache.get_or_load("slow", slow, STALE)
    assert (await cache.lookup("fast", fast, STALE)).source == "stale"
    clock.advance(4.0)
    assert await cache.lookup("fast", fast, STALE) == Lookup(2, "load", 0.0, 0.0)
    slow.gate.set()
    await settle()


# Stale if error


async def test_a_failed_load_is_answered_by_the_old_value_within_its_bound(
    cache: Cache, clock: ManualClock, origin: Origin
) -> None:
    await cache.get_or_load("k", origin, SAFE)
    origin.error = OSError("down")
    clock.advance(69.0)
    assert await cache.lookup("k", origin, SAFE) == Lookup(1, "stale_error", 69.0, 59.0)
    assert (cache.stats.stale_error_served, cache.stats.load_errors) == (1, 1)
    clock.advance(1.0)
    with pytest.raises(OSError, match="down"):
        await cache.lookup("k", origin, SAFE)


async def test_the_bound_on_error_is_judged_when_the_load_has_failed_not_when_it_began(
    cache: Cache, clock: ManualClock, origin: Origin
) -> None:
    await cache.get_or_load("k", origin, SAFE)
    origin.error = OSError("down")
    origin.gate.clear()
    clock.advance(65.0)
    caller = asyncio.create_task(cache.lookup("k", origin, SAFE))
    await settle()
    clock.advance(5.0)
    origin.gate.set()
    with pytest.raises(OSError, match="down"):
        await caller


async def test_a_load_that_runs_into_its_timeout_is_answered_by_the_old_value(
    cache: Cache, clock: ManualClock, origin: Origin
) -> None:
    await cache.get_or_load("k", origin, SAFE)
    origin.gate.clear()
    clock.advance(11.0)
    caller = asyncio.create_task(cache.lookup("k", origin, SAFE))
    await settle()
    clock.advance(30.0)
    assert (await caller).source == "stale_error"


async def test_a_removed_value_does_not_come_back_for_a_failed_load(
    cache: Cache, clock: ManualClock, origin: Origin
) -> None:
    await cache.get_or_load("k", origin, SAFE)
    origin.error = OSError("down")
    await cache.remove("k")
    with pytest.raises(OSError, match="down"):
        await cache.get_or_load("k", origin, SAFE)


async def test_a_value_set_while_the_load_was_failing_answers_its_callers(
    cache: Cache, origin: Origin
) -> None:
    origin.error = OSError("down")
    origin.gate.clear()
    caller = asyncio.create_task(cache.lookup("k", origin, PLAIN))
    await settle()
    await cache.set("k", "written", PLAIN)
    origin.gate.set()
    assert await caller == Lookup("written", "hit", 0.0, 0.0)


async def test_a_callers_own_deadline_is_no_failure_of_the_origin(
    cache: Cache, clock: ManualClock, origin: Origin
) -> None:
    await cache.get_or_load("k", origin, SAFE)
    clock.advance(11.0)
    origin.gate.clear()
    with request_context(RequestContext(deadline=Deadline.after(1.0, clock))):
        caller = asyncio.create_task(cache.lookup("k", origin, SAFE))
    await settle()
    clock.advance(1.0)
    with pytest.raises(DeadlineExceeded, match="this caller's deadline"):
        await caller
    assert cache.stats.load_errors == 0
    origin.gate.set()
    await settle()
    assert await cache.get("k") == 2


# Invalidation


@pytest.mark.parametrize("verb", ["expire", "remove", "clear"])
async def test_a_load_in_flight_does_not_undo_an_invalidation(
    cache: Cache, origin: Origin, verb: str
) -> None:
    origin.gate.clear()
    before = asyncio.create_task(cache.lookup("k", origin, PLAIN))
    await settle()
    await (cache.clear() if verb == "clear" else getattr(cache, verb)("k"))
    after = asyncio.create_task(cache.lookup("k", origin, PLAIN))
    await settle()
    origin.gate.set()
    assert (await before).value == 1
    assert await after == Lookup(2, "load", 0.0, 0.0)
    assert await cache.get("k") == 2
    assert cache.stats.max_concurrent_loads == 2


async def test_a_load_in_flight_does_not_undo_a_write(cache: Cache, origin: Origin) -> None:
    origin.gate.clear()
    before = asyncio.create_task(cache.get_or_load("k", origin, PLAIN))
    await settle()
    await cache.set("k", "written", PLAIN)
    origin.gate.set()
    assert await before == 1
    assert await cache.get("k") == "written"


async def test_a_refresh_in_flight_does_not_undo_a_removal(
    cache: Cache, clock: ManualClock, origin: Origin
) -> None:
    await cache.get_or_load("k", origin, STALE)
    clock.advance(11.0)
    origin.gate.clear()
    await cache.get_or_load("k", origin, STALE)
    await settle()
    await cache.remove("k")
    origin.gate.set()
    await settle()
    assert await cache.get("k", "absent") == "absent"


async def test_an_expired_value_may_be_served_stale_and_a_removed_one_may_not(
    cache: Cache, clock: ManualClock, origin: Origin
) -> None:
    await cache.get_or_load("a", origin, STALE)
    await cache.get_or_load("b", origin, STALE)
    await cache.expire("a")
    await cache.remove("b")
    assert (await cache.lookup("a", origin, STALE)).source == "stale"
    assert (await cache.lookup("b", origin, STALE)).source == "load"


async def test_a_value_expired_early_is_not_served_stale_for_longer_than_its_window(
    cache: Cache, clock: ManualClock, origin: Origin
) -> None:
    await cache.get_or_load("k", origin, STALE)
    clock.advance(1.0)
    await cache.expire("k")
    origin.error = OSError("down")
    clock.advance(4.9)
    assert (await cache.lookup("k", origin, STALE)).staleness == pytest.approx(4.9)
    clock.advance(0.1)
    with pytest.raises(OSError, match="down"):
        await cache.get_or_load("k", origin, STALE)
    await cache.expire("never stored")


async def test_expiring_a_stale_value_does_not_lengthen_its_life(
    cache: Cache, clock: ManualClock, origin: Origin
) -> None:
    await cache.get_or_load("k", origin, STALE)
    clock.advance(13.0)
    await cache.expire("k")
    assert (await cache.lookup("k", origin, STALE)).staleness == 3.0
    await settle()


# Cancellation, failure, shutdown


async def test_the_callers_that_wait_survive_the_cancelled_one_who_started_the_load(
    cache: Cache, origin: Origin
) -> None:
    origin.gate.clear()
    leader = asyncio.create_task(cache.get_or_load("k", origin, PLAIN))
    await settle()
    others = [asyncio.create_task(cache.get_or_load("k", origin, PLAIN)) for _ in range(3)]
    await settle()
    leader.cancel()
    await settle()
    assert leader.cancelled()
    origin.gate.set()
    assert await asyncio.gather(*others) == [1, 1, 1]
    assert (cache.stats.loads, cache.stats.joined) == (1, 3)


async def test_a_load_that_everybody_left_is_there_for_the_next_caller(cache: Cache, origin: Origin) -> None:
    origin.gate.clear()
    leader = asyncio.create_task(cache.get_or_load("k", origin, PLAIN))
    await settle()
    leader.cancel()
    await settle()
    origin.gate.set()
    await settle()
    assert (await cache.lookup("k", origin, PLAIN)).source == "hit"
    assert origin.calls == 1


async def test_an_error_is_not_cached(cache: Cache, origin: Origin) -> None:
    origin.error = OSError("down")
    with pytest.raises(OSError, match="down"):
        await cache.get_or_load("k", origin, PLAIN)
    origin.error = None
    assert await cache.get_or_load("k", origin, PLAIN) == 2


async def test_a_thousand_concurrent_misses_of_one_key_load_once(cache: Cache, origin: Origin) -> None:
    origin.gate.clear()
    callers = [asyncio.create_task(cache.lookup("k", origin, PLAIN)) for _ in range(1000)]
    await settle()
    origin.gate.set()
    answers = await asyncio.gather(*callers)
    assert origin.calls == 1
    assert sorted(answer.source for answer in answers) == ["joined"] * 999 + ["load"]
    assert (cache.stats.misses, cache.stats.joined, cache.stats.max_concurrent_loads) == (1000, 999, 1)


@pytest.mark.parametrize("arrivals", [1, 4, 32])
async def test_coalescing_saves_the_share_of_fetches_that_the_herd_law_gives(
    cache: Cache, clock: ManualClock, origin: Origin, arrivals: int
) -> None:
    origin.gate.clear()
    callers = []
    for _ in range(
        1 + arrivals
    ):  # λL = arrivals: that many come while the first one's fetch of one second runs
        callers.append(asyncio.create_task(cache.get_or_load("k", origin, PLAIN)))
        await settle(3)
        clock.advance(1.0 / (1 + arrivals))
    origin.gate.set()
    await asyncio.gather(*callers)
    assert 1 - origin.calls / len(callers) == pytest.approx(1 - 1 / (1 + arrivals))


async def test_closing_cancels_what_runs_and_leaves_the_cache_usable(cache: Cache, origin: Origin) -> None:
    origin.gate.clear()
    caller = asyncio.create_task(cache.get_or_load("k", origin, PLAIN))
    await settle()
    await cache.close()
    with pytest.raises(LoadCancelled, match="'k' was cancelled"):
        await caller
    origin.gate.set()
    assert await cache.get_or_load("k", origin, PLAIN) == 2


async def test_a_load_sees_its_own_timeout_as_deadline_and_its_starters_request_id(
    cache: Cache, clock: ManualClock
) -> None:
    seen: list[RequestContext] = []

    async def load() -> None:
        seen.append(current())

    with request_context(
        RequestContext(request_id="r1", deadline=Deadline.after(0.5, clock), targeting_key="ada")
    ):
        await cache.get_or_load("k", load, PLAIN)
    assert (seen[0].deadline.remaining(), seen[0].request_id, seen[0].targeting_key) == (30.0, "r1", "")


async def test_nothing_is_loaded_for_a_caller_whose_deadline_has_passed(
    cache: Cache, clock: ManualClock, origin: Origin
) -> None:
    with (
        request_context(RequestContext(deadline=Deadline.after(0.0, clock))),
        pytest.raises(DeadlineExceeded, match="not started"),
    ):
        await cache.get_or_load("k", origin, PLAIN)
    assert origin.calls == 0


# Keys, bounds, decorator


class Plain:
    pass


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (["a"], "cannot be hashed"),
        (("a", {"b": 1}), "cannot be hashed"),
        (Plain(), "holds a Plain, which hashes by identity"),
        (("user", Plain()), "holds a Plain, which hashes by identity"),
        (frozenset({Plain()}), "hashes by identity"),
        (lambda: 1, "hashes by identity"),
        (float("nan"), "does not equal itself"),
    ],
)
async def test_a_key_that_could_never_hit_is_refused(
    cache: Cache, origin: Origin, key: Any, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        await cache.get_or_load(key, origin, PLAIN)
    with pytest.raises(InvalidInput, match=message):
        await cache.set(key, 1, PLAIN)
    assert origin.calls == 0


@pytest.mark.parametrize("key", ["k", b"k", 7, None, 1.5, ("a", 1, ("b", None)), frozenset({1}), int])
async def test_plain_values_and_their_tuples_are_keys(cache: Cache, origin: Origin, key: Any) -> None:
    await cache.get_or_load(key, origin, PLAIN)
    await cache.get_or_load(key, origin, PLAIN)
    assert origin.calls == 1


async def test_the_least_recently_used_entry_leaves_first_and_is_counted(
    clock: ManualClock, origin: Origin
) -> None:
    store = MemoryStore(max_entries=2)
    cache = Cache(store, clock=clock)
    for key in ("a", "b", "a", "c"):
        await cache.get_or_load(key, origin, PLAIN)
    assert list(store.entries) == ["a", "c"]
    assert len(store) == 2
    assert cache.stats.evictions == 1


@pytest.mark.parametrize("max_entries", [0, -1, True, 1.5, 2**40, "10"])
def test_an_impossible_bound_on_entries_is_refused(max_entries: Any) -> None:
    with pytest.raises(InvalidInput, match="max_entries"):
        MemoryStore(max_entries=max_entries)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (f, v)
        for f in ("ttl", "jitter", "stale_while_revalidate", "stale_if_error", "negative_ttl")
        for v in (-1.0, float("nan"), float("inf"), 1e12, True, "1")
    ],
)
def test_an_impossible_freshness_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=f"Freshness.{field}: .* is not a number from 0 to"):
        Freshness(**{"ttl": 1.0, field: value})


@pytest.mark.parametrize(
    "setting",
    [
        {"refresh_concurrency": 0},
        {"refresh_concurrency": True},
        {"load_timeout": 0.0},
        {"load_timeout": float("nan")},
        {"load_timeout": 1e9},
        {"load_timeout": None},
    ],
)
def test_impossible_settings_of_a_cache_are_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(setting))):
        Cache(**setting)


async def test_the_decorator_gives_calls_that_bind_alike_one_key(cache: Cache) -> None:
    calls = []

    @cache.cached(key=lambda user_id, locale: ("profile", user_id, locale), freshness=PLAIN)
    async def profile(user_id: int, locale: str = "en") -> str:
        """Docs."""
        calls.append((user_id, locale))
        return f"{user_id}/{locale}"

    assert await profile(1) == await profile(user_id=1) == await profile(1, locale="en") == "1/en"
    assert await profile(2) == "2/en"
    assert calls == [(1, "en"), (2, "en")]
    assert (profile.__name__, profile.__doc__) == ("profile", "Docs.")
    await cache.remove(("profile", 1, "en"))
    await profile(1)
    assert len(calls) == 3


async def test_the_counters_of_a_cache_add_up(cache: Cache, clock: ManualClock, origin: Origin) -> None:
    for _ in range(3):
        await cache.get_or_load("k", origin, STALE)
    clock.advance(11.0)
    await cache.get_or_load("k", origin, STALE)
    await settle()
    counted = cache.stats.as_dict()
    assert counted["hits"] == 2
    assert counted["misses"] == 1
    assert counted["stale_served"] == 1
    assert counted["loads"] == origin.calls == 2
    assert repr(cache.stats) == (
        "CacheStats(hits=2, loads=2, max_concurrent_loads=1, max_staleness_served=1.0, misses=1, "
        "refreshes=1, stale_served=1)"
    )
    assert repr(cache) == "Cache('cache', 1 entries)"


def test_a_cache_of_one_process_imports_no_shared_tier_and_an_unknown_name_is_none() -> None:
    program = (
        "import sys, fairlead.cache as cache\n"
        "late = [name for name in sys.modules if name in ('fairlead.cache.second_tier', 'fairlead.telemetry.sink')]\n"
        "assert late == [], late\n"
        "assert all(hasattr(cache, name) for name in cache.__all__)\n"
        "assert not hasattr(cache, 'NoSuchName')\n"
        "assert cache.prewarm.__name__ == 'prewarm' and 'fairlead.cache.second_tier' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
