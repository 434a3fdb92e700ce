"""A TCP proxy that can hang or refuse: faults for a server that is not ours to stop.

A server that others use too must not be signalled, and one behind a name cannot be. The proxy stands before it with
real sockets, so what its clients meet is what they would meet: connections that stay open and say nothing, or none.

    passing --hang--> connections open, bytes wait, new ones are accepted   --time is up--> passing, bytes flow on
            --refuse--> all connections reset, the port closed              --time is up--> passing on the same port

Each fault ends by itself. Per process; bytes in flight are bounded by the sockets' buffers.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

from fairlead.calls.bounds import check_number
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.lab.ports import bind_port

__all__ = ["TcpProxy"]

_CHUNK = 65_536
_LONGEST = 3600.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close at once, and tell by a reset


class TcpProxy:
    """Forwards a port of 127.0.0.1 to `host`:`port`; an async context manager.

    >>> import asyncio
    >>> async def main():
    ...     async with TcpProxy("127.0.0.1", 6379) as proxy:
    ...         proxy.hang(1.5)  # whoever waits for an answer through proxy.port now waits
    >>> asyncio.run(main())
    """

    def __init__(self, host: str, port: int, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.host = host
        self.upstream_port = port
        self.port = 0
        """Where it listens on 127.0.0.1; 0 before it was entered, the same ever after."""
        self._clock = clock
        self._flows = asyncio.Event()
        self._flows.set()
        self._server: asyncio.Server | None = None
        self._kept: socket.socket | None = None  # bound and not listening, so that nobody else takes the port
        self._connections: set[asyncio.Task[None]] = set()
        self._fault: asyncio.Task[None] | None = None

    async def __aenter__(self) -> TcpProxy:
        self._kept = bind_port("TcpProxy", 0)
        self.port = self._kept.getsockname()[1]
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        fault, self._fault = self._fault, None
        await _ended(fault)
        await self._close()
        if self._kept is not None:
            self._kept.close()

    def hang(self, seconds: float) -> None:
        """For `seconds`, no byte passes in either direction; a fault that is under way ends."""
        check_number("TcpProxy.hang: seconds", seconds, low=0.0, high=_LONGEST)
        self._fault = asyncio.create_task(self._hang(seconds, self._fault))

    def refuse(self, seconds: float) -> None:
        """Resets every connection and, for `seconds`, takes no new one; a fault that is under way ends."""
        check_number("TcpProxy.refuse: seconds", seconds, low=0.0, high=_LONGEST)
        self._fault = asyncio.create_task(self._refuse(seconds, self._fault))

    async def _hang(self, seconds: float, before: asyncio.Task[None] | None) -> None:
        await _ended(before)
        self._flows.clear()
        try:
            await self._clock.sleep(seconds)
        finally:
            self._flows.set()

    async def _refuse(self, seconds: float, before: asyncio.Task[None] | None) -> None:
        await _ended(before)
        await self._close()
        self._kept = bind_port("TcpProxy", self.port)
        try:
            await self._clock.sleep(seconds)
        finally:
            await self._listen()

    async def _listen(self) -> None:
        kept, self._kept = self._kept, None
        self._server = await asyncio.start_server(self._accepted, sock=kept)

    async def _close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        await asyncio.gather(*(_ended(connection) for connection in list(self._connections)))

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._forward(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: asyncio.StreamWriter | None = None
        ways: list[asyncio.Task[None]] = []
        try:
            await self._flows.wait()
            answers, upstream = await asyncio.open_connection(self.host, self.upstream_port)
            ways = [
                asyncio.create_task(self._pass(reader, upstream)),
                asyncio.create_task(self._pass(answers, writer)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # the server is not there: its client is told by a reset, as without us
        finally:
            _reset(writer)
            if upstream is not None:
                _reset(upstream)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                await self._flows.wait()
                writer.write(chunk)
                await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        taken = writer.get_extra_info("socket")
        if taken is not None:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


async def _ended(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
