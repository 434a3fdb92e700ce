"""Policy and Batcher on the machine's clock, on asyncio's and uvloop's loops, against a socket that hangs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop

from fairlead.admission.asgi import AdmissionMiddleware
from fairlead.calls import BreakerState, CircuitBreaker, ConcurrencyLimit, Hedge, Policy, Retry, RetryBudget
from fairlead.context import current
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


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_hedges_answer_for_connections_that_hang_and_leave_none_open(loop: str) -> None:
    accepted = open_now = 0

    async def every_tenth_hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted, open_now
        accepted += 1
        open_now += 1
        if accepted <= 20 or accepted % 10:
            writer.write(b"x")
        await reader.read()  # until the client leaves
        open_now -= 1
        writer.close()

    async def work() -> None:
        async with await asyncio.start_server(every_tenth_hangs, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            limit = ConcurrencyLimit("replicas", initial=40)
            budget = RetryBudget(ratio=1.0, floor_per_second=10.0)
            policy = Policy(
                name="replicas",
                timeout=20.0,
                idempotent=True,
                hedge=Hedge(minimum_calls=20, floor=0.05, budget=budget),
                limit=limit,
            )
            for _ in range(20):
                assert await policy.call(ask, port) == b"x"
            for _ in range(4):
                results = await asyncio.gather(*(policy.call(ask, port) for _ in range(8)))
                assert results == [b"x"] * 8
            assert policy.stats.hedges_won >= 2
            assert limit.in_flight == 0
            for _ in range(200):
                if not open_now:
                    break
                await asyncio.sleep(0.01)
            assert open_now == 0

    run(loop, work())


def test_workers_forked_from_one_process_draw_different_numbers() -> None:
    """Or all would retry and probe in step, and give the same ids to different requests."""
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current().request_id)

    middleware = AdmissionMiddleware(app)
    policy = Policy(name="p", retry=Retry(on=ConnectionError))
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}

    def in_a_child() -> str:
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            try:
                asyncio.run(middleware(scope, None, None))  # type: ignore[arg-type]
                os.write(writer, f"{seen[0]} {Retry(on=OSError).wait_before(2, policy._rng)}".encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as found:
            drawn = found.read()
        os.waitpid(child, 0)
        return drawn

    first, second = in_a_child().split(), in_a_child().split()
    assert len(first) == len(second) == 2
    assert first[0] != second[0]
    assert first[1] != second[1]
