"""The world that every process rebuilds for itself."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest

from fairlead_systems.home_feed.world import (
    CANDIDATES_PER_TOPIC,
    ITEM_FEATURES,
    ITEMS,
    TOPICS,
    World,
)

FINGERPRINT = """
import hashlib, json
from fairlead_systems.home_feed.world import ITEMS, TOPICS, World
world = World(5)
whole = [[world.candidates(t) for t in range(TOPICS)], [world.features(i) for i in range(ITEMS)]]
print(hashlib.sha256(json.dumps(whole).encode()).hexdigest())
"""


def fingerprint(seed: int) -> str:
    world = World(seed)
    whole = [[world.candidates(t) for t in range(TOPICS)], [world.features(i) for i in range(ITEMS)]]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def test_world_is_a_function_of_its_seed():
    assert fingerprint(5) == fingerprint(5)
    assert fingerprint(5) != fingerprint(6)


def test_two_processes_rebuild_the_same_world():
    told = subprocess.run(
        [sys.executable, "-c", FINGERPRINT], capture_output=True, text=True, check=True, timeout=60
    )
    assert told.stdout.strip() == fingerprint(5)


def test_every_topic_has_its_candidates_each_once():
    world = World(1)
    for topic in range(TOPICS):
        items = world.candidates(topic)
        assert len(items) == len(set(items)) == CANDIDATES_PER_TOPIC
        assert all(0 <= item < ITEMS for item in items)


def test_popular_items_appear_under_several_topics():
    world = World(1)
    shown = [item for topic in range(TOPICS) for item in world.candidates(topic)]
    assert shown.count(0) > 20
    assert len(set(shown)) < len(shown)


def test_every_item_has_finite_features_in_the_listed_order():
    world = World(1)
    for item in range(ITEMS):
        values = world.features(item)
        assert len(values) == len(ITEM_FEATURES)
        assert all(-1e6 < value < 1e6 for value in values)


@pytest.mark.parametrize("topic", [-1, TOPICS, 10**9])
def test_topic_outside_the_world_is_refused(topic: int):
    with pytest.raises(IndexError):
        World(1).candidates(topic)


@pytest.mark.parametrize("item", [-1, ITEMS])
def test_item_outside_the_world_is_refused(item: int):
    with pytest.raises(IndexError):
        World(1).features(item)


def test_trending_items_are_a_page():
    trending = World(1).trending()
    assert len(trending) == len(set(trending)) == CANDIDATES_PER_TOPIC
    assert all(0 <= item < ITEMS for item in trending)
