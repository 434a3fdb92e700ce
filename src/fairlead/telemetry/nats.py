"""Events through NATS JetStream: a writer that waits for receipts, and a worker that writes what arrives.

    sink → Spool → NatsWriter ──▶ stream, one subject per kind ──▶ NatsToSegments → segments → acknowledge

A message counts as written when the stream's receipt is there, and as arrived when it is on disk and synced.
Whatever breaks between message and receipt sends the message again: at least once. The server drops what it
met within its window (`Nats-Msg-Id`), the worker what it remembers, and `read_events` the rest.

The writer keeps no reconnecting client: after a failure it drops the connection and the next write makes a new
one. A server that hangs, or whose host vanished without a word, then looks like one that refuses, within
`timeout`; when to try again is the spool's business.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from fairlead.errors import BrokenDocument, BrokerUnavailable, InvalidInput, MissingExtra
from fairlead.telemetry.addressing import Addressed, addressed, check_names
from fairlead.telemetry.bounds import check_number, check_whole
from fairlead.telemetry.dead_letter import DeadLetterFile
from fairlead.telemetry.identity import SeenEvents, event_id
from fairlead.telemetry.loop_thread import LoopThread
from fairlead.telemetry.metrics import MetricRegistry
from fairlead.telemetry.schema import EVENTS, EventRegistry, UnknownEvent
from fairlead.telemetry.sink import EventWriter, TendedWriter

try:
    from faststream.nats import NatsBroker
    from faststream.security import BaseSecurity
    from nats.aio.msg import Msg
    from nats.errors import BadSubjectError, MaxPayloadError
    from nats.errors import Error as NatsError
    from nats.errors import TimeoutError as NatsTimeout
    from nats.js.api import ConsumerConfig, StreamConfig
    from nats.js.client import JetStreamContext
    from nats.js.errors import APIError, NotFoundError
except ImportError as missing:
    raise MissingExtra(missing.name or "faststream", "broker") from missing

__all__ = ["NatsToSegments", "NatsWriter", "WorkerStats"]

_TOO_LARGE_FOR_STREAM = 10054
_KEPT_FOR = 7 * 86_400.0  # seconds that a stream made here keeps events
_DUPLICATE_WINDOW = 120.0
_PAUSE = 1.0
_PATIENCE = 2.0


class NatsWriter:
    """An EventWriter that publishes to a stream and waits for its receipts. Put a `Spool` in front of it."""

    def __init__(
        self,
        servers: str | Sequence[str],
        *,
        stream: str = "EVENTS",
        prefix: str = "events",
        timeout: float = 2.0,
        max_in_flight: int = 256,
        security: BaseSecurity | None = None,
    ) -> None:
        """Connects with the first write.

        servers: as `nats://user:password@host:4222`.
        stream: made when it is missing: subjects `PREFIX.>`, in files, events kept for 7 days. Make it yourself for
            replicas, limits or another retention.
        prefix: an event of kind `exposure` goes to the subject `PREFIX.exposure`.
        timeout: seconds for the connection, and again for the receipts of a write, from 0.05.
        max_in_flight: messages of one write that wait for receipts together; the rest is for the next write.
        security: FastStream's description of TLS and credentials.
        """
        check_names(stream=stream, prefix=prefix)
        check_number("timeout", timeout, low=0.05, high=60.0)
        check_whole("max_in_flight", max_in_flight, low=1, high=10_000)
        self._servers = [servers] if isinstance(servers, str) else list(servers)
        self._stream = stream
        self._prefix = prefix
        self._timeout = timeout
        self._max_in_flight = max_in_flight
        self._security = security
        self._loop = LoopThread("fairlead-nats")
        self._broker: NatsBroker | None = None

    def write(self, lines: Sequence[bytes]) -> int:
        """Publishes leading lines; returns how many have their receipts.

        Raises BrokerUnavailable when the first has none, InvalidInput when it can never have one.
        """
        messages = addressed(lines[: self._max_in_flight])
        if not self._loop.is_running:
            self._broker = None  # made before a fork: its connection is the parent's
        try:
            return self._loop.run(self._publish(messages), 4 * self._timeout + 1.0)
        except TimeoutError as error:
            raise self._unavailable(error) from error

    def close(self) -> None:
        """Closes the connection. A later write opens another."""
        if self._loop.is_running:
            with contextlib.suppress(TimeoutError):
                self._loop.run(self._disconnect(), self._timeout + 1.0)
            self._loop.close()

    async def _publish(self, messages: Sequence[Addressed]) -> int:
        try:
            broker = await self._connected()
        except (NatsError, OSError, TimeoutError) as error:
            await self._disconnect()
            raise self._unavailable(error) from error
        receipts = await asyncio.gather(
            *(self._receipt(broker, message) for message in messages), return_exceptions=True
        )
        for count, failure in enumerate(receipts):
            if isinstance(failure, BaseException):
                return await self._stopped(count, failure, messages[0].line)
        return len(receipts)

    async def _receipt(self, broker: NatsBroker, message: Addressed) -> None:
        await broker.publish(
            message.line,
            f"{self._prefix}.{message.kind}",
            headers={"Nats-Msg-Id": message.identity} if message.identity else None,
            correlation_id=message.identity,
            stream=self._stream,
            timeout=self._timeout,
        )

    async def _stopped(self, count: int, failure: BaseException, first: bytes) -> int:
        permanent = isinstance(failure, MaxPayloadError | BadSubjectError) or (
            isinstance(failure, APIError) and failure.err_code == _TOO_LARGE_FOR_STREAM
        )
        if not permanent:
            await self._disconnect()
        if count:
            return count
        if permanent:
            raise InvalidInput(
                f"an event of {len(first)} bytes: the stream {self._stream} takes none so large"
            ) from failure
        raise self._unavailable(failure) from failure

    async def _connected(self) -> NatsBroker:
        if self._broker is not None and self._broker.connection.is_connected:
            return self._broker
        await self._disconnect()
        broker = _broker(self._servers, self._security, timeout=self._timeout)
        await broker.connect()
        self._broker = broker
        async with asyncio.timeout(self._timeout):
            await _declare(broker, self._stream, self._prefix)
        return broker

    async def _disconnect(self) -> None:
        broker, self._broker = self._broker, None
        if broker is not None:
            await _abandon(broker, self._timeout)

    def _unavailable(self, error: BaseException) -> BrokerUnavailable:
        reason = f"{type(error).__name__} {error}".strip()
        return BrokerUnavailable(
            f"NATS at {', '.join(map(_shown, self._servers))} gave no receipt within {self._timeout:g} s for stream "
            f"{self._stream}: {reason}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerStats:
    """Counts since the worker was made, in this process."""

    written: int
    """Events written, synced and acknowledged."""
    duplicates: int
    """Deliveries of an event that was written before."""
    malformed: int
    """Messages that are no event; they are with the dead letters, if there is a file for them."""
    failures: int
    """Attempts to fetch or to write that failed and were made again."""


class NatsToSegments:
    """A worker that reads a stream and writes what it finds, each event acknowledged once it is written.

    Several may share a `durable`, each with segments of its own; the server deals the messages out.
    """

    def __init__(
        self,
        servers: str | Sequence[str],
        *,
        segments: EventWriter,
        stream: str = "EVENTS",
        prefix: str = "events",
        durable: str = "segments",
        batch: int = 256,
        registry: EventRegistry = EVENTS,
        dead_letters: DeadLetterFile | None = None,
        security: BaseSecurity | None = None,
    ) -> None:
        """Connects when it runs.

        segments: makes what it is given durable before it returns: `JsonLinesSegments(…, fsync="batch")`. Owned by
            the worker, and closed by it.
        stream, prefix, servers, security: as for NatsWriter.
        durable: the name under which the server remembers what was acknowledged.
        batch: messages fetched and acknowledged together; one fsync each.
        registry: says what is an event. Kinds and versions that it does not know are written all the same.
        dead_letters: takes messages that are none, with the reason.
        """
        check_names(stream=stream, prefix=prefix, durable=durable)
        check_whole("batch", batch, low=1, high=10_000)
        self._servers = [servers] if isinstance(servers, str) else list(servers)
        self._segments = segments
        self._stream = stream
        self._prefix = prefix
        self._durable = durable
        self._batch = batch
        self._registry = registry
        self._dead_letters = dead_letters
        self._security = security
        self._seen = SeenEvents()
        self._written = self._duplicates = self._malformed = self._failures = 0
        self._failure: BaseException | None = None
        self._stopping = False

    @property
    def stats(self) -> WorkerStats:
        return WorkerStats(
            written=self._written,
            duplicates=self._duplicates,
            malformed=self._malformed,
            failures=self._failures,
        )

    @property
    def failure(self) -> BaseException | None:
        """Why the latest fetch or write failed; None when it went well."""
        return self._failure

    def export(self, registry: MetricRegistry) -> None:
        """Shows the counts as `fairlead_event_worker_total{stream,what}`, read at each scrape."""
        counter = registry.counter(
            "fairlead_event_worker_total",
            "What an event worker did, in this process.",
            labels=("stream", "what"),
        )
        for what in ("written", "duplicates", "malformed", "failures"):
            counter.labels(stream=self._stream, what=what).track(partial(getattr, self, f"_{what}"))

    async def run(self) -> None:
        """Works until it is cancelled, through restarts of the server; then closes the segments.

        A cancel waits for the batch that is being written, so what is on disk is acknowledged.
        """
        self._stopping = False
        broker = self._client()
        try:
            while True:
                try:
                    await self._connect(broker)
                    await _declare(broker, self._stream, self._prefix)
                    await self._work(broker.connection.jetstream())
                except (NatsError, OSError, TimeoutError) as error:
                    self._failed(error)
                    await _abandon(broker, _PATIENCE)
                    await asyncio.sleep(_PAUSE)
                    broker = self._client()
        finally:
            await _abandon(broker, _PATIENCE)
            await asyncio.to_thread(self._segments.close)

    async def _connect(self, broker: NatsBroker) -> None:
        connecting = asyncio.ensure_future(broker.connect())
        try:
            await asyncio.shield(connecting)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):  # it gives up by itself, and closes its socket
                await connecting
            raise
        # From here on the client finds the server again by itself.
        broker.connection.options.update(max_reconnect_attempts=-1, reconnect_time_wait=_PAUSE)

    def _client(self) -> NatsBroker:
        return _broker(self._servers, self._security, timeout=_PATIENCE, on_error=self._told)

    async def _work(self, stream: JetStreamContext) -> None:
        subscription = await stream.pull_subscribe(
            f"{self._prefix}.>",
            durable=self._durable,
            stream=self._stream,
            config=ConsumerConfig(ack_wait=30.0),
        )
        while True:
            try:
                messages = await subscription.fetch(self._batch, timeout=_PAUSE)
            except NatsTimeout:
                await self._tend()
                continue
            writing = asyncio.ensure_future(self._take(messages))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                self._stopping = True
                await writing
                raise

    async def _tend(self) -> None:
        if isinstance(self._segments, TendedWriter):
            try:
                await asyncio.to_thread(self._segments.tend)
            except OSError as error:  # told, and tried again with the next write
                self._failed(error)

    async def _take(self, messages: Sequence[Msg]) -> None:
        lines = [message.data for message in messages if self._is_new_event(message.data)]
        try:
            if not await self._write(lines):
                return
        finally:
            if lines:  # met, and not on disk: when it comes again it must count as new
                self._seen = SeenEvents()
        self._failure = None
        for message in messages:
            await message.ack()

    async def _write(self, lines: list[bytes]) -> bool:
        """Writes the lines and takes them off the list; returns whether it could before it was told to stop."""
        while lines:
            try:
                taken = await asyncio.to_thread(self._segments.write, lines)
            except OSError as error:  # no room, say: what is not acknowledged stays with the server
                self._failed(error)
                if self._stopping:
                    return False
                await asyncio.sleep(_PAUSE)
            else:
                self._written += taken
                del lines[:taken]
        return True

    def _is_new_event(self, line: bytes) -> bool:
        try:
            if b"\n" in line:
                raise BrokenDocument("not an event: it has a line end, which would make it two lines")
            with contextlib.suppress(UnknownEvent):
                self._registry.decode(line)
        except BrokenDocument as error:
            self._malformed += 1
            if self._dead_letters is not None:
                self._dead_letters.put(line, reason=str(error), source=f"stream {self._stream}")
            return False
        if not self._seen.add(event_id(line)):
            self._duplicates += 1
            return False
        return True

    async def _told(self, error: Exception) -> None:
        self._failed(error)  # the client connects again by itself

    def _failed(self, error: BaseException) -> None:
        self._failures += 1
        self._failure = error.with_traceback(None)


def _broker(
    servers: list[str],
    security: BaseSecurity | None,
    *,
    timeout: float,
    on_error: Callable[[Exception], Awaitable[None]] | None = None,
) -> NatsBroker:
    """One whose `connect` raises after about `timeout` seconds.

    A connect that is ended from outside, or that may not try again, leaves its socket open. So the client tries each
    server twice and is left to give up by itself.
    """
    return NatsBroker(
        servers,
        name="fairlead",
        logger=None,
        apply_types=False,
        security=security,
        max_reconnect_attempts=1,
        reconnect_time_wait=0,
        connect_timeout=timeout / (len(servers) * 2),  # type: ignore[arg-type]  # any number will do
        ping_interval=5,
        error_cb=on_error or _quiet,
    )


async def _quiet(error: Exception) -> None:
    """The client's own account of its errors: each reaches whoever waits for an answer, so nothing is printed."""


async def _declare(broker: NatsBroker, stream: str, prefix: str) -> None:
    streams = broker.connection.jetstream()
    try:
        await streams.stream_info(stream)
    except NotFoundError:
        await streams.add_stream(
            StreamConfig(
                name=stream,
                subjects=[f"{prefix}.>"],
                max_age=_KEPT_FOR,
                duplicate_window=_DUPLICATE_WINDOW,
            )
        )


async def _abandon(broker: NatsBroker, timeout: float) -> None:
    """Closes the connection, whatever state it is in. Not `broker.stop`, which waits for a server that hangs."""
    with contextlib.suppress(Exception):  # there is nothing to be done about a connection that will not close
        async with asyncio.timeout(timeout):
            await broker.connection.close()


def _shown(server: str) -> str:
    """The address without its password."""
    scheme, separator, rest = server.rpartition("//")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
