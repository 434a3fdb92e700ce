"""Rollbacks while users ask: once `set` has returned, nobody who asks anew meets treatment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from pathlib import Path

import pytest

from bench.rollout_traffic import Served, behind_haproxy, rolled_back_under_load
from fairlead.errors import TrafficUnavailable
from fairlead.rollout import FlagTraffic, Split
from fairlead.rollout.haproxy import HaproxyTraffic
from tests.integration.rollout.proxies import User

ROLLBACK = Split(share=0.0, rollout="feed/1", epoch=1, latched=True)
FLAG = {"state": "ENABLED", "variants": {"control": "c", "treatment": "t"}, "defaultVariant": "control"}


async def served_around_a_rollback(traffic: FlagTraffic | HaproxyTraffic, where: str, address: str) -> Served:
    return await rolled_back_under_load(
        traffic, where, address, rate=400.0, seconds=2.0, rollout="feed/1", rng=random.Random(1)
    )


async def test_a_proxy_under_load_serves_nobody_treatment_after_a_rollback(tmp_path: Path):
    map_file = tmp_path / "feed.map"
    with behind_haproxy(map_file) as server:
        served = await served_around_a_rollback(
            HaproxyTraffic(map_file, sockets=[server.socket]), "proxy", server.url
        )
    assert len(served.treated_at) > 100
    assert served.failed == 0
    assert max(served.treated_at) <= served.done_at


async def test_a_service_that_reads_its_flags_again_serves_nobody_treatment_after_a_rollback(tmp_path: Path):
    path = tmp_path / "flags.json"
    write(path)
    served = await served_around_a_rollback(FlagTraffic(path, "feed"), "flags", str(path))
    assert len(served.treated_at) > 100
    assert not served.treated_at_the_end


def write(path: Path) -> None:
    path.write_text(json.dumps({"flags": {"feed": FLAG}}))


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.02, 0.03, 0.05])
async def test_a_reload_that_misses_a_rollback_is_found_by_reading_and_repaired_by_setting(
    tmp_path: Path, delay: float
):
    map_file = tmp_path / "feed.map"
    with behind_haproxy(map_file) as server:
        traffic = HaproxyTraffic(map_file, sockets=[server.socket])
        await traffic.set(Split(share=1.0, rollout="feed/1", epoch=1))
        reload = asyncio.create_task(asyncio.to_thread(server.reload))
        await asyncio.sleep(delay)
        with contextlib.suppress(
            TrafficUnavailable
        ):  # a process that is on its way out answers half, and is said
            await traffic.set(ROLLBACK)
        await reload
        user = User(server)
        with contextlib.suppress(TrafficUnavailable):  # the new process had read the file a moment before
            assert await traffic.read() == ROLLBACK
            assert user.asks(x_user_id="u") == ["control"]
        await traffic.set(ROLLBACK)
        assert await traffic.read() == ROLLBACK
        assert user.asks(x_user_id="u") == ["control"]
        user.close()
