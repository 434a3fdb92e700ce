"""Small ASGI applications, and a client that asks one without a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from fairlead.clock import settle

App = Callable[..., Awaitable[None]]


def answers(body: object, status: int = 200, *, headers: tuple[tuple[bytes, bytes], ...] = ()) -> App:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        kind = b"application/octet-stream" if isinstance(body, bytes) else b"application/json"
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", kind), *headers],
            }
        )
        await send({"type": "http.response.body", "body": data[:3], "more_body": True})
        await send({"type": "http.response.body", "body": data[3:]})

    return app


async def ask(
    app: App,
    path: str = "/feed",
    *,
    method: str = "GET",
    headers: tuple[tuple[bytes, bytes], ...] = (),
    body: tuple[bytes, ...] = (b"",),
    query: bytes = b"",
    leaves: bool = False,
    **extra: Any,
) -> list[dict[str, Any]]:
    parts = [
        {"type": "http.request", "body": part, "more_body": place < len(body) - 1}
        for place, part in enumerate(body)
    ]
    sent: list[dict[str, Any]] = []

    ended = asyncio.Event()
    if leaves:
        ended.set()

    async def receive() -> dict[str, Any]:
        if parts:
            return parts.pop(0)
        await ended.wait()  # as servers do
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            ended.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": [(b"host", b"shop"), *headers],
        "client": ("192.0.2.1", 5000),
        "server": ("shop", 80),
        **extra,
    }
    await app(scope, receive, send)
    await settle()
    return sent


def body_of(sent: list[dict[str, Any]]) -> bytes:
    return b"".join(message.get("body", b"") for message in sent)
