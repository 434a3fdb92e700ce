"""PolicyTransport against real servers on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from fairlead.calls import Policy
from fairlead.calls.httpx import PolicyTransport, transient
from fairlead.testing import Act, HttpPeer, Send, TransportContract


class TestHttpxKeepsTheContract(TransportContract):
    failures = (httpx.TransportError,)
    transient = staticmethod(transient)

    def peer(self, *script: Act) -> HttpPeer:
        return HttpPeer(*script)

    @asynccontextmanager
    async def client(self, address: str, policy: Policy) -> AsyncIterator[Send]:
        async with httpx.AsyncClient(transport=PolicyTransport(policy=policy), base_url=address) as client:

            async def send(body: bytes, *, idempotent: bool) -> bytes | None:
                response = await client.request("PUT" if idempotent else "POST", "/", content=body)
                return response.content if response.is_success else None

            yield send
