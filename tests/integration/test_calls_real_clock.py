"""Policy and Batcher on the machine's clock, on asyncio's and uvloop's loops, against a socket that hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop

from fairlead.calls import BreakerState, CircuitBreaker, ConcurrencyLimit, Policy, Retry, RetryBudget
from fairlead.errors import CircuitOpen, DeadlineExceeded


def run(loop: str, work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        runner.run(work)


async def hung_server() -> asyncio.Server:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the client leaves; never answers
        writer.close()

    return await asyncio.start_server(accept, "127.0.0.1", 0)


async def ask(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await reader.readexactly(1)
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_server_that_hangs_costs_its_timeouts_and_then_nothing(loop: str) -> None:
    async def work() -> None:
        async with await hung_server() as server:
            port = server.sockets[0].getsockname()[1]
            limit = ConcurrencyLimit("hung", initial=40)
            policy = Policy(
                name="hung",
                timeout=0.5,
                attempt_timeout=0.1,
                idempotent=True,
                retry=Retry(on=TimeoutError, attempts=2, base=0.001, cap=0.001, budget=RetryBudget()),
                breaker=CircuitBreaker("hung", minimum_calls=20),
                limit=limit,
            )
            results = await asyncio.gather(
                *(policy.call(ask, port) for _ in range(20)), return_exceptions=True
            )
            assert {type(result) for result in results} == {DeadlineExceeded}
            with pytest.raises(CircuitOpen):
                await policy.call(ask, port)
            assert limit.in_flight == 0
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0

    run(loop, work())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_hung_after_opens_the_breaker_while_the_calls_still_hang(loop: str) -> None:
    async def work() -> None:
        async with await hung_server() as server:
            port = server.sockets[0].getsockname()[1]
            breaker = CircuitBreaker("hung", minimum_calls=5, hung_after=0.05)
            policy = Policy(name="hung", timeout=60.0, breaker=breaker)
            calls = [asyncio.ensure_future(policy.call(ask, port)) for _ in range(5)]
            await asyncio.sleep(0.1)
            with pytest.raises(CircuitOpen):
                await policy.call(ask, port)
            assert breaker.state is BreakerState.OPEN
            assert not any(call.done() for call in calls)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            assert breaker.in_flight == 0

    run(loop, work())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_one_policy_serves_loop_after_loop(loop: str) -> None:
    policy = Policy(name="p", timeout=0.05)

    async def work() -> None:
        assert await policy.call(asyncio.sleep, 0.001, "ok") == "ok"
        with pytest.raises(DeadlineExceeded):
            await policy.call(asyncio.sleep, 30)
        assert await policy.call(asyncio.sleep, 0.001, "ok") == "ok"  # its timer is lost with the loop

    for _ in range(3):
        run(loop, work())
