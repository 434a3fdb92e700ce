"""Sends metrics to an OpenTelemetry collector: OTLP over HTTP, in Protobuf, without its libraries.

Counters go as cumulative sums, gauges as gauges, histograms as exponential histograms of scale 5: the buckets are the
same as ours, numbered one lower (theirs is named after its lower bound, ours after its upper). Everything is cumulative
since the registry's start, so an export that fails loses nothing: the next one says it all again, and there is nothing
to retry or to keep. A process that starts again has a new start time, which is how a collector tells.

Protobuf and not its JSON form, because every receiver must understand the first and some refuse the second. The subset
that metrics need is three kinds of field, written out below.

A thread of its own sends; a collector that hangs costs it its timeout, and the service nothing.
"""

from __future__ import annotations

import atexit
import gzip
import http.client
import logging
import os
import secrets
import struct
import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fairlead import __version__
from fairlead.errors import FairleadError, InvalidInput
from fairlead.telemetry.bounds import check_number
from fairlead.telemetry.histogram import SCHEMA, HistogramSnapshot
from fairlead.telemetry.metrics import MetricRegistry
from fairlead.telemetry.snapshot import FamilySnapshot, RegistrySnapshot

if TYPE_CHECKING:
    from fairlead.telemetry.worker import WorkerMetrics

__all__ = ["OtlpExporter", "encode_otlp"]

_log = logging.getLogger(__name__)

_MOST_BUCKETS = 640
"""Buckets of one histogram. 20 octaves at full resolution, 1 µs to 1 s; a wider one is halved in resolution until it
fits, exactly, two buckets to one."""

_CUMULATIVE = 2
_UNITS = {"seconds": "s", "bytes": "By", "ratio": "1", "share": "1"}


def encode_otlp(snapshot: RegistrySnapshot, resource: Mapping[str, str]) -> bytes:
    """The body of a POST to `/v1/metrics`: an ExportMetricsServiceRequest.

    resource: attributes of what sends it, `service.name` first of all. A value that is NaN is left out.
    """
    times = _fixed(2, _nanoseconds(snapshot.start_utc_seconds)) + _fixed(
        # Not before its start, where a clock was set back: a receiver drops such a point.
        3,
        _nanoseconds(max(snapshot.at_utc_seconds, snapshot.start_utc_seconds)),
    )
    metrics = b"".join(_bytes(2, _metric(family, times)) for family in snapshot.families)
    scope = _bytes(1, _text(1, "fairlead") + _text(2, __version__))
    return _bytes(1, _bytes(1, _attributes(1, resource.items())) + _bytes(2, scope + metrics))


class OtlpExporter:
    """Exports a registry every `interval` seconds and once at the end.

    source: the registry of this process; or a WorkerMetrics, in one process alone, which then speaks for all.
    endpoint: http or https, as a whole: `http://127.0.0.1:4318/v1/metrics`.
    service: becomes `service.name`. resource: more attributes; `service.instance.id` is random unless given here,
        because two processes with one identity would overwrite each other.
    headers: of each request, a token for instance. interval: seconds, 1 to 3,600. timeout: seconds for one export.

    `start()` after any fork; `close()` exports once more.
    """

    def __init__(
        self,
        source: MetricRegistry | WorkerMetrics,
        endpoint: str,
        *,
        service: str,
        resource: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        interval: float = 60.0,
        timeout: float = 10.0,
    ) -> None:
        check_number("OtlpExporter.interval", interval, low=1.0, high=3_600.0)
        check_number("OtlpExporter.timeout", timeout, low=0.05, high=3_600.0)
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise InvalidInput(
                f"OtlpExporter.endpoint: {endpoint!r} is not http://HOST:PORT/v1/metrics, or the same with https; "
                f"credentials go into headers"
            )
        if not service:
            raise InvalidInput("OtlpExporter.service is empty: backends group by it")
        self._source = source
        self._url = parts
        self._given = {"service.name": service, **(resource or {})}
        self._instance, self._instance_of = _new_instance(), os.getpid()
        self._headers = {
            **(headers or {}),
            "content-type": "application/x-protobuf",
            "content-encoding": "gzip",
            "user-agent": f"fairlead/{__version__}",
        }
        self._interval = interval
        self._timeout = timeout
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self.exported = 0
        """Exports that the collector took."""
        self.failed = 0
        """Exports that it did not take; the next one says the same again."""
        self.failure = ""
        """Why the latest export failed, or which part of it was rejected; empty if all was taken."""

    def start(self) -> None:
        """Begins to export; returns at once. Safe to call again."""
        if self._thread is None or not self._thread.is_alive():
            self._closing = threading.Event()
            self._thread = threading.Thread(target=self._run, name="fairlead-otlp", daemon=True)
            self._thread.start()
            atexit.register(self.close)

    def close(self) -> None:
        """Exports once more and ends the thread; blocks for one timeout, at most two."""
        thread = self._thread
        if thread is None:
            return
        atexit.unregister(self.close)
        self._closing.set()
        thread.join(2.0 * self._timeout)
        self._thread = None

    def __enter__(self) -> OtlpExporter:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def export(self) -> bool:
        """Exports now, in this thread; False if the collector did not take it, with the reason in `failure`."""
        try:
            source = self._source
            snapshot = source.snapshot() if isinstance(source, MetricRegistry) else source.merged()
            self._post(gzip.compress(encode_otlp(snapshot, self._resource()), 1))
        except (OSError, http.client.HTTPException, FairleadError) as error:
            self.failed += 1
            self._tell(f"{type(error).__name__}: {error}")
            return False
        self.exported += 1
        return True

    def _resource(self) -> dict[str, str]:
        if os.getpid() != self._instance_of:  # forked: two processes must not share an identity
            self._instance, self._instance_of = _new_instance(), os.getpid()
        return {"service.instance.id": self._instance, **self._given}

    def _run(self) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(self._interval)
            try:
                self.export()
            except Exception as error:  # the edge of the thread: recorded, and tried again
                self.failed += 1
                self._tell(f"{type(error).__name__}: {error}")

    def _post(self, body: bytes) -> None:
        url = self._url
        connect = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        connection = connect(url.hostname or "", url.port, timeout=self._timeout)
        try:
            path = (url.path or "/") + (f"?{url.query}" if url.query else "")
            connection.request("POST", path, body, self._headers)
            response = connection.getresponse()
            answer = response.read(65_536)
            if response.status != 200:
                raise ConnectionError(f"{url.hostname} answered {response.status}: {answer[:200]!r}")
        finally:
            connection.close()
        self._tell(_rejected(answer))

    def _tell(self, failure: str) -> None:
        if failure and failure != self.failure:
            _log.warning("metrics: %s", failure)
        self.failure = failure


