"""Events through a real JetStream that is hung, killed and restarted: none lost, none counted twice."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import nats
import pytest

from fairlead.errors import BrokerUnavailable, InvalidInput, NoSpace
from fairlead.telemetry import (
    BufferedSink,
    DeadLetterFile,
    Exposure,
    JsonLinesSegments,
    PolicyActed,
    ReadReport,
    Spool,
    encode_event,
    event_id,
    read_dead_letters,
    read_events,
)
from fairlead.telemetry.identity import Numbering
from fairlead.telemetry.nats import NatsToSegments, NatsWriter
from fairlead.testing import NatsServer


@pytest.fixture(scope="module")
def nats_module() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


@pytest.fixture
def server(nats_module: NatsServer) -> NatsServer:
    """A server of this module, running."""
    if not nats_module.pid:
        nats_module.start()
    nats_module.resume()
    return nats_module


def exposure(number: int) -> Exposure:
    return Exposure(
        at_utc_seconds=float(number), flag="f", variant="on", targeting_key=f"u{number}", reason="SPLIT"
    )


def lines(first: int, count: int) -> list[bytes]:
    numbering = Numbering()
    return [numbering.stamp(encode_event(exposure(number))) for number in range(first, first + count)]


async def subjects(server: NatsServer, stream: str) -> dict[str, int]:
    client = await nats.connect(server.url)
    try:
        info = await client.jetstream().stream_info(stream, subjects_filter=">")
        return dict(info.state.subjects or {})
    finally:
        await client.close()


async def eventually(holds: Callable[[], bool], within: float) -> None:
    end = time.monotonic() + within
    while not holds() and time.monotonic() < end:  # noqa: ASYNC110  # it lies in files, or in another process
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def working(worker: NatsToSegments) -> AsyncIterator[NatsToSegments]:
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(worker: NatsToSegments, written: int, within: float = 20.0) -> None:
    await eventually(lambda: worker.stats.written >= written, within)
    assert worker.stats.written >= written, (worker.stats, worker.failure)


def started(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)


def numbers(directory: Path, report: ReadReport | None = None) -> list[int]:
    return [int(event.at_utc_seconds) for event in read_events(directory, report=report)]


async def test_each_kind_has_its_subject_and_what_is_sent_twice_is_kept_once(server: NatsServer) -> None:
    writer = NatsWriter(server.url, stream="KINDS", prefix="kinds")
    acted = PolicyActed(at_utc_seconds=1.0, policy="p", action="refused", reason="CircuitOpen")
    sent = [*lines(0, 20), Numbering().stamp(encode_event(acted))]
    for _ in range(2):
        assert await asyncio.to_thread(writer.write, sent) == 21
    await asyncio.to_thread(writer.close)
    assert await subjects(server, "KINDS") == {"kinds.exposure": 20, "kinds.policy_acted": 1}


def test_a_server_that_hangs_costs_the_timeout_and_the_next_write_finds_it_again(server: NatsServer) -> None:
    writer = NatsWriter(server.url, stream="HUNG", prefix="hung", timeout=0.3)
    assert writer.write(lines(0, 3)) == 3
    server.pause()
    try:
        for _ in range(2):  # with the connection of before, and with none
            began = time.monotonic()
            with pytest.raises(BrokerUnavailable, match=r"gave no receipt within 0\.3 s for stream HUNG"):
                writer.write(lines(3, 3))
            assert time.monotonic() - began < 1.5
    finally:
        server.resume()
    assert writer.write(lines(6, 3)) == 3
    writer.close()


def test_a_server_that_is_gone_is_found_again_on_its_port_with_its_stream(server: NatsServer) -> None:
    writer = NatsWriter(server.url, stream="GONE", prefix="gone", timeout=0.5)
    assert writer.write(lines(0, 3)) == 3
    server.kill()
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            writer.write(lines(3, 3))
    server.restart()
    assert writer.write(lines(3, 3)) == 3
    writer.close()
    assert asyncio.run(subjects(server, "GONE")) == {"gone.exposure": 6}


def test_what_can_never_be_taken_is_told_from_a_server_that_is_away(server: NatsServer) -> None:
    writer = NatsWriter(server.url, stream="LARGE", prefix="large")
    large = b'{"event":"exposure","x":"' + b"x" * 2_000_000 + b'"}'
    assert writer.write([*lines(0, 2), large]) == 2
    for never, words in (
        (large, "takes none so large"),
        (b"{}", "no event"),
        (b'{"event":"a.b"}', "no event"),
    ):
        with pytest.raises(InvalidInput, match=words):
            writer.write([never, *lines(2, 1)])
    writer.close()


def test_an_address_nobody_answers_at_is_reported_without_its_password() -> None:
    writer = NatsWriter("nats://feed:secret@127.0.0.1:1", timeout=0.2)
    with pytest.raises(BrokerUnavailable, match=r"NATS at nats://127\.0\.0\.1:1 ") as caught:
        writer.write(lines(0, 1))
    assert "secret" not in str(caught.value)
    writer.close()


@pytest.mark.parametrize(
    "settings", [{"stream": "a.b"}, {"prefix": ""}, {"timeout": 0}, {"max_in_flight": 0}]
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(settings: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(settings))):
        NatsWriter("nats://127.0.0.1:1", **settings)  # type: ignore[arg-type]


EMITTER = """
import sys, time
from fairlead.telemetry import BufferedSink, Exposure, Spool
from fairlead.telemetry.nats import NatsWriter

