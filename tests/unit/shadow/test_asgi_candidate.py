"""An application in the same process as a candidate: whatever it does, the service and its loop go on."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from fairlead.clock import ManualClock, settle
from fairlead.shadow import Mirror
from fairlead.shadow.asgi import AsgiCandidate, MirrorMiddleware
from tests.unit.shadow.apps import App, answers, ask


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now=1000.0)


def mirror(clock: ManualClock, **settings: Any) -> Mirror:
    return Mirror("feed", clock=clock, rng=random.Random(7), **{"noise_share": 0.0, **settings})


def beside(candidate: App, compared: Mirror, **settings: Any) -> MirrorMiddleware:
    return MirrorMiddleware(
        answers({}), mirror=compared, candidate=AsgiCandidate(candidate, clock=compared.clock), **settings
    )


async def test_a_response_without_end_is_left_at_the_bound(clock: ManualClock):
    sent = 0

    async def parts():
        nonlocal sent
        while sent < 1_000:  # stands for ever
            sent += 1
            yield b"x" * 100

    async def endless(request: object) -> StreamingResponse:
        return StreamingResponse(parts())

    compared = mirror(clock)
    await ask(beside(Starlette(routes=[Route("/feed", endless)]), compared, body_bytes=1_000))
    await settle()
    assert compared.report().outcomes == {"cut": 1}
    assert sent <= 12


@pytest.mark.parametrize(
    "part", [b"", b"x" * 1_000], ids=["of nothing", "and does not hear that nobody listens"]
)
async def test_a_sender_that_never_waits_does_not_hold_the_loop(clock: ManualClock, part: bytes):
    steps = turns = 0

    async def restless(scope: Any, receive: Any, send: Any) -> None:
        nonlocal steps
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while steps < 500:  # stands for ever
            steps += 1
            with contextlib.suppress(OSError):
                await send({"type": "http.response.body", "body": part, "more_body": True})

    compared = mirror(clock)
    await ask(beside(restless, compared, body_bytes=2_000))
    while steps < 500:
        turns += 1
        await asyncio.sleep(0)
    assert turns > 100


async def test_what_fails_after_the_answer_changes_no_answer(clock: ManualClock):
    async def fails() -> None:
        raise RuntimeError("no mail server")

    async def feed(request: object) -> JSONResponse:
        return JSONResponse({}, background=BackgroundTask(fails))

    compared = mirror(clock)
    await ask(beside(Starlette(routes=[Route("/feed", feed)]), compared))
    assert compared.report().outcomes == {"same": 1}


async def test_an_answer_that_is_compressed_all_the_same_is_not_compared(clock: ManualClock):
    compared = mirror(clock)
    await ask(beside(answers(b"packed", headers=((b"content-encoding", b"gzip"),)), compared))
    assert compared.report().outcomes == {"cut": 1}


async def test_a_response_that_is_none_has_failed(clock: ManualClock):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "headers": []})
        await send({"type": "http.response.body", "body": b""})

    compared = mirror(clock)
    await ask(beside(app, compared))
    assert compared.report().outcomes == {"failed": 1}
