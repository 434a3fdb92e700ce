"""The home feed's own processes, as `fairlead try` starts them: real ports, real gRPC, real signals."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fairlead.lab import Service, Topology
from fairlead.telemetry import Exposure, ItemsShown, RequestFinished
from fairlead.telemetry.jsonl import read_events
from fairlead.trial import Settings
from fairlead_systems.home_feed.clients import DownstreamError, FeatureClient
from fairlead_systems.home_feed.control import TTL
from fairlead_systems.home_feed.feed_cache import STALENESS_BOUND
from fairlead_systems.home_feed.selection import SOURCES
from fairlead_systems.home_feed.system import DOWNSTREAMS, HomeFeedRunning, flag_document, make_plan, start
from fairlead_systems.home_feed.world import World

PLAN = make_plan(Settings(quick=True))
CONTROL, TREATMENT = PLAN.arms


@dataclass
class Answer:
    status: int
    body: dict
    headers: dict[str, str]


@dataclass
class Started:
    running: HomeFeedRunning
    topology: Topology
    directory: Path

    async def get(self, service: str, path: str, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}

        def ask() -> Answer:
            url = self.topology[service].url + path
            request = urllib.request.Request(url, headers=named)  # noqa: S310 - http, on this machine
            try:
                with urllib.request.urlopen(request, timeout=20) as response:  # noqa: S310 - the same
                    text, status, sent = response.read(), response.status, dict(response.headers.items())
            except urllib.error.HTTPError as error:
                text, status, sent = error.read(), error.code, dict(error.headers.items())
                error.close()
            body = (
                json.loads(text)
                if sent.get("content-type", "").startswith("application/json")
                else {"text": text}
            )
            return Answer(status, body, sent)

        return await asyncio.to_thread(ask)

    def events(self, arm: str) -> list[object]:
        return list(read_events(self.directory / "events" / f"feed-{arm}"))


@asynccontextmanager
async def home_feed(directory: Path) -> AsyncIterator[Started]:
    async with start(PLAN, Settings(quick=True), directory) as running:
        yield Started(running, running._topology, directory)


@pytest.mark.parametrize("arm", [CONTROL, TREATMENT], ids=lambda arm: arm.name)
async def test_feed_answers_with_a_ranked_page_and_how_it_came_about(arm, tmp_path: Path):
    async with home_feed(tmp_path) as started:
        first = await started.get(f"feed-{arm.name}", "/feed?user=u1&topic=3")
        second = await started.get(f"feed-{arm.name}", "/feed?user=u1&topic=3")
    assert first.status == 200
    assert len(set(first.body["items"])) == 12
    assert not set(first.body["items"]) & set(
        second.body["items"]
    )  # seen by the user, while there are others
    assert first.body["missing"] == []
    assert first.body["degraded"] is False
    assert first.headers["x-variant"] == arm.variant
    assert (first.headers["x-degraded"], first.headers["x-staleness-seconds"]) == ("0", "0.000000")
    assert float(second.headers["x-age-seconds"]) > 0


async def test_input_that_cannot_be_used_is_refused_and_named(tmp_path: Path):
    async with home_feed(tmp_path) as started:
        for path, named in (
            ("/feed", "user"),
            ("/feed?user=&topic=1", "user"),
            (f"/feed?user={'x' * 65}&topic=1", "user"),
            ("/feed?user=u", "topic"),
            ("/feed?user=u&topic=-1", "topic"),
            ("/feed?user=u&topic=1.5", "topic"),
            ("/feed?user=u&topic=%D9%A3", "topic"),
            ("/feed?user=u&topic=1000000000000", "topic"),
            ("/feed?user=u&topic=1&cursor=", "cursor"),
            ("/feed?user=u&topic=1&cursor=%00%FF", "cursor"),
            (f"/feed?user=u&topic=1&cursor={'A' * 3000}", "cursor"),
        ):
            answer = await started.get("feed-treatment", path)
            assert answer.status == 400, path
            assert named in answer.body["error"]
        late = await started.get("feed-treatment", "/feed?user=u&topic=1", x_request_timeout_ms="soon")
        assert late.status == 400
        assert "x-request-timeout-ms" in late.body["error"]


@pytest.mark.parametrize("arm", [CONTROL, TREATMENT], ids=lambda arm: arm.name)
async def test_topic_that_does_not_exist_is_not_found(arm, tmp_path: Path):
    async with home_feed(tmp_path) as started:
        answer = await started.get(f"feed-{arm.name}", "/feed?user=u&topic=400")
        source = await started.get("trending_source", "/candidates?topic=0000000001")
    assert answer.status == 404
    assert "400" in answer.body["error"]
    assert source.status == 404  # ten digits are cut to no other topic


async def test_metrics_are_what_prometheus_reads(tmp_path: Path):
    async with home_feed(tmp_path) as started:
        for topic in range(5):
            await started.get("feed-treatment", f"/feed?user=u&topic={topic}")
        answer = await started.get("feed-treatment", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = {
        family.name: family for family in text_string_to_metric_families(answer.body["text"].decode())
    }
    (count,) = [
        sample
        for sample in families["feed_request_latency_seconds"].samples
        if sample.name.endswith("_count")
    ]
    assert count.value == 5
    assert count.labels == {"variant": "treatment", "status": "200"}


async def test_every_process_shows_its_routes_its_loop_and_itself(tmp_path: Path):
    async with home_feed(tmp_path) as started:
        await started.get("feed-control", "/feed?user=u&topic=1")
        for service in (*DOWNSTREAMS, "feed-control"):
            text = (await started.get(service, "/metrics")).body["text"].decode()
            families = {family.name for family in text_string_to_metric_families(text)}
            assert {"http_server_requests", "event_loop_lag_seconds", "process_cpu_seconds"} <= families, (
                service
            )
            if not service.startswith("feed"):
                assert {"service_busy_workers", "service_queue_length"} <= families, service


async def test_faults_are_set_only_on_feeds_that_were_started_for_the_lab(tmp_path: Path):
    flags = tmp_path / "flags.json"
    flags.write_text(json.dumps(flag_document(PLAN.arms)))
    module = [sys.executable, "-m"]
    services = [
        Service(name="features", argv=[*module, "fairlead_systems.home_feed.feature_service", "--fd", "{fd}"]),
        Service(
            name="feed",
            argv=[
                *module, "fairlead_systems.home_feed.feed", "--fd", "{fd}", "--flags", str(flags),
                *(f"--{source.replace('_', '-')}=http://127.0.0.1:9" for source in SOURCES),
                "--labels=http://127.0.0.1:9", "--features={features.url}",
            ],
        ),
    ]  # fmt: skip
    async with Topology(services, log_directory=tmp_path) as topology, aiohttp.ClientSession() as session:
        for path in ("/lab/clear", "/lab/events"):
            async with session.post(topology["feed"].url + path) as response:
                assert response.status == 404
        for seconds in ("-1", "nan", "31", "long", ""):
            async with session.post(f"{topology['features'].url}/lab/stall?seconds={seconds}") as response:
                assert response.status == 400


async def test_features_that_hang_or_are_gone_cost_treatment_the_ranking_and_control_the_page(
    tmp_path: Path,
):
    async with home_feed(tmp_path) as started:
        for first, sent in ((0, signal.SIGSTOP), (5, signal.SIGKILL)):
            psutil.Process(started.topology["feature_service"].pid).send_signal(sent)
            for topic in range(first, first + 5):
                treated = await started.get("feed-treatment", f"/feed?user=u&topic={topic}")
                assert treated.status == 200
                assert treated.body["degraded"] is True
                assert treated.body["missing"] == ["features"]
                assert treated.headers["x-degraded"] == "1"
                assert len(treated.body["items"]) >= 10
            assert (await started.get("feed-control", "/feed?user=u&topic=1")).status == 502
        reasons = [
            event.attributes["degraded_by"]
            for event in await until(lambda: _finished(started, "treatment"), 10)
        ]
    assert all(reasons)
    control = [event for event in started.events("control") if isinstance(event, RequestFinished)]
    assert [(event.status, event.error) for event in control] == [
        (502, "TimeoutError"),
        (502, "DownstreamError"),
    ]


async def test_page_is_made_of_the_sources_that_are_left(tmp_path: Path):
    async with home_feed(tmp_path) as started:
        gone: list[str] = []
        for user, source in enumerate(("nearest", "in_network", "trending")):
            psutil.Process(started.topology[f"{source}_source"].pid).send_signal(signal.SIGKILL)
            gone.append(source)
            # Topics that were not loaded at the start, and users with items of their own.
            answer = await started.get("feed-treatment", f"/feed?user=u{user}&topic={300 + user}")
            assert (answer.status, answer.body["degraded"]) == (200, True)
            assert sorted(answer.body["missing"]) == sorted(gone)
            assert len(answer.body["items"]) == 12
        assert answer.body["model"] == "reviewed"
        assert (await started.get("feed-control", "/feed?user=u1&topic=300")).status == 502


async def test_without_the_label_service_only_what_was_reviewed_is_shown(tmp_path: Path):
    reviewed = World(Settings().seed).reviewed()
    async with home_feed(tmp_path) as started:
        for first, sent in ((0, signal.SIGSTOP), (3, signal.SIGKILL)):
            psutil.Process(started.topology["label_service"].pid).send_signal(sent)
            for topic in range(first, first + 3):
                answer = await started.get("feed-treatment", f"/feed?user=u{topic}&topic={topic}")
                assert (answer.status, answer.body["model"]) == (200, "reviewed")
                assert "safety" in answer.body["missing"]
                assert set(answer.body["items"]) <= set(reviewed)


async def test_pages_below_one_another_hold_no_item_twice_and_end_and_are_logged(tmp_path: Path):
    shown: list[int] = []
    models: list[str] = []
    async with home_feed(tmp_path) as started:
        cursor, pages = "", 0
        while cursor is not None and pages < 12:
            where = f"&cursor={cursor}" if cursor else ""
            # The two arms share their cursors: they are one product.
            arm = ("feed-treatment", "feed-control")[pages % 2]
            answer = await started.get(arm, f"/feed?user=u5&topic=3{where}")
            assert answer.status == 200
            shown += answer.body["items"]
            models.append(answer.body["model"])
            cursor, pages = answer.body["next"], pages + 1
    logged = [
        each
        for arm in ("treatment", "control")
        for each in started.events(arm)
        if isinstance(each, ItemsShown)
    ]
    logged.sort(key=lambda each: each.first_position)
    assert [item for each in logged for item in each.items] == [str(item) for item in shown]
    assert [each.first_position for each in logged][:2] == [1, 13]
    assert [each.model for each in logged] == [model for model in models if model]
    assert {(each.targeting_key, each.degraded) for each in logged} == {("u5", False)}
    assert cursor is None
    assert len(shown) == len(set(shown)) > 24


async def test_stalled_features_cost_treatment_the_ranking_and_end_by_themselves(tmp_path: Path):
    async with home_feed(tmp_path) as started, aiohttp.ClientSession() as session:
        url = f"{started.topology['feature_service'].url}/lab/stall?seconds=0.5"
        async with session.post(url) as response:
            assert response.status == 200
        stalled = await started.get("feed-treatment", "/feed?user=u&topic=1")
        assert (stalled.status, stalled.body["degraded"]) == (200, True)

        async def recovered() -> list[bool]:
            answer = await started.get("feed-treatment", "/feed?user=u&topic=1")
            return [] if answer.body["degraded"] else [True]

        for _ in range(200):
            if await recovered():
                break
            await asyncio.sleep(0.05)
        else:
            pytest.fail("the stall did not end")


def _finished(started: Started, arm: str) -> list[RequestFinished]:
    return [event for event in started.events(arm) if isinstance(event, RequestFinished)]


async def until(find, count: int):
    for _ in range(200):
        if len(found := find()) >= count:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"never {count} events: {found}")


async def test_ending_a_feed_writes_the_events_that_were_still_buffered(tmp_path: Path):
    async with home_feed(tmp_path) as started:
        for user in range(20):
            assert (await started.get("feed-treatment", f"/feed?user=u{user}&topic=1")).status == 200
        psutil.Process(started.topology["feed-treatment"].pid).send_signal(signal.SIGTERM)
    events = started.events("treatment")
    finished = [event for event in events if isinstance(event, RequestFinished)]
    assert [(event.status, event.variant) for event in finished] == [(200, "treatment")] * 20
    assert len({event.request_id for event in finished}) == 20
    exposed = {
        event.targeting_key for event in events if isinstance(event, Exposure) and event.flag == "feed_path"
    }
    assert exposed == {f"u{user}" for user in range(20)}
    log = (tmp_path / "logs" / "feed-treatment.log").read_text()
    assert "Traceback" not in log


async def test_observed_counters_are_those_since_the_last_look(tmp_path: Path):
    async with home_feed(tmp_path) as started:
        await started.running.enter(TREATMENT, PLAN.phases[1])
        await asyncio.sleep(TTL + STALENESS_BOUND)
        await started.running.observe(TREATMENT)
        await started.get("feed-treatment", "/feed?user=u&topic=0")
        first = await started.running.observe(TREATMENT)
        second = await started.running.observe(TREATMENT)
    # Three sources, two fields of labels, one batch of features. Topic 0 was loaded at the start, and has expired.
    assert (first["origin_calls"], first["hot_calls"], first["hot_episodes"]) == (6, 1, 1)
    assert (second["origin_calls"], second["hot_calls"]) == (0, 0)
    assert first["memory_bytes"] > 2**20


async def test_death_of_the_feature_service_fails_everybody_who_waits_for_the_stream(tmp_path: Path):
    service = Service(
        name="features",
        argv=[sys.executable, "-m", "fairlead_systems.home_feed.feature_service", "--fd", "{fd}"],
    )

    async def address(topology: Topology) -> str:
        async with (
            aiohttp.ClientSession() as session,
            session.get(topology["features"].url + "/healthz") as response,
        ):
            return (await response.json())["grpc"]

    async with Topology([service], log_directory=tmp_path) as topology:
        client = FeatureClient(await address(topology))
        assert [each.item for each in await client.batch([1, 2])] == [1, 2]
        process = psutil.Process(topology["features"].pid)
        process.suspend()
        waiting = [asyncio.create_task(client.batch([number])) for number in range(20)]
        await asyncio.sleep(0)
        process.kill()
        for task in waiting:
            with pytest.raises(DownstreamError, match="feature service"):
                await asyncio.wait_for(task, 20)
        with pytest.raises(DownstreamError):
            await asyncio.wait_for(client.batch([1]), 20)
        assert client._pending == {}
    await client.close()


async def test_broken_stream_is_replaced_by_the_next_request(tmp_path: Path):
    service = Service(
        name="features",
        argv=[sys.executable, "-m", "fairlead_systems.home_feed.feature_service", "--fd", "{fd}"],
    )
    async with (
        Topology([service], log_directory=tmp_path) as topology,
        aiohttp.ClientSession() as session,
    ):
        async with session.get(topology["features"].url + "/healthz") as response:
            client = FeatureClient((await response.json())["grpc"])
        assert len(await client.batch([1, 2, 3])) == 3
        first = client._stream
        assert first is not None
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert len(await client.batch([4])) == 1
        assert client._stream is not first
        with pytest.raises(DownstreamError, match="no item"):
            await client.batch([10**6])
        with pytest.raises(DownstreamError, match="at most 512"):
            await client.batch([1] * 513)
        assert (await client.get(7)).item == 7
        await client.close()
