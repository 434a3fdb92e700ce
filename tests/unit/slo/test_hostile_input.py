"""What a reviewer who wanted to break objectives, alerts, rules and imports tried first."""

from __future__ import annotations

import dataclasses
from decimal import Decimal

import pytest

from fairlead.errors import BrokenDocument, FairleadError, InvalidInput
from fairlead.slo import (
    BurnRateMonitor,
    Counters,
    LatencyBuckets,
    Objective,
    RollingPeriod,
    alerts_of,
    objectives_toml,
    parse_objectives,
    prometheus_rules,
)
from fairlead.slo.openslo import import_openslo

FEED = Objective(
    name="feed",
    title="Feed",
    target=Decimal("0.999"),
    period=RollingPeriod(seconds=30 * 86400.0),
    owner="feed",
    runbook="docs/feed.md",
    prometheus=Counters(good='a_total{code="200"}', valid="a_total"),
)
SLO = """apiVersion: openslo/v1
kind: SLO
metadata: {name: feed}
spec:
  budgetingMethod: Occurrences
  timeWindow: [{unit: day, count: COUNT, isRolling: true}]
  objectives: [{target: 0.999}]
  indicator: {spec: {ratioMetric: {good: {metricSource: {type: Prometheus, spec: {query: a_total}}},
    total: {metricSource: {type: Prometheus, spec: {query: b_total}}}}}}
"""


def test_an_edge_that_the_histogram_lacks_is_no_outage() -> None:
    slow = dataclasses.replace(FEED, prometheus=LatencyBuckets(histogram="h_seconds", le="0.31"))
    assert "vector(0)) /" not in prometheus_rules([slow])


def test_a_title_is_never_a_template() -> None:
    assert "{{" not in prometheus_rules([dataclasses.replace(FEED, title="{{{ nope }}")])


@pytest.mark.parametrize("key", ["__name__", "long_window", "alertname"])
def test_labels_that_prometheus_or_we_set_are_refused(key: str) -> None:
    with pytest.raises(InvalidInput):
        dataclasses.replace(FEED, labels={key: "x"})


def test_a_target_of_a_million_places_is_refused() -> None:
    with pytest.raises(InvalidInput):
        dataclasses.replace(FEED, target=Decimal("1e-1000000"))


@pytest.mark.parametrize("at", [float("nan"), float("inf")])
def test_a_first_moment_that_is_none_is_refused(at: float) -> None:
    with pytest.raises(InvalidInput):
        BurnRateMonitor(FEED).observe(at, 1.0, 0.0)


def test_a_full_outage_pages_whatever_the_target() -> None:
    loose = dataclasses.replace(FEED, target=Decimal("0.8"))
    assert any(
        a.severity == "page"
        and a.burn_rate * loose.budget.as_integer_ratio()[0] < loose.budget.as_integer_ratio()[1]
        for a in alerts_of(loose)
    )


@pytest.mark.parametrize("hours", [1, 2, 3, 6])
def test_a_page_needs_a_faster_burn_than_a_ticket(hours: int) -> None:
    rates = [
        a.burn_rate
        for a in alerts_of(dataclasses.replace(FEED, period=RollingPeriod(seconds=hours * 3600.0)))
    ]
    assert rates == sorted(rates, reverse=True)


def test_text_that_nobody_sees_is_refused_and_any_other_comes_back() -> None:
    with pytest.raises(InvalidInput):
        dataclasses.replace(FEED, labels={"a": "\U000e0001"})
    odd = dataclasses.replace(FEED, labels={"a": "🚢"}, where="", title='Feed "one" \\ two')
    assert parse_objectives(objectives_toml((odd,)).encode()) == (odd,)


@pytest.mark.parametrize("count", [".inf", "1" + "0" * 400])
def test_a_count_that_is_no_count_is_said(count: str) -> None:
    assert import_openslo(SLO.replace("COUNT", count).encode(), owner="a", runbook="b").left_out


@pytest.mark.parametrize("value", ['!!int ""', '!!float ""', "!!bool x", "!!timestamp x"])
def test_tags_that_the_loader_trips_over_are_refused(value: str) -> None:
    with pytest.raises(BrokenDocument):
        import_openslo(SLO.replace("COUNT", value).encode(), owner="a", runbook="b")


def test_a_key_given_twice_is_refused() -> None:
    twice = SLO.replace("COUNT", "30").replace("target: 0.999", "target: 0.999, target: 0.5")
    with pytest.raises(FairleadError):
        import_openslo(twice.encode(), owner="a", runbook="b")
