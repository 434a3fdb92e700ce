"""Events to whatever speaks Kafka's protocol: a writer that waits for receipts of all replicas.

    sink → Spool → KafkaWriter ──▶ one topic per kind, keyed by the event's source

A message counts as written when every in-sync replica has it (`acks=all`); the client's own retries are
idempotent, and what is sent again after a failure is known by its `event-id` header, which is also the line's
`event_id`. Events of one source share a partition, so they keep their order.

After a failure the producer is dropped and the next write makes a new one, so that one that has given up for
good ("fatal" to librdkafka) does not stay; when to try again is the spool's business.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from fairlead.errors import BrokerUnavailable, InvalidInput, MissingExtra
from fairlead.telemetry.addressing import Addressed, addressed, check_names
from fairlead.telemetry.bounds import check_number, check_whole
from fairlead.telemetry.loop_thread import LoopThread

try:
    from confluent_kafka import KafkaError, KafkaException
    from faststream.confluent import KafkaBroker
    from faststream.security import BaseSecurity
except ImportError as missing:
    raise MissingExtra(missing.name or "faststream", "broker") from missing

__all__ = ["KafkaWriter"]

_SLACK = 3.0  # seconds; librdkafka looks for messages that are overdue once a second
_NEVER = frozenset((KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.TOPIC_EXCEPTION, KafkaError.INVALID_RECORD))

_of_parents: list[KafkaBroker] = []
"""Producers made before a fork. librdkafka must not be asked to destroy them in the child."""


class KafkaWriter:
    """An EventWriter that produces to topics and waits for the receipts. Put a `Spool` in front of it."""

    def __init__(
        self,
        bootstrap_servers: str | Sequence[str],
        *,
        prefix: str = "events",
        timeout: float = 5.0,
        max_in_flight: int = 256,
        security: BaseSecurity | None = None,
    ) -> None:
        """Connects with the first write.

        bootstrap_servers: as `host:9092`.
        prefix: an event of kind `exposure` goes to the topic `PREFIX.exposure`. Where topics are not made by
            themselves, make them first: until then the events wait in the spool.
        timeout: seconds for the receipts of a write, from 1; a write may take 3 more.
        max_in_flight: messages of one write that wait for receipts together; the rest is for the next write.
        security: FastStream's description of TLS and credentials.
        """
        check_names(prefix=prefix)
        check_number("timeout", timeout, low=1.0, high=60.0)
        check_whole("max_in_flight", max_in_flight, low=1, high=10_000)
        self._servers = [bootstrap_servers] if isinstance(bootstrap_servers, str) else list(bootstrap_servers)
        self._prefix = prefix
        self._timeout = timeout
        self._max_in_flight = max_in_flight
        self._security = security
        self._loop = LoopThread("fairlead-kafka")
        self._broker: KafkaBroker | None = None

    def write(self, lines: Sequence[bytes]) -> int:
        """Produces leading lines; returns how many have their receipts.

        Raises BrokerUnavailable when the first has none, InvalidInput when it can never have one.
        """
        messages = addressed(lines[: self._max_in_flight])
        if not self._loop.is_running and self._broker is not None:
            _of_parents.append(self._broker)
            self._broker = None
        try:
            return self._loop.run(self._produce(messages), self._timeout + _SLACK)
        except TimeoutError as error:
            raise self._unavailable(error) from error

    def close(self) -> None:
        """Closes the producer. A later write makes another."""
        if self._loop.is_running:
            with contextlib.suppress(TimeoutError):
                self._loop.run(self._disconnect(), self._timeout + _SLACK)
            self._loop.close()

    async def _produce(self, messages: Sequence[Addressed]) -> int:
        broker = self._broker
        if broker is None:
            self._broker = broker = self._made()
            await broker.connect()
        receipts = await asyncio.gather(
            *(self._receipt(broker, message) for message in messages), return_exceptions=True
        )
        for count, failure in enumerate(receipts):
            if isinstance(failure, BaseException):
                return await self._stopped(count, failure, messages[0])
        return len(receipts)

    async def _receipt(self, broker: KafkaBroker, message: Addressed) -> None:
        await broker.publish(
            message.line,
            f"{self._prefix}.{message.kind}",
            key=message.identity.rpartition("-")[0] or None,
            headers={"event-id": message.identity} if message.identity else None,
            correlation_id=message.identity,
        )

    async def _stopped(self, count: int, failure: BaseException, first: Addressed) -> int:
        cause = failure.args[0] if isinstance(failure, KafkaException) and failure.args else None
        never = isinstance(cause, KafkaError) and cause.code() in _NEVER
        if not never:
            await self._disconnect()
        if count:
            return count
        if never:
            raise InvalidInput(
                f"an event of {len(first.line)} bytes: the topic {self._prefix}.{first.kind} takes none such: {cause}"
            ) from failure
        raise self._unavailable(failure) from failure

    async def _disconnect(self) -> None:
        broker, self._broker = self._broker, None
        if broker is not None:
            with contextlib.suppress(Exception):  # there is nothing to be done about one that will not stop
                await broker.stop()

    def _made(self) -> KafkaBroker:
        return KafkaBroker(
            self._servers,
            client_id="fairlead",
            logger=None,
            apply_types=False,
            security=self._security,
            acks="all",
            enable_idempotence=True,
            linger_ms=5,
            config={"delivery.timeout.ms": round(self._timeout * 1000)},
        )

    def _unavailable(self, error: BaseException) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"Kafka at {', '.join(self._servers)} gave no receipt within {self._timeout:g} s: "
            f"{type(error).__name__} {error}".strip()
        )
