"""A live service is profiled while it works, by those who may ask, and is itself again afterwards."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
import tracemalloc
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from fairlead.diagnosis.asgi import DiagnosisEndpoint
from fairlead.errors import InvalidInput

KEPT: list[bytearray] = []


def grind_the_beans() -> None:
    end = time.perf_counter() + 0.02
    while time.perf_counter() < end:
        sum(range(50))


async def coffee(request: Request) -> PlainTextResponse:
    grind_the_beans()
    return PlainTextResponse("done")


async def hoard(request: Request) -> PlainTextResponse:
    KEPT.append(bytearray(3_000_000))
    return PlainTextResponse("kept")


def with_secret(scope: Any) -> bool:
    return dict(scope["headers"])[b"x-secret"] == b"open"  # raises where there is none


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = Starlette(
        routes=[
            Route("/coffee", coffee), Route("/hoard", hoard),
            Mount("/debug", DiagnosisEndpoint(allow=with_secret, max_seconds=20)),
        ]
    )  # fmt: skip
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        serving = asyncio.create_task(server.serve([listener]))
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=base_url, headers={"x-secret": "open"}, timeout=30) as made:
            yield made
        server.should_exit = True
        await serving
    KEPT.clear()


async def busy(client: httpx.AsyncClient, path: str, work: asyncio.Task[httpx.Response]) -> httpx.Response:
    while not work.done():
        await client.get(path)
    return await work


async def test_a_flame_graph_shows_the_function_that_takes_the_time(client: httpx.AsyncClient):
    asking = asyncio.create_task(client.get("/debug/profile", params={"seconds": 0.5}))
    answer = await busy(client, "/coffee", asking)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/svg+xml")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    drawing = ElementTree.fromstring(answer.text)  # noqa: S314  # our own
    titles = [each.text or "" for each in drawing.iter("{http://www.w3.org/2000/svg}title")]
    grinding = [title for title in titles if title.startswith("grind_the_beans ")]
    assert max(float(title.rsplit(" ", 1)[1].rstrip("%")) for title in grinding) > 20


async def test_the_same_is_had_for_speedscope_and_as_text(client: httpx.AsyncClient):
    asking = asyncio.create_task(client.get("/debug/profile?seconds=0.3&format=speedscope"))
    scope = (await busy(client, "/coffee", asking)).json()
    assert scope["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    assert "grind_the_beans" in {frame["name"] for frame in scope["shared"]["frames"]}
    asking = asyncio.create_task(client.get("/debug/profile?seconds=0.3&format=text"))
    assert "grind_the_beans" in (await busy(client, "/coffee", asking)).text


async def test_allocations_that_stay_are_named_by_their_line(client: httpx.AsyncClient):
    asking = asyncio.create_task(client.get("/debug/allocations?seconds=0.5"))
    await asyncio.sleep(0.1)
    await client.get("/hoard")
    found = (await asking).json()
    assert found["schema"] == "fairlead.allocations/1"
    assert found["lines"][0]["where"].startswith(f"{__file__}:")
    assert found["lines"][0]["bytes"] >= 3_000_000
    assert not tracemalloc.is_tracing()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/debug/profile?seconds=0", 400),
        ("/debug/profile?seconds=21", 400),
        ("/debug/profile?seconds=nan", 400),
        ("/debug/profile?seconds=long", 400),
        ("/debug/profile?format=pdf", 400),
        ("/debug/other", 404),
        ("/debug/", 404),
    ],
)
async def test_what_cannot_be_asked_is_said_in_one_line(client: httpx.AsyncClient, path: str, status: int):
    answer = await client.get(path)
    assert answer.status_code == status
    assert answer.text.count("\n") == 1


async def test_nobody_is_let_in_without_the_checks_yes_even_when_the_check_fails(client: httpx.AsyncClient):
    for secret in ("wrong", None):
        client.headers.pop("x-secret", None)
        if secret is not None:
            client.headers["x-secret"] = secret
        assert (await client.get("/debug/profile?seconds=0.1")).status_code == 403
    client.headers["x-secret"] = "open"
    assert (await client.post("/debug/profile")).status_code == 405


async def test_two_at_once_are_one_and_a_409(client: httpx.AsyncClient):
    first = asyncio.create_task(client.get("/debug/profile?seconds=0.5"))
    await asyncio.sleep(0.15)
    assert (await client.get("/debug/allocations?seconds=0.1")).status_code == 409
    assert (await first).status_code == 200


async def test_a_measurement_ends_when_its_client_leaves(client: httpx.AsyncClient):
    for path in ("/debug/profile?seconds=20", "/debug/allocations?seconds=20"):
        with pytest.raises(httpx.ReadTimeout):
            await client.get(path, timeout=0.3)
        for _ in range(100):
            if (await client.get("/debug/profile?seconds=0.05")).status_code == 200:
                break
            await asyncio.sleep(0.02)
        else:
            raise AssertionError("it went on")
    assert sys.getprofile() is None
    assert not tracemalloc.is_tracing()


@pytest.mark.parametrize(
    "options",
    [{"allow": None}, {"allow": with_secret, "max_seconds": 0}, {"allow": with_secret, "max_seconds": 301}],
)
def test_it_cannot_be_made_without_a_check_or_a_bound(options: dict[str, Any]):
    with pytest.raises(InvalidInput, match="DiagnosisEndpoint"):
        DiagnosisEndpoint(**options)
