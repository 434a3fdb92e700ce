"""The hottest keys, found in bounded memory."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.cache import HotKeys
from fairlead.clock import ManualClock
from fairlead.errors import InvalidInput
from fairlead.telemetry import MetricRegistry


@given(st.lists(st.integers(0, 40), max_size=300), st.integers(1, 20))
def test_every_key_above_its_part_is_reported_and_every_bound_holds(keys: list[int], capacity: int) -> None:
    hot = HotKeys(capacity=capacity, clock=ManualClock())
    for key in keys:
        hot.add(key)
    true = Counter(keys)
    found = {each.key: each for each in hot.top(capacity)}
    assert len(found) == min(capacity, len(true))
    assert sum(each.count for each in found.values()) == hot.total == len(keys)
    assert {key for key, count in true.items() if count > len(keys) / capacity} <= found.keys()
    for key, each in found.items():
        assert each.count - each.error <= true[key] <= each.count
        assert each.share == hot.share(key)
    counts = [each.count for each in hot.top(capacity)]
    assert counts == sorted(counts, reverse=True)


@given(st.lists(st.lists(st.integers(0, 12), max_size=60), max_size=5), st.integers(1, 8))
def test_bounds_hold_of_counts_that_fade(minutes: list[list[int]], capacity: int) -> None:
    clock = ManualClock()
    hot = HotKeys(capacity=capacity, half_life=60.0, clock=clock)
    true: dict[int, float] = {}
    for keys in minutes:
        for key in keys:
            hot.add(key)
            true[key] = true.get(key, 0.0) + 1
        clock.advance(60.0)
        true = {key: count / 2 for key, count in true.items()}
    found = {each.key: each for each in hot.top(capacity)}
    for key, each in found.items():
        assert each.count - each.error <= true[key] <= each.count
    assert sum(each.count for each in found.values()) == hot.total
    assert {key for key, count in true.items() if count > hot.total / capacity} <= found.keys()


def test_yesterdays_heat_fades() -> None:
    clock = ManualClock()
    hot = HotKeys(capacity=8, half_life=60.0, clock=clock)
    for _ in range(10_000):
        hot.add("yesterday")
    clock.advance(86_400.0)
    for _ in range(10):
        hot.add("today")
    assert hot.top(1)[0].key == "today"
    assert hot.share("yesterday") == 0.0


def test_the_clock_is_read_without_anybody_asking() -> None:
    clock = ManualClock()
    hot = HotKeys(capacity=8, half_life=60.0, clock=clock)
    for _ in range(256):
        hot.add("a")
    clock.advance(61.0)
    for _ in range(256):
        hot.add("b")
    assert hot.total == 128 + 256


def test_the_share_of_what_is_not_known_is_nothing() -> None:
    hot = HotKeys(capacity=1)
    assert (hot.share("a"), hot.top(), hot.total, repr(hot)) == (0.0, [], 0, "HotKeys(0 keys)")
    hot.add("a")
    hot.clear()
    hot.add("b")
    assert [each.key for each in hot.top()] == ["b"]


def test_a_half_life_without_end_fades_nothing() -> None:
    clock = ManualClock()
    hot = HotKeys(half_life=math.inf, clock=clock)
    hot.add("a")
    clock.advance(1e9)
    assert hot.top(1)[0].count == 1


@pytest.mark.parametrize(
    "wrong",
    [{"capacity": 0}, {"capacity": True}, {"half_life": 0.0}, {"half_life": math.nan}, {"half_life": -1}],
)
def test_settings_out_of_bounds_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        HotKeys(**wrong)


def test_an_exported_sketch_says_how_uneven_the_traffic_is() -> None:
    hot, registry = HotKeys(clock=ManualClock()), MetricRegistry()
    hot.export(registry, name="feed")

    def read() -> dict[str, float]:
        return {
            family.name.removeprefix("fairlead_hot_keys_"): family.values[("feed",)]
            for family in registry.snapshot().families
        }

    assert read() == {"calls": 0, "distinct": 0, "hottest_share": 0, "amplification": 0}
    for key in "abcd":
        hot.add(key)
    assert read() == {"calls": 4, "distinct": 4, "hottest_share": 0.25, "amplification": 1.0}
    for _ in range(96):
        hot.add("a")
    assert read() == {"calls": 100, "distinct": 4, "hottest_share": 0.97, "amplification": 3.88}