url, directory, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
spool = Spool(directory, to=NatsWriter(url, timeout=0.5), drain_timeout=20.0)
with BufferedSink(spool, flush_interval=0.01, capacity=100_000) as sink:
    print("ready", flush=True)
    for number in range(count):
        at = float(number)
        sink.emit(Exposure(at_utc_seconds=at, flag="f", variant="on", targeting_key="u", reason="SPLIT"))
        if number % 100 == 99:
            time.sleep(0.02)
    assert spool.drain(timeout=25.0), spool.failure
print(sink.stats.written, spool.stats.forwarded, spool.stats.failures, flush=True)
"""


async def test_a_broker_restarted_twice_and_hung_once_loses_and_doubles_nothing(tmp_path: Path) -> None:
    count = 12_000
    with NatsServer() as server:
        emitter = started(EMITTER, server.url, str(tmp_path / "spool"), str(count))
        assert emitter.stdout is not None
        try:
            assert await asyncio.to_thread(emitter.stdout.readline) == "ready\n"
            segments = JsonLinesSegments(tmp_path / "events", fsync="batch")
            async with working(NatsToSegments(server.url, segments=segments)) as worker:
                for _ in range(2):
                    await asyncio.sleep(0.7)
                    server.kill()
                    await asyncio.sleep(0.3)
                    server.restart()
                await asyncio.sleep(0.7)
                server.pause()
                await asyncio.sleep(0.8)
                server.resume()
                last = await asyncio.to_thread(emitter.stdout.readline)
                await until(worker, count)
        finally:
            emitter.kill()
            emitter.communicate()
    written, forwarded, failures = map(int, last.split())
    assert (written, forwarded) == (count, count)
    assert failures > 0, "the restarts must have been felt"
    report = ReadReport()
    assert sorted(numbers(tmp_path / "events", report)) == list(range(count))
    assert (report.malformed, report.truncated, report.unknown) == (0, 0, 0)


WORKER = """
import asyncio, sys
from fairlead.telemetry import JsonLinesSegments
from fairlead.telemetry.nats import NatsToSegments

