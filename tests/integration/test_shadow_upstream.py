"""A service under uvicorn that mirrors its requests to a candidate in a process of its own, which hangs and dies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from fairlead.lab import Service, Topology

SERVICE = textwrap.dedent(
    """
    import contextlib
    import os

    import msgspec
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    from fairlead.calls import CircuitBreaker
    from fairlead.shadow import Mirror
    from fairlead.shadow.asgi import MirrorMiddleware
    from fairlead.shadow.httpx import HttpxCandidate

    mirror = Mirror(
        "app",
        timeout=0.5,
        concurrency=4,
        noise_share=1.0,
        breaker=CircuitBreaker("candidate", minimum_calls=6, open_for=0.5, half_open_permits=1),
    )
    candidate = HttpxCandidate(os.environ["CANDIDATE"])


    async def feed(request):
        return JSONResponse({"user": request.path_params["user"], "version": 1})


    async def stream(request):
        async def parts():
            for number in range(20):
                yield f"{number}\\n"

        return StreamingResponse(parts(), media_type="text/plain")


    async def report(request):
        shown = {"report": mirror.report(), "in_flight": mirror.in_flight}
        return Response(msgspec.json.encode(shown), media_type="application/json")


    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        await mirror.close(1.0)
        await candidate.close()


    def idempotent(scope):
        return scope["method"] == "GET" and scope["path"] not in ("/report", "/healthz")


    routes = [Route("/feed/{user:path}", feed), Route("/stream", stream), Route("/report", report)]
    routes.append(Route("/healthz", lambda request: JSONResponse({})))
    middleware = [Middleware(MirrorMiddleware, mirror=mirror, candidate=candidate, idempotent=idempotent)]
    app = Starlette(routes=routes, lifespan=lifespan, middleware=middleware)
    """
)

CANDIDATE = textwrap.dedent(
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import JSONResponse, PlainTextResponse
    from starlette.routing import Route

    from fairlead.shadow import is_shadow
    from fairlead.shadow.asgi import ShadowedMiddleware

    seen = []


    async def feed(request):
        raw = request.scope["raw_path"].decode()
        headers = dict(request.headers)
        seen.append({"path": raw, "query": request.url.query, "shadow": is_shadow(), "headers": headers})
        response = JSONResponse({"user": request.path_params["user"], "version": 2})
        response.set_cookie("whose", str(len(seen)))
        return response


    async def stream(request):
        return PlainTextResponse("".join(f"{number}\\n" for number in range(20)))


    async def show(request):
        return JSONResponse(seen)


    routes = [Route("/feed/{user:path}", feed), Route("/stream", stream), Route("/seen", show)]
    routes.append(Route("/healthz", lambda request: JSONResponse({})))
    app = Starlette(routes=routes, middleware=[Middleware(ShadowedMiddleware)])
    """
)


class Running:
    def __init__(self, topology: Topology, session: aiohttp.ClientSession) -> None:
        self.topology = topology
        self.session = session

    async def get(self, path: str, **headers: str) -> tuple[int, bytes, float]:
        began = time.monotonic()
        async with self.session.get(
            aiohttp.client.URL(self.topology["service"].url + path, encoded=True), headers=headers
        ) as response:
            return response.status, await response.read(), time.monotonic() - began

    async def shown(self, name: str, path: str) -> Any:
        async with self.session.get(self.topology[name].url + path) as response:
            return await response.json()

    async def until(self, holds: Any, seconds: float = 20.0) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            shown = await self.shown("service", "/report")
            if holds(shown["report"]) and not shown["in_flight"]:
                return shown["report"]
            await asyncio.sleep(0.05)
        pytest.fail(f"not reached: {shown}")


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Running]:
    for name, text in (("served", SERVICE), ("candidate", CANDIDATE)):
        (directory / f"{name}_app.py").write_text(text, encoding="utf-8")

    def argv(name: str) -> list[str]:
        words = [sys.executable, "-m", "uvicorn", f"{name}_app:app", "--fd", "{fd}"]
        return [*words, "--app-dir", str(directory), "--timeout-graceful-shutdown", "3"]

    services = [
        Service(name="candidate", argv=argv("candidate"), grace=5.0),
        Service(name="service", argv=argv("served"), grace=5.0, env={"CANDIDATE": "{candidate.url}"}),
    ]
    async with (
        Topology(services, log_directory=directory) as topology,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
        ) as session,
    ):
        yield Running(topology, session)


