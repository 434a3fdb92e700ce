"""Quantiles of native histograms, as a real Prometheus keeps them: written by its remote-write API, read by ours.

Debian's Prometheus scrapes native histograms by Protocol Buffers only, which we do not speak; what is tried here is the
reading. The message is encoded by hand: a dozen fields, and Snappy's literals.
"""

from __future__ import annotations

import random
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fairlead.metrics.prometheus import PrometheusServer
from fairlead.telemetry import Histogram, HistogramSnapshot

SCHEMA = 5


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1


def field(number: int, value: int | float | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 1) + struct.pack("<d", value)
    return varint(number << 3) + varint(value)


def native(snapshot: HistogramSnapshot, total: float, at_milliseconds: int) -> bytes:
    """prometheus.Histogram of prompb/types.proto; bucket i ends at 2^(i/32), there as here."""
    counts = snapshot.buckets
    spans, deltas, last_index, last_count = [], [], None, 0
    for index in sorted(counts):
        if last_index is None or index != last_index + 1:
            spans.append([index if last_index is None else index - last_index - 1, 0])
        spans[-1][1] += 1
        deltas.append(counts[index] - last_count)
        last_index, last_count = index, counts[index]
    parts = [
        field(1, sum(counts.values()) + snapshot.zero_count),
        field(3, total),
        field(4, zigzag(SCHEMA)),
        field(5, 1e-128),
        field(6, snapshot.zero_count),
        *(field(11, field(1, zigzag(offset)) + field(2, length)) for offset, length in spans),
        field(12, b"".join(varint(zigzag(delta)) for delta in deltas)),
        field(15, at_milliseconds),
    ]
    return b"".join(parts)


def write_request(name: str, histograms: list[bytes]) -> bytes:
    label = field(1, field(1, b"__name__") + field(2, name.encode()))
    return field(1, label + b"".join(field(4, each) for each in histograms))


def snappy(data: bytes) -> bytes:
    """A block of Snappy that holds its data as they are."""
    out = varint(len(data))
    for start in range(0, len(data), 60_000):
        part = data[start : start + 60_000]
        out += bytes([61 << 2]) + struct.pack("<H", len(part) - 1) + part
    return out


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "prometheus.yml").write_text("global: {}\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                "prometheus",
                "--config.file=prometheus.yml",
                "--storage.tsdb.path=data",
                "--enable-feature=native-histograms",
                "--web.enable-remote-write-receiver",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 20
        while True:
            try:
                if httpx.get(f"{url}/-/ready", timeout=1).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert time.monotonic() < end, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.05)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=20)


def test_a_quantile_of_a_native_histogram_is_ours_within_a_bucket(prometheus: str) -> None:
    rng = random.Random(3)
    waits = Histogram()
    values = [rng.lognormvariate(-3.0, 0.8) for _ in range(20_000)]
    now = int(time.time() * 1000)
    written = [native(waits.snapshot(), 0.0, now - 40_000)]
    for part, at in ((values[:5_000], now - 20_000), (values[5_000:], now - 1_000)):
        for value in part:
            waits.observe(value)
        written.append(native(waits.snapshot(), sum(values), at))
    answer = httpx.post(
        f"{prometheus}/api/v1/write",
        content=snappy(write_request("wait_seconds", written)),
        headers={
            "content-encoding": "snappy",
            "content-type": "application/x-protobuf",
            "x-prometheus-remote-write-version": "0.1.0",
        },
        timeout=10,
    )
    assert answer.status_code == 204, answer.text
    with PrometheusServer(prometheus) as server:
        for q in (0.5, 0.9, 0.99, 0.999):
            reading = server.quantile("wait_seconds", q, 60.0, native=True)
            assert reading.reason is None, reading
            assert reading.value is not None
            # A bucket is 2^(1/32) wide, and Prometheus interpolates in it.
            assert reading.value == pytest.approx(waits.quantile(q), rel=0.023)
            assert reading.n is not None
            assert 20_000 <= reading.n <= 35_000  # increase() extrapolates to the edges of its window
        silent = server.quantile("nobody_seconds", 0.9, 60.0, native=True)
        assert (silent.value, silent.reason) == (None, "no_data")
