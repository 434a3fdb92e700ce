"""For any values at all: quantiles within 1.1 % of the exact order statistic, and merging loses nothing."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.telemetry import Histogram, HistogramSnapshot

# Normal floats: below 2.3e-308 a float itself no longer holds 1 %.
values = st.floats(min_value=2.3e-308, max_value=1.7e308) | st.just(0.0)
latencies = st.floats(min_value=1e-7, max_value=1e4)
shares = st.floats(min_value=0.0, max_value=1.0)

LARGEST_ERROR = 0.011


def histogram_of(observed: list[float]) -> Histogram:
    histogram = Histogram()
    histogram.observe_many(observed)
    return histogram


@given(st.lists(values | latencies, min_size=1, max_size=200), shares)
def test_a_quantile_is_within_1_1_percent_of_the_exact_order_statistic(
    observed: list[float], q: float
) -> None:
    exact = sorted(observed)[max(1, math.ceil(q * len(observed))) - 1]
    estimate = histogram_of(observed).quantile(q)
    assert estimate == exact == 0.0 or abs(estimate - exact) <= LARGEST_ERROR * exact


@given(st.integers(min_value=-1_022 * 32 + 1, max_value=1_023 * 32), st.sampled_from([-1, 0, 1]))
def test_a_value_next_to_a_bucket_bound_stays_within_the_error_too(index: int, step: int) -> None:
    bound = math.ldexp(2 ** ((index % 32) / 32), index // 32)
    value = bound if step == 0 else math.nextafter(bound, math.inf * step)
    assert histogram_of([value]).quantile(0.5) == pytest.approx(value, rel=LARGEST_ERROR)


@given(st.lists(latencies, min_size=1, max_size=100))
def test_quantiles_never_fall_as_q_grows(observed: list[float]) -> None:
    histogram = histogram_of(observed)
    found = [histogram.quantile(q / 20) for q in range(21)]
    assert found == sorted(found)


@given(st.lists(values), st.lists(values))
def test_merging_equals_having_seen_everything(one: list[float], other: list[float]) -> None:
    merged, whole = histogram_of(one), histogram_of(one + other)
    merged.merge(histogram_of(other))
    assert merged.snapshot().buckets == whole.snapshot().buckets
    assert merged.snapshot().zero_count == whole.snapshot().zero_count
    assert merged.count == len(one) + len(other)
    assert merged.sum == pytest.approx(whole.sum)


@given(st.lists(st.floats()))
def test_every_float_is_either_counted_or_rejected(observed: list[float]) -> None:
    histogram = histogram_of(observed)
    usable = [value for value in observed if 0 <= value < math.inf]
    assert histogram.count == len(usable)
    assert histogram.rejected == len(observed) - len(usable)


@given(st.lists(latencies))
def test_a_snapshot_survives_json_and_messagepack(observed: list[float]) -> None:
    snapshot = histogram_of(observed).snapshot()
    for codec in (msgspec.json, msgspec.msgpack):
        read = codec.decode(codec.encode(snapshot), type=HistogramSnapshot)
        assert Histogram.from_snapshot(read).snapshot() == snapshot