async def test_a_candidate_is_asked_the_same_question_and_learns_no_secret(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        secret = {"authorization": "Bearer secret", "cookie": "session=secret", "x-plain": "1"}
        status, body, _ = await app.get("/feed/a%2Fb/../c%20d?q=1%26+2", **secret)
        assert (status, body) == (200, b'{"user":"a/b/../c d","version":1}')
        assert (await app.get("/feed/ann", **secret))[0] == 200
        assert (await app.get("/stream"))[1] == b"".join(b"%d\n" % number for number in range(20))
        report = await app.until(lambda report: report["compared"] == 3)
        assert report["outcomes"] == {"different": 2, "same": 1}
        assert report["fields"] == {
            "body.version": {"differed": 2, "only_candidate": 2, "only_again": 0, "both": 0}
        }
        assert report["compared_twice"] == 3
        # In which order they arrive is left to chance: control's second run and the candidate take turns by lot.
        first, second = sorted(await app.shown("candidate", "/seen"), key=lambda seen: seen["path"])
        assert [first["path"], second["path"]] == ["/feed/a%2Fb/../c%20d", "/feed/ann"]
        assert first["query"] == "q=1%26+2"
        for seen in (first, second):
            assert seen["shadow"]
            assert seen["headers"]["x-fairlead-shadow"] == "1"
            assert seen["headers"]["x-plain"] == "1"
            assert seen["headers"]["host"] == app.topology["candidate"].url.removeprefix("http://")
            assert seen["headers"]["x-forwarded-host"] == app.topology["service"].url.removeprefix("http://")
            # No cookie either: not the client's, and not what the candidate set on the answer to another.
            assert not {"authorization", "cookie"} & set(seen["headers"])


async def test_a_hung_candidate_delays_nobody_and_is_asked_again_when_it_is_back(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        await app.get("/feed/warm")
        before = await app.until(lambda report: report["compared"] == 1)
        assert before["outcomes"] == {"different": 1}
        os.kill(app.topology["candidate"].pid, signal.SIGSTOP)
        taken = []
        for number in range(60):
            status, body, seconds = await app.get(f"/feed/{number}")
            assert (status, body) == (200, b'{"user":"%d","version":1}' % number)
            taken.append(seconds)
            await asyncio.sleep(0.05)
        # The candidate's timeout is 0.5 s; half of the requests at the very least must not have felt anything.
        assert sorted(taken)[len(taken) // 2] < 0.1
        assert max(taken) < 0.5
        hung = await app.until(lambda report: report["outcomes"].get("timeout", 0) >= 6)
        assert hung["dropped"]["circuit_open"] > 0
        assert hung["dropped"]["full"] > 0
        os.kill(app.topology["candidate"].pid, signal.SIGCONT)

        end = time.monotonic() + 15.0
        while time.monotonic() < end:
            await app.get("/feed/back")
            back = await app.until(lambda report: True)
            if back["outcomes"]["different"] > hung["outcomes"]["different"] + 3:
                break
            await asyncio.sleep(0.1)
        else:
            pytest.fail(f"not asked again: {back}")


async def test_a_killed_candidate_costs_its_service_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        await app.get("/feed/warm")
        await app.until(lambda report: report["compared"] == 1)
        os.kill(app.topology["candidate"].pid, signal.SIGKILL)
        answers = await asyncio.gather(*(app.get(f"/feed/{number}") for number in range(40)))
        assert {status for status, _, _ in answers} == {200}
        for number in range(10):
            await app.get(f"/feed/{number}")
            await asyncio.sleep(0.02)
        report = await app.until(lambda report: report["outcomes"].get("failed", 0) >= 4)
        assert set(report["fields"]) == {"body.version", "error"}
        assert report["fields"]["error"]["only_candidate"] >= 4


async def test_a_service_ends_in_its_own_time_while_its_candidate_hangs(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        await app.get("/feed/warm")
        await app.until(lambda report: report["compared"] == 1)
        os.kill(app.topology["candidate"].pid, signal.SIGSTOP)
        await asyncio.gather(*(app.get(f"/feed/{number}") for number in range(4)))
        process = psutil.Process(app.topology["service"].pid)
        began = time.monotonic()
        process.terminate()
        await asyncio.to_thread(process.wait, 10.0)
        assert time.monotonic() - began < 4.0
        log = app.topology["service"].log.read_text(encoding="utf-8")
        assert "Traceback" not in log
        assert "Application shutdown complete" in log


def test_what_the_first_question_needs_is_loaded_with_the_candidate():
    script = """
    import asyncio, sys
    from fairlead.shadow.asgi import MirroredRequest
    from fairlead.shadow.httpx import HttpxCandidate

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        candidate = HttpxCandidate("http://127.0.0.1:%d" % server.sockets[0].getsockname()[1])
        before = set(sys.modules)
        await candidate(MirroredRequest(method="GET", path="/", target="/", headers=(), body=b"", scope={}))
        print(sorted(set(sys.modules) - before))
        await candidate.close()
        server.close()

    async def serve(reader, writer):
        await reader.readuntil(b"\\r\\n\\r\\n")
        writer.write(b"HTTP/1.1 200 OK\\r\\nconnection: close\\r\\ncontent-length: 2\\r\\n\\r\\nok")
        await writer.drain()
        writer.close()

    asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "anyio" not in loaded
