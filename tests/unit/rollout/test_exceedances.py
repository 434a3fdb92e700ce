"""Which values lie beyond control's quantile of the moment before, whatever order they are told in."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.rollout.exceedances import Exceedances
from tests.unit.rollout.conftest import LATENCY

MEDIAN = dataclasses.replace(LATENCY, q=0.5)
HIGHER = dataclasses.replace(LATENCY, q=0.05, better="higher")
Told = tuple[float, bool, float]


def told(found: Exceedances, *values: Told) -> Exceedances:
    for at, treated, value in values:
        found.add(at, treated, value)
    return found


def hundred(at: float, times: float = 1.0) -> list[Told]:
    """A hundred values of control: 1, 2, … 100, times that."""
    return [(at, False, times * value) for value in range(1, 101)]


def test_values_are_held_against_controls_quantile_of_earlier_moments() -> None:
    found = told(
        Exceedances(LATENCY), *hundred(0.0), (10.0, True, 99.5), (10.0, True, 98.0), (10.0, False, 100.0)
    )
    assert found.counts() == (1, 1)  # the 99th of 1 … 100 is 99


def test_a_moment_is_not_held_against_itself() -> None:
    assert told(Exceedances(LATENCY), *hundred(0.0), (9.9, True, 1e9)).counts() == (0, 0)


def test_who_looks_each_second_has_moments_of_a_second() -> None:
    found = Exceedances(LATENCY, look_every=1.0)
    assert told(found, *hundred(0.0), (0.9, True, 1e9), (1.0, True, 1e9)).counts() == (0, 1)
    slowly = Exceedances(LATENCY, look_every=3_600.0)
    assert told(slowly, *hundred(0.0), (9.9, True, 1e9), (10.0, True, 1e9)).counts() == (0, 1)


def test_treatments_values_set_no_limit() -> None:
    slow = [(0.0, True, 1e3 + n) for n in range(1_000)]
    assert told(Exceedances(LATENCY), *hundred(0.0), *slow, (10.0, True, 100.0)).counts() == (0, 1)


@pytest.mark.parametrize(
    ("metric", "fewest"), [(LATENCY, 100), (MEDIAN, 20), (HIGHER, 20)], ids=["p99", "p50", "p5"]
)
def test_nothing_is_counted_of_either_arm_before_control_has_had_enough(metric: object, fewest: int) -> None:
    beyond = 0.0 if metric is HIGHER else 1e9
    for n, counted in ((fewest - 1, 0), (fewest, 1)):
        found = Exceedances(metric)  # type: ignore[arg-type]  # a metric each
        found = told(found, *[(0.0, False, 5.0)] * n, (10.0, True, beyond), (10.0, False, beyond))
        assert found.counts() == (counted, counted)


def test_what_lies_at_the_quantile_is_not_beyond_it() -> None:
    ties = [(0.0, False, 3.0)] * 100
    assert told(Exceedances(LATENCY), *ties, (10.0, True, 3.0), (10.0, True, 3.01)).counts() == (0, 1)
    assert told(Exceedances(HIGHER), *ties, (10.0, True, 3.0), (10.0, True, 2.99)).counts() == (0, 1)


def test_what_never_came_back_is_beyond_every_figure_and_not_beyond_itself() -> None:
    assert told(Exceedances(LATENCY), *hundred(0.0), (10.0, True, math.inf)).counts() == (0, 1)
    lost = [(0.0, False, math.inf)] * 100
    assert told(Exceedances(LATENCY), *lost, (10.0, True, math.inf)).counts() == (0, 0)


def test_the_limit_follows_a_control_that_drifts() -> None:
    found = told(Exceedances(LATENCY), *(one for n in range(20) for one in hundred(10.0 * n)))
    early = found.counts()
    # Control takes ten times as long from here on: at first all are beyond, and 2,000 values later none of 500 is.
    told(found, *(one for n in range(20, 41) for one in hundred(10.0 * n, 10.0)))
    between = found.counts()
    assert told(found, *[(410.0, False, 500.0)] * 100, *[(410.0, True, 500.0)] * 100).counts() == between
    assert between[0] > early[0] + 90
    assert told(found, (420.0, True, 991.0)).counts() == (between[0], 1)


def test_a_clock_that_is_a_day_ahead_does_not_blind_it_to_the_rest() -> None:
    found = told(Exceedances(LATENCY), *hundred(0.0), (86_400.0, False, 50.0))
    found.counts()
    assert told(found, (10.0, True, 1_000.0)).counts() == (0, 1)


def test_what_is_told_late_is_counted_against_the_limit_of_now() -> None:
    found = told(Exceedances(LATENCY), *hundred(0.0), (10.0, False, 1.0))
    found.counts()
    assert told(found, (5.0, True, 100.0), (5.0, False, 100.0)).counts() == (1, 1)


values = st.lists(
    st.tuples(st.floats(0, 200), st.booleans(), st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.0, 10.0, math.inf])),
    min_size=100,
    max_size=400,
)


@settings(deadline=None, max_examples=50)
@given(values, st.randoms(use_true_random=False), st.sampled_from([MEDIAN, HIGHER, LATENCY]))
def test_no_order_of_telling_changes_what_one_look_counts(
    events: list[Told], rng: random.Random, metric: object
) -> None:
    shuffled = rng.sample(events, len(events))
    counts = [told(Exceedances(metric), *each).counts() for each in (events, shuffled)]  # type: ignore[arg-type]
    assert counts[0] == counts[1]


@settings(deadline=None, max_examples=50)
@given(values, st.lists(st.floats(0, 200), max_size=10), st.sampled_from([MEDIAN, HIGHER, LATENCY]))
def test_who_starts_again_counts_what_was_counted_look_by_look(
    events: list[Told], looks: list[float], metric: object
) -> None:
    events.sort()
    watched = Exceedances(metric)  # type: ignore[arg-type]
    since = -1.0
    for look in [*sorted(looks), 200.0]:
        told(watched, *[each for each in events if since < each[0] <= look])
        watched.counts()
        since = look
    assert watched.counts() == told(Exceedances(metric), *events).counts()  # type: ignore[arg-type]


def test_memory_is_that_of_the_values_before_and_not_of_all() -> None:
    found = Exceedances(LATENCY)
    for n in range(500):
        told(found, *hundred(10.0 * n))
        found.counts()
    assert len(found._pool) == 2_000
    assert len(found._before) == 20
