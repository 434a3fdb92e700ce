"""The gRPC interceptors against real servers on loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from types import TracebackType
from typing import Any

import grpc
import grpc.aio
import pytest

from fairlead.calls import BreakerState, CircuitBreaker, ConcurrencyLimit, Fallback, Policy, Retry
from fairlead.calls.grpc import DeadlineInterceptor, client_interceptors, transient
from fairlead.context import RequestContext, current, request_context
from fairlead.deadline import Deadline
from fairlead.errors import CircuitOpen, DeadlineExceeded, Overloaded
from fairlead.telemetry import MemorySink, PolicyActed
from fairlead.testing import Act, Arrived, Send, TransportContract

ONCE, TWICE, STREAM = "/test.Peer/Once", "/test.Peer/Twice", "/test.Peer/Stream"
# Without it, a channel that lost its connection waits for a second before it tries another.
OPTIONS = [("grpc.initial_reconnect_backoff_ms", 20), ("grpc.min_reconnect_backoff_ms", 20)]


class GrpcPeer:
    """A gRPC server behind a relay, so that a connection can be broken under it."""

    def __init__(self, *script: Act) -> None:
        self._script = script
        self._server = grpc.aio.server()
        self._relay: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.address = ""
        self.arrived: list[Arrived] = []
        self.in_progress = 0

    async def __aenter__(self) -> GrpcPeer:
        handler = grpc.unary_unary_rpc_method_handler(self._handle)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("test.Peer", {"Once": handler, "Twice": handler}),)
        )
        self._port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        self._relay = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._relay.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._relay is not None
        self._relay.close()
        self._break_connections()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._relay.wait_closed()
        await self._server.stop(grace=None)

    def _break_connections(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._pass_on(reader, writer), name="peer")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, inner_writer]

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(65_536):
                    sink.write(data)
                    await sink.drain()
            except ConnectionError:
                pass
            finally:
                sink.close()

        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))

    async def _handle(self, request: bytes, context: Any) -> bytes:
        act = self._script[min(len(self.arrived), len(self._script) - 1)]
        self.arrived.append(Arrived(at=time.monotonic(), timeout=context.time_remaining(), body=request))
        self.in_progress += 1
        try:
            if act is Act.ANSWER:
                return b"ok"
            if act is Act.BREAK_OFF:
                self._break_connections()
            if act in (Act.HANG, Act.BREAK_OFF):
                await asyncio.sleep(60.0)
            await asyncio.sleep(0.05)
            trailing = (("grpc-retry-pushback-ms", "1000"),) if act is Act.FAIL_AND_ASK_TO_WAIT else ()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "busy", trailing)
            raise AssertionError("abort returned")
        finally:
            self.in_progress -= 1


@asynccontextmanager
async def connected(address: str, policy: Policy) -> AsyncIterator[grpc.aio.Channel]:
    interceptors = client_interceptors(policy=policy, idempotent=[TWICE])
    async with grpc.aio.insecure_channel(address, options=OPTIONS, interceptors=interceptors) as channel:
        yield channel


class TestGrpcKeepsTheContract(TransportContract):
    failures = (grpc.aio.AioRpcError,)
    transient = staticmethod(transient)

    def peer(self, *script: Act) -> GrpcPeer:
        return GrpcPeer(*script)

    @asynccontextmanager
    async def client(self, address: str, policy: Policy) -> AsyncIterator[Send]:
        async with connected(address, policy) as channel:
            methods = {False: channel.unary_unary(ONCE), True: channel.unary_unary(TWICE)}

            async def send(body: bytes, *, idempotent: bool) -> bytes | None:
                answer: bytes = await methods[idempotent](body)
                return answer

            yield send


@asynccontextmanager
async def served(handler: Any, *, stream: bool = False) -> AsyncIterator[str]:
    """The address of a server with one method, behind a DeadlineInterceptor."""
    make = grpc.unary_stream_rpc_method_handler if stream else grpc.unary_unary_rpc_method_handler
    server = grpc.aio.server(interceptors=[DeadlineInterceptor()])
    name = "Stream" if stream else "Twice"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Peer", {name: make(handler)}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(grace=None)


async def test_a_handler_sees_its_callers_deadline_and_request_id() -> None:
    seen: list[tuple[str, float]] = []

    async def handle(request: bytes, context: Any) -> bytes:
        seen.append((current().request_id, current().deadline.remaining()))
        return b""

    async with served(handle) as address, connected(address, Policy(name="peer")) as channel:
        call = channel.unary_unary(TWICE)
        with request_context(RequestContext(request_id="feed-17", deadline=Deadline.after(0.8))):
            await call(b"")
        await call(b"")
    assert [request_id for request_id, _ in seen] == ["feed-17", ""]
    assert 0.0 < seen[0][1] < 0.8 * 1.03  # gRPC may lengthen it on the wire by 3 %
    assert seen[1][1] == inf


async def test_a_timeout_of_the_call_bounds_it_with_all_its_attempts() -> None:
    async with TestGrpcKeepsTheContract().peer(Act.HANG) as peer:
        guard = Policy(
            name="peer", attempt_timeout=0.15, retry=Retry(on=transient, attempts=9, base=0.0, cap=0.0)
        )
        async with connected(peer.address, guard) as channel:
            began = time.monotonic()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(TWICE)(b"", timeout=0.4)
            assert 0.35 < time.monotonic() - began < 0.8
    assert isinstance(caught.value, DeadlineExceeded)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_work_that_comes_too_late_is_refused_before_it_begins() -> None:
    begun: list[bytes] = []

    async def handle(request: bytes, context: Any) -> bytes:
        begun.append(request)
        return b""

    class NoTime:
        def __getattr__(self, name: str) -> Any:
            return getattr(self.context, name)

        def __init__(self, context: Any) -> None:
            self.context = context

        def time_remaining(self) -> float:
            return 0.0

    class Late(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            inner = (await continuation(details)).unary_unary

            async def late(request: bytes, context: Any) -> Any:
                return await inner(request, NoTime(context))

            return grpc.unary_unary_rpc_method_handler(late)

    server = grpc.aio.server(interceptors=[Late(), DeadlineInterceptor()])
    handler = grpc.unary_unary_rpc_method_handler(handle)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Peer", {"Twice": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(TWICE)(b"late")
    await server.stop(grace=None)
    assert (caught.value.code(), caught.value.details()) == (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "the deadline passed",
    )
    assert begun == []


@pytest.mark.parametrize(
    ("error", "code", "pushback"),
    [
        (Overloaded("db: 9 of 9", retry_after=1.5), grpc.StatusCode.RESOURCE_EXHAUSTED, "1500"),
        (Overloaded("db: 9 of 9"), grpc.StatusCode.RESOURCE_EXHAUSTED, None),
        (CircuitOpen("db: open", retry_after=2.0), grpc.StatusCode.UNAVAILABLE, "2000"),
        (CircuitOpen("db: open", retry_after=float("nan")), grpc.StatusCode.UNAVAILABLE, "0"),
        (DeadlineExceeded("db: late"), grpc.StatusCode.DEADLINE_EXCEEDED, None),
    ],
)
async def test_what_a_handler_refuses_becomes_a_status_that_names_no_dependency(
    error: Exception, code: grpc.StatusCode, pushback: str | None
) -> None:
    async def handle(request: bytes, context: Any) -> bytes:
        raise error

    async with served(handle) as address, grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(TWICE)(b"")
    assert caught.value.code() is code
    assert "db" not in (caught.value.details() or "")
    assert dict(caught.value.trailing_metadata() or ()).get("grpc-retry-pushback-ms") == pushback


@pytest.mark.parametrize("code", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT])
async def test_a_status_that_is_an_answer_leaves_the_breaker_closed_and_reaches_the_caller(
    code: grpc.StatusCode,
) -> None:
    async def handle(request: bytes, context: Any) -> bytes:
        await context.abort(code, "no such item")
        raise AssertionError("abort returned")

    breaker = CircuitBreaker("peer", minimum_calls=1)
    limit = ConcurrencyLimit("peer")
    async with (
        served(handle) as address,
        connected(address, Policy(name="peer", breaker=breaker, limit=limit)) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(TWICE)(b"")
    assert (caught.value.code(), caught.value.details()) == (code, "no such item")
    assert breaker.state is BreakerState.CLOSED
    assert limit.in_flight == 0


@pytest.mark.parametrize("pushback", ["-1", "soon"])
async def test_a_server_that_asks_for_no_retry_gets_none(pushback: str) -> None:
    arrived: list[bytes] = []

    async def handle(request: bytes, context: Any) -> bytes:
        arrived.append(request)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "", (("grpc-retry-pushback-ms", pushback),))
        raise AssertionError("abort returned")

    guard = Policy(name="peer", retry=Retry(on=transient))
    async with served(handle) as address, connected(address, guard) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary(TWICE)(b"")
    assert len(arrived) == 1


async def test_a_full_server_is_a_drop_for_the_limit() -> None:
    async def handle(request: bytes, context: Any) -> bytes:
        raise Overloaded("full")

    limit = ConcurrencyLimit("peer", initial=20)
    async with (
        served(handle) as address,
        connected(address, Policy(name="peer", limit=limit)) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(TWICE)(b"")
    assert limit.limit < 20
    assert type(caught.value) is grpc.aio.AioRpcError  # the call's own, not what the policy saw


async def count(request: bytes, context: Any) -> AsyncIterator[bytes]:
    assert current().deadline.remaining() > 0
    yield b"1"
    yield b"2"
    if request == b"hang":
        await asyncio.sleep(60.0)
    if request == b"fail":
        raise Overloaded("full")


async def test_a_stream_comes_through_and_its_end_is_the_breakers_outcome() -> None:
    breaker = CircuitBreaker("peer", minimum_calls=2, failure_ratio=1.0)
    async with (
        served(count, stream=True) as address,
        connected(address, Policy(name="peer", timeout=5.0, breaker=breaker)) as channel,
    ):
        stream = channel.unary_stream(STREAM)
        assert [message async for message in stream(b"")] == [b"1", b"2"]
        assert breaker.outcomes.counts(time.monotonic()) == (1, 0)
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                [message async for message in stream(b"fail")]
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert breaker.outcomes.counts(time.monotonic()) == (3, 2)


async def test_a_stream_that_its_reader_forgets_says_nothing_about_the_server() -> None:
    breaker = CircuitBreaker("peer", minimum_calls=1)
    async with (
        served(count, stream=True) as address,
        connected(address, Policy(name="peer", timeout=0.3, breaker=breaker)) as channel,
    ):
        unread = channel.unary_stream(STREAM)(b"")
        assert await unread.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        half_read = channel.unary_stream(STREAM)(b"hang")
        assert await half_read.read() == b"1"
        assert await half_read.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert breaker.outcomes.counts(time.monotonic()) == (0, 0)
        assert breaker.in_flight == 0


async def test_a_stream_that_hangs_ends_with_the_deadline() -> None:
    breaker = CircuitBreaker("peer", minimum_calls=9)
    async with (
        served(count, stream=True) as address,
        connected(address, policy := Policy(name="peer", timeout=0.3, breaker=breaker)) as channel,
    ):
        messages = aiter(channel.unary_stream(STREAM)(b"hang"))
        assert [await anext(messages), await anext(messages)] == [b"1", b"2"]
        with pytest.raises(DeadlineExceeded) as caught:
            await anext(messages)
        assert breaker.outcomes.counts(time.monotonic()) == (1, 1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert policy.stats.timed_out == 1


async def test_an_open_breaker_refuses_a_stream_and_counts_and_tells_it() -> None:
    breaker, sink = CircuitBreaker("peer", minimum_calls=1), MemorySink()
    policy = Policy(name="peer", timeout=5.0, breaker=breaker, on_event=sink.emit)
    async with (
        served(count, stream=True) as address,
        connected(address, policy) as channel,
    ):
        stream = channel.unary_stream(STREAM)
        with pytest.raises(grpc.aio.AioRpcError):
            [message async for message in stream(b"fail")]
        with pytest.raises(CircuitOpen) as caught:
            [message async for message in stream(b"")]
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert policy.stats.refused == 1
        assert [event.reason for event in sink.of(PolicyActed)] == ["CircuitOpen"]


async def test_a_stream_that_its_reader_leaves_says_nothing_and_is_cancelled() -> None:
    breaker = CircuitBreaker("peer", minimum_calls=1)
    async with (
        served(count, stream=True) as address,
        connected(address, Policy(name="peer", timeout=5.0, breaker=breaker)) as channel,
    ):
        call = channel.unary_stream(STREAM)(b"hang")
        assert await call.read() == b"1"
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            [message async for message in call]
        assert breaker.outcomes.counts(time.monotonic()) == (0, 0)
        assert breaker.in_flight == 0


async def test_a_fallback_makes_a_message_from_the_failure_and_the_request() -> None:
    async def fail(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "away")

    def spare(error: Exception, request: bytes) -> bytes:
        return b"spare " + request

    guard = Policy(name="peer", fallback=Fallback(answer=spare))
    async with served(fail) as address, connected(address, guard) as channel:
        assert await channel.unary_unary(TWICE)(b"pen") == b"spare pen"
    assert guard.stats.fell_back == 1


async def test_a_deadline_is_lengthened_on_the_wire_by_4_percent_at_most() -> None:
    """gRPC sends a timeout of the same connection again for one that is up to 3 % shorter, and rounds up."""
    gained = []

    async def remains(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return str(context.time_remaining()).encode()

    async with served(remains) as address, connected(address, Policy(name="peer")) as channel:
        for percent in range(100, 40, -1):
            timeout = 20.0 * percent / 100
            gained.append(float(await channel.unary_unary(TWICE)(b"", timeout=timeout)) / timeout - 1.0)
    assert 0.005 < max(gained) < 0.04
