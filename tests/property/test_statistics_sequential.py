"""What is watched keeps its word for any data: interval, p-value and e-value are one test, at any size."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.statistics import Hypothesis, sequential_counts

COUNTS = st.one_of(st.integers(0, 30), st.integers(0, 10**5), st.integers(0, 10**12))
SHARES = st.floats(0.001, 0.999)
PLANS = st.one_of(st.integers(1, 1000), st.integers(1, 10**9))
SIDES = st.sampled_from(["two_sided", "greater", "less"])
RATIOS = st.floats(0.05, 20.0)


@settings(max_examples=150, deadline=None)
@given(COUNTS, COUNTS, SHARES, PLANS, SIDES, RATIOS)
def test_the_interval_of_counts_leaves_a_ratio_out_exactly_when_it_is_rejected(
    control: int, treatment: int, share: float, plan: int, side: str, ratio: float
) -> None:
    hypothesis = Hypothesis(alternative=side, ratio=ratio)  # type: ignore[arg-type]
    found = sequential_counts(
        control, treatment, treatment_share=share, tuned_for=plan, hypothesis=hypothesis
    )
    assert math.isfinite(found.log_e_value)
    assert 0 < found.p_value <= 1
    below = found.low is not None and ratio < found.low
    above = found.high is not None and ratio > found.high
    ends = [end for end in (found.low, found.high) if end is not None]
    if any(math.isclose(ratio, end, rel_tol=1e-6) for end in ends):
        return  # on the very border, rounding decides
    assert (below or above) == (found.p_value <= 0.05)