def _new_instance() -> str:
    return f"{os.getpid()}-{secrets.token_hex(8)}"


def _rejected(answer: bytes) -> str:
    """What an ExportMetricsServiceResponse says was rejected; nothing, as a rule."""
    partial = _fields(answer).get(1)
    if not isinstance(partial, bytes):
        return ""
    fields = _fields(partial)
    reason = fields.get(2, b"")
    text = reason.decode("utf-8", "replace")[:200] if isinstance(reason, bytes) else ""
    return f"{fields.get(1, 0)!r} data points were rejected: {text}" if fields.get(1) or text else ""


def _metric(family: FamilySnapshot, times: bytes) -> bytes:
    names = family.label_names
    if family.kind == "histogram":
        points = b"".join(
            _bytes(1, _attributes(1, zip(names, labels, strict=True)) + times + _exponential(each))
            for labels, each in family.histograms.items()
        )
        data = _bytes(10, points + _number(2, _CUMULATIVE))
    else:
        points = b"".join(
            _bytes(1, times + _double(4, value) + _attributes(7, zip(names, labels, strict=True)))
            for labels, value in family.values.items()
            if value == value
        )
        counter = family.kind == "counter"
        data = _bytes(7, points + _number(2, _CUMULATIVE) + _number(3, 1)) if counter else _bytes(5, points)
    unit = _UNITS.get(family.name.removesuffix("_total").rpartition("_")[2], "")
    return _text(1, family.name) + _text(2, family.help) + _text(3, unit) + data


def _exponential(histogram: HistogramSnapshot) -> bytes:
    scale, counts = SCHEMA, {index - 1: count for index, count in histogram.buckets.items() if count}
    while counts and max(counts) - min(counts) >= _MOST_BUCKETS:
        scale -= 1
        halved: dict[int, int] = {}
        for index, count in counts.items():
            halved[index >> 1] = halved.get(index >> 1, 0) + count
        counts = halved
    first = min(counts, default=0)
    dense = b"".join(_varint(counts.get(index, 0)) for index in range(first, max(counts, default=-1) + 1))
    total = histogram.zero_count + sum(counts.values())
    return (
        _fixed(4, total)
        + _double(5, histogram.sum)
        + _number(6, _zigzag(scale))
        + _fixed(7, histogram.zero_count)
        + _bytes(8, _number(1, _zigzag(first)) + (_bytes(2, dense) if dense else b""))
    )


def _nanoseconds(seconds: float) -> int:
    return max(0, min(int(seconds * 1e9), 2**63 - 1))


# Protobuf's wire format (protobuf.dev/programming-guides/encoding): a key of field number and kind, then the value.


def _varint(value: int) -> bytes:
    if value < 128:
        return bytes((value,))
    parts = bytearray()
    while value >= 128:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _fixed(field: int, value: int) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<Q", value)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode("utf-8", "backslashreplace")) if value else b""


def _attributes(field: int, pairs: Iterable[tuple[str, str]]) -> bytes:
    return b"".join(
        _bytes(field, _text(1, name) + _bytes(2, _text_always(1, value))) for name, value in pairs
    )


def _text_always(field: int, value: str) -> bytes:
    return _bytes(field, value.encode("utf-8", "backslashreplace"))


def _fields(message: bytes) -> dict[int, int | bytes]:
    """The varints and byte strings of a message, the last of each field; what is broken ends it."""
    found: dict[int, int | bytes] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128 or shift > 63:
                return value

    try:
        while at < len(message):
            key = varint()
            if key & 7 == 0:
                found[key >> 3] = varint()
            elif key & 7 == 2:
                length = varint()
                found[key >> 3] = message[at : at + length]
                at += length
            else:
                at += 8 if key & 7 == 1 else 4
    except IndexError:
        pass
    return found
