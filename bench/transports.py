"""What a policy adds to a request of httpx: on a transport that answers at once, and over a socket on loopback.

The policy has all parts and a deadline stands, so the arm pays for the policy, a copy of the request with two headers,
one timer, and a body that is read within its attempt. Over loopback the server runs in the same process: its share
is in both arms, so the ratio is lower than that of the client alone.

What it costs is the policy with its timer (the arm `policy_alone`), then httpx's own headers: a handful of
look-ups, and a copy of the request with two headers more, which the arm without a deadline does not pay for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx

from bench.harness import Bar, Timing, interleave_async, ratio
from fairlead.calls import CircuitBreaker, ConcurrencyLimit, Policy, Retry, RetryBudget
from fairlead.calls.httpx import PolicyTransport, transient
from fairlead.context import RequestContext, request_context
from fairlead.deadline import Deadline
from fairlead.testing import Act, HttpPeer

__all__ = ["bars"]


class _Origin(httpx.AsyncBaseTransport):
    """Answers after one turn of the loop, as a socket does at the earliest."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)
        return httpx.Response(200, headers={"content-length": "2"}, stream=_Body())


class _Body(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"ok"


class _PolicyAlone(httpx.AsyncBaseTransport):
    """The same policy around the same origin, and nothing that knows of HTTP."""

    def __init__(self) -> None:
        self._policy = _policy()
        self._origin = _Origin()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._policy.call(self._origin.handle_async_request, request)


def _policy() -> Policy:
    return Policy(
        name="bench",
        timeout=1.0,
        attempt_timeout=0.5,
        retry=Retry(on=transient, budget=RetryBudget()),
        breaker=CircuitBreaker("bench"),
        limit=ConcurrencyLimit("bench"),
    )


def _arm(client: httpx.AsyncClient, context: RequestContext) -> Callable[[int], Awaitable[object]]:
    async def run(times: int) -> None:
        with request_context(context):
            for _ in range(times):
                await client.get("/")

    return run


def _client(transport: httpx.AsyncBaseTransport, address: str = "http://bench") -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=transport, base_url=address)


def _within() -> RequestContext:
    return RequestContext(request_id="bench", deadline=Deadline.after(3600.0))


def _at_once(rounds: int, n: int) -> dict[str, Timing]:
    outside = RequestContext()
    return interleave_async(
        {
            "httpx": _arm(_client(_Origin()), outside),
            "policy_transport": _arm(_client(PolicyTransport(_Origin(), policy=_policy())), _within()),
            "policy_transport_without_deadline": _arm(
                _client(PolicyTransport(_Origin(), policy=Policy(name="bench"))), outside
            ),
            "policy_alone": _arm(_client(_PolicyAlone()), _within()),
        },
        n=n,
        rounds=rounds,
    )


def _over_loopback(rounds: int, n: int) -> dict[str, Timing]:
    # Each round opens a server of its own: the harness owns the loop, and a connection lives in one.
    def arm(
        make: Callable[[], httpx.AsyncBaseTransport], context: RequestContext
    ) -> Callable[[int], Awaitable[object]]:
        async def run(times: int) -> None:
            async with HttpPeer(Act.ANSWER) as peer, _client(make(), peer.address) as client:
                await _arm(client, context)(times)

        return run

    return interleave_async(
        {
            "httpx": arm(httpx.AsyncHTTPTransport, RequestContext()),
            "policy_transport": arm(lambda: PolicyTransport(policy=_policy()), _within()),
        },
        n=n,
        rounds=rounds,
    )


def _shares(timings: dict[str, Timing]) -> str:
    if "policy_alone" not in timings:
        return ""
    took = {name: timing.median * 1e6 for name, timing in timings.items()}
    added = took["policy_transport"] - took["httpx"]
    alone = took["policy_alone"] - took["httpx"]
    return f"it adds {added:.0f} µs, of which the policy by itself is {alone:.0f} µs"


def bars(quick: bool) -> list[Bar]:
    rounds = 7 if quick else 25
    found: list[Bar] = []
    for where, limit, timings in (
        ("on a transport that answers at once", 1.5, _at_once(rounds, 100 if quick else 300)),
        ("over loopback, server included", 1.1, _over_loopback(rounds, 50 if quick else 200)),
    ):
        value, spread = ratio(timings["policy_transport"], timings["httpx"])
        found.append(
            Bar(
                what=f"httpx request through PolicyTransport, all parts, {where}: times bare",
                value=value,
                limit=limit,
                unit="×",
                n=rounds,
                spread=spread,
                note=_shares(timings),
                figures={f"{name}_microseconds": timing.median * 1e6 for name, timing in timings.items()},
            )
        )
    return found
