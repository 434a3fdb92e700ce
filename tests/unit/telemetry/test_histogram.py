"""Buckets are where the specification puts them, and odd values do no harm."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterator

import msgspec
import pytest

from fairlead.errors import InvalidInput
from fairlead.telemetry import Histogram, HistogramSnapshot
from fairlead.telemetry.histogram import upper_bound


def buckets_of(*values: float) -> dict[int, int]:
    histogram = Histogram()
    histogram.observe_many(values)
    return histogram.snapshot().buckets


@pytest.mark.parametrize(
    ("value", "index"),
    [(1.0, 0), (2.0, 32), (0.5, -32), (1024.0, 320), (2.0**-30, -960), (1.01, 1), (0.99, 0), (1.5, 19)],
)
def test_a_power_of_two_is_the_inclusive_upper_bound_of_its_bucket(value: float, index: int) -> None:
    # Prometheus native histograms, schema 5: bucket i holds (2^((i-1)/32), 2^(i/32)].
    assert buckets_of(value) == {index: 1}
    assert 2 ** ((index - 1) / 32) < value <= 2 ** (index / 32)


def test_there_are_32_buckets_to_an_octave() -> None:
    assert buckets_of(math.nextafter(1.0, 2.0)) == {1: 1}
    assert len(buckets_of(*(1.0 + step / 10_000 for step in range(1, 10_001)))) == 32


def test_upper_bounds_are_powers_of_the_base_and_never_overflow() -> None:
    assert upper_bound(0) == 1.0
    assert upper_bound(8) == pytest.approx(2**0.25, rel=1e-15)
    assert upper_bound(-33) == pytest.approx(2 ** (-33 / 32), rel=1e-15)
    assert upper_bound(32_768) == math.inf


def test_count_sum_and_mean_are_exact() -> None:
    histogram = Histogram()
    histogram.observe_many([0.5, 0.25, 0.0, 1.25])
    assert (histogram.count, histogram.sum, histogram.mean) == (4, 2.0, 0.5)


def test_an_empty_histogram_has_no_quantile_and_no_mean() -> None:
    histogram = Histogram()
    assert math.isnan(histogram.quantile(0.5))
    assert math.isnan(histogram.mean)
    assert histogram.count == 0


def test_zeros_of_either_sign_have_a_bucket_of_their_own() -> None:
    histogram = Histogram()
    histogram.observe_many([0.0, -0.0, 0, 1.0])
    assert histogram.snapshot().zero_count == 3
    assert histogram.quantile(0.75) == 0.0
    assert histogram.quantile(1.0) == pytest.approx(1.0, rel=0.011)


NO_LATENCIES = [math.nan, math.inf, -math.inf, -1.0, -5e-324, 10**400, -(10**400)]


@pytest.mark.parametrize("value", NO_LATENCIES, ids=lambda value: repr(value)[:8])
def test_what_is_no_latency_is_rejected_counted_and_spoils_nothing(value: float) -> None:
    histogram = Histogram()
    histogram.observe(1.0)
    histogram.observe(value)
    assert (histogram.count, histogram.sum, histogram.rejected) == (1, 1.0, 1)


@pytest.mark.parametrize("value", [5e-324, 2.2250738585072014e-308, 1.7976931348623157e308])
def test_the_smallest_and_the_largest_float_have_buckets_and_finite_quantiles(value: float) -> None:
    histogram = Histogram()
    histogram.observe(value)
    assert histogram.rejected == 0
    assert math.isfinite(histogram.quantile(0.5))
    assert Histogram.from_snapshot(histogram.snapshot()).count == 1


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan, 99.0])
def test_a_quantile_outside_zero_to_one_is_refused(q: float) -> None:
    with pytest.raises(InvalidInput, match="between 0 and 1"):
        Histogram().quantile(q)


def test_a_snapshot_survives_json_and_does_not_follow_the_histogram() -> None:
    histogram = Histogram()
    histogram.observe_many([0.0, 0.003, 250.0, -1.0])
    snapshot = histogram.snapshot()
    histogram.observe(1.0)
    read = msgspec.json.decode(msgspec.json.encode(snapshot), type=HistogramSnapshot)
    assert read == snapshot
    again = Histogram.from_snapshot(read)
    assert (again.count, again.rejected, again.sum) == (3, 1, snapshot.sum)


@pytest.mark.parametrize(
    "document",
    [
        HistogramSnapshot(schema=4),
        HistogramSnapshot(buckets={1: -1}),
        HistogramSnapshot(buckets={40_000: 1}),
        HistogramSnapshot(buckets={-40_000: 1}),
        HistogramSnapshot(zero_count=-1),
        HistogramSnapshot(rejected=-1),
        HistogramSnapshot(sum=math.nan),
        HistogramSnapshot(sum=-1.0),
    ],
    ids=str,
)
def test_an_impossible_snapshot_is_refused(document: HistogramSnapshot) -> None:
    with pytest.raises(InvalidInput, match="histogram"):
        Histogram.from_snapshot(document)


def test_a_refused_snapshot_leaves_the_histogram_as_it_was() -> None:
    histogram = Histogram()
    histogram.observe(1.0)
    before = histogram.snapshot()
    with pytest.raises(InvalidInput):
        histogram.merge(HistogramSnapshot(buckets={1: 5, 40_000: 1}, zero_count=3))
    assert histogram.snapshot() == before


def test_a_negative_count_is_refused_while_decoding() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"buckets":{"1":-3}}', type=HistogramSnapshot)


@pytest.fixture
def threads_switch_often() -> Iterator[None]:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("threads_switch_often")
def test_threads_that_observe_together_lose_no_count() -> None:
    histogram = Histogram()
    start = threading.Barrier(4)

    def observe() -> None:
        start.wait()
        for number in range(1, 5_001):
            histogram.observe(number / 100)

    threads = [threading.Thread(target=observe) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert histogram.count == 20_000
    assert histogram.sum == pytest.approx(4 * sum(range(1, 5_001)) / 100)
