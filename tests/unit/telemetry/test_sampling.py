"""Sampling keeps whole requests, says how likely that was, and never touches what experiments count."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fairlead.errors import InvalidInput
from fairlead.telemetry import (
    Event,
    Exposure,
    MemorySink,
    PolicyActed,
    RequestFinished,
    SamplingSink,
    sampled,
)


def finished(request_id: str, *, status: int = 200) -> RequestFinished:
    return RequestFinished(
        at_utc_seconds=1.0, request_id=request_id, service="s", route="/", status=status, latency_seconds=0.1
    )


def kept(events: list[Event], shares: dict[type[Event], float]) -> tuple[list[Event], SamplingSink]:
    sink = MemorySink()
    sampler = SamplingSink(sink, shares)
    for event in events:
        sampler.emit(event)
    return sink.events, sampler


def test_weights_add_up_to_the_true_total_within_its_sampling_error() -> None:
    share, n = 0.1, 20_000
    events, sampler = kept([finished(f"r{i}") for i in range(n)], {RequestFinished: share})
    total = sum(1 / event.inclusion_probability for event in events)
    # Standard error of the Horvitz–Thompson total of n ones: sqrt(n (1 - p) / p).
    assert abs(total - n) < 4 * math.sqrt(n * (1 - share) / share)
    assert {event.inclusion_probability for event in events} == {share}
    assert len(events) + sampler.sampled_out == n


def test_all_events_of_a_request_share_its_fate_whatever_their_kind() -> None:
    retried = [
        PolicyActed(at_utc_seconds=1.0, request_id=f"r{i}", policy="p", action="retried", reason="E")
        for i in range(500)
    ]
    events, _ = kept(
        [*(finished(f"r{i}") for i in range(500)), *retried], {RequestFinished: 0.2, PolicyActed: 0.2}
    )
    by_kind = [
        {event.request_id for event in events if isinstance(event, kind)}
        for kind in (RequestFinished, PolicyActed)
    ]
    assert by_kind[0] == by_kind[1]
    assert 50 < len(by_kind[0]) < 150


def test_a_request_kept_at_a_small_share_is_kept_at_every_larger_one() -> None:
    small = {f"r{i}" for i in range(2_000) if sampled(f"r{i}", 0.05)}
    assert small
    assert all(sampled(request_id, 0.3) for request_id in small)


def test_the_choice_is_the_same_in_every_process_and_version() -> None:
    assert [i for i in range(60) if sampled(f"r{i}", 0.1)] == [22, 29, 33]


def test_exposures_failures_and_events_of_no_request_all_pass() -> None:
    shown = Exposure(
        at_utc_seconds=1.0, request_id="r", flag="f", variant="v", targeting_key="u", reason="SPLIT"
    )
    always = [*(finished(f"r{i}", status=503) for i in range(200)), finished(""), shown]
    events, sampler = kept(always, {RequestFinished: 1e-9})
    assert events == always
    assert sampler.sampled_out == 0


def test_of_two_samplers_in_a_row_the_smaller_share_is_the_probability() -> None:
    sink = MemorySink()
    both = SamplingSink(SamplingSink(sink, {RequestFinished: 0.2}), {RequestFinished: 0.5})
    for i in range(5_000):
        both.emit(finished(f"r{i}"))
    assert {event.inclusion_probability for event in sink.events} == {0.2}
    assert sum(1 / event.inclusion_probability for event in sink.events) == pytest.approx(5_000, rel=0.15)


@pytest.mark.parametrize("share", [0, 1.01, float("nan"), True])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(InvalidInput, match="share of request_finished"):
        SamplingSink(MemorySink(), {RequestFinished: share})


def test_an_exposure_cannot_be_sampled_by_hand_either() -> None:
    with pytest.raises(InvalidInput, match="exposure is an exposure: it cannot be sampled"):
        SamplingSink(MemorySink(), {Exposure: 0.5})


@pytest.mark.parametrize("field", [{"status": "503"}, {"request_id": 7}])
def test_an_event_with_a_field_of_another_type_is_passed_on_and_raises_nothing(
    field: dict[str, object],
) -> None:
    kept = MemorySink()
    fields: dict[str, Any] = {
        "at_utc_seconds": 1.0, "request_id": "r", "service": "s", "route": "/", "status": 200, "latency_seconds": 0.1,
    }  # fmt: skip
    SamplingSink(kept, {RequestFinished: 1e-9}).emit(RequestFinished(**{**fields, **field}))
    assert len(kept.events) == 1
