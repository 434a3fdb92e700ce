"""A whole registry at one moment, as plain data that another process can check, add up and subtract.

Counters and histograms of many processes add up without loss. A gauge does not say how: two queues of 3 make 6, two
circuits of which one is open make an open one, two copies of one version make that version. So each gauge declares it:
`sum`, `max`, `min` or `last` (of the newest snapshot).

A snapshot may come from a process that is broken or hostile. `decode_snapshot` bounds the families, the series, the
lengths and the bucket indexes, and refuses what would make a scrape unreadable: a name that is none, a series that
two families claim, a counter that is negative.
"""

from __future__ import annotations

from math import inf, isnan
from typing import Annotated, Literal

import msgspec

from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.telemetry.histogram import HistogramSnapshot, check_histogram

__all__ = [
    "LARGEST_SNAPSHOT",
    "OVERFLOW",
    "FamilySnapshot",
    "Kind",
    "Merge",
    "RegistrySnapshot",
    "decode_snapshot",
    "encode_snapshot",
    "series_of",
]

OVERFLOW = "_overflow"
"""The value of every label of the child that takes what the bound turned away."""

LARGEST_SNAPSHOT = 16 * 2**20
"""Bytes of the longest encoded snapshot that is read. 1,000 histograms of 100 buckets each take half a megabyte."""

Kind = Literal["counter", "gauge", "histogram"]
Merge = Literal["sum", "max", "min", "last"]
"""How the gauges of several processes become one."""

_MOST_FAMILIES = 2_000
_MOST_SERIES = 100_000

_Name = Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]{0,199}\Z")]
_LabelName = Annotated[str, msgspec.Meta(pattern=r"^(?!__)[a-zA-Z_][a-zA-Z0-9_]{0,99}\Z")]
_LabelNames = Annotated[tuple[_LabelName, ...], msgspec.Meta(max_length=20)]
_LabelValues = tuple[Annotated[str, msgspec.Meta(max_length=2_048)], ...]  # 256 characters, escaped at worst


class FamilySnapshot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One metric: its meaning, and a value for each of its label sets."""

    name: _Name
    help: Annotated[str, msgspec.Meta(max_length=2_000)]
    kind: Kind
    label_names: _LabelNames = ()
    merge: Merge = "sum"
    """How several processes become one; counters and histograms always add up."""
    edges: Annotated[tuple[int, ...], msgspec.Meta(max_length=256)] = ()
    """Bucket indexes whose upper bounds a text scrape shows; empty unless a histogram."""
    values: dict[_LabelValues, float] = {}
    """The value of each label set, unless a histogram; NaN where a callback failed."""
    histograms: dict[_LabelValues, HistogramSnapshot] = {}
    """The same, of a histogram."""

    def alike(self, other: FamilySnapshot) -> bool:
        """Whether the two can be added up."""
        return (self.kind, self.label_names, self.edges, self.merge) == (
            other.kind,
            other.label_names,
            other.edges,
            other.merge,
        )


class RegistrySnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All metrics of a process, or of several that were merged."""

    at_utc_seconds: float
    """When it was taken; the latest, if merged."""
    start_utc_seconds: float
    """Since when its counters count; the earliest, if merged."""
    families: tuple[FamilySnapshot, ...] = ()
    """In order of their names."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(RegistrySnapshot)


def encode_snapshot(snapshot: RegistrySnapshot) -> bytes:
    """The snapshot in MessagePack, which unlike JSON knows NaN and keys that are tuples."""
    return _encoder.encode(snapshot)


def decode_snapshot(data: bytes) -> RegistrySnapshot:
    """The snapshot that `data` holds. Raises BrokenDocument for anything that is not one, or exceeds its bounds."""
    if len(data) > LARGEST_SNAPSHOT:
        raise BrokenDocument(f"snapshot of {len(data):,} bytes: at most {LARGEST_SNAPSHOT:,} are read")
    try:
        snapshot = _decoder.decode(data)
        _check(snapshot)
    except (msgspec.DecodeError, UnicodeError, InvalidInput, RecursionError) as error:
        raise BrokenDocument(f"no snapshot of metrics: {error}") from error
    return snapshot


def series_of(kind: Kind, name: str) -> list[str]:
    """The names of samples that a metric takes in a scrape."""
    return [name, f"{name}_bucket", f"{name}_sum", f"{name}_count"] if kind == "histogram" else [name]


def _check(snapshot: RegistrySnapshot) -> None:
    """Raises InvalidInput for what the types alone do not exclude."""
    if len(snapshot.families) > _MOST_FAMILIES:
        raise InvalidInput(f"{len(snapshot.families):,} families: at most {_MOST_FAMILIES:,} are read")
    for moment in (snapshot.at_utc_seconds, snapshot.start_utc_seconds):
        if not -inf < moment < inf:
            raise InvalidInput(f"time {moment!r}: expected a finite number of seconds")
    owners: dict[str, str] = {}
    count = 0
    for family in snapshot.families:
        for series in series_of(family.kind, family.name):
            if series in owners:
                raise InvalidInput(f"{family.name}: its series {series} belongs to {owners[series]} already")
            owners[series] = family.name
        count += len(family.values) + len(family.histograms)
        if count > _MOST_SERIES:
            raise InvalidInput(f"more than {_MOST_SERIES:,} series")
        _check_family(family)


def _check_family(family: FamilySnapshot) -> None:
    name, histogram = family.name, family.kind == "histogram"
    if family.kind == "counter" and not name.endswith("_total"):
        raise InvalidInput(f"counter {name!r}: its name ends in '_total'")
    if len(set(family.label_names)) != len(family.label_names) or (histogram and "le" in family.label_names):
        raise InvalidInput(f"{name}: labels {family.label_names} name one twice, or a histogram's 'le'")
    if family.values if histogram else family.histograms or family.edges:
        raise InvalidInput(f"{name}: a {family.kind} with the values of another kind")
    if family.edges and (
        list(family.edges) != sorted(set(family.edges))
        or not -40_000 < family.edges[0] <= family.edges[-1] < 32_768
    ):
        raise InvalidInput(f"{name}: its edges are not bucket indexes in rising order")
    for labels in family.histograms if histogram else family.values:
        if len(labels) != len(family.label_names):
            raise InvalidInput(f"{name}: {len(labels)} label values for {len(family.label_names)} labels")
    for value in family.values.values():
        if family.kind == "counter" and not (0.0 <= value < inf or isnan(value)):
            raise InvalidInput(f"{name}: a counter of {value!r}")
    for each in family.histograms.values():
        check_histogram(each)
