"""What happened: facts as typed events, and numbers as metrics, recorded without the request waiting for
either.

An `Event` goes into an `EventSink`. `BufferedSink` takes it in a fraction of a microsecond and lets its own
thread write it, through an `EventWriter` such as `JsonLinesSegments`; `read_events` reads it back, typed. A
number goes into a `Counter`, a `Gauge` or a `Histogram` from a `MetricRegistry`;
`fairlead.telemetry.prometheus.render` shows them to a scraper. Everything here belongs to one process;
segments and histograms of many processes add up afterwards.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from fairlead.telemetry.event import (
    Event,
    Exposure,
    LoadSample,
    LoadWindow,
    PolicyActed,
    PolicyAction,
    RequestEnding,
    RequestFinished,
    StateChanged,
    UnknownEvent,
    decode_event,
    encode_event,
)
from fairlead.telemetry.histogram import Histogram, HistogramSnapshot
from fairlead.telemetry.metrics import Counter, Family, Gauge, MetricRegistry

if TYPE_CHECKING:
    from fairlead.telemetry.jsonl import JsonLinesSegments, ReadReport, read_events
    from fairlead.telemetry.sink import BufferedSink, EventSink, EventWriter, MemorySink, NullSink, SinkStats
else:
    # Imported when first asked for: the request path needs none of these, and would wait for them.
    _LATER = {
        **dict.fromkeys(("JsonLinesSegments", "ReadReport", "read_events"), "jsonl"),
        **dict.fromkeys(
            ("BufferedSink", "EventSink", "EventWriter", "MemorySink", "NullSink", "SinkStats"), "sink"
        ),
    }

    def __getattr__(name: str) -> object:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)


__all__ = [
    "BufferedSink",
    "Counter",
    "Event",
    "EventSink",
    "EventWriter",
    "Exposure",
    "Family",
    "Gauge",
    "Histogram",
    "HistogramSnapshot",
    "JsonLinesSegments",
    "LoadSample",
    "LoadWindow",
    "MemorySink",
    "MetricRegistry",
    "NullSink",
    "PolicyActed",
    "PolicyAction",
    "ReadReport",
    "RequestEnding",
    "RequestFinished",
    "SinkStats",
    "StateChanged",
    "UnknownEvent",
    "decode_event",
    "encode_event",
    "read_events",
]
