from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fairlead.statistics import proportion_interval, quantile_interval

latencies = st.lists(st.one_of(st.floats(0, 1e6), st.just(math.inf)), max_size=300)


@given(latencies, st.floats(0.001, 0.999), st.integers(1, 40))
def test_an_estimate_is_never_nan_and_brackets_its_value(values: list[float], q: float, size: int) -> None:
    for clusters in (None, np.arange(len(values)) // size):
        estimate = quantile_interval(values, q, clusters=clusters)
        assert (estimate.low is None) == (estimate.high is None)
        if estimate.low is None or estimate.high is None:
            assert estimate.caveat
        else:
            assert estimate.value is not None
            assert estimate.low <= estimate.value <= estimate.high
        if estimate.value is not None:
            share = sum(value <= estimate.value for value in values) / len(values)
            assert share >= q - 1e-9


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=60))
def test_a_proportion_lies_within_its_interval_within_0_to_1(pairs: list[tuple[int, int]]) -> None:
    hits, trials = [min(pair) for pair in pairs], [max(pair) for pair in pairs]
    for estimate in (proportion_interval(hits, trials), proportion_interval(sum(hits), sum(trials))):
        if estimate.low is not None and estimate.high is not None:
            assert estimate.value is not None
            assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
