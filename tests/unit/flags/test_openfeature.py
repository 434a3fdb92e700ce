from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openfeature import api
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import EventDetails, ProviderEvent
from openfeature.exception import ErrorCode, GeneralError, ParseError, ProviderFatalError
from openfeature.provider import ProviderStatus
from openfeature.track import TrackingEventDetails

from fairlead.clock import ManualClock
from fairlead.errors import FailedStatus, FairleadError
from fairlead.flags import ExposureLog, FlagDelivery, FlagSet, bucket
from fairlead.flags.openfeature import FairleadProvider
from fairlead.telemetry import MemorySink, Tracked, decode_event, encode_event
from tests.unit.flags.documents import BROKEN, EMPTY, document

SPLIT = {
    "bucket": {
        "by": "targetingKey",
        "salt": "s",
        "algo": "xxh32/10000@1",
        "slots": [["a", 0, 5000], ["b", 5000, 10000]],
    }
}


@pytest.fixture(autouse=True)
def _sdk() -> Iterator[None]:
    yield
    api.shutdown()


def flag(variants: dict[str, Any], default: str | None = "a", **more: Any) -> dict[str, Any]:
    return {"state": "ENABLED", "variants": variants, "defaultVariant": default, **more}


def flags(metadata: dict[str, Any] | None = None, **each: Any) -> FlagSet:
    return FlagSet.parse(json.dumps({"flags": each, "metadata": metadata or {}}).encode())


