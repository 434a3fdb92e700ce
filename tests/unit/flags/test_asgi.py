"""FlagsEndpoint without a server: what a subscriber can do to it, on virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fairlead.clock import ManualClock, settle
from fairlead.errors import InvalidInput
from fairlead.flags import FlagDelivery, FlagSet
from fairlead.flags.asgi import FlagsEndpoint
from tests.unit.flags.documents import BROKEN, EMPTY, document


class Client:
    """One request, whose connection may take nothing, and may leave."""

    def __init__(self, endpoint: FlagsEndpoint, *headers: tuple[bytes, bytes], method: str = "GET") -> None:
        self.sent: list[dict[str, Any]] = []
        self.stuck = asyncio.Event()
        self.stuck.set()
        self.leave = asyncio.Event()
        scope = {"type": "http", "method": method, "path": "/", "headers": list(headers)}
        self.task = asyncio.create_task(endpoint(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        await self.stuck.wait()
        self.sent.append(message)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


STREAM = (b"accept", b"text/event-stream")


class Silent:
    kind = "http"
    place = "http://control/flags"

    async def follow(self, delivery: FlagDelivery) -> None:
        await asyncio.Event().wait()


def serve(
    data: bytes = document("slow", version=1), **options: Any
) -> tuple[FlagsEndpoint, FlagDelivery, ManualClock]:
    clock = ManualClock()
    delivery = FlagDelivery(FlagSet.parse(data), clock=clock)
    return FlagsEndpoint(delivery, **options), delivery, clock


async def test_a_subscriber_hears_of_each_version_and_of_the_servers_life_until_it_leaves():
    endpoint, delivery, clock = serve(heartbeat=5.0)
    client = Client(endpoint, STREAM)
    await settle()
    assert client.status == 200
    assert client.body.endswith(b'event: version\ndata: {"epoch":0,"version":1}\n\n')
    await clock.run_for(11.0)
    assert client.body.count(b": alive\n\n") == 2
    delivery.receive(document("fast", version=2))
    await settle()
    assert client.body.endswith(b'data: {"epoch":0,"version":2}\n\n')
    client.leave.set()
    await client.task
    assert endpoint.subscribers == 0


async def test_a_subscriber_that_takes_nothing_is_dropped_and_has_one_name_outstanding():
    endpoint, delivery, clock = serve(send_timeout=5.0)
    stuck, other = Client(endpoint, STREAM), Client(endpoint, STREAM)
    await settle()
    stuck.stuck.clear()
    for version in range(2, 50):
        delivery.receive(document(f"v{version}", version=version))
        await settle()
    assert other.body.count(b"event: version") == 49
    await clock.run_for(5.1)
    assert stuck.task.done()
    assert len(stuck.sent) == 2, "the head, and what it took before"
    assert endpoint.subscribers == 1
    other.leave.set()
    await other.task


async def test_above_the_bound_a_client_gets_the_document_in_place_of_the_stream():
    endpoint, delivery, _ = serve(max_subscribers=1)
    first = Client(endpoint, STREAM)
    await settle()
    second = Client(endpoint, STREAM)
    await second.task
    assert (second.status, second.body) == (200, delivery.flags.data)
    first.leave.set()
    await first.task
    third = Client(endpoint, STREAM)
    await settle()
    assert not third.task.done()
    third.leave.set()
    await third.task


async def test_a_cancelled_subscriber_leaves_its_place():
    endpoint, _, _ = serve()
    before = asyncio.all_tasks()
    client = Client(endpoint, STREAM)
    await settle()
    client.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client.task
    assert endpoint.subscribers == 0
    assert asyncio.all_tasks() == before


async def test_a_refused_document_is_not_announced():
    endpoint, delivery, _ = serve()
    client = Client(endpoint, STREAM)
    await settle()
    delivery.receive(BROKEN)
    delivery.receive(document("older"))
    await settle()
    assert client.body.count(b"event: version") == 1
    client.leave.set()
    await client.task


async def test_a_relay_that_has_heard_nothing_hands_on_nothing():
    clock = ManualClock()
    delivery = FlagDelivery(FlagSet.parse(EMPTY), Silent(), clock=clock)
    endpoint = FlagsEndpoint(delivery)
    for headers in ((), (STREAM,)):
        client = Client(endpoint, *headers)
        await client.task
        assert client.status == 503
    delivery.receive(document())
    client = Client(endpoint)
    await client.task
    assert client.body == document()


@pytest.mark.parametrize(
    ("sent", "admitted"),
    [
        (b"Bearer one", True),
        (b"bearer  two ", True),
        (b"Bearer three", False),
        (b"Bearer ", False),
        (b"Basic one", False),
        (b"", False),
        (b"Bearer \xff\xfe", False),
        (b"Bearer one, Bearer two", False),
    ],
    ids=str,
)
async def test_any_one_of_the_tokens_is_enough_and_nothing_else_is(sent: bytes, admitted: bool):
    endpoint, _, _ = serve(tokens=("one", "two"))
    for headers in ((), (STREAM,)):
        client = Client(endpoint, (b"authorization", sent), *headers)
        client.leave.set()
        await client.task
        assert client.status == (200 if admitted else 401)
        if not admitted:
            assert client.body == b""


async def test_the_lifespan_enters_and_leaves_the_delivery():
    endpoint, delivery, _ = serve()
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    said: list[str] = []

    async def send(message: dict[str, Any]) -> None:
        said.append(message["type"])

    living = asyncio.create_task(endpoint({"type": "lifespan"}, messages.get, send))
    messages.put_nowait({"type": "lifespan.startup"})
    while not said:  # noqa: ASYNC110  # the disk is asked in a thread
        await asyncio.sleep(0)
    assert delivery.running
    messages.put_nowait({"type": "lifespan.shutdown"})
    await living
    assert not delivery.running
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_it_answers_reading_by_http_and_nothing_else():
    endpoint, _, _ = serve()
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        client = Client(endpoint, method=method)
        await client.task
        assert client.status == 405
    with pytest.raises(InvalidInput, match="answers http, not websocket"):
        await endpoint({"type": "websocket"}, None, None)


@pytest.mark.parametrize(
    "options",
    [
        {"heartbeat": 0.0},
        {"max_subscribers": -1},
        {"max_subscribers": 1.5},
        {"send_timeout": float("nan")},
        {"tokens": "one"},
        {"tokens": ["one", ""]},
    ],
    ids=str,
)
def test_settings_outside_their_bounds_are_refused(options: dict[str, Any]):
    with pytest.raises(InvalidInput, match="FlagsEndpoint"):
        serve(**options)
