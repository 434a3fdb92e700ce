"""Metrics arrive at a receiver over HTTP, again and again until it takes them."""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

from fairlead.telemetry import MetricRegistry
from fairlead.telemetry.otlp import OtlpExporter


class Collector(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        self.requests: list[ExportMetricsServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.answers: list[tuple[int, bytes]] = []
        self.hangs = 0.0
        super().__init__(("127.0.0.1", 0), Receiver)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """An exporter that gave up is part of the tests."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/metrics"


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = gzip.decompress(self.rfile.read(int(self.headers["content-length"])))
        time.sleep(self.server.hangs)
        status, answer = self.server.answers.pop(0) if self.server.answers else (200, b"")
        if status == 200:
            self.server.requests.append(ExportMetricsServiceRequest.FromString(body))
            self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
            self.server.paths.append(self.path)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def value(request: ExportMetricsServiceRequest) -> float:
    [metric] = request.resource_metrics[0].scope_metrics[0].metrics
    return float(metric.sum.data_points[0].as_double)


@pytest.fixture
def registry() -> MetricRegistry:
    registry = MetricRegistry()
    registry.counter("loads_total", "Loads.").add(3)
    return registry


def test_an_export_says_who_sends_it_in_the_form_that_the_protocol_asks_for(
    collector: Collector, registry: MetricRegistry
) -> None:
    exporter = OtlpExporter(
        registry,
        collector.endpoint,
        service="feed",
        resource={"region": "eu"},
        headers={"authorization": "Bearer x"},
    )
    assert exporter.export()
    [request] = collector.requests
    attributes = {
        each.key: each.value.string_value for each in request.resource_metrics[0].resource.attributes
    }
    assert attributes.pop("service.instance.id")
    assert attributes == {"service.name": "feed", "region": "eu"}
    assert collector.headers[0]["content-type"] == "application/x-protobuf"
    assert collector.headers[0]["authorization"] == "Bearer x"
    assert collector.paths == ["/v1/metrics"]


def test_what_a_collector_does_not_take_is_in_the_next_export(
    collector: Collector, registry: MetricRegistry
) -> None:
    collector.answers = [(503, b"busy")]
    exporter = OtlpExporter(registry, collector.endpoint, service="feed")
    assert not exporter.export()
    assert "503" in exporter.failure
    registry.counter("loads_total", "Loads.").add(2)
    assert exporter.export()
    assert (value(collector.requests[0]), exporter.exported, exporter.failed, exporter.failure) == (
        5.0,
        1,
        1,
        "",
    )


def test_a_collector_that_is_gone_or_hangs_costs_its_timeout_and_no_more(
    collector: Collector, registry: MetricRegistry
) -> None:
    assert not OtlpExporter(registry, "http://127.0.0.1:9/v1/metrics", service="feed").export()
    collector.hangs = 2.0
    began = time.monotonic()
    exporter = OtlpExporter(registry, collector.endpoint, service="feed", timeout=0.1)
    assert not exporter.export()
    assert time.monotonic() - began < 1.0
    assert "TimeoutError" in exporter.failure


def test_points_that_a_collector_rejects_are_told(collector: Collector, registry: MetricRegistry) -> None:
    response = ExportMetricsServiceResponse()
    response.partial_success.rejected_data_points = 1
    response.partial_success.error_message = "too many labels"
    collector.answers = [(200, response.SerializeToString())]
    exporter = OtlpExporter(registry, collector.endpoint, service="feed")
    assert exporter.export()
    assert exporter.failure == "1 data points were rejected: too many labels"


def test_the_thread_exports_once_more_when_it_is_closed(
    collector: Collector, registry: MetricRegistry
) -> None:
    with OtlpExporter(registry, collector.endpoint, service="feed", interval=1.0):
        until = time.monotonic() + 10.0
        while not collector.requests and time.monotonic() < until:
            time.sleep(0.02)
        registry.counter("loads_total", "Loads.").add(4)
    assert value(collector.requests[-1]) == 7.0
    assert len(collector.requests) == 2
