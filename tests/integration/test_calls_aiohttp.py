"""PolicyMiddleware against real servers on loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from fairlead.calls import Fallback, Policy, Retry, RetryBudget
from fairlead.calls.aiohttp import PolicyMiddleware, transient
from fairlead.context import RequestContext, request_context
from fairlead.deadline import Deadline
from fairlead.errors import DeadlineExceeded, InvalidInput
from fairlead.testing import Act, HttpPeer, Send, TransportContract


class TestAiohttpKeepsTheContract(TransportContract):
    failures = (aiohttp.ClientError,)
    transient = staticmethod(transient)

    def peer(self, *script: Act) -> HttpPeer:
        return HttpPeer(*script)

    @asynccontextmanager
    async def client(self, address: str, policy: Policy) -> AsyncIterator[Send]:
        async with aiohttp.ClientSession(middlewares=[PolicyMiddleware(policy=policy)]) as session:

            async def send(body: bytes, *, idempotent: bool) -> bytes | None:
                method = "PUT" if idempotent else "POST"
                async with session.request(method, address, data=body) as response:
                    return await response.read() if response.ok else None

            yield send


def policy(**settings: object) -> Policy:
    retry = Retry(on=transient, base=0.001, cap=0.001, budget=RetryBudget(ratio=1.0))
    return Policy(**{"name": "api", "timeout": 5.0, "retry": retry} | settings)


def session(guard: Policy) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(middlewares=[PolicyMiddleware(policy=guard)])


async def test_after_the_last_attempt_the_caller_gets_the_answer_and_not_an_exception() -> None:
    async with HttpPeer(Act.FAIL) as peer, session(policy()) as http, http.get(peer.address) as response:
        assert response.status == 503
        assert await response.read() == b"busy"
        assert len(peer.arrived) == 3
        assert peer.connections == 1


async def test_a_short_answer_is_here_whole_and_still_to_be_read_in_any_way() -> None:
    async with HttpPeer(Act.ANSWER) as peer, session(policy()) as http, http.get(peer.address) as response:
        assert [piece async for piece in response.content.iter_chunked(1)] == [b"o", b"k"]


async def test_an_idempotency_key_allows_a_post_to_be_sent_twice() -> None:
    async with HttpPeer(Act.FAIL, Act.ANSWER) as peer, session(policy()) as http:
        async with http.post(peer.address, data=b"x", headers={"Idempotency-Key": "k"}) as response:
            assert response.status == 200
        assert [each.body for each in peer.arrived] == [b"x", b"x"]


async def test_a_request_body_that_can_be_read_only_once_is_sent_once() -> None:
    async def upload() -> AsyncIterator[bytes]:
        yield b"x"

    async with HttpPeer(Act.FAIL, Act.ANSWER) as peer, session(policy()) as http:
        async with http.put(peer.address, data=upload()) as response:
            assert response.status == 503
        assert [each.body for each in peer.arrived] == [b"x"]


async def test_aiohttp_does_not_try_again_behind_the_policys_back() -> None:
    async with HttpPeer(Act.BREAK_OFF) as peer, session(policy(retry=None)) as http:
        with pytest.raises(aiohttp.ClientError):
            await http.get(peer.address)
        assert len(peer.arrived) == 1


async def test_aiohttp_does_not_try_again_what_was_cut_before_an_answer_began() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.append(1)
        writer.close()

    arrived: list[int] = []
    async with await asyncio.start_server(cut, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with session(policy(retry=None)) as http:
            with pytest.raises(aiohttp.ClientConnectionError) as caught:
                await http.get(f"http://127.0.0.1:{port}/")
    assert isinstance(caught.value.__cause__, aiohttp.ServerDisconnectedError)
    assert arrived == [1]


async def test_the_headers_say_what_remains_and_for_whom() -> None:
    async with HttpPeer(Act.ANSWER) as peer, session(policy()) as http:
        with request_context(RequestContext(request_id="feed-17", deadline=Deadline.after(0.5))):
            async with http.get(peer.address, headers={"x-request-timeout-ms": "100"}):
                pass
            async with http.get(peer.address, headers={"x-request-timeout-ms": "900"}):
                pass
    assert [each["x-request-id"] for each in peer.headers] == ["feed-17", "feed-17"]
    assert peer.arrived[0].timeout == 0.1
    assert peer.arrived[1].timeout is not None
    assert peer.arrived[1].timeout <= 0.5


async def test_a_long_answer_is_due_when_the_call_is() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nfirst")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        guard = policy(timeout=0.3)
        async with session(guard) as http, http.get(f"http://127.0.0.1:{port}/") as response:
            assert await response.content.readany() == b"first"
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded, match="api: the answer began in time") as caught:
                await response.content.readany()
            assert time.monotonic() - began < 0.6
            assert isinstance(caught.value, aiohttp.ClientError)
            assert guard.stats.timed_out == 1


async def test_each_origin_has_a_policy_of_its_own() -> None:
    made: list[str] = []

    def make(origin: str) -> Policy:
        made.append(origin)
        return policy(name=origin, retry=None)

    async with HttpPeer(Act.ANSWER) as one, HttpPeer(Act.ANSWER) as other:
        async with aiohttp.ClientSession(middlewares=[PolicyMiddleware(policy=make)]) as http:
            for peer in (one, other, one):
                async with http.get(peer.address):
                    pass
        assert made == [peer.address.removeprefix("http://") for peer in (one, other)]


async def test_a_fallback_that_is_no_response_is_named_and_leaves_no_answer_open() -> None:
    async with HttpPeer(Act.FAIL) as peer, session(policy(fallback=Fallback(answer="spare"))) as http:
        with pytest.raises(InvalidInput, match="its fallback answered 'spare', not an aiohttp"):
            await http.post(peer.address)
