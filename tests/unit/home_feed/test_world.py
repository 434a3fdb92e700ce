"""The world that every process rebuilds for itself."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from fairlead_systems.home_feed.selection import PAGE
from fairlead_systems.home_feed.world import (
    CANDIDATES_PER_TOPIC,
    ITEM_FEATURES,
    ITEMS,
    PER_SOURCE,
    TOPICS,
    USERS,
    World,
    author_of,
)

FINGERPRINT = """
import hashlib, json
from fairlead_systems.home_feed.world import ITEMS, TOPICS, World
world = World(5)
whole = [[world.candidates(t) for t in range(TOPICS)], [world.features(i) for i in range(ITEMS)],
    [world.nearest(world.taste(u)) for u in range(20)], [world.in_network(u) for u in range(20)],
    world.reviewed()]
print(hashlib.sha256(json.dumps(whole).encode()).hexdigest())
"""


def fingerprint(seed: int) -> str:
    world = World(seed)
    whole = [
        [world.candidates(t) for t in range(TOPICS)],
        [world.features(i) for i in range(ITEMS)],
        [world.nearest(world.taste(u)) for u in range(20)],
        [world.in_network(u) for u in range(20)],
        world.reviewed(),
    ]
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


def test_reviewed_items_are_safe_and_more_than_a_page():
    world = World(1)
    reviewed = world.reviewed()
    assert len(reviewed) == len(set(reviewed)) > PAGE
    assert all(world.is_safe(item) for item in reviewed)


@pytest.mark.parametrize("name", ["", "u", "u-1", "u01", "u٣", "v1", f"u{USERS}", "u" + "9" * 30, "u1 "])
def test_name_of_nobody_is_nobody(name: str):
    assert World(1).user(name) is None


def test_users_are_numbered_from_zero():
    world = World(1)
    assert (world.user("u0"), world.user(f"u{USERS - 1}")) == (0, USERS - 1)


def test_in_network_items_are_of_the_few_authors_that_the_user_follows():
    world = World(1)
    for user in range(50):
        items = world.in_network(user)
        assert len(set(items)) == len(items) == PER_SOURCE
        assert len({author_of(item) for item in items}) <= 12
    assert world.in_network(1) != world.in_network(2)


def test_nearest_is_exact_and_in_order():
    world = World(1)
    for user in range(20):
        taste = world.taste(user)
        cosines = world.vectors @ taste
        found = world.nearest(taste)
        assert sorted(found) == sorted(np.argsort(-cosines, kind="stable")[:PER_SOURCE].tolist())
        assert all(cosines[a] >= cosines[b] for a, b in pairwise(found))


def test_vectors_have_length_one_and_lie_by_theme():
    world = World(1)
    assert np.linalg.norm(world.vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    cosines = world.vectors[:300] @ world.vectors[:300].T
    apart = cosines[np.triu_indices(300, 1)]
    assert np.quantile(apart, 0.999) > 0.6  # of one theme
    assert np.median(np.abs(apart)) < 0.3  # of two


def test_few_items_are_unsafe():
    world = World(1)
    assert 20 < sum(not world.is_safe(item) for item in range(ITEMS)) < 120
