"""The page of a program that has no web server."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from pathlib import Path

import httpx
import pytest

from fairlead.errors import InvalidInput, PortInUse
from fairlead.telemetry import MetricRegistry, WorkerMetrics
from fairlead.telemetry.prometheus import CONTENT_TYPE, ScrapeServer, render


@pytest.fixture
def registry() -> MetricRegistry:
    registry = MetricRegistry()
    registry.counter("loads_total", "Loads.").add(3)
    return registry


def test_any_path_shows_the_page_until_the_block_ends(registry: MetricRegistry) -> None:
    with ScrapeServer(registry) as server:
        answer = httpx.get(f"http://127.0.0.1:{server.port}/metrics")
        assert (answer.status_code, answer.text) == (200, render(registry))
        assert answer.headers["content-type"] == CONTENT_TYPE
        port = server.port
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics")
    assert [thread.name for thread in threading.enumerate() if thread.name == "fairlead-scrape"] == []


def test_a_client_that_leaves_at_once_keeps_nobody_out(registry: MetricRegistry) -> None:
    with ScrapeServer(registry) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as silent:
            silent.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert httpx.get(f"http://127.0.0.1:{server.port}/").status_code == 200


def test_a_port_that_is_taken_is_said(registry: MetricRegistry) -> None:
    with ScrapeServer(registry) as server, pytest.raises(PortInUse, match=str(server.port)):
        ScrapeServer(registry, port=server.port).start()
    with pytest.raises(InvalidInput, match="cannot serve"):
        ScrapeServer(registry, host="192.0.2.1").start()
    with pytest.raises(InvalidInput, match="port"):
        ScrapeServer(registry, port=70_000)


def test_a_sum_that_cannot_be_whole_is_a_503(registry: MetricRegistry, tmp_path: Path) -> None:
    workers = WorkerMetrics(registry, tmp_path / "m", spawn=False)
    with ScrapeServer(workers) as server:
        answer = httpx.get(f"http://127.0.0.1:{server.port}/metrics")
        assert answer.status_code == 503
        assert "start() was not called" in answer.text


def test_a_client_that_says_a_byte_at_a_time_keeps_the_others_out_for_five_seconds_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fairlead.telemetry.prometheus._PATIENCE", 0.5)
    with (
        ScrapeServer(MetricRegistry()) as server,
        socket.create_connection(("127.0.0.1", server.port)) as dripping,
    ):
        dripping.sendall(b"G")
        began = time.monotonic()
        while time.monotonic() - began < 3.0:
            try:
                dripping.sendall(b"E")
            except OSError:
                break
            time.sleep(0.1)
        assert time.monotonic() - began < 2.0
        urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=2.0).close()
