"""RedisRateLimiter with a real Redis that is shared, hung, killed and brought back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from fairlead.admission import RateLimit
from fairlead.admission.redis import RedisRateLimiter
from fairlead.errors import InvalidInput
from fairlead.telemetry import MetricRegistry, StateChanged
from fairlead.telemetry.prometheus import render
from fairlead.testing import RedisCluster, RedisServer

SLOW = RateLimit(rate=0.01, burst=5)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@asynccontextmanager
async def limiter(
    server: RedisServer, limit: RateLimit = SLOW, **settings
) -> AsyncIterator[RedisRateLimiter]:
    settings.setdefault("budget", 1.0)  # of a machine that is busy with other tests
    limits = RedisRateLimiter(limit, server.url, **settings)
    try:
        yield limits
    finally:
        await limits.close()


async def allowed(limits: RedisRateLimiter, client: str, times: int) -> int:
    decisions = await asyncio.gather(*(limits.check(client) for _ in range(times)))
    return sum(decision.allowed for decision in decisions)


async def test_processes_share_one_bucket_per_client(server: RedisServer) -> None:
    async with limiter(server) as first, limiter(server) as second:
        assert await allowed(first, "a", 3) == 3
        assert await allowed(second, "a", 5) == 2
        assert await allowed(second, "b", 9) == 5
        assert (first.fallbacks, second.fallbacks) == (0, 0)


async def test_many_at_once_take_no_more_than_the_bucket_holds(server: RedisServer) -> None:
    async with limiter(server) as first, limiter(server) as second:
        taken = await asyncio.gather(*(allowed(limits, "a", 40) for limits in (first, second) * 2))
        assert (sum(taken), first.last_error, second.last_error) == (5, "", "")


async def test_a_decision_says_what_is_left_and_tokens_come_back(server: RedisServer) -> None:
    async with limiter(server, RateLimit(rate=5.0, burst=2)) as limits:
        await limits.check("warm")
        first = await limits.check("a")
        assert (first.allowed, first.remaining, first.retry_after) == (True, 1, 0.0)
        assert first.reset == pytest.approx(0.2, abs=0.001)
        refused = await limits.check("a", 2.0)
        assert not refused.allowed
        assert 0.0 < refused.retry_after <= 0.2
        await asyncio.sleep(refused.retry_after + 0.1)
        assert (await limits.check("a", 2.0)).allowed
        assert (await limits.check("a", 3.0)).retry_after is None


async def test_a_full_bucket_leaves_no_key_behind(server: RedisServer) -> None:
    async with limiter(server, RateLimit(rate=50.0, burst=5)) as limits:
        await limits.check("a")
        await limits.check("x" * 100_000)
        keys = server.command("KEYS", "fairlead:rate:default:*")
        assert len(keys) == 2
        assert all(len(key) < 100 for key in keys)
        await asyncio.sleep(0.1)
        assert server.command("KEYS", "*") == []


async def test_a_client_known_to_be_limited_costs_redis_nothing(server: RedisServer) -> None:
    async with limiter(server) as limits:
        await allowed(limits, "a", 6)
        before = _scripts_run(server)
        for _ in range(100):
            assert not (await limits.check("a")).allowed
        assert _scripts_run(server) - before <= 1
        assert (await limits.check("b")).allowed


def _scripts_run(server: RedisServer) -> int:
    stats = server.command("INFO", "commandstats").decode()
    return sum(
        int(line.partition("calls=")[2].partition(",")[0])
        for line in stats.splitlines()
        if line.startswith("cmdstat_evalsha:")
    )


async def test_a_hung_redis_costs_its_budget_once_and_the_local_buckets_decide(server: RedisServer) -> None:
    events: list[StateChanged] = []
    metrics = MetricRegistry()
    local = RateLimit(rate=0.01, burst=3)
    async with limiter(server, local=local, budget=0.1, metrics=metrics, on_event=events.append) as limits:
        assert (await limits.check("warm")).allowed
        await asyncio.sleep(0.6)  # the window forgets it
        server.pause()
        began = time.monotonic()
        assert (await limits.check("a")).allowed
        assert 0.09 < time.monotonic() - began < 0.4
        began = time.monotonic()
        assert [(await limits.check("a")).allowed for _ in range(4)] == [True, True, False, False]
        assert time.monotonic() - began < 0.05
        assert limits.fallbacks == 5
        assert [event.current for event in events] == ["open"]
        assert limits.last_error.startswith("DeadlineExceeded: ")
        assert 'fairlead_rate_limit_fallbacks_total{limit="default"} 5.0' in render(metrics)
        server.resume()
        await _until_redis_decides(limits)


async def _until_redis_decides(limits: RedisRateLimiter) -> None:
    for number in range(400):
        before = limits.fallbacks
        assert (await limits.check(f"new {number}")).allowed
        if limits.fallbacks == before:
            return
        await asyncio.sleep(0.05)
    pytest.fail("Redis was not asked again")


async def test_a_redis_that_was_killed_is_asked_again_once_it_is_back(server: RedisServer) -> None:
    async with limiter(server) as limits:
        assert await allowed(limits, "a", 5) == 5
        server.kill()
        for number in range(20):  # also of those that were on the socket
            assert (await limits.check(f"down {number}")).allowed
        assert limits.fallbacks == 20
        server.restart()  # empty, and without the script
        await _until_redis_decides(limits)


async def test_a_cancelled_question_leaves_nothing_for_the_next_one(server: RedisServer) -> None:
    async with limiter(server, RateLimit(rate=0.01, burst=1000)) as limits:
        for _ in range(20):
            asked = asyncio.create_task(limits.check("cancelled"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            decision = await limits.check("other", 10.0)
            assert decision.allowed
        assert decision.remaining == 800
        assert limits.fallbacks == 0


def test_a_second_event_loop_gets_connections_of_its_own(server: RedisServer) -> None:
    limits = RedisRateLimiter(SLOW, server.url, budget=0.5)

    async def ask() -> bool:
        decision = await limits.check("a")
        await limits.close()
        return decision.allowed

    assert [asyncio.run(ask()) for _ in range(7)] == [True] * 5 + [False] * 2
    assert limits.fallbacks == 0


async def test_a_cluster_holds_the_buckets_too() -> None:
    with RedisCluster() as cluster:
        limits = RedisRateLimiter(SLOW, cluster.url, cluster=True, budget=1.0)
        try:
            for client in ("a", "b", "c", "d"):
                assert await allowed(limits, client, 7) == 5
            assert (limits.fallbacks, limits.last_error) == (0, "")
        finally:
            await limits.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1", "127.0.0.1:6379", ""])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"^RedisRateLimiter\.url: "):
        RedisRateLimiter(SLOW, url)


async def test_a_name_that_is_no_unicode_is_counted_and_opens_no_breaker(server: RedisServer) -> None:
    async with limiter(server) as limits:
        for client in ("\ud800", "\udcff\x00", "a" * 63 + "\udfff"):
            assert await allowed(limits, client, 7) == 5
        assert (limits.fallbacks, limits.last_error) == (0, "")
