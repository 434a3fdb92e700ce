"""Alerts on virtual time: a blip wakes nobody, an outage is paged within minutes, a leak is told within days."""

from __future__ import annotations

import dataclasses
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.errors import InvalidInput
from fairlead.slo import BurnRateMonitor, Objective, RollingPeriod

DAY = 86400.0
FEED = Objective(
    name="feed", title="Feed answers", target=Decimal("0.999"), period=RollingPeriod(seconds=30 * DAY),
    event="request_finished", good="status < 500", owner="team feed", runbook="https://runbooks/feed",
)  # fmt: skip


def run(
    monitor: BurnRateMonitor, minutes: int, ratio: float, *, start: int = 0, per_minute: float = 600.0
) -> list[tuple[int, str]]:
    """Feeds minutes of one error ratio; returns when which severity began, in minutes."""
    began = []
    for minute in range(start + 1, start + minutes + 1):
        found = monitor.observe(minute * 60.0, per_minute, per_minute * ratio)
        began += [(minute, alert.severity) for alert in found]
    return began


def test_a_clean_week_is_silent() -> None:
    assert run(BurnRateMonitor(FEED), 7 * 1440, 0.0005) == []


def test_an_outage_is_paged_within_minutes_and_ends_with_it() -> None:
    monitor = BurnRateMonitor(FEED)
    assert run(monitor, 1440, 0.0) == []
    began = run(monitor, 10, 1.0, start=1440)
    # 14.4 · 0.001 of an hour is gone after 52 seconds of a full outage.
    assert began[0] == (1441, "page")
    assert run(monitor, 7, 0.0, start=1450) == []
    assert not any(alert.long_seconds == 3600 for alert in monitor.firing)  # the short window ended it


def test_a_blip_of_a_minute_at_a_tenth_wakes_nobody() -> None:
    monitor = BurnRateMonitor(FEED)
    run(monitor, 1440, 0.0)
    assert run(monitor, 1, 0.1, start=1440) == []  # 0.17 % of the hour: 1.7 times too fast
    assert run(monitor, 60, 0.0, start=1441) == []


def test_a_leak_of_twice_the_budget_is_a_ticket_and_no_page() -> None:
    monitor = BurnRateMonitor(FEED)
    run(monitor, 3 * 1440, 0.0)
    began = run(monitor, 4 * 1440, 0.002, start=3 * 1440)
    assert {severity for _, severity in began} == {"ticket"}
    assert began[0][0] - 3 * 1440 == pytest.approx(
        1.5 * 1440, rel=0.01
    )  # 10 % went: half of three days' worth


def test_without_traffic_nothing_fires_and_little_traffic_needs_its_minimum() -> None:
    monitor = BurnRateMonitor(FEED)
    for minute in range(1, 120):
        assert monitor.observe(minute * 60.0, 0.0, 0.0) == ()
    assert monitor.burn_rate(3600) is None
    assert run(BurnRateMonitor(FEED), 60, 1.0, per_minute=0.05) != []
    careful = dataclasses.replace(FEED, minimum_events=100)
    assert run(BurnRateMonitor(careful), 60, 1.0, per_minute=0.05) == []
    assert run(BurnRateMonitor(careful), 60, 1.0, per_minute=600.0) != []


def test_time_that_goes_backwards_and_counts_that_are_none_are_refused() -> None:
    monitor = BurnRateMonitor(FEED)
    monitor.observe(60.0, 1.0, 0.0)
    with pytest.raises(InvalidInput, match="is no moment after"):
        monitor.observe(60.0, 1.0, 0.0)
    for valid, bad in ((1.0, 2.0), (float("nan"), 0.0), (1.0, -1.0), (float("inf"), 0.0)):
        with pytest.raises(InvalidInput, match="no counts"):
            monitor.observe(120.0, valid, bad)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 1)), min_size=1, max_size=200))
def test_a_burn_rate_is_that_of_the_events_in_its_window(minutes: list[tuple[int, float]]) -> None:
    monitor = BurnRateMonitor(FEED)
    counted = []
    for minute, (valid, ratio) in enumerate(minutes, 1):
        bad = round(valid * ratio)
        counted.append((minute * 60.0, valid, bad))
        monitor.observe(minute * 60.0, float(valid), float(bad))
        for window in (300.0, 3600.0):
            inside = [(v, b) for at, v, b in counted if at > minute * 60.0 - window]
            total, missed = sum(v for v, _ in inside), sum(b for _, b in inside)
            found = monitor.burn_rate(window)
            assert (found is None) == (total == 0)
            if found is not None:
                assert found == pytest.approx(missed / total / 0.001)
