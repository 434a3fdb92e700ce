"""Real processes for the overload bench: `service` calls `dependency` over HTTP, and shields itself or does not.

`python -m bench.overload_service dependency FD` has `WORKERS` workers and one endless queue, and works for callers that
have left, as servers do. `… service FD URL none|admission` is a bare ASGI application under uvicorn whose handler
calls it with a timeout of the callers' patience. Paths are the priorities: /critical, /normal, /background.

simulated: the dependency's work is a sleep, so that its capacity does not depend on a busy machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import socket
import sys
from collections import deque
from typing import Any, cast

import aiohttp
import uvicorn
import uvloop

from fairlead.admission import LoadShedder
from fairlead.admission.asgi import AdmissionMiddleware
from fairlead.context import Priority

WORKERS = 10
SERVICE_TIME = 0.1
SIGMA = 0.5
CAPACITY = WORKERS / SERVICE_TIME
PATIENCE = 0.5

_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class _Workers:
    def __init__(self) -> None:
        self.busy = 0
        self.queue: deque[asyncio.Transport] = deque()
        self.rng = random.Random(1)

    def take(self, connection: asyncio.Transport) -> None:
        if self.busy == WORKERS:
            self.queue.append(connection)
            return
        self.busy += 1
        seconds = self.rng.lognormvariate(math.log(SERVICE_TIME) - SIGMA * SIGMA / 2, SIGMA)
        asyncio.get_running_loop().call_later(seconds, self._done, connection)

    def _done(self, connection: asyncio.Transport) -> None:
        self.busy -= 1
        if not connection.is_closing():
            connection.write(_ANSWER)
        if self.queue:
            self.take(self.queue.popleft())


class _Connection(asyncio.Protocol):
    def __init__(self, workers: _Workers) -> None:
        self._workers = workers
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are of no such class

    def data_received(self, data: bytes) -> None:
        self._read += data
        *requests, self._read = self._read.split(b"\r\n\r\n")
        for _ in requests:
            self._workers.take(self._transport)


async def _dependency(listening: socket.socket) -> None:
    workers = _Workers()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(workers), sock=listening, backlog=4096
    )
    await server.serve_forever()


class _Service:
    def __init__(self, url: str) -> None:
        self._url = url

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        status = 200
        if scope["path"] != "/healthz":
            try:
                async with asyncio.timeout(PATIENCE), self._session.get(self._url) as answer:
                    await answer.read()
            except TimeoutError:
                status = 504
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def _live(self, receive: Any, send: Any) -> None:
        await receive()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout()
        ) as self._session:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


def _service(listening: socket.socket, url: str, shield: str) -> None:
    app: Any = _Service(url)
    if shield == "admission":
        app = AdmissionMiddleware(
            app,
            shedder=LoadShedder("bench"),
            priority=lambda scope: Priority[scope["path"][1:].upper()],
        )
    config = uvicorn.Config(app, loop="uvloop", http="httptools", ws="none", access_log=False, backlog=4096)
    listening.listen(4096)
    uvicorn.Server(config).run(sockets=[listening])


def main(role: str, descriptor: str, *rest: str) -> None:
    listening = socket.socket(fileno=int(descriptor))
    if role == "dependency":
        uvloop.run(_dependency(listening))
    else:
        _service(listening, *rest)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(*sys.argv[1:])
