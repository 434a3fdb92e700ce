from __future__ import annotations

import numpy as np
import pytest

from fairlead.errors import InvalidInput
from fairlead.lab import Schedule, Surge, Zipf


def _schedule(*offsets: float, duration: float = 10.0) -> Schedule:
    n = len(offsets)
    return Schedule(
        offsets=np.array(offsets, dtype=np.float64), keys=np.arange(n), users=np.arange(n), duration=duration
    )


def test_a_schedule_cannot_be_changed_by_whoever_made_its_arrays() -> None:
    offsets = np.array([1.0, 2.0])
    schedule = Schedule(
        offsets=offsets, keys=np.zeros(2, np.int64), users=np.zeros(2, np.int64), duration=3.0
    )
    offsets[0] = 99.0
    assert schedule.offsets.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="read-only"):
        schedule.offsets[0] = 5.0


def test_the_rate_counts_the_silence_at_the_end() -> None:
    assert _schedule(0.0, 1.0, 2.0, duration=6.0).rate == 0.5


def test_slices_share_out_every_request_and_begin_at_zero() -> None:
    schedule = _schedule(0.0, 1.0, 5.0, 9.9, 10.0)
    first, second = schedule.slice(0.0, 5.0), schedule.slice(5.0, 10.0)
    assert first.offsets.tolist() == [0.0, 1.0]
    assert second.offsets.tolist() == pytest.approx([0.0, 4.9, 5.0])
    assert second.keys.tolist() == [2, 3, 4]
    assert second.duration == 5.0


def test_concatenation_shifts_each_part_by_the_durations_before_it() -> None:
    joined = Schedule.concatenate([_schedule(1.0, duration=2.0), _schedule(0.5, duration=3.0)])
    assert joined.offsets.tolist() == [1.0, 2.5]
    assert joined.duration == 5.0


def test_merging_keeps_each_request_with_its_key() -> None:
    merged = _schedule(1.0, 3.0).merge(
        Schedule(offsets=np.array([2.0]), keys=np.array([42]), users=np.array([7]), duration=4.0)
    )
    assert merged.offsets.tolist() == [1.0, 2.0, 3.0]
    assert merged.keys.tolist() == [0, 42, 1]
    assert merged.users.tolist() == [0, 7, 1]


def test_a_surge_asks_for_the_hot_keys_only_and_leaves_the_base_traffic_as_it_was() -> None:
    rng = np.random.default_rng(1)
    base = Schedule.poisson(rate=100.0, duration=10.0, popularity=Zipf(50), users=20, rng=rng)
    viral = base.with_surge(Surge(start=2.0, end=8.0, factor=3.0, hot_keys=(900, 901)), rng)
    hot = viral.keys >= 900
    assert viral.offsets[~hot].tolist() == base.offsets.tolist()
    assert viral.keys[~hot].tolist() == base.keys.tolist()
    assert set(viral.keys[hot].tolist()) == {900, 901}
    assert viral.offsets[hot].min() >= 2.0
    assert viral.offsets[hot].max() < 8.0
    assert set(viral.users.tolist()) <= set(range(20))


def test_a_surge_after_the_end_is_refused() -> None:
    with pytest.raises(InvalidInput, match="ends at 11 s"):
        _schedule(1.0).with_surge(Surge(start=1.0, end=11.0, factor=2.0), np.random.default_rng(1))


@pytest.mark.parametrize(
    ("message", "columns"),
    [
        ("lengths 2, 1 and 2 differ", {"keys": [0]}),
        ("not sorted", {"offsets": [2.0, 1.0]}),
        ("NaN or infinity", {"offsets": [1.0, float("nan")]}),
        ("outside the duration", {"offsets": [1.0, 11.0]}),
        ("outside the duration", {"offsets": [-1.0, 1.0]}),
        ("negative", {"users": [0, -1]}),
        ("keys: shape", {"keys": [0.5, 1.5]}),
        ("offsets: shape", {"offsets": [[1.0, 2.0]]}),
        ("offsets: shape", {"offsets": ["a", "b"]}),
        ("duration: ", {"duration": 0.0}),
        ("duration: ", {"duration": float("nan")}),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_with_the_reason(
    message: str, columns: dict[str, object]
) -> None:
    settings: dict[str, object] = {"offsets": [1.0, 2.0], "keys": [0, 1], "users": [0, 1], "duration": 10.0}
    with pytest.raises(InvalidInput, match=message):
        Schedule(**{**settings, **columns})  # type: ignore[arg-type]  # wrong on purpose
