"""A real HTTP/1.1 server on loopback that answers, fails, hangs or breaks off, as it is told.

Written on asyncio's streams, not on a web framework: a framework finishes the answers that this one must break.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

from fairlead.deadline import TIMEOUT_HEADER
from fairlead.testing.transports import Act, Arrived

__all__ = ["HttpPeer"]

_FAIL_AFTER = 0.05


class HttpPeer:
    """Takes requests on 127.0.0.1 while the block runs; does to each what the script says, the last act for ever."""

    def __init__(self, *script: Act) -> None:
        self._script = list(script) or [Act.ANSWER]
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.address = ""
        """Base URL, without a slash at its end."""
        self.arrived: list[Arrived] = []
        self.headers: list[dict[str, str]] = []
        """Of each request that arrived, names in lower case."""
        self.in_progress = 0
        self.connections = 0
        """Connections accepted since the start."""

    async def __aenter__(self) -> HttpPeer:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=1024)
        self.address = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer), name="peer")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._take(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left, between requests or within one
        finally:
            writer.close()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:] if line)
        }
        body = await _body(reader, headers)
        timeout = headers.get(TIMEOUT_HEADER)
        act = self._script[min(len(self.arrived), len(self._script) - 1)]
        self.headers.append(headers)
        self.arrived.append(
            Arrived(at=time.monotonic(), timeout=None if timeout is None else int(timeout) / 1000, body=body)
        )
        self.in_progress += 1
        try:
            return await self._act(act, reader, writer)
        finally:
            self.in_progress -= 1

    async def _act(self, act: Act, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if act is Act.HANG:
            await reader.read()  # until the client leaves
            return False
        if act is Act.BREAK_OFF:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            await writer.drain()
            writer.transport.abort()
            return False
        if act is Act.ANSWER:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        else:
            await asyncio.sleep(_FAIL_AFTER)
            wait = b"Retry-After: 1\r\n" if act is Act.FAIL_AND_ASK_TO_WAIT else b""
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\n" + wait + b"Content-Length: 4\r\n\r\nbusy")
        await writer.drain()
        return True


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    chunks = []
    while size := int(await reader.readline(), 16):
        chunks.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(chunks)
