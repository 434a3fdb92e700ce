"""What many processes counted adds up to what one would have counted, and never goes down."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.clock import ManualClock
from fairlead.errors import InvalidInput
from fairlead.telemetry import Histogram, MetricRegistry, RegistrySnapshot, merge_snapshots
from fairlead.telemetry.prometheus import render
from fairlead.telemetry.totals import Totals, since, without_gaps


def value(snapshot: RegistrySnapshot, name: str, *labels: str) -> float:
    [family] = [each for each in snapshot.families if each.name == name]
    return family.values[labels]


def test_counters_and_histograms_of_two_processes_add_up() -> None:
    one, other = MetricRegistry(), MetricRegistry()
    for registry, amount, waits in ((one, 2, [0.1, 0.0]), (other, 3, [5.0, -1.0])):
        registry.counter("loads_total", "Loads.", labels=("route",)).labels(route="/a").add(amount)
        registry.histogram("wait_seconds", "Wait.").observe_many(waits)
    merged = merge_snapshots([one.snapshot(), other.snapshot()])
    assert value(merged, "loads_total", "/a") == 5.0
    histogram = Histogram.from_snapshot(merged.families[1].histograms[()])
    assert (histogram.count, histogram.sum, histogram.rejected) == (3, 5.1, 1)


@pytest.mark.parametrize(("merge", "expected"), [("sum", 6.0), ("max", 3.0), ("min", 1.0), ("last", 2.0)])
def test_a_gauge_merges_as_it_declares(merge: str, expected: float) -> None:
    snapshots = []
    for at, depth in ((10.0, 1.0), (30.0, 2.0), (20.0, 3.0)):
        registry = MetricRegistry(clock=ManualClock(utc=at))
        registry.gauge("depth", "Depth.", merge=merge).set(depth)  # type: ignore[call-overload]
        snapshots.append(registry.snapshot())
    assert value(merge_snapshots(snapshots), "depth") == expected
    assert merge_snapshots(snapshots).at_utc_seconds == 30.0
    assert merge_snapshots(snapshots).start_utc_seconds == 10.0


def test_a_merge_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInput, match="merge = 'mean'"):
        MetricRegistry().gauge("depth", "Depth.", merge="mean")  # type: ignore[call-overload]


def test_a_value_that_could_not_be_read_adds_nothing_and_hides_nothing() -> None:
    registries = [MetricRegistry() for _ in range(3)]
    for registry, depth in zip(registries, (math.nan, 2.0, math.nan), strict=True):
        registry.gauge("depth", "Depth.").set(depth)
        registry.gauge("gone", "Gone.").set(math.nan)
    merged = merge_snapshots([registry.snapshot() for registry in registries])
    assert value(merged, "depth") == 2.0
    assert math.isnan(value(merged, "gone"))


def test_label_sets_beyond_the_bound_are_counted_together_and_the_total_is_right() -> None:
    registries = [MetricRegistry(max_label_sets=2) for _ in range(2)]
    for number, registry in enumerate(registries):
        loads = registry.counter("loads_total", "Loads.", labels=("user",))
        for user in range(5):
            loads.labels(user=f"{number}-{user}").add()
    merged = merge_snapshots([each.snapshot() for each in registries], max_label_sets=3)
    assert merged.families[0].values == {("0-0",): 1, ("0-1",): 1, ("1-0",): 1, ("_overflow",): 7}


def test_families_that_disagree_are_left_out_and_named() -> None:
    first, second = MetricRegistry(), MetricRegistry()
    first.gauge("depth", "Depth.").set(1)
    second.gauge("depth", "Depth.", labels=("queue",)).labels(queue="a").set(5)
    totals = Totals()
    for each in (first, second):
        totals.add(each.snapshot())
    assert totals.disagreeing == {"depth"}
    assert value(totals.snapshot(), "depth") == 1.0


def test_a_family_whose_series_another_process_uses_for_a_histogram_is_left_out() -> None:
    first, second = MetricRegistry(), MetricRegistry()
    first.histogram("wait", "Wait.").observe(1.0)
    second.gauge("wait_sum", "Another.").set(5)
    totals = Totals()
    totals.add(first.snapshot())
    totals.add(second.snapshot())
    assert totals.disagreeing == {"wait_sum"}
    assert render(totals.snapshot()).count("wait_sum ") == 1


def test_a_sum_that_is_made_again_in_another_order_counts_each_label_set_where_it_did_before() -> None:
    snapshots = []
    for number in range(4):
        registry = MetricRegistry()
        registry.counter("loads_total", "Loads.", labels=("user",)).labels(user=f"u{number}").add(10)
        snapshots.append(registry.snapshot())
    empty = Totals(max_label_sets=2)
    sums = []
    for order in (snapshots, snapshots[::-1]):
        totals = empty.copy()
        for each in order:
            totals.add(each)
        sums.append(totals.snapshot().families[0].values)
    assert sums[0] == sums[1] == {("u0",): 10, ("u1",): 10, ("_overflow",): 20}


def test_a_process_that_ended_leaves_its_counters_and_takes_its_gauges_along() -> None:
    registry = MetricRegistry()
    registry.counter("loads_total", "Loads.").add(2)
    registry.gauge("depth", "Depth.").set(9)
    totals = Totals()
    totals.add(registry.snapshot(), gauges=False)
    assert [family.name for family in totals.snapshot().families] == ["loads_total"]


def test_a_sum_goes_on_from_a_copy_without_changing_the_original() -> None:
    registry = MetricRegistry()
    registry.counter("loads_total", "Loads.").add(2)
    registry.histogram("wait_seconds", "Wait.").observe(1.0)
    finished = Totals()
    finished.add(registry.snapshot())
    for _ in range(2):
        copy = finished.copy()
        copy.add(registry.snapshot())
        assert value(copy.snapshot(), "loads_total") == 4.0
    assert value(finished.snapshot(), "loads_total") == 2.0
    assert sum(finished.snapshot().families[1].histograms[()].buckets.values()) == 1


def test_what_was_counted_since_a_moment_is_the_difference() -> None:
    clock = ManualClock(utc=10.0)
    registry = MetricRegistry(clock=clock)
    loads, waits = registry.counter("loads_total", "Loads."), registry.histogram("wait_seconds", "Wait.")
    depth = registry.gauge("depth", "Depth.")
    loads.add(5)
    waits.observe_many([0.0, 1.0, 2.0])
    depth.set(7)
    baseline = registry.snapshot()
    clock.advance(5.0)
    loads.add(2)
    waits.observe_many([0.0, 2.0, -1.0])
    registry.counter("new_total", "New.").add(3)
    later = since(baseline, registry.snapshot())
    assert (value(later, "loads_total"), value(later, "new_total"), value(later, "depth")) == (2.0, 3.0, 7.0)
    histogram = Histogram.from_snapshot(later.families[3].histograms[()])
    assert (histogram.count, histogram.sum, histogram.rejected, histogram.quantile(1.0)) == (
        2,
        2.0,
        1,
        pytest.approx(2.0, rel=0.011),
    )
    assert (later.start_utc_seconds, later.at_utc_seconds) == (10.0, 15.0)


def test_a_counter_that_cannot_be_read_for_once_keeps_the_value_it_had() -> None:
    registry = MetricRegistry()
    answers = [3.0]
    registry.counter("loads_total", "Loads.").track(lambda: answers[0])
    registry.counter("never_total", "Never.").track(lambda: 1 / 0)
    first = without_gaps(None, registry.snapshot())
    answers.clear()
    second = without_gaps(first, registry.snapshot())
    assert value(second, "loads_total") == 3.0
    assert [family.values for family in second.families if family.name == "never_total"] == [{}]


@given(
    st.lists(st.lists(st.floats(min_value=0.0, max_value=1e6), max_size=30), min_size=1, max_size=8),
    st.randoms(),
)
def test_processes_merge_to_what_one_process_would_have_seen_whatever_the_order(
    observed: list[list[float]], rng: random.Random
) -> None:
    whole = Histogram()
    snapshots = []
    for each in observed:
        registry = MetricRegistry()
        registry.histogram("wait_seconds", "Wait.").observe_many(each)
        whole.observe_many(each)
        snapshots.append(registry.snapshot())
    rng.shuffle(snapshots)
    merged = merge_snapshots(snapshots).families[0].histograms[()]
    assert merged.buckets == whole.snapshot().buckets
    assert merged.zero_count == whole.snapshot().zero_count
    assert merged.sum == pytest.approx(whole.sum)
