from __future__ import annotations

import numpy as np
import pytest

from fairlead.errors import InvalidInput
from fairlead.statistics import proportion_interval


def test_wilson_agrees_with_a_value_worked_by_hand() -> None:
    # z = 1.959964: centre (0.1 + z²/200) / (1 + z²/100), half z·sqrt(0.0009 + z²/40000) / (1 + z²/100)
    estimate = proportion_interval(10, 100)
    assert estimate.value == 0.1
    assert estimate.low == pytest.approx(0.055229, abs=1e-6)
    assert estimate.high == pytest.approx(0.174366, abs=1e-6)


def test_the_ends_of_the_range_are_reached_exactly_and_keep_a_width() -> None:
    none, all_of_them = proportion_interval(0, 1000), proportion_interval(1000, 1000)
    assert none.low == 0.0
    assert none.high is not None
    assert 0.003 < none.high < 0.005
    assert all_of_them.high == 1.0
    assert all_of_them.low == pytest.approx(1 - none.high)


def test_no_trials_give_no_value_and_say_so() -> None:
    for estimate in (
        proportion_interval(0, 0),
        proportion_interval([], []),
        proportion_interval([0, 0], [0, 0]),
    ):
        assert (estimate.value, estimate.low, estimate.high) == (None, None, None)
        assert estimate.caveat == "no data"


def test_events_that_come_together_widen_the_interval() -> None:
    apart = proportion_interval([2] * 50, [100] * 50)
    together = proportion_interval([100] + [0] * 49, [100] * 50)
    assert apart.value == together.value == 0.02
    assert together.high and apart.high  # noqa: PT018  # narrows two types at once
    assert together.high > 3 * apart.high


def test_clusters_without_trials_do_not_count() -> None:
    assert proportion_interval([1, 0, 3], [10, 0, 10]).clusters == 2


def test_one_cluster_gives_no_interval_and_no_event_a_caveat() -> None:
    assert proportion_interval([3], [10]).low is None
    silent = proportion_interval([0, 0, 0], [10, 10, 10])
    assert silent.high is not None
    assert "could not be measured" in silent.caveat


@pytest.mark.parametrize(
    ("successes", "n"),
    [(-1, 10), (11, 10), (1.5, 10), (True, 10), ([1, 2], [10]), ([[1]], [[10]]), ("1", 10)],
)
def test_counts_that_cannot_be_counts_are_refused(successes: object, n: object) -> None:
    with pytest.raises(InvalidInput):
        proportion_interval(successes, n)  # type: ignore[arg-type]  # hostile on purpose


def test_numpy_integers_are_counts() -> None:
    assert proportion_interval(np.int64(1), np.int32(10)).value == 0.1
