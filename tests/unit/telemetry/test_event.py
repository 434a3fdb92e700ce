"""Events survive the trip through JSON, and what is not an event says so."""

from __future__ import annotations

import msgspec
import pytest

from fairlead.errors import BrokenDocument
from fairlead.telemetry import (
    Event,
    Exposure,
    LoadSample,
    RequestFinished,
    StateChanged,
    UnknownEvent,
    decode_event,
    encode_event,
)

EXAMPLES: list[Event] = [
    RequestFinished(
        at_utc_seconds=1_750_000_000.25,
        request_id="r-1",
        service="feed",
        route="/feed/{user}",
        status=200,
        latency_seconds=0.012,
        degraded=True,
        staleness_seconds=0.2,
        attributes={"region": "eu"},
    ),
    Exposure(at_utc_seconds=1.0, flag="new_feed", variant="on", targeting_key="u1", reason="SPLIT"),
    StateChanged(
        at_utc_seconds=1.0, component="circuit_breaker", name="features", previous="closed", current="open"
    ),
    LoadSample(
        at_utc_seconds=1.0,
        phase="viral",
        arm="treatment",
        cycle=3,
        key="video-1",
        intended_seconds=1.5,
        send_lag_seconds=0.001,
        latency_seconds=0.02,
        status=200,
        degraded=False,
        staleness_seconds=None,
        age_seconds=1.2,
        ending="ok",
    ),
]


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_an_event_reads_back_as_it_was_written(event: Event) -> None:
    assert decode_event(encode_event(event)) == event


def test_the_kind_is_written_in_snake_case_and_the_unit_in_the_field_name() -> None:
    fields = msgspec.json.decode(encode_event(EXAMPLES[0]))
    assert fields["event"] == "request_finished"
    assert {"at_utc_seconds", "latency_seconds", "staleness_seconds", "age_seconds"} <= fields.keys()


def test_every_field_is_written_even_at_its_default_so_that_sql_sees_false_and_not_null() -> None:
    fields = msgspec.json.decode(encode_event(EXAMPLES[0]))
    assert fields["stale"] is False
    assert fields["error"] == ""


def test_an_event_cannot_be_changed_after_it_was_emitted() -> None:
    with pytest.raises(AttributeError):
        EXAMPLES[1].request_id = "other"  # type: ignore[misc]  # that it fails is the point


def test_a_field_from_a_newer_version_is_ignored() -> None:
    line = encode_event(EXAMPLES[1])[:-1] + b',"colour":"blue"}'
    assert decode_event(line) == EXAMPLES[1]


def test_an_unknown_kind_is_told_apart_from_garbage() -> None:
    with pytest.raises(UnknownEvent, match=r"'page_painted' is not one of exposure, "):
        decode_event(b'{"event":"page_painted","at_utc_seconds":1}')


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"exposure"',
        b"{}",
        b'{"event":7}',
        b'{"event":"exposure"}',
        encode_event(EXAMPLES[1]).replace(b"1.0", b'"noon"'),
        encode_event(EXAMPLES[1]).replace(b"new_feed", b"\xff"),
        b'{"event":"event","at_utc_seconds":1}' + b"{" * 3,
        b"[" * 100_000,
        b'{"event":' * 100_000,
    ],
    ids=lambda line: line[:45].decode("latin-1"),
)
def test_garbage_is_a_broken_document(line: bytes) -> None:
    with pytest.raises(BrokenDocument) as caught:
        decode_event(line)
    assert not isinstance(caught.value, UnknownEvent)


def test_an_outcome_outside_the_list_is_malformed() -> None:
    line = encode_event(EXAMPLES[3]).replace(b'"ok"', b'"fine"')
    with pytest.raises(BrokenDocument, match="ending"):
        decode_event(line)


def test_a_number_that_is_nan_is_reported_when_it_is_read_and_never_becomes_a_zero() -> None:
    line = encode_event(
        Exposure(at_utc_seconds=float("nan"), flag="f", variant="v", targeting_key="k", reason="r")
    )
    with pytest.raises(BrokenDocument, match="at_utc_seconds"):
        decode_event(line)
