"""Objectives are whole or refused, their numbers exact, their periods those of the calendar."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.metrics import Window
from fairlead.slo import (
    CalendarPeriod,
    Counters,
    ErrorBudget,
    LatencyBuckets,
    Objective,
    RollingPeriod,
    alerts_of,
    objectives_toml,
    parse_objectives,
)

DAY = 86400.0
FEED = Objective(
    name="feed", title="Feed answers", target=Decimal("0.999"), period=RollingPeriod(seconds=30 * DAY),
    event="request_finished", good="status < 500", owner="team feed", runbook="https://runbooks/feed",
)  # fmt: skip


def test_three_nines_of_thirty_days_are_43_minutes_and_a_fifth() -> None:
    assert FEED.budget == Decimal("0.001")
    assert FEED.budget_minutes == pytest.approx(43.2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": Decimal(1)}, "1 leaves no budget"),
        ({"target": Decimal(0)}, "above 0"),
        ({"target": Decimal("NaN")}, "above 0"),
        ({"target": 0.999}, "target"),
        ({"owner": " "}, "owner is missing"),
        ({"runbook": ""}, "runbook is missing"),
        ({"good": ""}, "event and good go together"),
        ({"event": "", "good": ""}, "no source"),
        ({"good": "status <"}, "good: condition"),
        ({"name": "Feed"}, "lower case"),
        ({"minimum_events": -1}, "minimum_events"),
        ({"labels": {"slo": "x"}}, "label 'slo'"),
        ({"labels": {"a b": "x"}}, "label 'a b'"),
    ],
)
def test_what_is_missing_or_wrong_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        dataclasses.replace(FEED, **change)


@pytest.mark.parametrize(
    "source",
    [
        lambda: Counters(good="sum(rate(a[5m]))", valid="b"),
        lambda: Counters(good='a{x="1"} or b', valid="b"),
        lambda: LatencyBuckets(histogram="a_bucket{}", le="0.3"),
        lambda: LatencyBuckets(histogram="a", le="fast"),
        lambda: LatencyBuckets(histogram="a", le="0.3", where='}) or vector(1) or (a{x="1"'),
    ],
)
def test_only_selectors_become_queries(source: Any) -> None:
    with pytest.raises(InvalidInput):
        source()


def moment(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("unit", "zone", "now", "start", "end"),
    [
        ("month", "UTC", "2024-02-29T12:00", "2024-02-01T00:00", "2024-03-01T00:00"),
        ("month", "UTC", "2026-12-31T23:59", "2026-12-01T00:00", "2027-01-01T00:00"),
        ("week", "UTC", "2026-11-29T23:59", "2026-11-23T00:00", "2026-11-30T00:00"),
        ("quarter", "UTC", "2026-11-01T00:00", "2026-10-01T00:00", "2027-01-01T00:00"),
        ("year", "UTC", "2026-07-01T00:00", "2026-01-01T00:00", "2027-01-01T00:00"),
        # The last Sunday of October has 25 hours in Vienna; the month there begins at 22:00 UTC and ends at 23:00.
        ("month", "Europe/Vienna", "2026-10-25T12:00", "2026-09-30T22:00", "2026-10-31T23:00"),
    ],
)
def test_calendar_periods_are_those_of_the_place(
    unit: Any, zone: str, now: str, start: str, end: str
) -> None:
    period = CalendarPeriod(unit=unit, time_zone=zone)
    assert period.span(moment(now)) == Window(start=moment(start), end=moment(end))
    assert period.window(moment(now)) == Window(start=moment(start), end=moment(now))


def test_a_place_that_nobody_knows_is_refused() -> None:
    for zone in ("Europe/Wien2", "../etc/passwd", ""):
        with pytest.raises(InvalidInput, match="time zone"):
            CalendarPeriod(unit="month", time_zone=zone)
    with pytest.raises(InvalidInput, match="an hour to 400 days"):
        RollingPeriod(seconds=60.0)


def test_thirty_days_have_the_workbooks_alerts() -> None:
    found = [(float(a.burn_rate), a.long_seconds, a.short_seconds, a.severity) for a in alerts_of(FEED)]
    assert found == [
        (14.4, 3600, 300, "page"),
        (6.0, 21600, 1800, "page"),
        (3.0, 86400, 7200, "ticket"),
        (1.0, 259200, 21600, "ticket"),
    ]


@given(st.floats(3600.0, 400 * DAY))
def test_alerts_of_any_period_fire_beyond_its_budget_and_keep_their_shares(seconds: float) -> None:
    objective = dataclasses.replace(FEED, period=RollingPeriod(seconds=seconds))
    alerts = alerts_of(objective)
    assert alerts
    longs = [alert.long_seconds for alert in alerts]
    assert longs == sorted(set(longs))
    for alert in alerts:
        assert alert.burn_rate >= 1
        assert alert.short_seconds <= alert.long_seconds
        assert alert.long_seconds % 60 == alert.short_seconds % 60 == 0
        spent = float(alert.burn_rate) * alert.long_seconds / seconds
        assert spent == pytest.approx(float(alert.budget_share))


def test_a_budget_is_spent_by_causes() -> None:
    budget = ErrorBudget(objective=FEED, valid=1_000_000, bad=1500, causes={"error": 300, "timeout": 1200})
    assert budget.spent == pytest.approx(1.5)
    assert budget.remaining == pytest.approx(-0.5)
    assert budget.remaining_minutes == pytest.approx(-21.6)
    assert list(budget.spent_by()) == ["timeout", "error"]
    assert sum(budget.spent_by().values()) == pytest.approx(1.5)


def test_without_events_nothing_is_known() -> None:
    budget = ErrorBudget(objective=FEED, valid=0, bad=0)
    assert (budget.observed, budget.spent, budget.remaining, budget.remaining_minutes) == (
        None,
        None,
        None,
        None,
    )
    assert budget.spent_by() == {}
    for valid, bad in ((1.0, 2.0), (-1.0, 0.0), (float("nan"), 0.0), (float("inf"), 1.0)):
        with pytest.raises(InvalidInput):
            ErrorBudget(objective=FEED, valid=valid, bad=bad)


FILE = """
[objectives.feed]
title = "Feed answers"
target = 0.9995
period = "28d"
owner = "team feed"
runbook = "https://runbooks/feed"
event = "request_finished"
good = "status < 500"
where = 'route == "/feed"'
cause = "ending"
minimum_events = 200
prometheus = { good = 'http_requests_total{status!~"5.."}', valid = "http_requests_total" }

