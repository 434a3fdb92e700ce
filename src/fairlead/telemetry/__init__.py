"""What happened: facts as typed events, and numbers as metrics, recorded without the request waiting for
either.

An `Event` is of a kind that an `EventRegistry` knows, and goes into an `EventSink`. `BufferedSink` takes it in
a fraction of a microsecond and lets its own thread write it, through an `EventWriter` such as
`JsonLinesSegments`; `read_events` reads it back, typed, and what is no event goes into a `DeadLetterFile`. A
number goes into a `Counter`, a `Gauge` or a `Histogram` from a `MetricRegistry`;
`fairlead.telemetry.prometheus.render` shows them to a scraper. Everything here belongs to one process;
segments and histograms of many processes add up afterwards.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from fairlead.telemetry.classification import Internal, Personal, Public
from fairlead.telemetry.event import (
    Condition,
    Event,
    EventSchema,
    Exposure,
    ItemsShown,
    LoadSample,
    LoadWindow,
    MirrorOutcome,
    PageMeasured,
    PolicyActed,
    PolicyAction,
    RequestEnding,
    RequestFinished,
    RequestRecorded,
    ScriptFailed,
    ShadowCompared,
    StateChanged,
    Tracked,
    encode_event,
)
from fairlead.telemetry.histogram import Histogram, HistogramSnapshot
from fairlead.telemetry.metrics import Counter, Family, Gauge, MetricRegistry
from fairlead.telemetry.snapshot import FamilySnapshot, RegistrySnapshot, decode_snapshot, encode_snapshot

if TYPE_CHECKING:
    from fairlead.telemetry.beacon import BeaconEndpoint
    from fairlead.telemetry.dead_letter import DeadLetter, DeadLetterFile, read_dead_letters
    from fairlead.telemetry.identity import SeenEvents, event_id
    from fairlead.telemetry.jsonl import JsonLinesSegments, ReadReport, read_events
    from fairlead.telemetry.logs import JsonLogFormatter
    from fairlead.telemetry.loop_lag import LoopLag
    from fairlead.telemetry.process import Exporting, export_all, export_process
    from fairlead.telemetry.queries import count_query
    from fairlead.telemetry.recording import RecordingMiddleware
    from fairlead.telemetry.redact import PATTERNS, Pattern, Redactor, load_key
    from fairlead.telemetry.retention import Pin, RetentionReport, pin, pins, retain, unpin
    from fairlead.telemetry.sampling import SamplingSink, sampled
    from fairlead.telemetry.schema import EVENTS, EventRegistry, UnknownEvent, decode_event
    from fairlead.telemetry.sink import (
        BufferedSink,
        EventSink,
        EventWriter,
        MemorySink,
        NullSink,
        SinkStats,
        TendedWriter,
    )
    from fairlead.telemetry.spool import Spool, SpoolStats
    from fairlead.telemetry.tail import EventTail
    from fairlead.telemetry.token_vault import TokenVault
    from fairlead.telemetry.totals import merge_snapshots
    from fairlead.telemetry.tracing import Span, Tracer
    from fairlead.telemetry.worker import WorkerMetrics
else:
    # Imported when first asked for: the request path needs none of these, and would wait for them.
    _LATER = {
        name: module
        for module, names in {
            "beacon": ("BeaconEndpoint",),
            "dead_letter": ("DeadLetter", "DeadLetterFile", "read_dead_letters"),
            "identity": ("SeenEvents", "event_id"),
            "jsonl": ("JsonLinesSegments", "ReadReport", "read_events"),
            "logs": ("JsonLogFormatter",),
            "recording": ("RecordingMiddleware",),
            "redact": ("PATTERNS", "Pattern", "Redactor", "load_key"),
            "retention": ("Pin", "RetentionReport", "pin", "pins", "retain", "unpin"),
            "sampling": ("SamplingSink", "sampled"),
            "schema": ("EVENTS", "EventRegistry", "UnknownEvent", "decode_event"),
            "sink": (
                "BufferedSink",
                "EventSink",
                "EventWriter",
                "MemorySink",
                "NullSink",
                "SinkStats",
                "TendedWriter",
            ),
            "spool": ("Spool", "SpoolStats"),
            "tail": ("EventTail",),
            "token_vault": ("TokenVault",),
            "tracing": ("Span", "Tracer"),
            "totals": ("merge_snapshots",),
            "queries": ("count_query",),
            "process": (
                "Exporting",
                "export_all",
                "export_process",
            ),
            "loop_lag": ("LoopLag",),
            "worker": ("WorkerMetrics",),
        }.items()
        for name in names
    }

    def __getattr__(name: str) -> object:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)


__all__ = [
    "EVENTS",
    "PATTERNS",
    "BeaconEndpoint",
    "BufferedSink",
    "Condition",
    "Counter",
    "DeadLetter",
    "DeadLetterFile",
    "Event",
    "EventRegistry",
    "EventSchema",
    "EventSink",
    "EventTail",
    "EventWriter",
    "Exporting",
    "Exposure",
    "Family",
    "FamilySnapshot",
    "Gauge",
    "Histogram",
    "HistogramSnapshot",
    "Internal",
    "ItemsShown",
    "JsonLinesSegments",
    "JsonLogFormatter",
    "LoadSample",
    "LoadWindow",
    "LoopLag",
    "MemorySink",
    "MetricRegistry",
    "MirrorOutcome",
    "NullSink",
    "PageMeasured",
    "Pattern",
    "Personal",
    "Pin",
    "PolicyActed",
    "PolicyAction",
    "Public",
    "ReadReport",
    "RecordingMiddleware",
    "Redactor",
    "RegistrySnapshot",
    "RequestEnding",
    "RequestFinished",
    "RequestRecorded",
    "RetentionReport",
    "SamplingSink",
    "ScriptFailed",
    "SeenEvents",
    "ShadowCompared",
    "SinkStats",
    "Span",
    "Spool",
    "SpoolStats",
    "StateChanged",
    "TendedWriter",
    "TokenVault",
    "Tracer",
    "Tracked",
    "UnknownEvent",
    "WorkerMetrics",
    "count_query",
    "decode_event",
    "decode_snapshot",
    "encode_event",
    "encode_snapshot",
    "event_id",
    "export_all",
    "export_process",
    "load_key",
    "merge_snapshots",
    "pin",
    "pins",
    "read_dead_letters",
    "read_events",
    "retain",
    "sampled",
    "unpin",
]
