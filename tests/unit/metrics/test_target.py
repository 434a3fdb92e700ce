from __future__ import annotations

import math
from typing import Any

import pytest

from fairlead.errors import InvalidInput
from fairlead.metrics import Metric, Target


def target(
    relation: str, limit: float, *, better: str = "lower", kind: str = "quantile", **changes: Any
) -> Target:
    settings: dict[str, Any] = {
        "name": "feed",
        "title": "Feed",
        "role": "primary",
        "kind": kind,
        "event": "load_sample",
        "field": "latency_seconds",
        "q": 0.99 if kind == "quantile" else None,
        "unit": "ratio" if kind == "proportion" else "seconds",
        "unit_of_analysis": "request",
        "side": "client",
        "window": "phase",
        "segment": "all requests",
        "better": better,
        "design": "load_test",
    }
    given: dict[str, Any] = {
        "statement": "as promised",
        "source": "the published account",
        "relation": relation,
    }
    return Target(metric=Metric(**settings), **(given | {"limit": limit} | changes))


def test_a_relative_change_that_is_reached_exactly_is_met() -> None:
    outcome = target("relative_change", -0.5).judge(0.4, 0.2)
    assert (outcome.met, outcome.observed) == (True, -0.5)
    assert outcome.wording == "400 ms → 200 ms: −50.0 %, needs at most −50.0 %: met"


def test_a_missed_target_says_by_how_much() -> None:
    outcome = target("relative_change", -0.4).judge(0.380, 0.300)
    assert outcome.met is False
    assert outcome.wording == "380 ms → 300 ms: −21.1 %, needs at most −40.0 %: missed"


def test_percent_and_percentage_points_are_different_units() -> None:
    percent = target("relative_change", 0.10, kind="proportion").judge(0.0018, 0.0030)
    points = target("difference", 0.001, kind="proportion").judge(0.0018, 0.0030)
    assert percent.observed == pytest.approx(2 / 3)
    assert percent.wording.endswith("+66.7 %, needs at most +10.0 %: missed")
    assert points.observed == pytest.approx(0.0012)
    assert (
        points.wording
        == "0.18 % → 0.3 %: +0.120 percentage points, needs at most +0.100 percentage points: missed"
    )


def test_a_ratio_where_higher_is_better_needs_at_least_its_limit() -> None:
    promise = target("ratio", 2.8, better="higher")
    assert promise.judge(100, 280).met is True
    assert promise.judge(100, 279).met is False
    assert promise.judge(100, 280).wording.endswith("2.8×, needs at least 2.8×: met")


def test_an_absolute_target_needs_no_control() -> None:
    promise = target("absolute", 0.25)
    assert promise.judge(None, 0.21).met is True
    assert promise.judge(math.nan, 0.26).met is False


@pytest.mark.parametrize("relation", ["relative_change", "ratio"])
@pytest.mark.parametrize("treatment", [0.0, 0.1])
def test_nothing_is_relative_to_zero(relation: str, treatment: float) -> None:
    outcome = target(relation, 0.5).judge(0.0, treatment)
    assert (outcome.met, outcome.observed) == (None, None)
    assert outcome.wording.endswith("not judged, the control is 0, and nothing is relative to 0")


def test_a_difference_from_zero_is_judged() -> None:
    assert target("difference", 0.0, kind="proportion").judge(0.0, 0.0).met is True


@pytest.mark.parametrize("relation", ["relative_change", "ratio", "difference", "absolute"])
@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_missing_treatment_is_not_judged(relation: str, missing: float | None) -> None:
    outcome = target(relation, 0.5).judge(1.0, missing)
    assert (outcome.met, outcome.observed) == (None, None)
    assert "the treatment has no figure" in outcome.wording


def test_a_control_that_never_came_back_is_no_yardstick_and_a_treatment_that_did_not_is_a_miss() -> None:
    promise = target("relative_change", -0.4)
    assert promise.judge(math.inf, 0.2).met is None
    assert promise.judge(math.inf, math.inf).met is None
    worst = promise.judge(0.2, math.inf)
    assert worst.met is False
    assert worst.wording == "200 ms → no answer: no answer, needs at most −40.0 %: missed"


def test_a_change_that_rounds_to_nothing_carries_no_sign() -> None:
    assert ": 0.0 %, needs" in target("relative_change", 0.0).judge(1.0, 0.99999999).wording


@pytest.mark.parametrize(
    ("relation", "limit", "changes"),
    [
        ("percent", 0.1, {}),
        ("ratio", math.nan, {}),
        ("ratio", -1.0, {}),
        ("ratio", True, {}),
        ("relative_change", -40, {}),
        ("absolute", math.inf, {}),
        ("absolute", 0.2, {"source": ""}),
        ("absolute", 0.2, {"statement": "two\nlines"}),
    ],
)
def test_a_promise_that_cannot_be_judged_is_refused(
    relation: str, limit: float, changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput, match="target of feed"):
        target(relation, limit, **changes)


def test_a_strict_target_is_missed_by_a_tie() -> None:
    ahead = target("relative_change", 0.0, strict=True)
    assert ahead.judge(1.0, 1.0).met is False
    assert ahead.judge(1.0, 0.999).met is True
    assert "needs below" in ahead.judge(1.0, 1.0).wording


@pytest.mark.parametrize(
    ("relation", "limit", "control", "treatment"),
    [
        ("relative_change", -0.45, 0.03, 0.0165),  # −0.44999999999999996
        ("relative_change", -0.4, 0.09, 0.054),
        ("difference", 0.001, 0.009, 0.010),  # 0.0010000000000000009
        ("ratio", 0.7, 0.3, 0.21),
    ],
)
def test_the_limit_itself_is_met_however_binary_writes_it(
    relation: str, limit: float, control: float, treatment: float
) -> None:
    assert target(relation, limit).judge(control, treatment).met is True
    assert target(relation, limit, strict=True).judge(control, treatment).met is False
    assert target(relation, limit).judge(control, treatment * (1 + 1e-12)).met is False


def test_an_absolute_limit_is_compared_bit_by_bit() -> None:
    assert target("absolute", 0.25).judge(None, math.nextafter(0.25, 1)).met is False
