"""What passes a mirror is what the server would have got without it; a copy holds its place no longer than it must."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from fairlead.clock import ManualClock, settle
from fairlead.shadow import Mirror
from fairlead.shadow.asgi import AsgiCandidate, MirrorMiddleware
from fairlead.telemetry import MemorySink, ShadowCompared
from tests.unit.shadow.apps import App, answers, ask

PLAIN = [(b"content-type", b"text/plain"), (b"set-cookie", b"a=1")]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now=1000.0)


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def mirror(clock: ManualClock, sink: MemorySink) -> Mirror:
    return Mirror("feed", noise_share=0.0, clock=clock, rng=random.Random(7), sink=sink)


def mirrored(app: App, mirror: Mirror, **settings: Any) -> MirrorMiddleware:
    return MirrorMiddleware(app, mirror=mirror, candidate=AsgiCandidate(answers({})), **settings)


async def test_headers_that_can_be_read_once_only_reach_the_client(mirror: Mirror):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": (each for each in PLAIN)})
        await send({"type": "http.response.body", "body": b"x"})

    sent = await ask(mirrored(app, mirror, headers=("set-cookie",)))
    assert list(sent[0]["headers"]) == PLAIN
    assert "headers.set-cookie" in mirror.report().fields


@pytest.mark.parametrize(
    "message",
    [
        {"type": "http.response.start", "status": 200, "headers": None},
        {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b", b"c")]},
        {"type": "http.response.start", "headers": []},
        {"type": "http.response.body", "body": None},
        {"type": "http.response.body", "body": "text"},
    ],
    ids=["no headers", "a header of three", "no status", "no body", "text"],
)
async def test_a_message_that_is_none_is_left_to_the_server_to_refuse(
    mirror: Mirror, message: dict[str, Any]
):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(message)

    assert await ask(mirrored(app, mirror)) == [message]
    assert mirror.report().dropped == {"broken": 1}


async def test_a_place_is_free_when_the_answer_is_sent_or_too_large_not_when_the_application_ends(
    mirror: Mirror,
):
    work_after = asyncio.Event()
    bodies: list[object] = [{}, {"far": "too large"}, {}]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answers(bodies.pop(0))(scope, receive, send)
        await work_after.wait()

    service = mirrored(app, mirror, copies=1, body_bytes=10)
    tasks = []
    for _ in range(3):
        tasks.append(asyncio.create_task(ask(service)))
        await settle()
    report = mirror.report()
    assert (report.outcomes, report.dropped) == ({"same": 2}, {"too_large": 1})
    work_after.set()
    await asyncio.gather(*tasks)
    assert mirror.report().dropped == {"too_large": 1}


async def test_an_application_that_receives_and_sends_at_once_does_not_wait_twice(
    mirror: Mirror, clock: ManualClock, sink: MemorySink
):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def read() -> None:
            while (await receive())["more_body"]:
                pass

        reading = asyncio.create_task(read())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await reading
        await clock.sleep(0.5)
        await send({"type": "http.response.body", "body": b""})

    parts = [b"a", b"b"]

    async def receive() -> dict[str, Any]:
        await clock.sleep(1.0)
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: dict[str, Any]) -> None:
        await clock.sleep(1.5)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    task = asyncio.create_task(mirrored(app, mirror)(scope, receive, send))
    await clock.run_for(10.0)
    await task
    await settle()
    (event,) = sink.events
    assert isinstance(event, ShadowCompared)
    assert event.control_seconds == pytest.approx(0.5)


async def test_an_application_that_raises_as_its_client_leaves_has_not_failed(mirror: Mirror):
    async def waits(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        raise ConnectionError("the client has left")

    with pytest.raises(ConnectionError):
        await ask(mirrored(waits, mirror), leaves=True)
    report = mirror.report()
    assert (report.outcomes, report.dropped) == ({}, {"incomplete": 1})


async def test_a_response_that_is_ended_early_because_its_client_left_is_not_compared(mirror: Mirror):
    async def ends_early(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"the first of many", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    await ask(mirrored(ends_early, mirror), leaves=True)
    report = mirror.report()
    assert (report.outcomes, report.dropped) == ({}, {"incomplete": 1})
