"""A real Prometheus scrapes us, and its answers about our data are ours within the width of its buckets."""

from __future__ import annotations

import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from fairlead.metrics.prometheus import PrometheusServer
from fairlead.telemetry import MetricRegistry, WorkerMetrics
from fairlead.telemetry.prometheus import ScrapeServer

CONFIGURATION = """
global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}
scrape_configs:
  - job_name: feed
    static_configs: [{{targets: ["127.0.0.1:{feed}"]}}]
  - job_name: workers
    scrape_timeout: 1s
    scrape_interval: 1s
    static_configs: [{{targets: ["127.0.0.1:{workers}"]}}]
"""

WORKER = """
import sys, time
from fairlead.metrics.prometheus import PrometheusServer
from fairlead.telemetry import MetricRegistry, WorkerMetrics
registry = MetricRegistry()
jobs = registry.counter("jobs_total", "Jobs.")
with WorkerMetrics(registry, sys.argv[1], interval=0.1):
    while True:
        jobs.add(10)
        time.sleep(0.1)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Watched:
    prometheus: httpx.Client
    registry: MetricRegistry
    """Of this process, scraped as job `feed`."""
    directory: Path
    """Of workers, scraped as job `workers`."""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    path = tmp_path_factory.mktemp("prometheus")
    registry = MetricRegistry()
    workers = WorkerMetrics(MetricRegistry(), path / "metrics", interval=0.1)
    with ScrapeServer(registry) as feed, workers, ScrapeServer(workers) as all_workers:
        (path / "prometheus.yml").write_text(CONFIGURATION.format(feed=feed.port, workers=all_workers.port))
        port = free_port()
        server = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={path / 'prometheus.yml'}",
                f"--storage.tsdb.path={path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=error",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
                yield Watched(client, registry, path / "metrics")
        finally:
            server.terminate()
            server.wait(timeout=20)
    with suppress(ProcessLookupError):
        os.kill(int((path / "metrics" / "lock").read_text()), signal.SIGTERM)


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


def test_a_killed_worker_is_no_restart_and_no_burst(watched: Watched) -> None:
    prometheus = watched.prometheus

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", WORKER, str(watched.directory)])

    running = [start() for _ in range(3)]
    try:
        ask_until(prometheus, 'fairlead_workers{state="answering"}', 4.0)
        time.sleep(2.0)  # of a history that a reset would be seen in
        running[0].kill()
        running[0].wait()
        running[0] = start()
        ask_until(prometheus, "fairlead_workers_ended_total", 1.0)
        ask_until(prometheus, 'fairlead_workers{state="answering"}', 4.0)
        assert ask(prometheus, "resets(jobs_total[1m])") == 0.0
        # 300 jobs a second by three workers, whatever became of one of them; a reset would show thousands at once.
        most = ask(prometheus, "max_over_time(rate(jobs_total[2s])[20s:500ms])")
        assert most is not None
        assert most < 450.0
        assert ask(prometheus, 'min_over_time(up{job="workers"}[10s])') == 1.0
    finally:
        for worker in running:
            worker.kill()
            worker.wait()


def test_its_quantiles_and_rates_are_ours(watched: Watched) -> None:
    registry, prometheus = watched.registry, watched.prometheus
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
    assert ask(prometheus, 'up{job="feed"}') == 1.0
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


def test_readings_are_what_was_counted(watched: Watched) -> None:
    registry = watched.registry
    jobs = registry.counter("readings_jobs_total", "Jobs.", labels=("state",))
    waits = registry.histogram("readings_wait_seconds", "Wait.")
    url = str(watched.prometheus.base_url)
    with PrometheusServer(url, stale_after=30.0) as server:
        assert server.rate("readings_nothing_total", 10.0).reason == "no_data"
        end = time.monotonic() + 30.0
        while True:
            for _ in range(20):
                jobs.labels(state="ok").add(9)
                jobs.labels(state="failed").add(1)
                waits.observe(0.1)
            share = server.ratio(
                "readings_jobs_total", "readings_jobs_total", 10.0, where={"state": "failed"}
            )
            median = server.quantile("readings_wait_seconds", 0.5, 10.0)
            rate = server.rate("readings_jobs_total", 10.0)
            # After two seconds or so of scrapes: a window that holds two of them shows what lay between those alone.
            if share.value is not None and median.value is not None and rate.value and (share.n or 0) > 3_000:
                break
            assert time.monotonic() < end, (share, median, rate)
            time.sleep(0.1)
        assert share.value == pytest.approx(0.1, rel=0.1)
        assert median.value == pytest.approx(0.1, rel=0.1)
        assert share.n is not None
        assert share.n > 0
        assert server.quantile("readings_wait_seconds", 0.5, 10.0, native=True).reason == "no_data"
        assert server.rate("up", 10.0, {"job": "none"}).reason == "no_data"
    with PrometheusServer("http://127.0.0.1:9", timeout=2.0) as nobody:
        assert nobody.rate("up", 10.0).reason == "query_error"