segments = JsonLinesSegments(sys.argv[2], fsync="batch")
print("ready", flush=True)
asyncio.run(NatsToSegments(sys.argv[1], segments=segments, stream="WORK", prefix="work", batch=50).run())
"""


async def test_a_worker_that_is_killed_between_writing_and_acknowledging_doubles_nothing(
    server: NatsServer, tmp_path: Path
) -> None:
    writer = NatsWriter(server.url, stream="WORK", prefix="work")
    for first in range(0, 3_000, 1_000):
        process = started(WORKER, server.url, str(tmp_path))
        assert process.stdout is not None
        await asyncio.to_thread(process.stdout.readline)
        for start in range(first, first + 1_000, 250):
            assert await asyncio.to_thread(writer.write, lines(start, 250)) == 250
        await eventually(lambda: len(numbers(tmp_path)) >= first + 100, 10.0)  # noqa: B023  # awaited in its turn
        process.kill()
        process.communicate()
    # What was delivered and not acknowledged comes again once its 30 s are over; a consumer anew sees all at once.
    segments = JsonLinesSegments(tmp_path, fsync="batch")
    anew = NatsToSegments(server.url, segments=segments, stream="WORK", prefix="work", durable="anew")
    async with working(anew):
        await until(anew, 3_000)
    await asyncio.to_thread(writer.close)
    report = ReadReport()
    assert sorted(numbers(tmp_path, report)) == list(range(3_000))
    assert report.duplicates > 0


async def test_the_worker_drops_what_it_met_and_puts_aside_what_is_no_event(
    server: NatsServer, tmp_path: Path
) -> None:
    client = await nats.connect(server.url)
    letters = DeadLetterFile(tmp_path / "letters")
    worker = NatsToSegments(
        server.url,
        segments=JsonLinesSegments(tmp_path / "events", fsync="batch"),
        stream="MIXED",
        prefix="mixed",
        dead_letters=letters,
    )
    good = lines(0, 3)
    newer = b'{"event":"page_painted","at_utc_seconds":1.0}'
    async with working(worker):
        while True:
            with contextlib.suppress(nats.js.errors.Error, nats.errors.Error):
                await client.jetstream().stream_info("MIXED")
                break
            await asyncio.sleep(0.02)
        # Without a message id, so that the server cannot tell the second delivery from the first.
        for data in (*good, good[1], b"no event", good[2] + b"\n" + good[2], newer):
            await client.jetstream().publish("mixed.exposure", data)
        await until(worker, 4)
    await client.close()
    stats = worker.stats
    assert (stats.written, stats.duplicates, stats.malformed) == (4, 1, 2)
    report = ReadReport()
    assert numbers(tmp_path / "events", report) == [0, 1, 2]
    assert (report.unknown, report.malformed) == (1, 0)
    assert [letter.line for letter in read_dead_letters(letters.path)] == [
        b"no event",
        good[2] + b"\n" + good[2],
    ]


async def test_a_worker_waits_for_a_server_that_is_not_there_yet_and_can_be_told_to_stop_meanwhile(
    tmp_path: Path,
) -> None:
    with NatsServer() as server:
        url = server.url
        server.kill()
        for await_it in (False, True):
            worker = NatsToSegments(url, segments=JsonLinesSegments(tmp_path, fsync="batch"))
            async with working(worker):
                await eventually(lambda: worker.stats.failures > 0, 10.0)  # noqa: B023  # awaited in its turn
                assert worker.failure is not None
                if await_it:
                    server.restart()
                    writer = NatsWriter(url)
                    assert await asyncio.to_thread(writer.write, lines(0, 5)) == 5
                    await asyncio.to_thread(writer.close)
                    await until(worker, 5)
    assert numbers(tmp_path) == list(range(5))


async def test_a_worker_that_is_told_to_stop_while_the_server_hangs_leaves_no_socket_open(
    server: NatsServer, tmp_path: Path
) -> None:
    server.pause()
    try:
        async with working(NatsToSegments(server.url, segments=JsonLinesSegments(tmp_path))):
            await asyncio.sleep(0.2)
    finally:
        server.resume()
    gc.collect()  # a socket left open would warn, and a warning fails the test


async def test_a_worker_without_room_acknowledges_nothing_until_there_is_some(
    server: NatsServer, tmp_path: Path
) -> None:
    class Full(JsonLinesSegments):
        full = True

        def write(self, lines: Sequence[bytes]) -> int:
            if self.full:
                raise NoSpace("the disk is full")
            return super().write(lines)

    writer = NatsWriter(server.url, stream="FULL", prefix="full")
    assert await asyncio.to_thread(writer.write, lines(0, 10)) == 10
    await asyncio.to_thread(writer.close)
    for full in (True, False):
        segments = Full(tmp_path, fsync="batch")
        worker = NatsToSegments(
            server.url, segments=segments, stream="FULL", prefix="full", durable=f"full-{full}"
        )
        async with working(worker):
            await eventually(lambda: worker.stats.failures > 0, 10.0)  # noqa: B023  # awaited in its turn
            assert isinstance(worker.failure, NoSpace)
            segments.full = full
            if not full:
                await until(worker, 10)
    assert numbers(tmp_path) == list(range(10))


def test_a_forked_child_publishes_over_a_connection_of_its_own(server: NatsServer, tmp_path: Path) -> None:
    script = """