class Events:
    """What the SDK's handlers were told, in order of arrival."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, EventDetails]] = []
        self._arrived = threading.Condition()
        for event in ProviderEvent:
            api.add_handler(event, lambda details, event=event: self._take(event, details))

    def _take(self, event: ProviderEvent, details: EventDetails) -> None:
        with self._arrived:
            if details.provider_name == "fairlead":
                self.seen.append((event.value.removeprefix("PROVIDER_"), details))
                self._arrived.notify_all()

    def wait_for(self, kind: str) -> EventDetails:
        def found() -> list[EventDetails]:
            return [details for each, details in self.seen if each == kind]

        with self._arrived:
            assert self._arrived.wait_for(found, timeout=10.0), f"{kind} not among {self.seen}"
            details = found()[0]
            self.seen.clear()
            return details


class Says:
    """A source that answers once, as it was told, and is then silent."""

    kind = "http"
    place = "http://control/flags"

    def __init__(self, answer: bytes | FairleadError | None) -> None:
        self._answer = answer

    async def follow(self, delivery: FlagDelivery) -> None:
        if isinstance(self._answer, bytes):
            delivery.receive(self._answer, self)
        elif self._answer is not None:
            delivery.report(self._answer)
        await asyncio.Event().wait()


def register(answer: bytes | FairleadError | None, data: bytes = EMPTY, **options: Any) -> FlagDelivery:
    delivery = FlagDelivery(FlagSet.parse(data), Says(answer), **{"start_timeout": 0.05, **options})
    api.set_provider_and_wait(FairleadProvider(delivery))
    return delivery


def test_a_split_is_resolved_with_its_reason_and_exposes_the_unit_once():
    sink = MemorySink()
    data = json.dumps({"flags": {"feed": flag({"a": "slow", "b": "fast"}, targeting=SPLIT)}}).encode()
    api.set_provider_and_wait(FairleadProvider(FlagSet.parse(data, exposures=ExposureLog(sink))))
    for _ in range(2):
        details = api.get_client().get_string_details("feed", "none", EvaluationContext("user-1"))
        assert details.reason == "SPLIT"
        assert details.variant == ("a" if bucket("s", "user-1") < 5000 else "b")
    assert [each.targeting_key for each in sink.events] == ["user-1"]


def test_without_a_targeting_key_the_default_variant_answers_and_the_metadata_say_why():
    api.set_provider_and_wait(FairleadProvider(flags(feed=flag({"a": "slow", "b": "fast"}, targeting=SPLIT))))
    details = api.get_client().get_string_details("feed", "none")
    assert (details.value, details.reason) == ("slow", "DEFAULT")
    assert "no bucket was drawn" in details.flag_metadata["detail"]


@pytest.mark.parametrize(
    ("variants", "asked", "expected"),
    [
        ({"a": 10, "b": 1}, "integer", 10),
        ({"a": 10.0}, "integer", 10),
        ({"a": 10}, "float", 10.0),
        ({"a": 2**53}, "integer", 2**53),
        ({"a": 10, "b": 0.5}, "integer", ErrorCode.TYPE_MISMATCH),
        ({"a": True}, "integer", ErrorCode.TYPE_MISMATCH),
        ({"a": "10"}, "float", ErrorCode.TYPE_MISMATCH),
        ({"a": {"b": [1, {"c": None}]}}, "object", {"b": [1, {"c": None}]}),
        ({"a": {}}, "string", ErrorCode.TYPE_MISMATCH),
    ],
    ids=str,
)
def test_each_type_is_answered_exactly_or_refused(variants, asked, expected):
    sink = MemorySink()
    data = json.dumps({"flags": {"f": flag(variants)}}).encode()
    api.set_provider_and_wait(FairleadProvider(FlagSet.parse(data, exposures=ExposureLog(sink))))
    default = {"integer": 7, "float": 7.5, "object": {"d": 1}, "string": "d"}[asked]
    client = api.get_client()
    context = EvaluationContext("user-1")
    for details in (
        getattr(client, f"get_{asked}_details")("f", default, context),
        asyncio.run(getattr(client, f"get_{asked}_details_async")("f", default, context)),
    ):
        if isinstance(expected, ErrorCode):
            assert (details.value, details.error_code, details.variant) == (default, expected, None)
        else:
            assert (details.value, details.error_code, details.variant) == (expected, None, "a")
            assert type(details.value) is type(expected)
    assert len(sink.events) == (not isinstance(expected, ErrorCode)), "a refused type exposes nobody"


def test_an_object_is_the_callers_own_to_change():
    api.set_provider_and_wait(FairleadProvider(flags(f=flag({"a": {"list": [1]}}))))
    api.get_client().get_object_value("f", {})["list"].append(2)
    assert api.get_client().get_object_value("f", {}) == {"list": [1]}


def test_a_rule_that_names_no_variant_is_a_general_error():
    api.set_provider_and_wait(FairleadProvider(flags(f=flag({"a": "x"}, targeting={"var": "plan"}))))
    details = api.get_client().get_string_details("f", "none", EvaluationContext(attributes={"plan": "gold"}))
    assert (details.value, details.error_code) == ("none", ErrorCode.GENERAL)
    assert "'gold', which names no variant" in details.error_message


def test_a_flag_inherits_the_metadata_of_its_document():
    api.set_provider_and_wait(
        FairleadProvider(
            flags({"version": 7, "owner": "all"}, f=flag({"a": "x"}, metadata={"owner": "feed"}))
        )
    )
    metadata = api.get_client().get_string_details("f", "none").flag_metadata
    assert dict(metadata) == {"version": 7, "owner": "feed"}


def test_a_document_that_is_replaced_is_told_with_the_flags_that_changed():
    delivery = register(document("slow", version=1, names=("feed", "same")))
    events = Events()
    events.wait_for("READY")
    delivery.receive(document("slow", version=2, names=("feed", "same")).replace(b"slow", b"fast", 1))
    details = events.wait_for("CONFIGURATION_CHANGED")
    assert details.flags_changed == ["feed"]
    assert details.metadata == {"epoch": 0, "version": 2, "source": "memory"}
    assert api.get_client().get_string_value("feed", "none") == "fast"


def test_a_refused_document_is_an_error_until_a_good_one_comes_and_flags_answer_meanwhile():
    delivery = register(document("slow"))
    events = Events()
    delivery.receive(BROKEN)
    details = events.wait_for("ERROR")
    assert details.error_code is ErrorCode.PARSE_ERROR
    assert "is not a variant" in details.message
    assert api.get_client().get_provider_status() is ProviderStatus.ERROR
    assert api.get_client().get_string_value("feed", "none") == "slow"
    delivery.receive(document("slow"))
    events.wait_for("READY")
    assert api.get_client().get_provider_status() is ProviderStatus.READY


def test_a_start_from_an_old_last_known_good_is_ready_and_then_stale(tmp_path: Path):
    kept = tmp_path / "kept"
    FlagDelivery(FlagSet.parse(EMPTY), last_known_good=kept, clock=ManualClock()).receive(document("kept"))
    events = Events()
    delivery = register(FailedStatus("control: ConnectError"), last_known_good=kept)
    assert f"{kept}: not confirmed for" in events.wait_for("STALE").message
    assert api.get_client().get_provider_status() is ProviderStatus.STALE
    assert api.get_client().get_string_value("feed", "none") == "kept"
    delivery.receive(document("fresh"))
    events.wait_for("READY")
    assert api.get_client().get_provider_status() is ProviderStatus.READY


@pytest.mark.parametrize(
    ("answer", "error", "status"),
    [
        (FailedStatus("control: ConnectError"), GeneralError, ProviderStatus.ERROR),
        (None, GeneralError, ProviderStatus.ERROR),
        (BROKEN, ParseError, ProviderStatus.ERROR),
        (FailedStatus("control: answered 401", status=401), ProviderFatalError, ProviderStatus.FATAL),
        (FailedStatus("control: answered 403", status=403), ProviderFatalError, ProviderStatus.FATAL),
    ],
    ids=["unreachable", "silent", "broken", "401", "403"],
)
def test_with_nothing_to_answer_with_initialisation_fails_and_the_first_document_mends_it(
    answer, error, status
):
    delivery = FlagDelivery(FlagSet.parse(EMPTY), Says(answer), start_timeout=0.05)
    with pytest.raises(error):
        api.set_provider_and_wait(FairleadProvider(delivery))
    client = api.get_client()
    assert client.get_provider_status() is status
    events = Events()
    delivery.receive(document("late"))
    events.wait_for("CONFIGURATION_CHANGED")
    assert client.get_provider_status() is ProviderStatus.READY
    assert client.get_string_value("feed", "none") == "late"


def test_a_service_that_ships_flags_is_ready_though_its_source_is_silent():
    register(None, data=document("shipped"))
    assert api.get_client().get_provider_status() is ProviderStatus.READY
    assert api.get_client().get_string_value("feed", "none") == "shipped"


def test_shutdown_stops_what_initialize_started_and_nothing_else():
    delivery = register(document())
    assert delivery.running
    api.shutdown()
    assert not delivery.running
    with delivery:
        api.set_provider_and_wait(FairleadProvider(delivery))
        api.shutdown()
        assert delivery.running
    assert not any(thread.name == "fairlead-flags" for thread in threading.enumerate())


def test_a_provider_that_is_replaced_while_it_initialises_leaves_no_thread():
    delivery = FlagDelivery(FlagSet.parse(EMPTY), Says(None), start_timeout=0.3)
    provider = FairleadProvider(delivery)
    failures: list[Exception] = []

    def initialise() -> None:
        try:
            provider.initialize(EvaluationContext())
        except GeneralError as error:
            failures.append(error)

    initialising = threading.Thread(target=initialise)
    initialising.start()
    while not delivery.running:
        pass
    provider.shutdown()
    initialising.join()
    assert len(failures) == 1
    assert not delivery.running


def test_tracking_is_an_outcome_with_its_unit_in_the_sink():
    sink, clock = MemorySink(), ManualClock()
    api.set_provider_and_wait(FairleadProvider(flags(), sink=sink, clock=clock))
    client = api.get_client()
    client.context = EvaluationContext("user-1", {"country": "FR"})
    details = TrackingEventDetails(99.5, {"currency": "EUR", "items": [1, 2], "gift": True})
    client.track("checkout", EvaluationContext(), details)
    client.track("left")
    client.track("odd", None, TrackingEventDetails(float("nan"), {str(n): "x" * 999 for n in range(99)}))
    first, second, third = sink.events
    assert first == Tracked(
        at_utc_seconds=clock.utc(),
        name="checkout",
        targeting_key="user-1",
        value=99.5,
        attributes={"currency": "EUR", "items": "[1, 2]", "gift": "true"},
    )
    assert (second.name, second.value, second.attributes) == ("left", None, {})
    assert third.value is None
    assert (len(third.attributes), max(map(len, third.attributes.values()))) == (32, 256)
    assert decode_event(encode_event(first)) == first
    assert first.schema.role == "outcome"


def test_tracking_without_a_sink_does_nothing():
    api.set_provider_and_wait(FairleadProvider(flags()))
    api.get_client().track("checkout")
