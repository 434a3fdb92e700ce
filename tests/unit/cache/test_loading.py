"""Ages beyond the ttl: the cap, the early refresh, the adapted ttl and the soft timeout."""

from __future__ import annotations

import asyncio
import math
import random

import pytest

from fairlead.cache import Cache, Freshness
from fairlead.clock import ManualClock, settle
from fairlead.context import RequestContext, request_context
from fairlead.deadline import Deadline
from fairlead.errors import DeadlineExceeded, InvalidInput


async def new() -> str:
    return "new"


async def fail() -> str:
    raise ConnectionError("down")


# The cap on age


async def test_nothing_is_served_at_or_past_max_ttl_whatever_the_windows_allow(
    cache: Cache, clock: ManualClock
):
    capped = Freshness(ttl=10.0, jitter=0.0, stale_while_revalidate=60.0, stale_if_error=60.0, max_ttl=15.0)
    await cache.set("k", "old", capped)
    clock.advance(14.9)
    assert (await cache.lookup("k", fail, capped)).source == "stale"
    await settle()
    clock.advance(0.1)
    with pytest.raises(ConnectionError):
        await cache.get_or_load("k", fail, capped)


async def test_max_ttl_counts_from_the_start_of_the_load(cache: Cache, clock: ManualClock):
    capped = Freshness(ttl=10.0, jitter=0.0, max_ttl=10.0)

    async def slow() -> str:
        await clock.sleep(4.0)
        return "value"

    loading = asyncio.create_task(cache.get_or_load("k", slow, capped))
    await settle()
    await clock.run_for(4.0)
    assert await loading == "value"
    clock.advance(5.9)
    assert await cache.get("k") == "value"
    clock.advance(0.1)
    assert await cache.get("k") is None


# Early refresh


async def cost_two_seconds(cache: Cache, clock: ManualClock, freshness: Freshness) -> None:
    async def slow() -> str:
        await clock.sleep(2.0)
        return "old"

    loading = asyncio.create_task(cache.get_or_load("k", slow, freshness))
    await settle()
    await clock.run_for(2.0)
    await loading


EARLY = Freshness(ttl=100.0, jitter=0.0, early_refresh=1.0)


async def test_an_early_refresh_runs_behind_a_fresh_answer(cache: Cache, clock: ManualClock):
    await cost_two_seconds(cache, clock, EARLY)
    clock.advance(99.999)
    for _ in range(50):  # the lot falls on each of them with probability 0.9995
        answer = await cache.lookup("k", new, EARLY)
        assert (answer.value, answer.source, answer.staleness) == ("old", "hit", 0.0)
    assert (cache.stats.refreshes, cache.stats.early_refreshes) == (1, 1)
    await settle()
    assert await cache.get("k") == "new"


async def test_no_refresh_is_early_while_much_of_the_ttl_is_left(cache: Cache, clock: ManualClock):
    await cost_two_seconds(cache, clock, EARLY)
    clock.advance(59.9)  # more than twenty loads before the end
    for _ in range(1000):
        await cache.get_or_load("k", new, EARLY)
    assert cache.stats.refreshes == 0


async def test_without_early_refresh_a_fresh_answer_sets_off_nothing(cache: Cache, clock: ManualClock):
    plain = Freshness(ttl=100.0, jitter=0.0)
    await cost_two_seconds(cache, clock, plain)
    clock.advance(99.999)
    for _ in range(50):
        await cache.get_or_load("k", new, plain)
    assert cache.stats.refreshes == 0


async def test_the_lot_falls_with_the_probability_that_the_paper_gives(clock: ManualClock):
    """exp(-left / (beta * cost)); 2,000 draws with seed 1, within four standard errors."""
    draws = 2000
    for left, beta in ((1.0, 1.0), (4.0, 1.0), (4.0, 2.0)):
        expected = math.exp(-left / (beta * 2.0))
        freshness = Freshness(ttl=100.0, jitter=0.0, early_refresh=beta)
        cache = Cache(clock=clock, rng=random.Random(1), refresh_concurrency=1)
        await cost_two_seconds(cache, clock, freshness)
        clock.advance(100.0 - left)
        early = 0
        for _ in range(draws):
            before = cache.stats.early_refreshes
            await cache.get_or_load("k", new, freshness)
            if cache.stats.early_refreshes > before:
                early += 1
                cache._flights.forget_all()  # so that the next caller may set off another
                cache._loads._refreshing.clear()
        error = math.sqrt(expected * (1 - expected) / draws)
        assert abs(early / draws - expected) < 4 * error
        await cache.close()


# Adapted ttl

ADAPTIVE = Freshness(ttl=10.0, jitter=0.0, adaptive=0.5, max_ttl=300.0)


async def lifetime(cache: Cache, clock: ManualClock) -> float:
    entry = cache._store.entries["k"]
    return entry.fresh_until - clock.now()


async def test_a_value_that_does_not_change_is_fresh_for_longer_each_time(cache: Cache, clock: ManualClock):
    seen = []
    for _ in range(12):
        await cache.get_or_load("k", new, ADAPTIVE)
        seen.append(await lifetime(cache, clock))
        clock.advance(seen[-1])
    assert seen[:3] == [10.0, 10.0, 10.0]  # half of 0, 10 and 20 s unchanged are not more than the ttl
    assert seen[3:5] == [15.0, 22.5]
    assert seen[-1] == 300.0
    assert cache.stats.loads == 12


async def test_a_value_that_changed_is_fresh_for_its_ttl_again(cache: Cache, clock: ManualClock):
    answers = iter(["a", "a", "a", "a", "b"])

    async def load() -> str:
        return next(answers)

    for _ in range(4):
        await cache.get_or_load("k", load, ADAPTIVE)
        clock.advance(await lifetime(cache, clock))
    await cache.get_or_load("k", load, ADAPTIVE)
    assert await lifetime(cache, clock) == pytest.approx(10.0)


