"""A proxy that hangs and refuses, before a server that answers what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fairlead.errors import InvalidInput
from fairlead.lab import TcpProxy


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    tasks: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(answer(reader, writer)))

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, within: float = 5.0) -> bytes:
    writer.write(b"hello\n")
    return await asyncio.wait_for(reader.readline(), within)


async def test_bytes_pass_both_ways():
    async with echo() as port, TcpProxy("127.0.0.1", port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await ask(reader, writer) == b"hello\n"
        writer.close()


async def test_hung_proxy_keeps_connections_open_and_bytes_waiting_until_its_time_is_up():
    async with echo() as port, TcpProxy("127.0.0.1", port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await ask(reader, writer) == b"hello\n"
        proxy.hang(0.3)
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await ask(reader, writer, within=0.1)
        fresh, their = await asyncio.open_connection("127.0.0.1", proxy.port)  # accepted, and silent
        assert await ask(fresh, their) == b"hello\n"  # when it is over
        assert await asyncio.wait_for(reader.readline(), 5) == b"hello\n"  # not lost
        writer.close()
        their.close()


async def reached(proxy: TcpProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the proxy, as soon as it takes one again."""
    for _ in range(100):
        try:
            return await asyncio.open_connection("127.0.0.1", proxy.port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.02)
    raise AssertionError("the proxy takes no connections")


async def test_refusing_proxy_resets_connections_and_takes_new_ones_on_the_same_port_later():
    async with echo() as port, TcpProxy("127.0.0.1", port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await ask(reader, writer) == b"hello\n"
        proxy.refuse(0.3)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.readline(), 5)
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
        reader, writer = await reached(proxy)
        assert await ask(reader, writer) == b"hello\n"
        writer.close()


async def test_second_fault_takes_the_place_of_the_first():
    async with echo() as port, TcpProxy("127.0.0.1", port) as proxy:
        proxy.hang(60.0)
        proxy.refuse(60.0)
        proxy.hang(0.0)
        reader, writer = await reached(proxy)
        assert await ask(reader, writer) == b"hello\n"
        writer.close()


async def test_server_that_is_not_there_is_a_reset():
    async with echo() as port:
        pass
    async with TcpProxy("127.0.0.1", port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.readline(), 5)
        writer.close()


async def test_leaving_ends_faults_and_connections():
    async with echo() as port:
        async with TcpProxy("127.0.0.1", port) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            assert await ask(reader, writer) == b"hello\n"
            proxy.hang(60.0)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.readline(), 5)
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e9])
async def test_fault_without_an_end_is_refused(seconds: float):
    proxy = TcpProxy("127.0.0.1", 1)
    with pytest.raises(InvalidInput, match="seconds"):
        proxy.hang(seconds)
    with pytest.raises(InvalidInput, match="seconds"):
        proxy.refuse(seconds)
