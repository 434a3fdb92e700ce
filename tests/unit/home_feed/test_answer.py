"""A page's order and the request's share of the model's columns."""

from __future__ import annotations

import math

import pytest

from fairlead_systems.home_feed.answer import Answer, NoAnswer, rank, request_features
from fairlead_systems.home_feed.model import HEURISTIC_WEIGHTS, SCHEMA
from fairlead_systems.home_feed.world import ITEM_FEATURES, World


def test_items_are_ordered_by_falling_score():
    assert rank([10, 20, 30], [0.1, 0.9, 0.5]) == [20, 30, 10]


def test_equal_scores_keep_the_order_of_the_source():
    assert rank([10, 20, 30, 40], [0.5, 0.9, 0.5, 0.5]) == [20, 10, 30, 40]


def test_empty_page_stays_empty():
    assert rank([], []) == []
    assert request_features("u", []) == []


def test_answer_is_degraded_exactly_when_it_says_by_what():
    common = {"items": [1], "model": "m", "staleness": 0.0, "age": 0.0, "hit": True}
    assert not Answer(**common).degraded
    assert Answer(**common, degraded_by="DownstreamError").degraded


def test_no_answer_carries_status_and_reason():
    error = NoAnswer(503, "no candidates")
    assert (error.status, error.reason, str(error)) == (503, "no candidates", "no candidates")


def test_same_user_and_item_always_have_the_same_features():
    assert request_features("u1", [5, 6]) == request_features("u1", [5, 6])
    assert request_features("u1", [5, 6]) != request_features("u2", [5, 6])


@pytest.mark.parametrize("user", ["u", "", "ü" * 64, "\x00", "🙂"])
def test_any_user_has_features_in_their_ranges(user: str):
    for row in request_features(user, list(range(12))):
        assert all(math.isfinite(value) for value in row)
        *shares, hour_sin, hour_cos, position = row
        assert all(0 <= share <= 1 for share in shares)
        assert hour_sin**2 + hour_cos**2 == pytest.approx(1.0)
        assert 0 <= position <= 1


def test_position_runs_from_first_to_last():
    rows = request_features("u", [1, 2, 3])
    assert [row[-1] for row in rows] == [0.0, 0.5, 1.0]
    assert request_features("u", [1])[0][-1] == 0.0


def test_columns_of_world_and_request_are_the_models_in_order():
    assert SCHEMA.names[: len(ITEM_FEATURES)] == ITEM_FEATURES
    of_request = SCHEMA.names[len(ITEM_FEATURES) :]
    assert of_request == (
        "author_affinity",
        "topic_match",
        "is_following",
        "seen_share",
        "hour_sin",
        "hour_cos",
        "position",
    )
    row = (*World(1).features(0), *request_features("u", [0])[0])
    SCHEMA.validate([row])
    assert set(HEURISTIC_WEIGHTS) <= set(SCHEMA.names)
