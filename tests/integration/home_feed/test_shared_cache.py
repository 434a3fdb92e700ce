"""Two feed processes behind one Redis: one load for both, and no answer lost when it hangs."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import aiohttp

from fairlead.testing import RedisServer
from fairlead.trial import Settings
from fairlead_systems.home_feed.routing import FEEDS, measure_routing, two_feeds
from fairlead_systems.home_feed.system import REDIS_FAULT, make_plan, start


async def count(
    session: aiohttp.ClientSession, url: str, what: str, family: str = "fairlead_cache_total"
) -> float:
    async with session.get(f"{url}/metrics") as response:
        text = await response.text()
    found = re.search(rf'^{family}\{{[^}}]*what="{what}"\}} (\S+)$', text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])


def lookups(redis: RedisServer) -> int:
    """How often a command has looked a key up in it."""
    found = re.findall(rb"^keyspace_(?:hits|misses):(\d+)", redis.command("INFO", "stats"), re.MULTILINE)
    return sum(map(int, found))


async def pages(session: aiohttp.ClientSession, urls: list[str], topics: range) -> list[tuple[int, bool]]:
    async def ask(url: str, topic: int) -> tuple[int, bool]:
        async with session.get(f"{url}/feed?user=u&topic={topic}") as response:
            return response.status, (await response.json())["degraded"]

    return list(await asyncio.gather(*(ask(url, topic) for topic in topics for url in urls)))


async def warm(session: aiohttp.ClientSession, url: str) -> None:
    """Asks until pages are whole: processes that have only just started are slow, and short of something."""
    for topic in range(300, 400, 10):
        if await pages(session, [url], range(topic, topic + 10)) == [(200, False)] * 10:
            return
        await asyncio.sleep(0.2)
    raise AssertionError("pages stay short of something")


async def test_two_feeds_load_a_page_once_and_outlive_the_redis_they_share(tmp_path: Path) -> None:
    with RedisServer() as redis:
        async with (
            two_feeds(tmp_path, redis=redis.url) as topology,
            aiohttp.ClientSession() as session,
        ):
            one, other = urls = [topology[name].url for name in FEEDS]
            await warm(session, one)
            assert await pages(session, [one], range(10)) == [(200, False)] * 10
            loaded = await count(session, one, "loads")
            await asyncio.sleep(0.1)  # values are written in the background
            assert await pages(session, [other], range(10)) == [(200, False)] * 10
            assert await count(session, other, "loads") < loaded  # some may have expired after their second
            assert await count(session, other, "hits", "fairlead_cache_second_tier_total") > 0

            async with session.post(f"{one}/lab/clear") as response:
                assert response.status == 200
            await asyncio.sleep(0.1)
            before = await count(session, other, "misses")
            await pages(session, [other], range(3))
            assert await count(session, other, "misses") > before  # the other's memory was cleared as well

            redis.pause()
            assert {status for status, _ in await pages(session, urls, range(20, 40))} == {200}
            redis.resume()
            assert {status for status, _ in await pages(session, urls, range(40, 50))} == {200}


async def test_routing_by_user_finds_his_entries_where_random_choice_does_not(tmp_path: Path) -> None:
    async with two_feeds(tmp_path) as topology:
        found = await measure_routing(topology, users=40, requests=240)
    random, routed = found["random"], found["routed"]
    assert routed.hit_ratio > random.hit_ratio
    # One process asks for each user once; some entries may have lived their ten seconds.
    assert routed.user_loads < 0.75 * random.user_loads
    assert routed.seen_again < random.seen_again  # what was seen is remembered where the user comes back


async def test_trial_hangs_and_takes_away_a_redis_without_touching_it(tmp_path: Path) -> None:
    with RedisServer() as redis:
        settings = Settings(quick=True, redis=redis.url)
        plan = make_plan(settings)
        phases = {phase.name: phase for phase in plan.phases}
        treatment = plan.arms[1]
        async with start(plan, settings, tmp_path) as running, aiohttp.ClientSession() as session:
            url = running.url(treatment)
            await warm(session, url)
            assert await pages(session, [url], range(30, 40)) == [(200, False)] * 10
            await asyncio.sleep(0.1)  # values are written in the background
            assert redis.command("DBSIZE") > 0
            for first, fault in ((50, "redis_hung"), (100, "redis_gone")):
                await running.enter(treatment, phases[fault])
                during = await pages(session, [url], range(first, first + 20))
                assert {status for status, _ in during} == {200}
                assert redis.command("PING") == "PONG"
                await asyncio.sleep(REDIS_FAULT)
            before, topics = lookups(redis), iter(range(200, 1000, 2))
            async with asyncio.timeout(10):  # the breaker before it asks again after a pause
                while lookups(redis) == before:
                    topic = next(topics)
                    assert await pages(session, [url], range(topic, topic + 2)) == [(200, False)] * 2
                    await asyncio.sleep(0.05)
