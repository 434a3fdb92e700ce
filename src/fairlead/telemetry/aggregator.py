"""The process that remembers what workers counted, so that a fleet's totals never go down.

    python -m fairlead.telemetry.aggregator DIRECTORY

Each worker sends it a snapshot of all it counted, once a second and when asked; the newest replaces the one before.
Asked for a page, it asks all workers, waits `patience` for those that answer, takes the last snapshot of those that
hang, and adds the last one of those that ended: killed workers too. What was once shown is in every later page.

A worker is connected → gone (its counters stay, its gauges do not) → the same again when it comes back within a minute,
else folded into one sum, so that workers that are recycled every hour take no memory. One aggregator holds the
directory's lock. It ends when no worker has been connected for `linger`, with SIGTERM as soon as none is, and when the
directory is removed.

If it is killed, its memory is lost. Workers then begin again from zero with the next one: the fleet's totals restart as
one, which a rate takes for what it is, and not as a heap of counts that all seem to be new.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import itertools
import logging
import os
import secrets
import signal
import socket
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path

from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import BrokenDocument, FairleadError
from fairlead.telemetry import worker_protocol as protocol
from fairlead.telemetry.metrics import MetricRegistry
from fairlead.telemetry.prometheus import render
from fairlead.telemetry.snapshot import FamilySnapshot, RegistrySnapshot, decode_snapshot, encode_snapshot
from fairlead.telemetry.totals import Totals, without_gaps

__all__ = ["Aggregator", "main"]

_log = logging.getLogger(__name__)

_MOST_CONNECTIONS = 1_024
_MOST_GONE = 256
_FOLDED_AFTER = 60.0
_FIRST_WORD = 5.0
_MOST_WARNINGS = 1_000


@dataclass(slots=True)
class _Worker:
    """One incarnation of one worker."""

    incarnation: str
    number: int = 0
    received: bytes = b""
    """The newest snapshot, read when somebody asks for a page."""
    snapshot: RegistrySnapshot | None = None
    writer: asyncio.StreamWriter | None = None
    """None: gone."""
    gone_at: float = 0.0
    asked: bool = False
    answers: list[asyncio.Future[None]] = field(default_factory=list)

    def answered(self) -> None:
        self.asked = False
        for answer in self.answers:
            if not answer.done():
                answer.set_result(None)

    def read(self) -> RegistrySnapshot | None:
        """The newest snapshot that is one."""
        if self.received:
            received, self.received = self.received, b""
            try:
                self.snapshot = without_gaps(self.snapshot, decode_snapshot(received))
            except BrokenDocument as error:
                _log.warning("worker %s: %s; its last good snapshot counts", self.incarnation, error)
        return self.snapshot


class Aggregator:
    """Serves `directory` until nobody needs it.

    patience: seconds that a page waits for workers that do not answer. linger: seconds without any worker after
    which it ends. max_label_sets: per family, over all workers.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        patience: float = 0.5,
        linger: float = 10.0,
        max_label_sets: int = 1_000,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._directory = protocol.private_directory(directory)
        self._patience = patience
        self._linger = linger
        self._clock = clock
        self._id = secrets.token_hex(8)
        self._workers: dict[str, _Worker] = {}
        self._finished = Totals(max_label_sets=max_label_sets)
        self._connections = 0
        self._page = asyncio.Lock()
        self._alone_since = clock.now()
        self._own = MetricRegistry(clock=clock)
        self._states = self._own.gauge(
            "fairlead_workers",
            "Worker processes by what they did when the page was made: answering in time, or late.",
            labels=("state",),
        )
        self._ended = self._own.counter(
            "fairlead_workers_ended_total",
            "Connections of workers that ended; what they counted stays in the totals.",
        )
        self._left_out = self._own.gauge(
            "fairlead_metric_families_left_out",
            "Families of which workers disagree in kind, labels or range; those of one shape are shown.",
        )

    async def serve(self) -> bool:
        """Serves until it is no longer needed; returns False at once if another one serves this directory."""
        with open(protocol.lock_path(self._directory), "a+b") as lock:  # noqa: ASYNC230 - nobody is served yet
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            lock.truncate(0)
            lock.write(str(os.getpid()).encode())
            lock.flush()
            path = protocol.socket_path(self._directory)
            path.unlink(missing_ok=True)
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, self._end_soon)
            server = await asyncio.start_unix_server(self._welcome, path, backlog=512)
            try:
                self._alone_since = self._clock.now()
                while path.exists() and not self._needless():
                    await self._clock.sleep(0.1)
            finally:
                loop.remove_signal_handler(signal.SIGTERM)
                path.unlink(missing_ok=True)
                server.close()
        return True

    def _end_soon(self) -> None:
        self._linger = 0.0

    def _needless(self) -> bool:
        if any(worker.writer is not None for worker in self._workers.values()):
            self._alone_since = self._clock.now()
            return False
        return self._clock.now() - self._alone_since >= self._linger

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections > _MOST_CONNECTIONS or not _is_ours(writer):
                return
            async with asyncio.timeout(_FIRST_WORD):
                first = await _read(reader)
            if isinstance(first, protocol.Hello):
                await self._listen(first, reader, writer)
            elif isinstance(first, protocol.Scrape):
                await self._answer(first, writer)
        except (OSError, EOFError, TimeoutError):
            pass
        except FairleadError as error:
            _log.warning("a connection was closed: %s", error)
        finally:
            self._connections -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _listen(
        self, hello: protocol.Hello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        worker = self._workers.get(hello.incarnation)
        if worker is None:
            self._fold()
            worker = self._workers[hello.incarnation] = _Worker(hello.incarnation)
        if worker.writer is not None:
            worker.writer.close()  # it lost that connection and we have not seen it yet
        worker.writer, worker.asked = writer, False
        try:
            writer.write(protocol.encode(protocol.Welcome(self._id, worker.number)))
            while True:
                message = await _read(reader)
                if not isinstance(message, protocol.Taken):
                    raise BrokenDocument(f"worker {worker.incarnation}: {type(message).__name__} out of turn")
                if message.number > worker.number:
                    worker.number, worker.received = message.number, message.snapshot
                worker.answered()
                writer.write(protocol.encode(protocol.Ack(message.number)))
                await writer.drain()
        finally:
            if worker.writer is writer:
                worker.writer = None
                worker.gone_at = self._clock.now()
                worker.answered()  # nobody needs to wait for it
                if worker.number:
                    self._ended.add()
                else:  # it only asked whether we know it
                    del self._workers[worker.incarnation]

    async def _answer(self, scrape: protocol.Scrape, writer: asyncio.StreamWriter) -> None:
        async with self._page:
            snapshot = await self.collect()
            body = render(snapshot).encode() if scrape.text else encode_snapshot(snapshot)
        writer.write(protocol.encode(protocol.Page(body)))
        async with asyncio.timeout(_FIRST_WORD):
            await writer.drain()

    async def collect(self) -> RegistrySnapshot:
        """All workers together, those that ended included, and how they are."""
        late = await self._ask()
        self._fold()
        living = [worker for worker in self._workers.values() if worker.writer is not None]
        gone = [worker for worker in self._workers.values() if worker.writer is None]
        self._states.labels(state="answering").set(max(0, len(living) - late))
        self._states.labels(state="late").set(late)
        totals = self._add_up(living, gone)
        if stale := self._superseded(totals.disagreeing, living):
            # A release changed these metrics, and what counts in the old shape has ended.
            for name in stale:
                self._finished.forget(name)
            totals = self._add_up(living, gone)
        self._left_out.set(len(totals.disagreeing))
        totals.add(self._own.snapshot())
        return totals.snapshot()

    def _add_up(self, living: list[_Worker], gone: list[_Worker]) -> Totals:
        totals = self._finished.copy()
        for workers, gauges in ((living, True), (gone, False)):
            for worker in workers:
                snapshot = worker.read()
                if snapshot is not None:
                    totals.add(snapshot, gauges=gauges)
        return totals

    def _superseded(self, names: set[str], living: list[_Worker]) -> list[str]:
        """Which of these families all living workers show in one and the same shape."""
        found = []
        for name in names:
            shapes: list[FamilySnapshot] = [
                family
                for worker in living
                if worker.snapshot is not None
                for family in worker.snapshot.families
                if family.name == name
            ]
            if (
                shapes
                and all(shape.alike(shapes[0]) for shape in shapes)
                and not self._finished.fits(shapes[0])
            ):
                found.append(name)
        return found

    async def _ask(self) -> int:
        """Has every connected worker send a snapshot; returns how many did not in time."""
        loop = asyncio.get_running_loop()
        answers: dict[asyncio.Future[None], _Worker] = {}
        for worker in self._workers.values():
            if worker.writer is None:
                continue
            answer: asyncio.Future[None] = loop.create_future()
            worker.answers.append(answer)
            answers[answer] = worker
            if not worker.asked:  # a worker that hangs is asked once, not once a scrape
                worker.asked = True
                worker.writer.write(protocol.encode(protocol.Ask()))
        if not answers:
            return 0
        try:
            _, late = await asyncio.wait(answers, timeout=self._patience)
        finally:
            for answer, worker in answers.items():
                worker.answers.remove(answer)
                answer.cancel()
        return sum(answers[each].writer is not None for each in late)

    def _fold(self) -> None:
        """Adds what has been gone for long to the sum of all that ended."""
        gone = sorted(
            (worker for worker in self._workers.values() if worker.writer is None),
            key=lambda worker: worker.gone_at,
        )
        horizon = self._clock.now() - _FOLDED_AFTER
        for index, worker in enumerate(gone):
            if worker.gone_at > horizon and len(gone) - index <= _MOST_GONE:
                break
            snapshot = worker.read()
            if snapshot is not None:
                self._finished.add(snapshot, gauges=False)
            del self._workers[worker.incarnation]


async def _read(reader: asyncio.StreamReader) -> protocol.Message:
    length = protocol.frame_length(await reader.readexactly(protocol.HEAD))
    return protocol.decode(await reader.readexactly(length))


def _is_ours(writer: asyncio.StreamWriter) -> bool:
    """Whether the other side runs as our user, or as root. The directory's mode says so already."""
    connection: socket.socket = writer.get_extra_info("socket")
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", packed)
    return user in (os.geteuid(), 0)


def _log_to_stderr() -> None:
    """The first thousand warnings: a worker that is broken for weeks must not fill a disk."""
    left = itertools.count(_MOST_WARNINGS, -1)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    handler.addFilter(lambda record: next(left) > 0)
    logging.basicConfig(handlers=[handler], level=logging.WARNING)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fairlead.telemetry.aggregator",
        description="Adds the metrics of a service's worker processes up. Workers start it themselves if nobody did.",
    )
    parser.add_argument(
        "directory", type=Path, help="shared by the workers of one service, and by nobody else"
    )
    parser.add_argument(
        "--patience", type=float, default=0.5, help="seconds that a page waits for a hung worker"
    )
    parser.add_argument(
        "--linger", type=float, default=10.0, help="seconds without a worker after which it ends"
    )
    parser.add_argument("--max-label-sets", type=int, default=1_000, help="per family, over all workers")
    parser.add_argument("--detach", action="store_true", help="return at once and serve in the background")
    chosen = parser.parse_args(arguments)
    if chosen.detach and os.fork():
        return 0
    _log_to_stderr()
    try:
        aggregator = Aggregator(
            chosen.directory,
            patience=chosen.patience,
            linger=chosen.linger,
            max_label_sets=chosen.max_label_sets,
        )
        serving = asyncio.run(aggregator.serve())
    except FairleadError as error:
        print(error, file=sys.stderr)
        return 1
    if not serving:
        print(f"{chosen.directory}: another aggregator serves it", file=sys.stderr)
    return 0 if serving or chosen.detach else 1


if __name__ == "__main__":
    sys.exit(main())
