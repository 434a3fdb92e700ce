"""Events over Kafka's protocol, to the mock cluster that librdkafka brings: real sockets, no real brokers."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from fairlead.errors import BrokerUnavailable, InvalidInput
from fairlead.telemetry import BufferedSink, Exposure, PolicyActed, Spool, encode_event, event_id
from fairlead.telemetry.identity import Numbering
from fairlead.telemetry.kafka import KafkaWriter
from fairlead.testing.server_process import free_port


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The addresses of three mock brokers, which live for as long as this producer."""
    owner = Producer({"test.mock.num.brokers": 3, "bootstrap.servers": "replaced", "log_level": 0})
    brokers = owner.list_topics(timeout=10).brokers.values()
    yield ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
    owner.flush(0)


def exposure(number: int) -> Exposure:
    return Exposure(at_utc_seconds=float(number), flag="f", variant="on", targeting_key="u", reason="SPLIT")


def lines(first: int, count: int) -> list[bytes]:
    numbering = Numbering()
    return [numbering.stamp(encode_event(exposure(number))) for number in range(first, first + count)]


def consumed(cluster: str, topic: str, count: int) -> list[Message]:
    consumer = Consumer(
        {"bootstrap.servers": cluster, "group.id": f"test-{topic}", "auto.offset.reset": "earliest"}
    )
    # Not `subscribe`: a group takes 3 s to form.
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    found: list[Message] = []
    end = time.monotonic() + 20.0
    while len(found) < count and time.monotonic() < end:
        found += [message for message in consumer.consume(500, timeout=0.2) if message.error() is None]
    consumer.close()
    return found


def test_each_kind_has_its_topic_and_each_message_its_id_and_its_source(cluster: str) -> None:
    writer = KafkaWriter(cluster, prefix="kinds")
    acted = PolicyActed(at_utc_seconds=1.0, policy="p", action="refused", reason="CircuitOpen")
    sent = lines(0, 300)
    assert writer.write([*sent[:100], Numbering().stamp(encode_event(acted))]) == 101
    assert writer.write(sent[100:]) == 200
    writer.close()
    found = consumed(cluster, "kinds.exposure", 300)
    assert [message.value() for message in found] == sent, "one source, one partition, one order"
    headers = [dict(message.headers() or []) for message in found]
    assert [header["event-id"].decode() for header in headers] == [event_id(line) for line in sent]
    assert {message.key() for message in found} == {event_id(sent[0]).partition("-")[0].encode()}
    assert len(consumed(cluster, "kinds.policy_acted", 1)) == 1


def test_brokers_that_are_not_there_cost_the_timeout_and_are_told_from_an_event_that_never_fits(
    cluster: str,
) -> None:
    address = f"127.0.0.1:{free_port()}"
    away = KafkaWriter(address, timeout=1.0)
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=rf"Kafka at {address} gave no receipt within 1 s"):
        away.write(lines(0, 3))
    assert time.monotonic() - began < 5.0
    away.close()
    writer = KafkaWriter(cluster, prefix="large")
    large = b'{"event":"exposure","x":"' + b"x" * 2_000_000 + b'"}'
    assert writer.write([*lines(0, 2), large]) == 2
    with pytest.raises(InvalidInput, match="takes none such"):
        writer.write([large])
    with pytest.raises(InvalidInput, match="no event"):
        writer.write([b"{}"])
    assert writer.write(lines(2, 2)) == 2
    writer.close()


def test_behind_a_sink_and_a_spool_every_event_arrives(cluster: str, tmp_path: Path) -> None:
    spool = Spool(tmp_path, to=KafkaWriter(cluster, prefix="spooled"), drain_timeout=20.0)
    with BufferedSink(spool) as sink:
        for number in range(2_000):
            sink.emit(exposure(number))
    assert (sink.stats.written, spool.stats.forwarded, spool.stats.backlog_bytes) == (2_000, 2_000, 0)
    found = consumed(cluster, "spooled.exposure", 2_000)
    assert Counter(event_id(message.value() or b"") for message in found).most_common(1)[0][1] == 1
    assert len(found) == 2_000


def test_a_forked_child_produces_with_a_producer_of_its_own(cluster: str) -> None:
    writer = KafkaWriter(cluster, prefix="forked")
    assert writer.write(lines(0, 10)) == 10
    with warnings.catch_warnings():
        # From 3.12 on, os.fork warns in a process with threads; that it works here is what this test is about.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if writer.write(lines(10, 10)) == 10 else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert writer.write(lines(20, 10)) == 10
    writer.close()
    assert len(consumed(cluster, "forked.exposure", 30)) == 30


@pytest.mark.parametrize("settings", [{"prefix": "a.b"}, {"timeout": 0.5}, {"max_in_flight": 0}], ids=str)
def test_a_setting_that_makes_no_sense_is_refused_by_name(settings: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(settings))):
        KafkaWriter("127.0.0.1:1", **settings)  # type: ignore[arg-type]
