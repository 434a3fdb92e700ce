"""Metrics are bounded, named by the rules, and cannot take each other down."""

from __future__ import annotations

import math
import os
import signal
from typing import Any

import pytest

from fairlead.errors import InvalidInput
from fairlead.telemetry import Histogram, MetricRegistry
from fairlead.telemetry.metrics import OVERFLOW
from fairlead.telemetry.prometheus import render


@pytest.fixture
def registry() -> MetricRegistry:
    return MetricRegistry()


def test_a_metric_without_labels_is_the_metric_itself(registry: MetricRegistry) -> None:
    loads = registry.counter("loads_total", "Loads.")
    loads.add()
    loads.add(2.5)
    depth = registry.gauge("depth", "Depth.")
    depth.set(4)
    depth.add(-1)
    assert (loads.value, depth.value) == (3.5, 3.0)
    assert isinstance(registry.histogram("wait_seconds", "Wait."), Histogram)


def test_labels_give_the_same_child_each_time_whatever_their_order(registry: MetricRegistry) -> None:
    family = registry.counter("loads_total", "Loads.", labels=("route", "method"))
    child = family.labels(route="/feed", method="GET")
    assert family.labels(method="GET", route="/feed") is child
    assert family.labels(route="/feed", method="PUT") is not child


@pytest.mark.parametrize("amount", [-1.0, math.nan, math.inf])
def test_a_counter_only_grows(registry: MetricRegistry, amount: float) -> None:
    loads = registry.counter("loads_total", "Loads.")
    with pytest.raises(InvalidInput, match="only grows"):
        loads.add(amount)
    assert loads.value == 0.0


def test_label_sets_beyond_the_bound_are_counted_together_as_overflow() -> None:
    family = MetricRegistry(max_label_sets=2).counter("loads_total", "Loads.", labels=("user",))
    for number in range(10_000):
        family.labels(user=f"u{number}").add()
    found = {labels["user"]: child.value for labels, child in family.children()}
    assert found == {"u0": 1.0, "u1": 1.0, OVERFLOW: 9_998.0}


def test_children_made_before_the_bound_stay_reachable_after_it() -> None:
    family = MetricRegistry(max_label_sets=1).counter("loads_total", "Loads.", labels=("user",))
    first = family.labels(user="a")
    family.labels(user="b")
    assert family.labels(user="a") is first


def test_a_huge_label_value_goes_to_overflow(registry: MetricRegistry) -> None:
    family = registry.counter("loads_total", "Loads.", labels=("user",))
    family.labels(user="x" * 1_000_000).add()
    assert [labels["user"] for labels, _ in family.children()] == [OVERFLOW]


def test_a_label_that_calls_itself_overflow_does_not_make_a_second_series(registry: MetricRegistry) -> None:
    family = registry.counter("loads_total", "Loads.", labels=("user",))
    family.labels(user=OVERFLOW).add()
    family.labels(user="x" * 300).add()
    assert [(labels["user"], child.value) for labels, child in family.children()] == [(OVERFLOW, 2.0)]


@pytest.mark.parametrize("given", [{}, {"rout": "/feed"}, {"route": "/feed", "method": "GET"}], ids=str)
def test_labels_that_do_not_match_are_refused(registry: MetricRegistry, given: dict[str, str]) -> None:
    family = registry.counter("loads_total", "Loads.", labels=("route",))
    with pytest.raises(InvalidInput, match=r"loads_total: got labels .* expected exactly \['route'\]"):
        family.labels(**given)


def test_asking_again_gives_the_same_metric(registry: MetricRegistry) -> None:
    assert registry.counter("a_total", "A.") is registry.counter("a_total", "A.")
    assert registry.gauge("b", "B.", ("x",)) is registry.gauge("b", "B.", ("x",))


def test_a_name_cannot_be_taken_twice_with_another_type_labels_or_range(registry: MetricRegistry) -> None:
    registry.counter("loads_total", "Loads.")
    registry.histogram("wait_seconds", "Wait.")
    with pytest.raises(InvalidInput, match="loads_total is already a counter"):
        registry.gauge("loads_total", "Loads.")
    with pytest.raises(InvalidInput, match="loads_total is already a counter"):
        registry.counter("loads_total", "Loads.", labels=("route",))
    with pytest.raises(InvalidInput, match="wait_seconds is already a histogram"):
        registry.histogram("wait_seconds", "Wait.", smallest=1.0)


