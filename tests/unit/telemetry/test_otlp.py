"""What a receiver built on OpenTelemetry's own schema reads is what was counted."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import ExponentialHistogramDataPoint, Metric

from fairlead.clock import ManualClock
from fairlead.errors import InvalidInput
from fairlead.telemetry import FamilySnapshot, HistogramSnapshot, MetricRegistry, RegistrySnapshot
from fairlead.telemetry.otlp import OtlpExporter, _rejected, encode_otlp


def received(registry: MetricRegistry, **resource: str) -> dict[str, Metric]:
    request = ExportMetricsServiceRequest.FromString(
        encode_otlp(registry.snapshot(), {"service.name": "feed", **resource})
    )
    [resource_metrics] = request.resource_metrics
    [scope_metrics] = resource_metrics.scope_metrics
    assert scope_metrics.scope.name == "fairlead"
    attributes = {each.key: each.value.string_value for each in resource_metrics.resource.attributes}
    assert attributes == {"service.name": "feed", **resource}
    return {metric.name: metric for metric in scope_metrics.metrics}


def bounds(point: ExponentialHistogramDataPoint) -> list[tuple[float, float, int]]:
    """Lower bound, upper bound and count of each bucket, as OpenTelemetry's data model defines them."""
    base = 2.0 ** (2.0**-point.scale)
    return [
        (base ** (point.positive.offset + n), base ** (point.positive.offset + n + 1), count)
        for n, count in enumerate(point.positive.bucket_counts)
        if count
    ]


def test_a_counter_is_a_cumulative_sum_with_its_start() -> None:
    clock = ManualClock(utc=1_700_000_000.0)
    registry = MetricRegistry(clock=clock)
    loads = registry.counter("loads_total", "Loads.", labels=("route", "kind"))
    loads.labels(route="/ü", kind="").add(3)
    clock.advance(60.0)
    metric = received(registry)["loads_total"]
    assert (metric.description, metric.unit) == ("Loads.", "")
    assert metric.sum.is_monotonic
    assert metric.sum.aggregation_temporality == 2
    [point] = metric.sum.data_points
    assert point.as_double == 3.0
    assert point.start_time_unix_nano == 1_700_000_000 * 10**9
    assert point.time_unix_nano == 1_700_000_060 * 10**9
    assert {each.key: each.value.string_value for each in point.attributes} == {"route": "/ü", "kind": ""}
    assert all(each.value.HasField("string_value") for each in point.attributes)


def test_a_gauge_is_a_gauge_and_one_that_could_not_be_read_is_left_out() -> None:
    registry = MetricRegistry()
    registry.gauge("memory_bytes", "Memory.").set(-2.5)
    registry.gauge("broken", "Broken.").track(lambda: 1 / 0)
    found = received(registry)
    assert [point.as_double for point in found["memory_bytes"].gauge.data_points] == [-2.5]
    assert found["memory_bytes"].unit == "By"
    assert list(found["broken"].gauge.data_points) == []


def test_a_histogram_is_an_exponential_one_of_scale_5_with_each_value_inside_its_bucket() -> None:
    registry = MetricRegistry()
    waits = registry.histogram("wait_seconds", "Wait.")
    waits.observe_many([0.0, 0.0, 0.01, 1.0, 1.0001, 2.0, -1.0])
    metric = received(registry)["wait_seconds"]
    assert (metric.unit, metric.exponential_histogram.aggregation_temporality) == ("s", 2)
    [point] = metric.exponential_histogram.data_points
    assert (point.count, point.zero_count, point.scale, point.sum) == (6, 2, 5, pytest.approx(4.0101))
    expected = [0.01, 1.0, 1.0001, 2.0]
    for value, (low, high, count) in zip(expected, bounds(point), strict=True):
        assert low < value <= high * (1 + 1e-12)
        assert count == 1
    assert (bounds(point)[1][1], bounds(point)[3][1]) == (
        1.0,
        pytest.approx(2.0),
    )  # upper bounds are inclusive