import os, sys
from fairlead.telemetry import BufferedSink, Exposure, Spool
from fairlead.telemetry.nats import NatsWriter

spool = Spool(sys.argv[2], to=NatsWriter(sys.argv[1], stream="FORK", prefix="fork"))
sink = BufferedSink(spool)

def emit(first):
    for number in range(first, first + 100):
        at = float(number)
        sink.emit(Exposure(at_utc_seconds=at, flag="f", variant="on", targeting_key="u", reason="SPLIT"))
    assert sink.flush() and spool.drain(), spool.failure

emit(0)
child = os.fork()
emit(100 if child else 200)
if not child:
    sink.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
sink.close()
"""
    command = [sys.executable, "-c", script, server.url, str(tmp_path / "spool")]
    subprocess.run(command, check=True, timeout=30)
    assert asyncio.run(subjects(server, "FORK")) == {"fork.exposure": 300}
    assert list((tmp_path / "spool").iterdir()) == []


def test_sigterm_while_the_broker_is_away_leaves_every_event_for_the_next_process(tmp_path: Path) -> None:
    script = """
import signal, sys, time
from fairlead.telemetry import BufferedSink, Exposure, Spool
from fairlead.telemetry.nats import NatsWriter

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
sink = BufferedSink(Spool(sys.argv[2], to=NatsWriter(sys.argv[1], timeout=0.2), drain_timeout=0.5))
for number in range(5_000):
    at = float(number)
    sink.emit(Exposure(at_utc_seconds=at, flag="f", variant="on", targeting_key="u", reason="SPLIT"))
print("ready", flush=True)
while True:
    time.sleep(0.1)  # short: a signal that comes just before a sleep begins does not end it
"""
    with NatsServer() as server:
        server.pause()
        process = started(script, server.url, str(tmp_path))
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=20)
        assert process.returncode == 0
        server.resume()
        heir = Spool(tmp_path, to=NatsWriter(server.url))
        assert heir.drain(timeout=10.0), heir.failure
        heir.close()
        found = asyncio.run(subjects(server, "EVENTS"))
    assert found == {"events.exposure": 5_000}


def test_a_sink_in_front_of_the_writer_gives_every_message_its_line_as_it_is(server: NatsServer) -> None:
    with BufferedSink(NatsWriter(server.url, stream="LINES", prefix="lines")) as sink:
        for number in range(3):
            sink.emit(exposure(number))

    async def fetched() -> list[nats.aio.msg.Msg]:
        client = await nats.connect(server.url)
        subscription = await client.jetstream().pull_subscribe("lines.>", durable="test", stream="LINES")
        found = await subscription.fetch(3, timeout=5.0)
        await client.close()
        return found

    messages = asyncio.run(fetched())
    assert Counter(event_id(message.data) for message in messages) == Counter(
        (message.headers or {})["Nats-Msg-Id"] for message in messages
    )