def test_the_series_of_a_histogram_cannot_be_taken_by_another_metric(registry: MetricRegistry) -> None:
    registry.histogram("wait_seconds", "Wait.")
    with pytest.raises(InvalidInput, match="wait_seconds_count belongs to wait_seconds"):
        registry.gauge("wait_seconds_count", "Waits.")
    registry.gauge("batch_sum", "Sum.")
    with pytest.raises(InvalidInput, match="its series batch_sum belongs to batch_sum"):
        registry.histogram("batch", "Batch.")


@pytest.mark.parametrize("name", ["", "1a", "a-b", "a b", "a\n", "ä", "a{}", 'a"', "a.b"])
def test_a_name_that_prometheus_would_refuse_is_refused(registry: MetricRegistry, name: str) -> None:
    with pytest.raises(InvalidInput):
        registry.gauge(name, "Help.")
    with pytest.raises(InvalidInput):
        registry.gauge("fine", "Help.", labels=(name,))


@pytest.mark.parametrize("labels", [("__x",), ("le",), ("a", "a"), "route"])
def test_labels_that_prometheus_keeps_for_itself_are_refused(registry: MetricRegistry, labels: Any) -> None:
    with pytest.raises(InvalidInput):
        registry.histogram("wait_seconds", "Wait.", labels)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # from 3.12 on, of forks beside threads
def test_a_child_that_is_forked_while_a_thread_makes_a_series_can_make_its_own(
    registry: MetricRegistry,
) -> None:
    family = registry.counter("loads_total", "Loads.", labels=("route",))
    with registry._lock, family._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(5)  # the end of a child that waits for a lock that nobody gives back
            family.labels(route="/new").add()
            registry.counter("other_total", "Others.").add()
            os._exit(0 if len(registry.snapshot().families) == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_refused_metric_leaves_nothing_behind(registry: MetricRegistry) -> None:
    with pytest.raises(InvalidInput):
        registry.counter("loads", "Loads.")
    with pytest.raises(InvalidInput):
        registry.gauge("depth", " ")
    assert list(registry) == []


@pytest.mark.parametrize(
    ("smallest", "largest"),
    [(0.0, 1.0), (-1.0, 1.0), (1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (1.0, math.inf), (1e-300, 1e300)],
)
def test_a_range_that_makes_no_sense_or_too_many_series_is_refused(
    registry: MetricRegistry, smallest: float, largest: float
) -> None:
    with pytest.raises(InvalidInput, match="wait_seconds: range"):
        registry.histogram("wait_seconds", "Wait.", smallest=smallest, largest=largest)


def test_a_gauge_reads_its_callback_when_asked_until_it_is_set_by_hand(registry: MetricRegistry) -> None:
    queue = [1, 2]
    depth = registry.gauge("depth", "Depth.")
    depth.track(lambda: len(queue))
    queue.append(3)
    assert depth.value == 3.0
    depth.set(7.0)
    assert depth.value == 7.0


def test_a_callback_that_raises_makes_the_gauge_nan_and_not_an_exception(registry: MetricRegistry) -> None:
    depth = registry.gauge("depth", "Depth.")
    depth.track(lambda: 1 / 0)
    assert math.isnan(depth.value)


@pytest.mark.parametrize("bound", [0, -1, True, 1.5])
def test_a_bound_on_label_sets_that_makes_no_sense_is_refused(bound: Any) -> None:
    with pytest.raises(InvalidInput, match="max_label_sets = "):
        MetricRegistry(max_label_sets=bound)


def test_what_is_no_number_is_refused_when_it_is_set_not_when_it_is_scraped() -> None:
    registry = MetricRegistry()
    gauge = registry.gauge("queue_depth", "Waiting.")
    gauge.set(2)
    with pytest.raises(ValueError, match="could not convert"):
        gauge.set("many")  # type: ignore[arg-type]  # what a careless caller does
    assert "queue_depth 2" in render(registry)


def test_a_counter_can_read_a_count_that_something_else_keeps() -> None:
    counter = MetricRegistry().counter("x_total", "Things.")
    kept = [3]
    counter.track(lambda: kept[0])
    counter.add(1.0)
    kept[0] = 5
    assert counter.value == 6.0


def test_a_counter_whose_callback_raises_reads_nan() -> None:
    counter = MetricRegistry().counter("x_total", "Things.")
    counter.track(lambda: 1 / 0)
    assert counter.value != counter.value
