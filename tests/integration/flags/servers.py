"""Servers of flags: the real endpoint under uvicorn, in a process of its own, and one that misbehaves as it is told."""

from __future__ import annotations

import asyncio
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fairlead.flags import EvaluationContext, FlagDelivery
from fairlead.testing.server_process import ServerProcess

TOKEN = "a-token-of-256-bits"
APP = f"""
import sys
import uvicorn
from fairlead.flags import FlagDelivery, FlagFile, FlagSet
from fairlead.flags.asgi import FlagsEndpoint

path, port, subscribers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
delivery = FlagDelivery(FlagSet.from_file(path), FlagFile(path, every=0.02))
endpoint = FlagsEndpoint(delivery, tokens=["an-older-one", "{TOKEN}"], heartbeat=0.2, max_subscribers=subscribers)
uvicorn.run(endpoint, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=1)
"""


class FlagServer(ServerProcess):
    """Serves a flag file. `pause` hangs it, `kill` and `restart` are what they say."""

    name = "flag-server"
    package = "python3"

    def __init__(self, path: Path, *, subscribers: int = 1_000) -> None:
        super().__init__(program=sys.executable)
        self._path = path
        self._subscribers = subscribers

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/flags"

    def _words(self, port: int, folder: str) -> list[str]:
        return ["-W", "error", "-c", APP, str(self._path), str(port), str(self._subscribers)]

    def _answers(self, port: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1.0):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            return error.code == 401


Answers = Callable[[dict[str, str], asyncio.StreamWriter], object]


@asynccontextmanager
async def odd_server(answers: Answers) -> AsyncIterator[str]:
    """The address of a server that hands each request's headers and its connection to `answers`, then closes it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:]
            headers = {
                name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)
            }
            done = answers(headers, writer)
            if asyncio.iscoroutine(done):
                await done
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/flags"
    finally:
        server.close()


def whole(body: bytes, status: str = "200 OK", *more: str) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"content-length: {len(body)}", *more, "connection: close"])
    return head.encode() + b"\r\n\r\n" + body


def value_of(delivery: FlagDelivery) -> str:
    return delivery.flags.string("feed", EvaluationContext(), "none")


async def until(is_so: Callable[[], object], within: float = 10.0) -> float:
    """Seconds until it was so."""
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < within, f"not so within {within:g} s"
        await asyncio.sleep(0.002)
    return time.monotonic() - began
