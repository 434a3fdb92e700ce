"""Both arms' own processes, as `fairlead try` starts them, and the one service with its writers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from fairlead.lab import Service, Topology
from fairlead.trial import Settings
from fairlead_systems.remote_config.schema import PAGE
from fairlead_systems.remote_config.system import RemoteConfigRunning, make_plan, services_of, start
from fairlead_systems.remote_config.table import ConfigTable
from fairlead_systems.remote_config.world import World

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLAN = make_plan(Settings(quick=True))
CONTROL, TREATMENT = PLAN.arms


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self):
        return json.loads(self.body)


async def ask(url: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    def send() -> Answer:
        request = urllib.request.Request(url, method=method, data=body, headers=named)  # noqa: S310 - loopback
        try:
            with urllib.request.urlopen(request, timeout=20) as response:  # noqa: S310 - the same
                return Answer(response.status, response.read(), dict(response.headers.items()))
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read(), dict(error.headers.items()))

    return await asyncio.to_thread(send)


@dataclass
class Started:
    running: RemoteConfigRunning
    directory: Path

    async def get(self, arm, path: str, **headers: str) -> Answer:
        return await ask(self.running.url(arm) + path, **headers)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Started]:
    """Both arms; a test that takes a process away waits until it is back."""
    directory = tmp_path_factory.mktemp("both")
    async with start(PLAN, Settings(quick=True), directory) as running:
        yield Started(running, directory)


async def test_one_table_gives_the_answers_of_three_services(started: Started):
    known = [user for user, _, _ in World(1).users()]
    with_own = [user for user, _, own in World(1).users() if own]
    for user in (*known[:20], *with_own[:20], "nobody", "u4999"):
        control, treatment = [await started.get(arm, f"/config?user={user}") for arm in PLAN.arms]
        assert (control.status, treatment.status) == (200, 200)
        assert control.body == treatment.body, user
        assert control.headers["etag"] == treatment.headers["etag"]


async def test_known_document_is_a_304(started: Started):
    first = await started.get(TREATMENT, "/config?user=u1")
    again = await started.get(TREATMENT, "/config?user=u1", if_none_match=first.headers["etag"])
    other = await started.get(TREATMENT, "/config?user=u1", if_none_match='"other"')
    assert (first.status, again.status, other.status) == (200, 304, 200)
    assert again.body == b""
    assert again.headers["etag"] == first.headers["etag"]
    assert first.headers["cache-control"] == "private, no-cache"
    assert (first.headers["x-cache"], other.headers["x-cache"]) == ("miss", "hit")


@pytest.mark.parametrize(
    "query", ["", "?user=", f"?user={'x' * 65}", "?user=a%20b", "?user=%00", "?user=%F0%9F%9B%92"]
)
async def test_user_that_cannot_be_is_refused_by_both(started: Started, query: str):
    for arm in PLAN.arms:
        answer = await started.get(arm, f"/config{query}")
        assert answer.status == 400
        assert "user" in answer.json["error"]


async def test_database_that_hangs_is_an_error_here_and_an_old_answer_there(started: Started):
    for arm in PLAN.arms:
        await started.get(arm, "/config?user=u1")
        for name in services_of(arm):
            url = started.running._topology[name].url
            assert (await ask(f"{url}/lab/hang?seconds=1.5", "POST")).status == 200
    control, known, stranger = await asyncio.gather(
        started.get(CONTROL, "/config?user=u1"),
        started.get(TREATMENT, "/config?user=u1"),
        started.get(TREATMENT, "/config?user=u77"),
    )
    assert control.status == 502
    assert (known.status, known.headers["x-degraded"]) == (200, "0")
    assert (stranger.status, stranger.headers["x-degraded"]) == (200, "1")


async def test_inner_service_that_crashes_takes_the_control_along_until_it_is_back(started: Started):
    phase = next(phase for phase in PLAN.phases if phase.name == "inner_gone")
    for arm in PLAN.arms:
        await started.running.enter(arm, phase)
    await asyncio.sleep(0.2)
    control, treatment = [await started.get(arm, "/config?user=u1") for arm in PLAN.arms]
    assert (control.status, treatment.status) == (502, 200)
    await started.running.settle()
    assert (await started.get(CONTROL, "/config?user=u1")).status == 200


async def test_front_that_crashes_comes_back_with_its_last_known_good(started: Started):
    await started.get(TREATMENT, "/config?user=u1")
    phase = next(phase for phase in PLAN.phases if phase.name == "front_gone")
    await started.running.enter(TREATMENT, phase)
    await started.running.settle()
    answer = await started.get(TREATMENT, "/config?user=u1")
    assert (answer.status, answer.headers["x-degraded"]) == (200, "0")
    assert (started.directory / "data" / "config-treatment.json").exists()
    observed = await started.running.observe(TREATMENT)
    assert observed["cpu_seconds"] > 0
    assert observed["processes"] == 1


async def test_metrics_are_what_prometheus_reads(started: Started):
    for arm in PLAN.arms:
        await started.get(arm, "/config?user=a-user-of-the-metrics")
    everywhere = {"http_server_requests", "event_loop_lag_seconds", "process_cpu_seconds"}
    for name in (*services_of(CONTROL), *services_of(TREATMENT)):
        answer = await ask(started.running._topology[name].url + "/metrics")
        families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
        assert everywhere | {"db_client_query_duration_seconds"} <= set(families), name
    assert {"remote_config_version", "fairlead_cache"} <= set(families)
    (queries,) = [
        sample.value
        for sample in families["http_server_request_queries"].samples
        if sample.name.endswith("_sum") and sample.labels == {"route": "/config"}
    ]
    assert queries >= 1  # counted in the threads that make them, for the request that caused them


TOKEN = "a-token-of-ana"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """Of one service that takes writes from ana."""
    directory = tmp_path_factory.mktemp("writers")
    database = f"sqlite:///{directory / 'config'}.db"
    table = ConfigTable(database, PAGE)
    table.create()
    table.close()
    writers = directory / "writers.json"
    writers.write_text(json.dumps({"ana": hashlib.sha256(TOKEN.encode()).hexdigest()}))
    service = Service(
        name="config",
        argv=[
            *(sys.executable, "-m", "fairlead_systems.remote_config.service", "--fd", "{fd}", "--lab"),
            *(
                f"--database={database}",
                f"--writers={writers}",
                f"--last-known-good={directory / 'kept.json'}",
            ),
        ],
    )
    async with Topology([service], log_directory=directory / "logs") as topology:
        yield topology["config"].url


async def test_writer_changes_what_everybody_gets_and_the_audit_names_him(url: str):
    allowed = {"authorization": f"Bearer {TOKEN}"}
    before = await ask(f"{url}/config?user=u1")
    written = await ask(f"{url}/entries/all/-/theme?reason=night", "PUT", b'"dark"', **allowed)
    after = await ask(f"{url}/config?user=u1", if_none_match=before.headers["etag"])
    assert (written.status, written.json) == (200, {"version": 1})
    assert (before.json["values"]["theme"], after.json["values"]["theme"]) == ("system", "dark")
    own = await ask(f"{url}/entries/user/u1/theme", "PUT", b'"light"', **allowed)
    assert own.json == {"version": 2}
    assert (await ask(f"{url}/config?user=u2")).json["values"]["theme"] == "dark"
    removed = await ask(f"{url}/entries/all/-/theme", "DELETE", **allowed)
    assert removed.json == {"version": 3}
    history = (await ask(f"{url}/entries/all/-/theme", **allowed)).json
    assert [(each["version"], each["value"], each["actor"], each["reason"]) for each in history] == [
        (3, None, "ana", ""),
        (1, '"dark"', "ana", "night"),
    ]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("PUT", "all/-/theme", b'"purple"', 400, "purple"),
        ("PUT", "all/-/theme", b"{", 400, "no JSON"),
        ("PUT", "all/-/theme", b"", 400, "no JSON"),
        ("PUT", "all/-/theme", b"[" * 15_000, 400, "JSON"),
        ("PUT", "all/-/theme", b" " * 100_000, 400, "at most"),
        ("PUT", "all/-/thme", b'"dark"', 400, "did you mean 'theme'"),
        ("PUT", "all/u1/theme", b'"dark"', 400, "no subject"),
        ("PUT", "world/-/theme", b'"dark"', 400, "all, segment, user"),
        ("PUT", "segment/Power/theme", b'"dark"', 400, "segment"),
        ("PUT", "user/a%20b/theme", b'"dark"', 400, "user"),
        ("PUT", f"all/-/theme?reason={'x' * 201}", b'"dark"', 400, "reason"),
        ("DELETE", "all/-/THEME", None, 400, "lower-case"),
        ("POST", "all/-/theme", b'"dark"', 405, ""),
    ],
)
async def test_entry_that_cannot_be_written_is_refused_in_one_line(url, method, path, body, status, said):
    answer = await ask(f"{url}/entries/{path}", method, body, authorization=f"Bearer {TOKEN}")
    assert answer.status == status
    if said:
        assert said in answer.json["error"]
    assert (await ask(f"{url}/config?user=new")).json["values"]["theme"] == "system"


async def test_only_a_writer_writes_or_reads_the_audit(url: str):
    for method, body in (("PUT", b'"dark"'), ("DELETE", None), ("GET", None)):
        for sent in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": f"Basic {TOKEN}"},
            {"authorization": ""},
        ):
            answer = await ask(f"{url}/entries/all/-/theme", method, body, **sent)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert (await ask(f"{url}/config?user=new")).json["values"]["theme"] == "system"


async def test_without_writers_there_is_nothing_to_write_to(started: Started):
    answer = await started.get(TREATMENT, "/entries/all/-/theme", authorization=f"Bearer {TOKEN}")
    assert answer.status == 404


async def test_hundred_who_ask_at_once_are_one_query(url: str):
    await ask(f"{url}/config?user=first")
    await ask(f"{url}/lab/window", "POST")
    answers = await asyncio.gather(*(ask(f"{url}/config?user=hot") for _ in range(100)))
    window = (await ask(f"{url}/lab/window", "POST")).json
    assert {answer.status for answer in answers} == {200}
    assert window["requests"] == 100
    assert window["queries"] <= 5  # one for the user; the others are looks for changes
