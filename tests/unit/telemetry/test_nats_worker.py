"""What a worker acknowledges is on disk, and what is not on disk it does not take for met."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from fairlead.errors import NoSpace
from fairlead.telemetry import Exposure, encode_event
from fairlead.telemetry.identity import Numbering
from fairlead.telemetry.nats import NatsToSegments

SHOWN = Exposure(at_utc_seconds=1.0, flag="f", variant="on", targeting_key="u", reason="SPLIT")


class Message:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.acknowledged = 0

    async def ack(self) -> None:
        self.acknowledged += 1


class Segments:
    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.broken: Exception | None = None

    def write(self, lines: Sequence[bytes]) -> int:
        if self.broken is not None:
            raise self.broken
        self.lines += lines[:2]
        return min(len(lines), 2)

    def close(self) -> None:
        pass


def messages(count: int) -> list[Message]:
    numbering = Numbering()
    return [Message(numbering.stamp(encode_event(SHOWN))) for _ in range(count)]


async def take(worker: NatsToSegments, deliveries: list[Message]) -> None:
    await worker._take(deliveries)  # type: ignore[arg-type]  # all that a worker needs of a message


async def test_each_event_is_written_once_and_every_delivery_acknowledged() -> None:
    segments = Segments()
    worker = NatsToSegments("nats://nowhere", segments=segments)
    deliveries = messages(5)
    await take(worker, [*deliveries, deliveries[0]])
    await take(worker, deliveries[3:])
    assert segments.lines == [message.data for message in deliveries]
    assert [message.acknowledged for message in deliveries] == [2, 1, 1, 2, 2]
    assert (worker.stats.written, worker.stats.duplicates) == (5, 3)


async def test_what_could_not_be_written_is_neither_acknowledged_nor_taken_for_met() -> None:
    segments = Segments()
    worker = NatsToSegments("nats://nowhere", segments=segments)
    deliveries = messages(3)
    segments.broken = NoSpace("the disk is full")
    worker._stopping = True
    await take(worker, deliveries)
    segments.broken = ValueError("a writer of somebody's own")
    with pytest.raises(ValueError, match="own"):
        await take(worker, deliveries)
    assert [message.acknowledged for message in deliveries] == [0, 0, 0]
    segments.broken = None
    await take(worker, deliveries)
    assert segments.lines == [message.data for message in deliveries]
    assert [message.acknowledged for message in deliveries] == [1, 1, 1]
    assert worker.stats.duplicates == 0


async def test_a_full_disk_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairlead.telemetry.nats._PAUSE", 0.001)
    segments = Segments()
    segments.broken = NoSpace("the disk is full")
    worker = NatsToSegments("nats://nowhere", segments=segments)
    deliveries = messages(3)
    taking = asyncio.create_task(take(worker, deliveries))
    while worker.stats.failures < 2:  # noqa: ASYNC110  # it tells nobody when it fails
        await asyncio.sleep(0)
    assert isinstance(worker.failure, NoSpace)
    segments.broken = None
    await taking
    assert worker.failure is None
    assert [message.acknowledged for message in deliveries] == [1, 1, 1]
