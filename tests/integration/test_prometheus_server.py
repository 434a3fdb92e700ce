"""A real Prometheus scrapes us, and its answers about our data are ours within the width of its buckets."""

from __future__ import annotations

import math
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from fairlead.telemetry import MetricRegistry
from fairlead.telemetry.prometheus import CONTENT_TYPE, render

CONFIGURATION = """
global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}
scrape_configs:
  - job_name: feed
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


class Service(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, registry: MetricRegistry) -> None:
        self.registry = registry
        super().__init__(("127.0.0.1", 0), Pages)


class Pages(BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        body = render(self.server.registry).encode()
        self.send_response(200)
        self.send_header("content-type", CONTENT_TYPE)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def registry() -> MetricRegistry:
    return MetricRegistry()


@pytest.fixture
def prometheus(registry: MetricRegistry, tmp_path: Path) -> Iterator[httpx.Client]:
    service = Service(registry)
    serving = Thread(target=service.serve_forever, args=(0.01,))
    serving.start()
    (tmp_path / "prometheus.yml").write_text(CONFIGURATION.format(port=service.server_address[1]))
    port = free_port()
    server = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            yield client
    finally:
        server.terminate()
        server.wait(timeout=20)
        service.shutdown()
        serving.join()
        service.server_close()


def ask(prometheus: httpx.Client, query: str) -> float | None:
    try:
        answer = prometheus.get("/api/v1/query", params={"query": query})
    except httpx.TransportError:
        return None
    if answer.status_code != 200:
        return None
    result = answer.json()["data"]["result"]
    return float(result[0]["value"][1]) if result else None


def ask_until(prometheus: httpx.Client, query: str, expected: float) -> None:
    end = time.monotonic() + 20.0
    while ask(prometheus, query) != expected:
        assert time.monotonic() < end, f"{query} never was {expected}: {ask(prometheus, query)}"
        time.sleep(0.05)


def test_its_quantiles_and_rates_are_ours(registry: MetricRegistry, prometheus: httpx.Client) -> None:
    rng = random.Random(5)
    waits = registry.histogram("wait_seconds", "Wait.", labels=("route",))
    loads = registry.counter("loads_total", "Loads.")
    merged = MetricRegistry().histogram("wait_seconds", "Wait.")
    for route, middle in (("/fast", -5.0), ("/slow", -2.0)):
        waits.labels(route=route).observe_many([rng.lognormvariate(middle, 0.8) for _ in range(5_000)])
        merged.merge(waits.labels(route=route))
    waits.labels(route="/fast").observe(0.0)
    merged.observe(0.0)

    # The counter climbs by 400 a second of this clock while Prometheus scrapes by its own.
    began = time.monotonic()
    loads.track(lambda: 400.0 * (time.monotonic() - began))
    while (ask(prometheus, "count_over_time(loads_total[10s])") or 0) < 15:
        assert time.monotonic() < began + 30.0, "Prometheus does not scrape"
        time.sleep(0.02)
    assert ask(prometheus, "rate(loads_total[2s])") == pytest.approx(400.0, rel=0.1)

    ask_until(prometheus, "sum(wait_seconds_count)", 10_001.0)
    assert ask(prometheus, "up") == 1.0
    for q in (0.5, 0.9, 0.99, 0.999):
        for route in ("/fast", "/slow"):
            theirs = ask(prometheus, f'histogram_quantile({q}, wait_seconds_bucket{{route="{route}"}})')
            assert theirs is not None
            # They interpolate inside one of their buckets, 2^(1/4) wide; ours lies in the same one, within 1.1 %.
            assert abs(math.log2(theirs / waits.labels(route=route).quantile(q))) <= 0.25 + math.log2(1.011)
        theirs = ask(prometheus, f"histogram_quantile({q}, sum by (le) (wait_seconds_bucket))")
        assert theirs is not None
        assert abs(math.log2(theirs / merged.quantile(q))) <= 0.25 + math.log2(1.011)
    assert ask(prometheus, "sum(wait_seconds_sum)") == pytest.approx(merged.sum)
