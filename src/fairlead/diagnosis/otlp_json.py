"""Traces from files, in the JSON encoding of OTLP: one `ExportTraceServiceRequest` a line.

The collector's file exporter writes this, and so do the SDKs' file exporters; no library is needed to read it.
Source: opentelemetry.io/docs/specs/otlp ("JSON Protobuf Encoding": lowerCamelCase names, 64-bit integers as strings,
ids in hexadecimal).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from fairlead.diagnosis.trace import RecordedSpan
from fairlead.errors import BrokenDocument, InvalidInput

__all__ = ["read_spans"]

_LONGEST_LINE = 64 * 2**20
_ERROR = 2  # STATUS_CODE_ERROR
_KINDS = ("internal", "server", "client", "producer", "consumer")  # SPAN_KIND_…, from 1


class _Value(msgspec.Struct, rename="camel"):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: int | str | None = None
    double_value: float | None = None

    def plain(self) -> bool | int | float | str | None:
        if self.int_value is not None:
            return int(self.int_value)
        for value in (self.string_value, self.bool_value, self.double_value):
            if value is not None:
                return value
        return None


class _Attribute(msgspec.Struct):
    key: str
    value: _Value = msgspec.field(default_factory=_Value)


class _Link(msgspec.Struct, rename="camel"):
    span_id: str = ""


class _Status(msgspec.Struct):
    code: int | str = 0


class _Span(msgspec.Struct, rename="camel"):
    trace_id: str
    span_id: str
    name: str = ""
    kind: int | str = 0
    parent_span_id: str = ""
    start_time_unix_nano: int | str = 0
    end_time_unix_nano: int | str = 0
    attributes: list[_Attribute] = []
    links: list[_Link] = []
    status: _Status = msgspec.field(default_factory=_Status)


class _Scope(msgspec.Struct):
    spans: list[_Span] = []


class _Resource(msgspec.Struct, rename="camel"):
    scope_spans: list[_Scope] = []


class _Request(msgspec.Struct, rename="camel"):
    resource_spans: list[_Resource] = []


_decoder = msgspec.json.Decoder(_Request)


def read_spans(path: str | os.PathLike[str]) -> dict[str, list[RecordedSpan]]:
    """The spans of a file, by trace id, in the order of the file.

    Raises InvalidInput when there is no such file, BrokenDocument naming the line for one that is not OTLP's JSON.
    """
    found: dict[str, list[RecordedSpan]] = {}
    try:
        file = Path(path).open("rb")  # noqa: SIM115  # closed below; the error belongs to the caller's path
    except FileNotFoundError as error:
        raise InvalidInput(f"{path}: no such file, so there are no traces to read") from error
    with file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            if not line.strip():
                continue
            try:
                spans = [
                    _recorded(span)
                    for resource in _decoder.decode(line).resource_spans
                    for scope in resource.scope_spans
                    for span in scope.spans
                ]
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
                raise BrokenDocument(f"{path}:{number}: not a trace in OTLP's JSON: {error}") from error
            for span in spans:
                found.setdefault(span.trace_id, []).append(span)
    return found


def _recorded(span: _Span) -> RecordedSpan:
    # A float holds seconds since 1970 to 0.2 µs; the duration is taken before it is rounded.
    start, end = int(span.start_time_unix_nano), int(span.end_time_unix_nano)
    attributes: dict[str, Any] = {
        each.key: plain for each in span.attributes if (plain := each.value.plain()) is not None
    }
    return RecordedSpan(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_id=span.parent_span_id,
        name=span.name,
        start_seconds=start / 1e9,
        end_seconds=start / 1e9 + (end - start) / 1e9,
        kind=_kind(span.kind),
        failed=span.status.code in (_ERROR, "STATUS_CODE_ERROR"),
        attributes=attributes,
        links=tuple(each.span_id for each in span.links),
    )


def _kind(said: int | str) -> str:
    """Writers send the number, or the name of the enumeration."""
    if isinstance(said, int):
        return _KINDS[said - 1] if 1 <= said <= len(_KINDS) else ""
    name = said.removeprefix("SPAN_KIND_").lower()
    return name if name in _KINDS else ""