@given(st.lists(st.floats(min_value=0.0, max_value=1e300), max_size=60))
def test_any_histogram_keeps_its_counts_and_every_value_in_its_bucket(values: list[float]) -> None:
    registry = MetricRegistry()
    registry.histogram("wait_seconds", "Wait.").observe_many(values)
    [point] = received(registry)["wait_seconds"].exponential_histogram.data_points
    assert point.count == len(values)
    assert len(point.positive.bucket_counts) <= 640
    positive = sorted(value for value in values if value > 0)
    assert point.zero_count == len(values) - len(positive)
    assert sum(point.positive.bucket_counts) == len(positive)
    base_log = 2.0**-point.scale
    at = 0
    for offset, count in enumerate(point.positive.bucket_counts):
        for value in positive[at : at + count]:
            index = point.positive.offset + offset
            assert index * base_log - 1e-9 <= math.log2(value) <= (index + 1) * base_log + 1e-9
        at += count


def test_a_histogram_without_values_is_sent_with_no_buckets() -> None:
    registry = MetricRegistry()
    registry.histogram("wait_seconds", "Wait.")
    [point] = received(registry)["wait_seconds"].exponential_histogram.data_points
    assert (point.count, list(point.positive.bucket_counts)) == (0, [])


def test_counts_of_any_size_survive() -> None:
    registry = MetricRegistry()
    registry.histogram("wait_seconds", "Wait.").merge(
        HistogramSnapshot(buckets={1: 127, 2: 128, 3: 2**40}, sum=1.0)
    )
    [point] = received(registry)["wait_seconds"].exponential_histogram.data_points
    assert list(point.positive.bucket_counts) == [127, 128, 2**40]


def test_what_a_collector_rejects_is_read_from_its_answer() -> None:
    response = ExportMetricsServiceResponse()
    assert _rejected(response.SerializeToString()) == ""
    response.partial_success.rejected_data_points = 300
    response.partial_success.error_message = "too many labels"
    assert _rejected(response.SerializeToString()) == "300 data points were rejected: too many labels"


@given(st.binary(max_size=60))
def test_an_answer_that_is_garbage_is_no_error(answer: bytes) -> None:
    assert isinstance(_rejected(answer), str)


@pytest.mark.parametrize(
    "settings",
    [
        {"endpoint": "127.0.0.1:4318"},
        {"endpoint": "ftp://host/v1/metrics"},
        {"endpoint": "http:///v1/metrics"},
        {"endpoint": "http://user:password@host/v1/metrics"},
        {"service": ""},
        {"interval": 0.5},
        {"timeout": float("nan")},
    ],
)
def test_a_setting_that_cannot_work_is_refused(settings: dict[str, object]) -> None:
    given = {"endpoint": "http://127.0.0.1:4318/v1/metrics", "service": "feed", **settings}
    endpoint = given.pop("endpoint")
    with pytest.raises(InvalidInput):
        OtlpExporter(MetricRegistry(), endpoint, **given)  # type: ignore[arg-type]


def test_a_thread_whose_source_breaks_goes_on() -> None:
    class Broken:
        def merged(self) -> RegistrySnapshot:
            raise LookupError("broken")

    with OtlpExporter(Broken(), "http://127.0.0.1:9/v1/metrics", service="feed") as exporter:
        pass  # the last export, at the end, is the one that fails
    assert (exporter.failed, exporter.failure) == (1, "LookupError: broken")


def test_a_clock_that_was_set_back_gives_no_point_before_its_start() -> None:
    snapshot = RegistrySnapshot(
        at_utc_seconds=5.0,
        start_utc_seconds=9.0,
        families=(FamilySnapshot(name="a_total", help="A.", kind="counter", values={(): 1.0}),),
    )
    assert struct.pack("<Q", 5_000_000_000) not in encode_otlp(snapshot, {})
