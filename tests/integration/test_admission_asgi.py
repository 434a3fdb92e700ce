"""AdmissionMiddleware in a FastAPI application under uvicorn, as a real process."""

from __future__ import annotations

import asyncio
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest

from fairlead.lab import Service, Topology

APPLICATION = textwrap.dedent(
    """
    import asyncio

    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse

    from fairlead.admission import LoadShedder, RateLimit, RateLimiter
    from fairlead.admission.asgi import AdmissionMiddleware
    from fairlead.calls import Bulkhead
    from fairlead.context import Priority, current
    from fairlead.errors import CircuitOpen

    shedder = LoadShedder("app", limit=Bulkhead("app", calls=2), queue=4, interval=0.3)


    def priority(scope):
        if scope["path"] == "/state":
            return None
        return Priority.CRITICAL if scope["path"] == "/pay" else Priority.NORMAL


    def client(scope):
        return dict(scope["headers"]).get(b"x-user", b"").decode() or str(id(scope))


    app = FastAPI()
    app.add_middleware(
        AdmissionMiddleware,
        shedder=shedder,
        rate_limiter=RateLimiter(RateLimit(rate=0.01, burst=3)),
        priority=priority,
        client=client,
        timeout=1.0,
    )


    @app.get("/healthz")
    async def healthz():
        return {"status": "ok"}


    @app.get("/state")
    async def state():
        return {"in_flight": shedder.in_flight, "waiting": shedder.waiting}


    @app.get("/work")
    @app.get("/pay")
    async def work(seconds: float = 0.0):
        await asyncio.sleep(seconds)
        context = current()
        return {"remaining": context.deadline.remaining(), "priority": context.priority.name}


    @app.get("/broken")
    async def broken():
        raise CircuitOpen("profiles at 10.0.0.7: open", retry_after=3.2)


    @app.get("/stream")
    async def stream():
        async def events():
            number = 0
            while True:
                yield f"data: {number}\\n\\n"
                number += 1
                await asyncio.sleep(0.05)

        return StreamingResponse(events(), media_type="text/event-stream")
    """
)


class Running:
    def __init__(self, topology: Topology, session: aiohttp.ClientSession) -> None:
        self.topology = topology
        self.session = session
        self.url = topology["app"].url

    async def get(self, path: str, **headers: str) -> tuple[int, dict[str, object], dict[str, str]]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.get(self.url + path, headers=named) as response:
            return response.status, await response.json(content_type=None), dict(response.headers)

    async def until_in_flight(self, number: int) -> None:
        for _ in range(200):
            _, state, _ = await self.get("/state")
            if state == {"in_flight": number, "waiting": 0}:
                return
            await asyncio.sleep(0.02)
        pytest.fail(f"never {number} in flight: {state}")


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Running]:
    (directory / "admitted.py").write_text(APPLICATION, encoding="utf-8")
    argv = [sys.executable, "-m", "uvicorn", "admitted:app", "--fd", "{fd}", "--app-dir", str(directory)]
    service = Service(name="app", argv=[*argv, "--timeout-graceful-shutdown", "5"], grace=8.0)
    async with (
        Topology([service], log_directory=directory) as topology,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        yield Running(topology, session)


async def test_a_request_meets_its_context_and_the_service_its_bounds(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        status, body, _ = await app.get("/work", x_request_timeout_ms="400")
        assert status == 200
        assert 0.2 < body["remaining"] <= 0.4
        assert (await app.get("/pay"))[1]["priority"] == "CRITICAL"

        burst = [asyncio.create_task(app.get("/work?seconds=0.4")) for _ in range(12)]
        await asyncio.sleep(0.1)
        began = time.monotonic()
        assert (await app.get("/healthz"))[0] == 200
        assert time.monotonic() - began < 0.3
        answers = await asyncio.gather(*burst)
        statuses = sorted(status for status, _, _ in answers)
        assert statuses == [200] * 2 + [503] * 10
        refused = next(answer for answer in answers if answer[0] == 503)
        assert refused[1]["status"] == 503
        assert refused[2]["Content-Type"] == "application/problem+json"
        assert 1 <= int(refused[2]["Retry-After"]) <= 4
        await app.until_in_flight(0)


async def test_the_highest_priority_gets_the_place_that_comes_free(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        holders = [asyncio.create_task(app.get("/work?seconds=0.2")) for _ in range(2)]
        await asyncio.sleep(0.05)
        normal = [asyncio.create_task(app.get("/work?seconds=0.5")) for _ in range(4)]
        await asyncio.sleep(0.05)
        critical = [asyncio.create_task(app.get("/pay")) for _ in range(2)]  # the queue is full: they evict
        assert [status for status, _, _ in await asyncio.gather(*holders, *critical)] == [200] * 4
        assert [status for status, _, _ in await asyncio.gather(*normal)].count(503) >= 2


async def test_a_client_over_its_rate_is_limited_and_the_others_are_not(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        statuses = [(await app.get("/work", x_user="greedy"))[0] for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        status, body, headers = await app.get("/work", x_user="greedy")
        assert (status, body["title"]) == (429, "Too Many Requests")
        assert headers["ratelimit-policy"] == '"default";q=3;w=300'
        assert 90 <= int(headers["Retry-After"]) <= 100
        assert (await app.get("/work", x_user="other"))[0] == 200


async def test_an_application_that_hangs_is_ended_at_the_deadline_and_gives_its_place_back(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as app:
        began = time.monotonic()
        hung = [asyncio.create_task(app.get("/work?seconds=60")) for _ in range(2)]
        answers = await asyncio.gather(*hung)
        assert [status for status, _, _ in answers] == [504, 504]
        assert 0.9 < time.monotonic() - began < 3.0
        assert (await app.get("/work?seconds=60", x_request_timeout_ms="100"))[0] == 504
        assert (await app.get("/work", x_request_timeout_ms="0"))[0] == 504
        assert (await app.get("/work", x_request_timeout_ms="soon"))[0] == 400
        assert (await app.get("/work"))[0] == 200


async def test_a_refusal_inside_the_handler_is_503_and_tells_nothing_of_what_lies_behind(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as app:
        status, body, headers = await app.get("/broken")
        assert (status, headers["Retry-After"]) == (503, "4")
        assert "10.0.0.7" not in str(body)


async def test_a_client_that_hangs_up_on_a_stream_gives_its_place_back(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        async with app.session.get(app.url + "/stream") as response:
            await response.content.readline()
            await asyncio.sleep(1.2)  # past the deadline, which bounds the start of an answer only
            await response.content.readline()
            await app.until_in_flight(1)
            response.close()
        await app.until_in_flight(0)


async def test_clients_that_hang_up_while_they_wait_leave_nothing_behind(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        asked = [asyncio.create_task(app.get("/work?seconds=0.3")) for _ in range(6)]
        await asyncio.sleep(0.1)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await app.until_in_flight(0)
        assert (await app.get("/work"))[0] == 200
    assert "Traceback" not in (tmp_path / "app.log").read_text()


async def test_sigterm_lets_those_who_were_admitted_finish(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        process = psutil.Process(app.topology["app"].pid)
        admitted = [asyncio.create_task(app.get("/work?seconds=0.6")) for _ in range(2)]
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(app.get("/work"))
        await asyncio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert [status for status, _, _ in await asyncio.gather(*admitted)] == [200, 200]
        assert (await waiting)[0] == 503  # it waited its interval, and was told so
        await asyncio.to_thread(process.wait, 20.0)
    assert "Traceback" not in (tmp_path / "app.log").read_text()
