"""A snapshot survives the wire unchanged, and nothing that comes off the wire can make a scrape unreadable."""

from __future__ import annotations

import math
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.clock import ManualClock
from fairlead.errors import BrokenDocument
from fairlead.telemetry import (
    MetricRegistry,
    RegistrySnapshot,
    decode_snapshot,
    encode_snapshot,
    merge_snapshots,
)
from fairlead.telemetry.prometheus import render


def filled() -> MetricRegistry:
    registry = MetricRegistry(clock=ManualClock(utc=100.0))
    registry.counter("loads_total", "Loads.").add(3)
    depth = registry.gauge("depth", "Depth.", labels=("queue", "kind"), merge="max")
    depth.labels(queue="a", kind="ü").set(2)
    registry.gauge("broken", "Broken.").track(lambda: 1 / 0)
    waits = registry.histogram("wait_seconds", "Wait.", labels=("route",))
    waits.labels(route="/feed").observe_many([0.0, 0.01, 3.0, -1.0])
    return registry


def wire(**family: Any) -> bytes:
    defaults = {"name": "loads_total", "help": "Loads.", "kind": "counter"}
    document = {"at_utc_seconds": 1.0, "start_utc_seconds": 0.0, "families": [{**defaults, **family}]}
    return msgspec.msgpack.encode(document)


def test_a_snapshot_is_the_same_after_the_wire_and_renders_as_its_registry_does() -> None:
    registry = filled()
    snapshot = registry.snapshot()
    read = decode_snapshot(encode_snapshot(snapshot))
    assert render(read) == render(registry)
    assert [family.merge for family in read.families] == ["sum", "max", "sum", "sum"]
    assert math.isnan(read.families[0].values[()])
    assert (read.at_utc_seconds, read.start_utc_seconds) == (100.0, 100.0)


def test_a_snapshot_is_a_copy_that_later_counts_do_not_change() -> None:
    registry = filled()
    before = registry.snapshot()
    registry.histogram("wait_seconds", "Wait.", labels=("route",)).labels(route="/feed").observe(0.01)
    assert sum(before.families[3].histograms[("/feed",)].buckets.values()) == 2


@pytest.mark.parametrize(
    "family",
    [
        {"name": "a b"},
        {"name": "x" * 300 + "_total"},
        {"name": "loads_total\n"},
        {"kind": "summary"},
        {"merge": "mean"},
        {"name": "loads"},
        {"help": "x" * 3_000},
        {"label_names": ["__name__"]},
        {"label_names": ["a", "a"]},
        {"label_names": [f"l{n}" for n in range(30)]},
        {"values": {(): -1.0}},
        {"values": {(): math.inf}},
        {"values": {("a",): 1.0}},
        {"label_names": ["a"], "values": {("x" * 3_000,): 1.0}},
        {"values": {(): "1"}},
        {"histograms": {(): {"schema": 5}}},
        {"edges": [1, 2]},
        {"kind": "histogram", "values": {(): 1.0}},
        {"kind": "histogram", "edges": [2, 1]},
        {"kind": "histogram", "edges": list(range(1_000))},
        {"kind": "histogram", "edges": [10**6]},
        {"kind": "histogram", "label_names": ["le"]},
        {"kind": "histogram", "histograms": {(): {"schema": 4}}},
        {"kind": "histogram", "histograms": {(): {"buckets": {10**6: 1}}}},
        {"kind": "histogram", "histograms": {(): {"buckets": {1: -1}}}},
        {"kind": "histogram", "histograms": {(): {"sum": math.nan}}},
    ],
)
def test_a_family_that_no_registry_makes_is_refused(family: dict[str, Any]) -> None:
    with pytest.raises(BrokenDocument, match="no snapshot of metrics"):
        decode_snapshot(wire(**family))


def test_series_that_two_families_claim_are_refused() -> None:
    families = [
        {"name": "wait", "help": "Wait.", "kind": "histogram"},
        {"name": "wait_count", "help": "Wait.", "kind": "gauge"},
    ]
    for twice in (families, families[::-1], [families[0]] * 2):
        data = msgspec.msgpack.encode(
            {"at_utc_seconds": 1.0, "start_utc_seconds": 0.0, "families": twice},
        )
        with pytest.raises(BrokenDocument, match="belongs to"):
            decode_snapshot(data)


def test_a_snapshot_that_is_too_large_is_refused_before_it_is_read() -> None:
    with pytest.raises(BrokenDocument, match="at most"):
        decode_snapshot(bytes(17 * 2**20))
    many = {(f"{number}",): 1.0 for number in range(100_001)}
    with pytest.raises(BrokenDocument, match="100,000 series"):
        decode_snapshot(wire(label_names=["a"], values=many))


def test_a_time_that_is_none_is_refused() -> None:
    data = msgspec.msgpack.encode({"at_utc_seconds": math.nan, "start_utc_seconds": 0.0})
    with pytest.raises(BrokenDocument, match="time nan"):
        decode_snapshot(data)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_snapshot_raise_one_error(data: bytes) -> None:
    try:
        read = decode_snapshot(data)
    except BrokenDocument:
        return
    assert isinstance(read, RegistrySnapshot)


@given(st.data())
def test_a_snapshot_with_some_bytes_changed_is_read_or_refused_and_what_is_read_renders(
    data: st.DataObject,
) -> None:
    encoded = bytearray(encode_snapshot(filled().snapshot()))
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = decode_snapshot(bytes(encoded))
    except BrokenDocument:
        return
    text = render(read)
    assert text.encode().decode() == text
    assert text.count("# TYPE ") == len(read.families)


def test_values_at_the_edge_of_what_floats_hold_do_not_make_the_snapshot_unreadable() -> None:
    registry = MetricRegistry()
    counter, histogram = registry.counter("a_total", "A."), registry.histogram("b_seconds", "B.")
    broken = registry.counter("c_total", "C.")
    broken.track(lambda: -1.0)
    for _ in range(2):
        counter.add(1e308)
        histogram.observe(1e308)
    one = decode_snapshot(encode_snapshot(registry.snapshot()))
    both = decode_snapshot(encode_snapshot(merge_snapshots([one, one])))
    assert both.families[0].values[()] == both.families[1].histograms[()].sum == sys.float_info.max
    assert both.families[1].histograms[()].buckets == {32_741: 4}
    assert math.isnan(broken.value)
