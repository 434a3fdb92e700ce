"""Real processes for the shadow bench: a service that works 5 ms for an answer, and mirrors to a candidate or does not.

`python -m bench.shadow_service candidate FD` answers alike, in a process that the bench stops (SIGSTOP).
`… service FD URL none|mirror` mirrors every request to URL, by HTTP.

simulated: the work is a sleep; the answer is ten made-up items.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import msgspec
import uvicorn

from fairlead.shadow import Mirror
from fairlead.shadow.asgi import MirrorMiddleware
from fairlead.shadow.httpx import HttpxCandidate

__all__: list[str] = []

WORK = 0.005
_ITEMS = [
    {"id": n, "score": 0.5 + n / 100, "title": f"title of item {n}", "tags": ["a", "b"]} for n in range(10)
]
_BODY = msgspec.json.encode({"items": _ITEMS})
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(_BODY)).encode())]


async def _app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] != "/healthz":
        await asyncio.sleep(WORK)
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _BODY})


def main(role: str, descriptor: str, url: str = "", arm: str = "none") -> None:
    app: Any = _app
    if role == "service" and arm == "mirror":
        mirror = Mirror("bench", noise_share=0.2)
        app = MirrorMiddleware(_app, mirror=mirror, candidate=HttpxCandidate(url))
    listening = socket.socket(fileno=int(descriptor))
    listening.listen(4096)
    config = uvicorn.Config(app, loop="uvloop", http="httptools", ws="none", access_log=False, backlog=4096)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main(*sys.argv[1:])
