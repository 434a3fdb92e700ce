"""Which kinds of events there are, and lines read back as them.

A pipeline that accepts any JSON learns of a renamed field a month later, from a chart that fell to zero. Here
a line is an event only if a registered kind says so and every field fits; anything else raises, and whoever
reads counts it and puts it aside (`DeadLetterFile`).

Across versions: fields that this version does not know are ignored, so an older reader takes a newer writer's
additions. A higher `schema_version` than the one registered is unknown, since it announces that a field
changed its meaning; a lower one is read as far as its fields still fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeVar, Union, get_args

import msgspec

from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.telemetry.bounds import check_number
from fairlead.telemetry.classification import Classification, classifications
from fairlead.telemetry.event import (
    Comparison,
    Event,
    EventRole,
    Exposure,
    ItemsShown,
    LoadSample,
    LoadWindow,
    PageMeasured,
    PolicyActed,
    RequestFinished,
    RequestRecorded,
    ScriptFailed,
    ShadowCompared,
    StateChanged,
    Tracked,
)

__all__ = ["EVENTS", "EventRegistry", "UnknownEvent", "decode_event", "event_name"]

_Kind = TypeVar("_Kind", bound=type[Event])

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_OPS = get_args(Comparison)

# Bytes that are not UTF-8 leave the decoder as Python's own error, not as one of msgspec's.
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class UnknownEvent(BrokenDocument):
    """A well-formed event of a kind, or of a version of it, that is not registered."""


class _Header(msgspec.Struct):
    event: str
    schema_version: int = 1


def event_name(kind: type[Event]) -> str:
    """How lines and metrics name a kind: `RequestFinished` is `request_finished`."""
    return str(kind.__struct_config__.tag)


class EventRegistry:
    """The kinds of events that may be written and read, by name.

    Register kinds while modules are imported; decoding is safe from any thread.

    >>> registry = EventRegistry([Exposure])
    >>> shown = Exposure(at_utc_seconds=1.0, flag="f", variant="on", targeting_key="u", reason="SPLIT")
    >>> registry.decode(msgspec.json.encode(shown)) == shown
    True
    """

    def __init__(self, kinds: Iterable[type[Event]] = ()) -> None:
        self._kinds: dict[str, type[Event]] = {}
        self._versions: dict[type[Event], int] = {}
        self._decoder: msgspec.json.Decoder[Event] | None = None
        for kind in kinds:
            self.register(kind)

    def register(self, kind: _Kind) -> _Kind:
        """Adds a kind and returns it, so that it serves as a decorator. Adding one again changes nothing.

        Raises InvalidInput, naming the field and what to write, for a kind with an unclassified field, a personal
        field that could not be redacted, a failure that names no field, a sampled exposure or outcome, a field
        type that JSON cannot tell apart, or the name of another kind.
        """
        name = _checked(kind)
        known = self._kinds.get(name)
        if known is not None and known is not kind:
            raise InvalidInput(
                f"event {name!r} is {known.__module__}.{known.__qualname__} already: "
                f"rename {kind.__module__}.{kind.__qualname__}, or give it a tag= of its own"
            )
        self._versions[kind] = _default_version(kind)
        self._kinds[name] = kind
        self._decoder = None
        return kind

    @property
    def kinds(self) -> dict[str, type[Event]]:
        """The kinds by name, in the order of their names."""
        return dict(sorted(self._kinds.items()))

    def kind(self, name: str) -> type[Event]:
        """The kind of that name. Raises UnknownEvent, with the names there are."""
        found = self._kinds.get(name)
        if found is None:
            raise UnknownEvent(f"event {name[:64]!r} is not one of {', '.join(self.kinds)}")
        return found

    def decode(self, line: bytes) -> Event:
        """The event in one JSON object.

        Raises UnknownEvent for a kind or version that is not registered, BrokenDocument for anything else that
        is not an event.
        """
        decoder = self._decoder or self._made_decoder()
        try:
            event = decoder.decode(line)
        except _UNREADABLE as error:
            header = _header(line)
            if header is not None and header.event not in self._kinds:
                raise UnknownEvent(
                    f"event {header.event[:64]!r} is not one of {', '.join(self.kinds)}"
                ) from error
            if header is not None and header.schema_version > self._versions[self._kinds[header.event]]:
                raise self._newer(self._kinds[header.event], header.schema_version) from error
            raise BrokenDocument(f"not an event: {error}") from error
        if event.schema_version > self._versions[type(event)]:
            raise self._newer(type(event), event.schema_version)
        if not 0 < event.inclusion_probability <= 1:
            raise BrokenDocument(
                f"not an event: inclusion_probability {event.inclusion_probability!r} is no probability above 0"
            )
        return event

    def json_schema(self, name: str | None = None) -> dict[str, Any]:
        """The JSON Schema (2020-12) of the kind `name`, or of every kind.

        Beside the standard words: `x-classification` of each field; `x-version`, `x-role`, `x-failure` and
        `x-sampling` of each kind. Raises UnknownEvent for a name that is not registered.
        """
        kinds = self.kinds if name is None else {name: self.kind(name)}
        _, components = msgspec.json.schema_components(list(kinds.values()), ref_template="#/$defs/{name}")
        for kind in kinds.values():
            described = components[kind.__name__]
            described["x-version"] = self._versions[kind]
            described["x-role"] = kind.schema.role
            described["x-failure"] = [str(condition) for condition in kind.schema.failure]
            described["x-sampling"] = kind.schema.sampling
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "oneOf": [{"$ref": f"#/$defs/{kind.__name__}"} for kind in kinds.values()],
            "$defs": components,
        }

    def _newer(self, kind: type[Event], version: int) -> UnknownEvent:
        return UnknownEvent(
            f"event {event_name(kind)!r} has schema_version {version}, and this reader knows {self._versions[kind]}: "
            f"update it"
        )

    def _made_decoder(self) -> msgspec.json.Decoder[Event]:
        if not self._kinds:
            raise UnknownEvent("no kind of event is registered")
        # A union made at run time, which no type checker can follow.
        decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Union[tuple(self._kinds.values())])  # noqa: UP007
        self._decoder = decoder
        return decoder


def _header(line: bytes) -> _Header | None:
    try:
        return msgspec.json.decode(line, type=_Header)
    except _UNREADABLE:
        return None


def _checked(kind: type[Event]) -> str:
    if not (isinstance(kind, type) and issubclass(kind, Event)) or kind is Event:
        raise InvalidInput(f"{kind!r}: an event is a class that derives from fairlead.telemetry.Event")
    config = kind.__struct_config__
    name = event_name(kind)
    if config.tag_field != "event" or not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{kind.__qualname__}: its name {name!r} must be lower case letters, digits and _, in the field 'event'"
        )
    if not config.frozen:
        raise InvalidInput(
            f"event {name!r}: declare {kind.__qualname__} with frozen=True: a fact does not change"
        )
    try:
        classes = classifications(kind)
        msgspec.json.schema_components([kind])
    except (TypeError, NameError) as error:
        raise InvalidInput(f"event {name!r}: a field's type cannot be read from JSON: {error}") from error
    if silent := [field for field, said in classes.items() if said is None]:
        raise InvalidInput(
            f"event {name!r}: field {silent[0]!r} has no classification: "
            f"write Public[…], Internal[…] or Personal[…] around its type"
        )
    _check_redactable(kind, name, classes)
    _check_schema(kind, name, classes)
    return name


def _check_redactable(kind: type[Event], name: str, classes: dict[str, Classification | None]) -> None:
    described = msgspec.inspect.type_info(kind)
    assert isinstance(described, msgspec.inspect.StructType)  # noqa: S101  # what msgspec says of a Struct
    for field in described.fields:
        if classes[field.name] != "personal" or not field.required:
            continue
        inner = field.type
        while isinstance(inner, msgspec.inspect.Metadata):
            inner = inner.type
        if not isinstance(inner, msgspec.inspect.StrType):
            raise InvalidInput(
                f"event {name!r}: the personal field {field.name!r} is no str and has no default, "
                f"so nothing could stand in for it when events are redacted: give it a default"
            )


def _check_schema(kind: type[Event], name: str, classes: dict[str, Classification | None]) -> None:
    schema = kind.schema
    if schema.role not in get_args(EventRole):
        raise InvalidInput(
            f"event {name!r}: role {schema.role!r} is not one of {', '.join(get_args(EventRole))}"
        )
    for condition in schema.failure:
        if condition.field not in classes or condition.op not in _OPS:
            raise InvalidInput(
                f"event {name!r}: its failure {condition} compares no field of it, or not with one of "
                f"{' '.join(_OPS)}"
            )
    sampling = schema.sampling
    check_number(f"event {name!r}: sampling", sampling, above=0.0, high=1.0)
    if sampling < 1 and schema.role != "operational":
        raise InvalidInput(
            f"event {name!r} is an {schema.role} and has sampling = {sampling}: experiments count every one"
        )


def _default_version(kind: type[Event]) -> int:
    version = next(field.default for field in msgspec.structs.fields(kind) if field.name == "schema_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise InvalidInput(
            f"event {event_name(kind)!r}: schema_version defaults to {version!r}: expected a whole number, 1 or more"
        )
    return version


EVENTS = EventRegistry(
    [
        RequestFinished,
        RequestRecorded,
        Exposure,
        ItemsShown,
        StateChanged,
        Tracked,
        PolicyActed,
        PageMeasured,
        ScriptFailed,
        LoadSample,
        LoadWindow,
        ShadowCompared,
    ]
)
"""The registry that readers and writers use unless told otherwise, with Fairlead's own kinds in it."""


def decode_event(line: bytes, registry: EventRegistry = EVENTS) -> Event:
    """The event in one JSON object; as `registry.decode`."""
    return registry.decode(line)
