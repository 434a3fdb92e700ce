"""Which node a key belongs to."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.cache import Rendezvous
from fairlead.errors import InvalidInput

PODS = [f"feed-{index}" for index in range(10)]


@given(st.lists(st.text(max_size=5), min_size=2, max_size=8, unique=True), st.integers())
def test_only_the_keys_of_a_node_that_left_move(nodes: list[str], key: int) -> None:
    before = Rendezvous(nodes).nodes(key, len(nodes))
    for gone in nodes:
        left = Rendezvous([each for each in reversed(nodes) if each != gone])
        assert left.nodes(key, len(nodes)) == tuple(each for each in before if each != gone)


def test_the_first_of_several_choices_is_the_one() -> None:
    pods = Rendezvous(PODS)
    for key in range(100):
        choices = pods.nodes(key, 3)
        assert choices[0] == pods.node(key)
        assert len(set(choices)) == 3
    assert set(pods.nodes(1, 99)) == set(PODS)


def test_keys_spread_evenly() -> None:
    pods = Rendezvous(PODS)
    load = Counter(pods.node(("user", key)) for key in range(10_000))
    assert max(load.values()) < 1.1 * 1_000  # three standard deviations of a fair draw
    assert min(load.values()) > 0.9 * 1_000


def test_a_node_gets_its_weights_part() -> None:
    pods = Rendezvous({"small": 1.0, "large": 3.0})
    large = sum(pods.node(key) == "large" for key in range(10_000))
    assert abs(large - 7_500) < 150


def test_the_choice_is_the_same_in_every_release() -> None:
    # Written down: a change here moves every user to another pod, and belongs in the changelog.
    assert [Rendezvous(PODS).node(("user", key))[-1] for key in range(5)] == ["5", "5", "3", "7", "6"]


@pytest.mark.parametrize(
    "wrong", [[], "abc", ["a", "a"], [1], {"a": 0.0}, {"a": float("nan")}, {"a": float("inf")}, {"a": True}]
)
def test_nodes_that_cannot_be_are_refused(wrong: Any) -> None:
    with pytest.raises(InvalidInput):
        Rendezvous(wrong)


def test_a_key_that_is_another_in_each_process_is_refused() -> None:
    with pytest.raises(InvalidInput):
        Rendezvous(PODS).node(object())
    with pytest.raises(InvalidInput):
        Rendezvous(PODS).nodes(1, 0)
