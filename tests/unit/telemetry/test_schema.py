"""A kind of event says what its fields hold and what it means, or it is refused."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
import pytest

from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.telemetry import (
    EVENTS,
    Condition,
    Event,
    EventRegistry,
    EventSchema,
    Exposure,
    Internal,
    LoadSample,
    Personal,
    Public,
    RequestFinished,
    UnknownEvent,
    encode_event,
)
from fairlead.telemetry.classification import classifications


class OrderPlaced(Event, frozen=True, kw_only=True):
    """A person ordered something."""

    schema: ClassVar[EventSchema] = EventSchema(role="outcome", failure=(Condition("paid", "=", False),))
    schema_version: Internal[int] = 2
    order_id: Internal[str]
    buyer: Personal[str]
    total: Public[Annotated[float, msgspec.Meta(ge=0)]]
    paid: Internal[bool] = True


@pytest.fixture
def registry() -> EventRegistry:
    return EventRegistry([OrderPlaced])


def order(**changes: object) -> OrderPlaced:
    fields = {"at_utc_seconds": 1.0, "order_id": "o1", "buyer": "u1", "total": 9.5, **changes}
    return OrderPlaced(**fields)  # type: ignore[arg-type]


def test_a_kind_of_ones_own_is_read_back_once_it_is_registered(registry: EventRegistry) -> None:
    assert registry.decode(encode_event(order())) == order()
    with pytest.raises(UnknownEvent, match="'order_placed' is not one of exposure, "):
        EVENTS.decode(encode_event(order()))


def test_a_field_is_checked_against_its_bounds_when_it_is_read(registry: EventRegistry) -> None:
    with pytest.raises(BrokenDocument, match="total"):
        registry.decode(encode_event(order(total=-1.0)))


def test_registering_twice_changes_nothing_and_another_kind_of_that_name_is_refused(
    registry: EventRegistry,
) -> None:
    assert registry.register(OrderPlaced) is OrderPlaced

    class Other(Event, frozen=True, kw_only=True, tag="order_placed"):
        pass

    with pytest.raises(InvalidInput, match=r"'order_placed' is .*OrderPlaced already: rename .*Other"):
        registry.register(Other)


def test_a_kind_registered_after_the_first_line_was_read_is_known_too(registry: EventRegistry) -> None:
    registry.decode(encode_event(order()))
    registry.register(Exposure)
    shown = Exposure(at_utc_seconds=1.0, flag="f", variant="on", targeting_key="u", reason="SPLIT")
    assert registry.decode(encode_event(shown)) == shown


def test_an_unclassified_field_is_refused_by_name() -> None:
    class Silent(Event, frozen=True, kw_only=True):
        colour: str

    with pytest.raises(InvalidInput, match=r"field 'colour' has no classification: write Public\[…\]"):
        EventRegistry([Silent])


def test_a_personal_field_that_nothing_could_stand_in_for_is_refused() -> None:
    class Weighed(Event, frozen=True, kw_only=True):
        weight: Personal[float]

    class WeighedMaybe(Event, frozen=True, kw_only=True):
        weight: Personal[float | None] = None

    with pytest.raises(InvalidInput, match="'weight' is no str and has no default"):
        EventRegistry([Weighed])
    EventRegistry([WeighedMaybe])


def test_an_exposure_or_outcome_cannot_be_declared_sampled() -> None:
    class Bought(Event, frozen=True, kw_only=True):
        schema: ClassVar[EventSchema] = EventSchema(role="outcome", sampling=0.5)

    with pytest.raises(InvalidInput, match=r"is an outcome and has sampling = 0\.5"):
        EventRegistry([Bought])


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan"), True, "half"])
def test_a_sampling_that_is_no_share_is_refused(share: object) -> None:
    class Seen(Event, frozen=True, kw_only=True):
        schema: ClassVar[EventSchema] = EventSchema(sampling=share)  # type: ignore[arg-type]

    with pytest.raises(InvalidInput, match=r"sampling: .* is not a finite number above 0 up to 1"):
        EventRegistry([Seen])


def test_a_failure_of_a_field_that_is_not_there_is_refused() -> None:
    class Tried(Event, frozen=True, kw_only=True):
        schema: ClassVar[EventSchema] = EventSchema(failure=(Condition("status", ">=", 500),))

    with pytest.raises(InvalidInput, match="failure status >= 500 compares no field"):
        EventRegistry([Tried])


def test_a_type_that_json_cannot_tell_apart_is_refused_when_it_is_registered() -> None:
    class Odd(Event, frozen=True, kw_only=True):
        when: Internal[dict[str, int] | dict[int, str]]

    with pytest.raises(InvalidInput, match="'odd': a field's type cannot be read from JSON"):
        EventRegistry([Odd])


def test_what_is_no_frozen_event_is_refused() -> None:
    class Mutable(Event, kw_only=True, frozen=False):
        pass

    for kind in (Mutable, Event, msgspec.Struct, "exposure"):
        with pytest.raises(InvalidInput):
            EventRegistry([kind])  # type: ignore[list-item]


def test_a_newer_version_is_unknown_and_says_which_is_known(registry: EventRegistry) -> None:
    line = encode_event(order(schema_version=3))
    with pytest.raises(UnknownEvent, match="has schema_version 3, and this reader knows 2"):
        registry.decode(line)
    with pytest.raises(UnknownEvent, match="has schema_version 3"):  # also where its fields no longer fit
        registry.decode(line.replace(b'"o1"', b"7"))


def test_an_older_version_is_read_as_far_as_its_fields_fit(registry: EventRegistry) -> None:
    line = encode_event(order(schema_version=1))
    assert registry.decode(line) == order(schema_version=1)
    with pytest.raises(BrokenDocument):
        registry.decode(line.replace(b"order_id", b"number"))


@pytest.mark.parametrize("probability", [0.0, -1.0, 1.1])
def test_an_impossible_inclusion_probability_is_malformed(
    registry: EventRegistry, probability: float
) -> None:
    with pytest.raises(BrokenDocument, match="inclusion_probability"):
        registry.decode(encode_event(order(inclusion_probability=probability)))


def test_a_registry_without_kinds_says_so() -> None:
    with pytest.raises(UnknownEvent, match="no kind of event is registered"):
        EventRegistry().decode(b"{}")


def test_the_json_schema_says_what_the_types_say_and_what_they_cannot(registry: EventRegistry) -> None:
    schema = registry.json_schema("order_placed")["$defs"]["OrderPlaced"]
    assert schema["x-version"] == 2
    assert schema["x-role"] == "outcome"
    assert schema["x-failure"] == ["paid = False"]
    assert schema["properties"]["buyer"] == {"x-classification": "personal", "type": "string"}
    assert schema["properties"]["total"]["minimum"] == 0
    assert set(schema["required"]) == {"event", "at_utc_seconds", "order_id", "buyer", "total"}
    with pytest.raises(UnknownEvent):
        registry.json_schema("order_lost")


def test_every_built_in_kind_has_every_field_classified_and_its_users_personal() -> None:
    for kind in EVENTS.kinds.values():
        assert None not in classifications(kind).values()
    assert classifications(Exposure)["targeting_key"] == "personal"
    assert classifications(LoadSample)["key"] == "personal"


@pytest.mark.parametrize(
    ("status", "error", "failed"),
    [(200, "", False), (404, "", False), (500, "", True), (0, "", True), (200, "E", True)],
)
def test_a_request_failed_when_its_schema_says_so(status: int, error: str, failed: bool) -> None:
    event = RequestFinished(
        at_utc_seconds=1.0, service="s", route="/", status=status, latency_seconds=0.1, error=error
    )
    assert event.failed() is failed


@pytest.mark.parametrize(
    ("op", "value", "holds"),
    [("=", 1, False), ("!=", 1, True), ("<", 1, False), ("<=", 1, False), (">", 1, False), (">=", 1, False)],
)
def test_a_missing_value_is_different_from_every_value_and_in_no_order_with_any(
    op: str, value: int, holds: bool
) -> None:
    event = LoadSample(
        at_utc_seconds=1.0, phase="p", arm="a", cycle=0, key="k", intended_seconds=0.0, send_lag_seconds=0.0,
        latency_seconds=0.0, status=200, degraded=False, staleness_seconds=None, age_seconds=None, ending="ok",
    )  # fmt: skip
    assert Condition("staleness_seconds", op, value).holds(event) is holds  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("op", "holds"), [("=", False), ("!=", True), ("<", False), ("<=", False), (">", True), (">=", True)]
)
def test_a_condition_compares(op: str, holds: bool) -> None:
    assert Condition("total", op, 5).holds(order()) is holds  # type: ignore[arg-type]
