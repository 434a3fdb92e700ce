"""Any data give an effect or a refusal, never NaN; scale, order and units do not change what is said."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.errors import NotEstimable
from fairlead.statistics import (
    Effect,
    Hypothesis,
    Moments,
    count_effect,
    cuped_effect,
    mean_effect,
    proportion_effect,
    ratio_effect,
)

sizes = st.floats(1e-60, 1e60)
numbers = st.one_of(st.just(0.0), sizes, sizes.map(lambda size: -size), st.floats(-10, 10))
rows = st.lists(st.tuples(numbers, numbers), max_size=12)
alternatives = st.sampled_from(["two_sided", "greater", "less"])
counts = st.integers(0, 10**9)


def faults(effect: Effect) -> list[str]:
    """What no effect may be: not finite, an impossible p-value, an interval beside its effect."""
    numbers = {name: value for name, value in dataclasses.asdict(effect).items() if isinstance(value, float)}
    found = [f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value)]
    if not 0 < effect.p_value <= 1:
        found.append(f"p is {effect.p_value}")
    if effect.low is not None and effect.low > effect.effect:
        found.append(f"low {effect.low} above {effect.effect}")
    if effect.high is not None and effect.high < effect.effect:
        found.append(f"high {effect.high} below {effect.effect}")
    return found


def outcome(compare: Callable[[], Effect]) -> Effect | NotEstimable:
    try:
        return compare()
    except NotEstimable as refusal:
        return refusal


@settings(max_examples=300, deadline=None)
@given(rows, rows, alternatives)
def test_any_rows_give_an_effect_or_a_refusal(
    a: list[tuple[float, float]], b: list[tuple[float, float]], side: str
) -> None:
    hypothesis = Hypothesis(alternative=side)  # type: ignore[arg-type]
    c, t = (Moments.from_rows(("y", "x"), part) for part in (a, b))
    for compare in (
        lambda: mean_effect(c, t, "y", hypothesis=hypothesis),
        lambda: ratio_effect(c, t, "y", "x", hypothesis=hypothesis),
        lambda: cuped_effect(c, t, "y", ["x"], hypothesis=hypothesis).effect,
    ):
        found = outcome(compare)
        assert str(found) if isinstance(found, NotEstimable) else faults(found) == []


def test_rows_that_vary_give_an_effect_and_no_refusal() -> None:
    # The test above would pass if everything were refused.
    c, t = (Moments.from_rows(("y", "x"), [[1.0, 5.0], [2.0, 6.0], [4.0, 9.0], [3.0, 5.0]]) for _ in range(2))
    found = (
        outcome(lambda: mean_effect(c, t, "y")),
        outcome(lambda: ratio_effect(c, t, "y", "x")),
        outcome(lambda: cuped_effect(c, t, "y", ["x"]).effect),
    )
    assert [type(each) for each in found] == [Effect] * 3


@settings(max_examples=150, deadline=None)
@given(counts, counts, counts, counts, alternatives)
def test_any_counts_give_an_effect(x_c: int, n_c: int, x_t: int, n_t: int, side: str) -> None:
    hypothesis = Hypothesis(alternative=side)  # type: ignore[arg-type]
    counted = count_effect(x_c, n_c + 1.0, x_t, n_t + 1.0, hypothesis=hypothesis)
    share = proportion_effect(min(x_c, n_c), max(1, n_c), min(x_t, n_t), max(1, n_t), hypothesis=hypothesis)
    assert faults(counted) == []
    assert faults(share) == []


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.floats(1e-6, 1e6), st.permutations(range(20)))
def test_units_and_order_do_not_change_what_is_said(seed: int, factor: float, order: list[int]) -> None:
    data = np.random.default_rng(seed).gamma(2, 1, (2, 20, 2))
    plain = cuped_effect(*(Moments.from_rows(("y", "x"), arm) for arm in data), "y", ["x"]).effect
    moved = cuped_effect(
        *(Moments.from_rows(("y", "x"), factor * arm[order]) for arm in data), "y", ["x"]
    ).effect
    assert moved.p_value == pytest.approx(plain.p_value, rel=1e-6)
    assert moved.effect == pytest.approx(factor * plain.effect, rel=1e-6, abs=1e-9 * factor)
    assert moved.relative_effect == pytest.approx(plain.relative_effect, rel=1e-6, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=30), st.integers(1, 29))
def test_merged_parts_are_the_whole(data: list[tuple[float, float]], cut: int) -> None:
    whole = Moments.from_rows(("y", "x"), data)
    merged = Moments.from_rows(("y", "x"), data[:cut]) + Moments.from_rows(("y", "x"), data[cut:])
    assert merged.n == whole.n
    largest = np.abs(np.asarray(data)).max(axis=0)
    np.testing.assert_allclose(merged.means, whole.means, atol=1e-12 * largest.max() + 1e-300)
    for k in range(2):
        scale = largest[k] ** 2 * len(data)
        assert merged.products[k][k] == pytest.approx(whole.products[k][k], abs=1e-12 * scale + 1e-300)
