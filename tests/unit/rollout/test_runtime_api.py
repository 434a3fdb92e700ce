"""A socket behind which something else than a well HAProxy sits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fairlead.errors import TrafficUnavailable
from fairlead.rollout import Split
from fairlead.rollout.haproxy import HaproxyTraffic

Answer = Callable[[asyncio.StreamWriter], None]


@asynccontextmanager
async def answering(folder: Path, answer: Answer) -> AsyncIterator[HaproxyTraffic]:
    """A driver whose one process answers every line so."""
    map_file = folder / "feed.map"
    map_file.touch()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        answer(writer)
        writer.close()

    server = await asyncio.start_unix_server(serve, folder / "a.sock")
    async with server:
        yield HaproxyTraffic(map_file, sockets=[f"{folder}/a.sock"], timeout=2.0)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"", "it gave no answer"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        (b"New version created: 1\n\n" + b"\x1b[2J" * 5000, r"\?\[2J"),
        (b"\n" * 1_100_000, "its answer exceeds 1048576 bytes; give the rollout a map of its own"),
        (b"Permission denied\n\n", "not of level admin"),
    ],
    ids=range(5),
)
async def test_an_answer_that_is_none_is_one_short_error(tmp_path: Path, said: bytes, words: str):
    async with answering(tmp_path, lambda writer: writer.write(said)) as traffic:
        with pytest.raises(TrafficUnavailable, match=words) as caught:
            await traffic.set(Split(share=0.5, rollout="feed/1"))
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 600


async def test_one_who_never_answers_costs_the_timeout(tmp_path: Path):
    async with answering(tmp_path, lambda writer: None) as traffic:
        hung = asyncio.Event()

        async def hang(line: bytes) -> bytes:
            await hung.wait()
            return b""

        traffic._processes[0]._exchange = hang
        traffic._processes[0]._timeout = 0.01
        with pytest.raises(TrafficUnavailable, match=r"no answer within 0\.01 s; it hangs"):
            await traffic.set(Split(share=0.5, rollout="feed/1"))
