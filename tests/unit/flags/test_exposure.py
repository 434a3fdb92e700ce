from __future__ import annotations

import json

import pytest

from fairlead.clock import ManualClock
from fairlead.context import RequestContext, request_context
from fairlead.errors import InvalidInput
from fairlead.flags import EvaluationContext, ExposureLog, FlagSet
from fairlead.telemetry import Event, Exposure, decode_event, encode_event

FEED = {
    "state": "ENABLED",
    "variants": {"control": "slow", "treatment": "fast"},
    "defaultVariant": "control",
    "targeting": {"if": [{"var": "beta"}, "treatment"]},
}


class Recorded:
    """A sink that keeps what it was given."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)


def flags(
    sink: Recorded, capacity: int = 100, clock: ManualClock | None = None, state: str = "ENABLED"
) -> FlagSet:
    log = ExposureLog(sink, capacity=capacity, clock=clock or ManualClock())
    return FlagSet.parse(json.dumps({"flags": {"feed": FEED | {"state": state}}}).encode(), exposures=log)


def ask(flags: FlagSet, key: str, **attributes: object) -> None:
    flags.string("feed", EvaluationContext(targeting_key=key, attributes=attributes), "none")


def test_an_exposure_says_who_got_which_variant_when_and_why() -> None:
    sink, clock = Recorded(), ManualClock()
    with request_context(RequestContext(request_id="r-1")):
        ask(flags(sink, clock=clock), "user-1", beta=True)
    assert sink.events == [
        Exposure(
            at_utc_seconds=clock.utc(),
            request_id="r-1",
            flag="feed",
            variant="treatment",
            targeting_key="user-1",
            reason="TARGETING_MATCH",
        )
    ]


def test_a_unit_that_stays_in_its_variant_is_reported_once() -> None:
    sink = Recorded()
    asked = flags(sink)
    for _ in range(5):
        ask(asked, "user-1")
        ask(asked, "user-2")
    assert [event.targeting_key for event in sink.events if isinstance(event, Exposure)] == [
        "user-1",
        "user-2",
    ]


def test_a_unit_that_changes_its_variant_is_reported_again() -> None:
    sink = Recorded()
    asked = flags(sink)
    for beta in (False, True, False):
        ask(asked, "user-1", beta=beta)
    assert [event.variant for event in sink.events if isinstance(event, Exposure)] == ["control", "treatment"]


def test_the_memory_is_bounded_and_forgets_who_was_away_longest() -> None:
    sink = Recorded()
    asked = flags(sink, capacity=2)
    for key in ("a", "b", "a", "c", "a", "b"):
        ask(asked, key)
    assert [event.targeting_key for event in sink.events if isinstance(event, Exposure)] == [
        "a",
        "b",
        "c",
        "b",
    ]


def test_nobody_is_exposed_without_a_key_by_a_disabled_flag_or_by_an_error() -> None:
    sink = Recorded()
    ask(flags(sink), "")
    ask(flags(sink, state="DISABLED"), "user-1")
    flags(sink).boolean("feed", EvaluationContext(targeting_key="user-1"), True)
    flags(sink).string("fed", EvaluationContext(targeting_key="user-1"), "none")
    assert sink.events == []


@pytest.mark.parametrize("capacity", [0, -1, True, 1.5, 10**9])
def test_a_capacity_outside_its_range_is_refused(capacity: int) -> None:
    with pytest.raises(InvalidInput, match="exposure capacity"):
        ExposureLog(Recorded(), capacity=capacity)


def test_a_number_as_targeting_key_is_reported_in_the_spelling_that_was_hashed() -> None:
    sink = Recorded()
    ask(flags(sink), 7)  # type: ignore[arg-type]  # what a service without a type checker passes
    exposure = decode_event(encode_event(sink.events[0]))
    assert isinstance(exposure, Exposure)
    assert exposure.targeting_key == "7"


def test_a_unit_that_is_drawn_for_what_it_was_served_before_is_reported_as_drawn() -> None:
    # A service that runs on while a rollout starts: without this, control would lack everybody who came before.
    sink = Recorded()
    log = ExposureLog(sink, capacity=100, clock=ManualClock())
    bucket = {
        "by": "targetingKey",
        "salt": "feed",
        "algo": "xxh32/10000@1",
        "slots": [["control", 0, 10_000]],
    }
    for targeting in (None, {"bucket": bucket}, {"bucket": bucket}):
        document = {"flags": {"feed": FEED | {"targeting": targeting}}}
        ask(FlagSet.parse(json.dumps(document).encode(), exposures=log), "user-1")
    assert [(event.variant, event.reason) for event in sink.events if isinstance(event, Exposure)] == [
        ("control", "STATIC"),
        ("control", "SPLIT"),
    ]


def split(share: int) -> bytes:
    """A document that draws a flag: the slots below `share` of 10,000 get treatment."""
    bucket = {
        "by": "targetingKey",
        "salt": "feed",
        "algo": "xxh32/10000@1",
        "slots": [["treatment", 0, share], ["control", share, 10_000]],
    }
    return json.dumps({"flags": {"feed": FEED | {"targeting": {"bucket": bucket}}}}).encode()


def test_who_stays_in_control_is_reported_again_with_each_stage_as_who_comes_to_treatment() -> None:
    sink, clock = Recorded(), ManualClock()
    log = ExposureLog(sink, capacity=100, settle=60.0, clock=clock)
    asked = FlagSet.parse(split(1_000), exposures=log)
    stays, comes = "user-1", "user-4"  # slots 7,214 and 3,040
    ask(asked, stays)
    ask(asked, comes)
    reported = []
    for share in (5_000, 5_100):
        clock.advance(3_600.0)
        assert asked.replace(split(share), source="feed") is None
        sink.events.clear()
        for _ in range(3):
            ask(asked, stays)
            ask(asked, comes)
        reported += [
            (event.targeting_key, event.variant) for event in sink.events if isinstance(event, Exposure)
        ]
    assert reported == [(stays, "control"), (comes, "treatment")] * 2


def test_all_are_reported_once_more_when_every_process_has_read_the_document() -> None:
    sink, clock = Recorded(), ManualClock()
    asked = FlagSet.parse(split(5_000), exposures=ExposureLog(sink, settle=60.0, clock=clock))
    clock.advance(3_600.0)
    ask(asked, "user-1")
    asked.replace(split(5_100), source="feed")
    moments = []
    for _ in range(10):
        clock.advance(20.0)
        sink.events.clear()
        ask(asked, "user-1")
        moments += [clock.now() - 3_600.0 for _ in sink.events]
    assert moments == [20.0, 60.0]


def test_the_same_document_again_draws_nobody_anew() -> None:
    sink, clock = Recorded(), ManualClock()
    asked = FlagSet.parse(split(5_000), exposures=ExposureLog(sink, clock=clock))
    clock.advance(3_600.0)
    ask(asked, "user-1")
    asked.replace(split(5_000), source="feed")
    ask(asked, "user-1")
    assert len(sink.events) == 1


@pytest.mark.parametrize("settle", [-1.0, float("nan"), 1e9, True])
def test_a_time_to_settle_outside_its_range_is_refused(settle: float) -> None:
    with pytest.raises(InvalidInput, match="exposure settle"):
        ExposureLog(Recorded(), settle=settle)