async def test_a_key_that_is_seldom_asked_for_does_not_adapt(cache: Cache, clock: ManualClock):
    for _ in range(5):
        await cache.get_or_load("k", new, ADAPTIVE)
        assert await lifetime(cache, clock) == pytest.approx(10.0)
        clock.advance(20.1)  # nobody asked within a ttl of its end: it may have changed and changed back


async def test_values_that_cannot_be_compared_count_as_changed(cache: Cache, clock: ManualClock):
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise ValueError("ambiguous")

        __hash__ = None  # type: ignore[assignment]

    async def load() -> Odd:
        return Odd()

    for _ in range(5):
        await cache.get_or_load("k", load, ADAPTIVE)
        assert await lifetime(cache, clock) == pytest.approx(10.0)
        clock.advance(10.0)


# Soft timeout

SOFT = Freshness(ttl=10.0, jitter=0.0, stale_if_error=60.0, soft_timeout=0.2)


class Slow:
    def __init__(self, clock: ManualClock, seconds: float) -> None:
        self.clock = clock
        self.seconds = seconds

    async def __call__(self) -> str:
        await self.clock.sleep(self.seconds)
        return "new"


async def test_the_old_value_answers_for_a_slow_load_which_goes_on(cache: Cache, clock: ManualClock):
    await cache.set("k", "old", SOFT)
    clock.advance(11.0)
    asked = asyncio.create_task(cache.lookup("k", Slow(clock, 1.0), SOFT))
    await settle()
    await clock.run_for(0.2)
    answer = await asked
    assert (answer.value, answer.source) == ("old", "stale_slow")
    assert answer.staleness == pytest.approx(1.2)
    assert cache.stats.stale_slow_served == 1
    await clock.run_for(0.8)
    assert await cache.get("k") == "new"
    assert cache.stats.loads == 1


async def test_a_load_within_the_soft_timeout_answers_itself(cache: Cache, clock: ManualClock):
    await cache.set("k", "old", SOFT)
    clock.advance(11.0)
    asked = asyncio.create_task(cache.lookup("k", Slow(clock, 0.1), SOFT))
    await settle()
    await clock.run_for(0.1)
    assert (await asked).value == "new"


async def test_without_an_old_value_a_slow_load_is_waited_for(cache: Cache, clock: ManualClock):
    asked = asyncio.create_task(cache.get_or_load("k", Slow(clock, 1.0), SOFT))
    await settle()
    await clock.run_for(1.0)
    assert await asked == "new"


async def test_an_old_value_removed_during_the_wait_does_not_stand_in(cache: Cache, clock: ManualClock):
    await cache.set("k", "old", SOFT)
    clock.advance(11.0)
    asked = asyncio.create_task(cache.get_or_load("k", Slow(clock, 1.0), SOFT))
    await settle()
    await cache.remove("k")
    await clock.run_for(1.0)
    assert await asked == "new"


async def test_a_caller_with_less_time_than_the_soft_timeout_gets_its_own_deadline(
    cache: Cache, clock: ManualClock
):
    await cache.set("k", "old", SOFT)
    clock.advance(11.0)
    with request_context(RequestContext(deadline=Deadline.after(0.1, clock))):
        asked = asyncio.create_task(cache.get_or_load("k", Slow(clock, 1.0), SOFT))
    await settle()
    await clock.run_for(0.1)
    with pytest.raises(DeadlineExceeded):
        await asked
    await cache.close()


async def test_what_was_set_after_a_soft_timeout_without_an_old_value_stands_in_for_the_error(
    cache: Cache, clock: ManualClock
):
    gate = asyncio.Event()

    async def fails_late() -> str:
        await gate.wait()
        raise ConnectionError("down")

    await cache.set("k", "old", SOFT)
    clock.advance(10.0)
    waiting = asyncio.create_task(cache.lookup("k", fails_late, SOFT))
    await settle()
    await cache.remove("k")
    await clock.run_for(0.3)  # at the soft timeout there was nothing
    await cache.set("k", "set since", SOFT)
    gate.set()
    assert (await waiting).value == "set since"


async def test_a_load_that_fails_after_its_soft_timeout_harms_nobody(cache: Cache, clock: ManualClock):
    async def fail_late() -> str:
        await clock.sleep(1.0)
        raise ConnectionError("down")

    await cache.set("k", "old", SOFT)
    clock.advance(11.0)
    asked = asyncio.create_task(cache.get_or_load("k", fail_late, SOFT))
    await settle()
    await clock.run_for(0.2)
    assert await asked == "old"
    await clock.run_for(0.8)
    assert cache.stats.load_errors == 1


# Settings that do not go together


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_ttl": 5.0}, "is less than the ttl"),
        ({"adaptive": 0.1}, "needs a max_ttl"),
        ({"adaptive": 1.5, "max_ttl": 60.0}, "from 0 to 1"),
        ({"early_refresh": 11.0}, "from 0 to 10"),
        ({"early_refresh": math.nan}, "from 0 to 10"),
        ({"max_ttl": math.nan}, "Freshness.max_ttl: nan"),
        ({"soft_timeout": 0.1}, "needs stale_if_error"),
        ({"soft_timeout": -1.0, "stale_if_error": 5.0}, "from 0 to"),
    ],
)
def test_settings_that_promise_what_cannot_be_are_refused(settings: dict[str, float], message: str):
    with pytest.raises(InvalidInput, match=message):
        Freshness(ttl=10.0, **settings)