[objectives.feed_latency]
title = "Feed is fast"
target = "99 %"
period = "month"
time_zone = "Europe/Vienna"
owner = "team feed"
runbook = "docs/feed.md"
labels = { tier = "1" }
prometheus = { histogram = "http_request_duration_seconds", le = 0.3, where = 'route="/feed"' }
"""


def test_a_file_is_read_exactly_and_written_back() -> None:
    feed, latency = parse_objectives(FILE.encode())
    assert feed.target == Decimal("0.9995")
    assert feed.budget == Decimal("0.0005")
    assert latency.target == Decimal("0.99")
    assert isinstance(latency.prometheus, LatencyBuckets)
    assert latency.prometheus.good == 'http_request_duration_seconds_bucket{route="/feed",le="0.3"}'
    assert latency.prometheus.valid == 'http_request_duration_seconds_count{route="/feed"}'
    assert parse_objectives(objectives_toml((feed, latency)).encode()) == (feed, latency)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("target = 0.9995", "target = 1", "write 0.999"),
        ("target = 0.9995", "target = 99.9", "above 0"),
        ("target = 0.9995", "target = nan", "above 0|NaN"),
        ("target = 0.9995", "tarket = 0.9995", "did you mean 'target'"),
        ('period = "28d"', 'period = "fortnight"', "period 'fortnight'"),
        ('period = "28d"', 'period = "1m"', "an hour to 400 days"),
        ("minimum_events = 200", 'minimum_events = "many"', "not a whole number"),
        ('owner = "team feed"', "owner = 3", "not text in quotes"),
        ('good = "status < 500"', 'good = "status <"', "condition"),
        ("[objectives.feed]", "[objectives.Feed]", "lower case"),
        ("[objectives.feed]", "[slos.feed]", "has no 'slos'"),
        ("[objectives.feed]", "objectives = 3\n[x]", "no TOML"),
    ],
)
def test_a_slip_in_a_file_is_named_with_its_place(old: str, new: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as refused:
        parse_objectives(FILE.replace(old, new, 1).encode(), "slo.toml")
    assert "slo.toml" in str(refused.value)


@given(st.binary(max_size=300))
def test_any_bytes_are_objectives_or_refused(content: bytes) -> None:
    try:
        assert parse_objectives(content)
    except BrokenDocument:
        pass
    except InvalidInput:
        pass


def test_a_period_keeps_its_fraction_of_a_second_in_a_file() -> None:
    odd = dataclasses.replace(FEED, period=RollingPeriod(seconds=86400.25))
    assert 'period = "86400.250s"' in objectives_toml((odd,))
    assert parse_objectives(objectives_toml((odd,)).encode()) == (odd,)
    with pytest.raises(InvalidInput, match="finer than the milliseconds"):
        objectives_toml((dataclasses.replace(FEED, period=RollingPeriod(seconds=86400.0001)),))
