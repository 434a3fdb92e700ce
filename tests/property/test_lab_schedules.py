from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.lab import Schedule, Surge, Zipf

rates = st.floats(1.0, 200.0)
durations = st.floats(0.1, 20.0)
seeds = st.integers(0, 2**32 - 1)


def _draw(rate: float, duration: float, seed: int) -> Schedule:
    rng = np.random.default_rng(seed)
    return Schedule.poisson(rate=rate, duration=duration, popularity=Zipf(50, 1.0), users=9, rng=rng)


@given(rates, durations, seeds, st.floats(0.01, 0.99))
@settings(max_examples=200, deadline=None)
def test_two_slices_hold_every_request_exactly_once(
    rate: float, duration: float, seed: int, cut: float
) -> None:
    schedule = _draw(rate, duration, seed)
    parts = [schedule.slice(0.0, duration * cut), schedule.slice(duration * cut, duration)]
    joined = Schedule.concatenate(parts)
    assert joined.keys.tolist() == schedule.keys.tolist()
    assert joined.users.tolist() == schedule.users.tolist()
    assert np.allclose(joined.offsets, schedule.offsets, rtol=0, atol=1e-9)


@given(rates, durations, seeds, st.floats(1.0, 5.0), st.floats(0.0, 0.5))
@settings(max_examples=200, deadline=None)
def test_a_surge_only_ever_adds_and_stays_in_order(
    rate: float, duration: float, seed: int, factor: float, ramp: float
) -> None:
    schedule = _draw(rate, duration, seed)
    if len(schedule) == 0:
        return
    surge = Surge(start=0.0, end=duration, factor=factor, ramp=duration * ramp, hot_keys=(77,))
    viral = schedule.with_surge(surge, np.random.default_rng(seed))
    assert (np.diff(viral.offsets) >= 0).all()
    assert viral.offsets[viral.keys != 77].tolist() == schedule.offsets.tolist()
    assert viral.duration == schedule.duration


@given(st.integers(1, 500), st.floats(0.0, 3.0), seeds)
@settings(max_examples=200, deadline=None)
def test_zipf_draws_only_its_keys_and_its_probabilities_fall_and_sum_to_one(
    keys: int, alpha: float, seed: int
) -> None:
    zipf = Zipf(keys, alpha)
    drawn = zipf.sample(1_000, np.random.default_rng(seed))
    assert drawn.min() >= 0
    assert drawn.max() < keys
    shares = np.array([zipf.probability(key) for key in range(keys)])
    assert abs(shares.sum() - 1.0) < 1e-9
    assert (np.diff(shares) <= 1e-12).all()
