"""When a service counts as started: it has answered, not merely begun.

A process id says that a program was launched, an open port that it has bound; a load that begins there
measures the loading of a model. HTTP asks the service itself.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fairlead.errors import InvalidInput

__all__ = ["HttpReady", "Ready", "TcpReady"]

_ANSWER_WITHIN = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpReady:
    """Ready once GET `path` on the service's port is answered 200–299."""

    path: str = "/healthz"
    """Begins with a slash."""

    def __post_init__(self) -> None:
        if not self.path.startswith("/") or not self.path.isprintable() or " " in self.path:
            raise InvalidInput(f"path: {self.path!r} is not a URL path; begin it with / and leave out spaces")

    async def probe(self, port: int) -> str:
        """Empty when ready, otherwise what came instead."""
        async with asyncio.timeout(_ANSWER_WITHIN):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(
                    f"GET {self.path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode()
                )
                line = await reader.readline()
            finally:
                # Not awaiting wait_closed: a service that hangs with the socket open would hang us here.
                writer.transport.abort()
        words = line.split()
        if len(words) < 2 or not words[0].startswith(b"HTTP/1."):
            return f"GET {self.path} was not answered in HTTP"
        status = words[1].decode("ascii", "replace")
        return "" if status.startswith("2") else f"GET {self.path} answered {status[:3]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TcpReady:
    """Ready once a TCP connection to the service's port is accepted; for programs that speak no HTTP."""

    async def probe(self, port: int) -> str:
        """Empty when ready; a refused connection raises OSError."""
        async with asyncio.timeout(_ANSWER_WITHIN):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.transport.abort()
        return ""


Ready = HttpReady | TcpReady
