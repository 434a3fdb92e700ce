from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.errors import InvalidInput, UndefinedRatio
from fairlead.metrics import Metric, parse_duration, parse_formula
from fairlead.statistics import Moments, ratio_effect, smooth_effect


def test_a_formula_is_applied_to_sums() -> None:
    formula = parse_formula("published / (attempts - user_cancelled)")
    assert formula.names == ("published", "attempts", "user_cancelled")
    value, gradient = formula.at({"published": 60, "attempts": 100, "user_cancelled": 20})
    assert value == 0.75
    assert gradient == pytest.approx(
        {"published": 1 / 80, "attempts": -60 / 6400, "user_cancelled": 60 / 6400}
    )


@settings(deadline=None)
@given(st.lists(st.floats(0.5, 100), min_size=3, max_size=3))
def test_the_gradient_is_the_slope(at: list[float]) -> None:
    formula = parse_formula("2 * a / (b + c) + (a - b) / (3 * c) * (a / b)")
    sums = dict(zip("abc", at, strict=True))
    value, gradient = formula.at(sums)
    for name in "abc":
        step = 1e-6 * sums[name]
        up, down = (formula.at(sums | {name: sums[name] + sign * step})[0] for sign in (1, -1))
        assert gradient[name] == pytest.approx(
            (up - down) / (2 * step), rel=1e-4, abs=1e-6 * (1 + abs(value))
        )


def test_a_ratio_as_a_formula_has_the_ratios_interval() -> None:
    arms = [
        Moments.from_rows(("clicks", "views"), rows)
        for rows in ([[1, 4], [2, 5], [0, 3], [3, 6]], [[2, 4], [2, 5], [1, 3], [3, 7]])
    ]
    formula = parse_formula("clicks / views")
    ours = smooth_effect(*arms, lambda arm: formula.at(arm.mean))
    ratio = ratio_effect(*arms, "clicks", "views")
    assert (ours.effect, ours.p_value) == pytest.approx((ratio.effect, ratio.p_value), rel=1e-12)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a - b", "grows with traffic"),
        ("a * b / c", "grows with traffic"),
        ("a / b + c", "joins what grows"),
        ("1 / 2", "name 1 to 10 fields"),
        ("a ** 2 / b", "neither a field"),
        ("f(a) / b", "neither a field"),
        ("a / 0", "neither a field"),
        ("a / b if c else d", "neither a field"),
        ("a /", "cannot be read"),
        ("", "1 to 200"),
        ("(" + "a+" * 150 + "a)/b", "1 to 200"),
        ("((((((((((a+a)+a)+a)+a)+a)+a)+a)+a)+a)+a)/b", "nested"),
        ("/".join("abcdefghijkl"), "nested|fields"),
    ],
)
def test_what_is_no_formula_is_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        parse_formula(text)


def test_nothing_is_divided_by_zero() -> None:
    with pytest.raises(UndefinedRatio, match="divided by zero"):
        parse_formula("a / (b - c)").at({"a": 1.0, "b": 2.0, "c": 2.0})
    with pytest.raises(UndefinedRatio, match="beyond what a float holds"):
        parse_formula("a / b").at({"a": 1e308, "b": 1e-308})


@pytest.mark.parametrize(
    "text", ["10", "m", "-5s", "1e3s", "5 m", "10min", "", "9999999999s", "1.2345s", "٣s"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="such as 10m"):
        parse_duration(text)


def test_an_ad_hoc_metric_says_so_everywhere() -> None:
    metric = Metric.from_column("ctr", "formula", formula="clicks / views", unit_field="user")
    assert metric.ad_hoc
    assert "ad hoc" in metric.caveat
    assert (
        metric.definition()
        == "clicks / views of the sums of the table, per user, as given; higher is better (ad hoc)"
    )
    with pytest.raises(InvalidInput, match="side is unstated"):
        dataclasses.replace(metric, ad_hoc=False)


def test_the_hash_is_of_every_field() -> None:
    one = Metric.from_column("m", "mean", "x")
    assert one.sha256 == Metric.from_column("m", "mean", "x").sha256
    assert (
        len(
            {
                one.sha256,
                Metric.from_column("m", "mean", "y").sha256,
                dataclasses.replace(one, baseline=1.0).sha256,
            }
        )
        == 3
    )
