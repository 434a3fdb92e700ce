from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from fairlead.errors import InvalidInput
from fairlead.metrics import Metric
from fairlead.metrics.metric import percentile

P99: dict[str, Any] = {
    "name": "feed_p99",
    "title": "Feed p99",
    "role": "primary",
    "kind": "quantile",
    "event": "load_sample",
    "field": "latency_seconds",
    "q": 0.99,
    "unit": "seconds",
    "unit_of_analysis": "request",
    "side": "client",
    "measured": "from the intended send time",
    "window": "phase",
    "segment": "all requests",
    "better": "lower",
    "design": "load_test",
}


def metric(**changes: Any) -> Metric:
    return Metric(**(P99 | changes))


def test_a_stranger_can_compute_the_number_from_its_definition() -> None:
    assert metric().definition() == (
        "99th percentile of latency_seconds of load_sample events, measured at the client from the intended "
        "send time, per request, for all requests, over the phase, in seconds; lower is better"
    )


@pytest.mark.parametrize(
    ("changes", "statistic"),
    [
        ({"kind": "mean", "q": None}, "mean of latency_seconds of load_sample events"),
        ({"kind": "maximum", "q": None}, "largest latency_seconds of load_sample events"),
        (
            {"kind": "proportion", "q": None, "field": 'outcome == "timeout"', "unit": "ratio"},
            'share with outcome == "timeout" among load_sample events',
        ),
        (
            {
                "kind": "ratio",
                "q": None,
                "field": "loads",
                "denominator": "requests",
                "unit": "loads per request",
            },
            "sum of loads divided by sum of requests of load_sample events",
        ),
        (
            {"kind": "rate", "q": None, "field": None, "unit": "requests per second"},
            "load_sample events per second",
        ),
        ({"kind": "count", "q": None, "field": None, "unit": "requests"}, "number of load_sample events"),
        (
            {"where": 'outcome != "refused"'},
            "99th percentile of latency_seconds of load_sample events where outcome !=",
        ),
    ],
)
def test_each_kind_is_said_in_its_own_words(changes: dict[str, Any], statistic: str) -> None:
    assert metric(**changes).definition().startswith(statistic)


def test_a_window_of_time_is_said_as_a_span_and_a_share_as_a_ratio() -> None:
    said = metric(kind="proportion", q=None, field="degraded", unit="ratio", window="10m").definition()
    assert "over 10m, as a ratio from 0 to 1" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": None}, "feed_p99: a quantile needs q"),
        ({"field": None}, "a quantile needs field"),
        ({"field": ""}, "a quantile needs field"),
        ({"kind": "ratio", "q": None}, "a ratio needs denominator"),
        ({"kind": "mean"}, "a mean has no q"),
        ({"kind": "count", "q": None}, "a count has no field"),
        ({"kind": "proportion", "q": None}, "a proportion has unit"),
        ({"kind": "rate", "q": None, "field": None}, "a rate has a unit"),
        ({"kind": "p99"}, "kind is 'p99'; choose one of quantile"),
        ({"role": "main"}, "role is 'main'; choose one of primary"),
        ({"side": ""}, "side is ''; choose one of server, client"),
        ({"better": "up"}, "better is 'up'"),
        ({"design": "guess"}, "design is 'guess'"),
        ({"window": ""}, "window is missing"),
        ({"segment": " "}, "segment is missing"),
        ({"unit_of_analysis": ""}, "unit_of_analysis is missing"),
        ({"title": "two\nlines"}, "title is not one printable line"),
        ({"where": "x" * 201}, "where is not one printable line"),
        ({"field": "a\x1b[2J"}, "field is not one printable line"),
        ({"name": "Feed p99"}, "metric name 'Feed p99'"),
        ({"name": 3}, "metric name '3'"),
        ({"q": 99}, "q is 99, outside 0 to 1; p99 is 0.99"),
        ({"q": math.nan}, "q is nan"),
        ({"q": True}, "q is True"),
        ({"baseline": math.inf}, "baseline is inf"),
        ({"target": "0.2"}, "target is '0.2'"),
        ({"baseline": 0.2, "target": 0.38}, "target 0.38 is worse than baseline 0.2, as lower is better"),
        (
            {"kind": "proportion", "q": None, "unit": "ratio", "target": 0.5, "baseline": 2},
            "baseline is 2, outside 0 to 1",
        ),
    ],
)
def test_an_incomplete_or_contradictory_definition_is_refused_by_name(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        metric(**changes)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "field", ["side", "window", "segment", "unit", "unit_of_analysis", "better", "design"]
)
def test_what_a_number_depends_on_has_no_default(field: str) -> None:
    given = {name: value for name, value in P99.items() if name != field}
    with pytest.raises(TypeError, match=field):
        Metric(**given)


def test_a_target_better_than_the_baseline_is_accepted_either_way_round() -> None:
    assert metric(baseline=0.38, target=0.21).target == 0.21
    assert metric(better="higher", baseline=0.21, target=0.38).target == 0.38


def test_a_definition_cannot_be_changed_after_the_fact() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        metric().q = 0.5  # type: ignore[misc]  # the point of the test


@pytest.mark.parametrize(
    ("q", "name"),
    [
        (0.01, "1st"),
        (0.02, "2nd"),
        (0.03, "3rd"),
        (0.11, "11th"),
        (0.12, "12th"),
        (0.9, "90th"),
        (0.9999, "99.99th"),
    ],
)
def test_percentiles_are_named_as_people_say_them(q: float, name: str) -> None:
    assert percentile(q) == f"{name} percentile"


def test_a_whole_number_and_its_float_are_one_definition() -> None:
    assert metric(target=0).sha256 == metric(target=0.0).sha256


def test_a_target_that_no_float_holds_is_refused() -> None:
    with pytest.raises(InvalidInput, match="not a finite number"):
        metric(target=10**400)
