"""Two feed processes behind one Redis: one load for both, and no answer lost when it hangs."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

import aiohttp

from fairlead.lab import Service, Topology
from fairlead.testing import RedisServer
from fairlead.trial import Settings
from fairlead_systems.home_feed.selection import SOURCES
from fairlead_systems.home_feed.system import DOWNSTREAM_URLS, _flag_document, make_plan


def services(directory: Path, redis: str) -> list[Service]:
    flags = directory / "flags.json"
    flags.write_text(json.dumps(_flag_document(make_plan(Settings(quick=True)).arms)))

    def module(name: str, *more: str) -> list[str]:
        return [sys.executable, "-m", f"fairlead_systems.home_feed.{name}", "--fd", "{fd}", *more]

    feed = [
        *DOWNSTREAM_URLS, f"--flags={flags}", "--instance=feed-treatment", f"--redis={redis}", "--lab",
    ]  # fmt: skip
    return [
        *(
            Service(name=f"{source}_source", argv=module("candidate_source", f"--source={source}"))
            for source in SOURCES
        ),
        Service(name="label_service", argv=module("label_service")),
        Service(name="feature_service", argv=module("feature_service")),
        Service(name="one", argv=module("feed", *feed)),
        Service(name="other", argv=module("feed", *feed)),
    ]


async def count(
    session: aiohttp.ClientSession, url: str, what: str, family: str = "fairlead_cache_total"
) -> float:
    async with session.get(f"{url}/metrics") as response:
        text = await response.text()
    found = re.search(rf'^{family}\{{[^}}]*what="{what}"\}} (\S+)$', text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])


async def pages(session: aiohttp.ClientSession, urls: list[str], topics: range) -> list[tuple[int, bool]]:
    async def ask(url: str, topic: int) -> tuple[int, bool]:
        async with session.get(f"{url}/feed?user=u&topic={topic}") as response:
            return response.status, (await response.json())["degraded"]

    return list(await asyncio.gather(*(ask(url, topic) for topic in topics for url in urls)))


async def test_two_feeds_load_a_page_once_and_outlive_the_redis_they_share(tmp_path: Path) -> None:
    with RedisServer() as redis:
        async with (
            Topology(services(tmp_path, redis.url), log_directory=tmp_path / "logs") as topology,
            aiohttp.ClientSession() as session,
        ):
            one, other = urls = [topology[name].url for name in ("one", "other")]
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
