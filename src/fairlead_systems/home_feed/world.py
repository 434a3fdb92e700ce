"""The short videos and topics that the feed is made of, the same in every process of a run.

Each process rebuilds the world from the seed instead of shipping it: a topic's candidates and an item's
features are pure functions of the seed. Topics overlap (popular items appear under several), as real
candidate sets do.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = ["CANDIDATES_PER_TOPIC", "ITEMS", "ITEM_FEATURES", "TOPICS", "World"]

TOPICS = 400
ITEMS = 3_000
CANDIDATES_PER_TOPIC = 12

ITEM_FEATURES = (
    "popularity_log",
    "age_hours",
    "watch_ratio",
    "completion_rate",
    "like_rate",
    "share_rate",
    "creator_quality",
    "duration_log",
    "freshness",
)
"""What the feature service knows of an item. The rest of the ranker's inputs belong to the request."""


@dataclass(frozen=True, slots=True)
class World:
    """Topics and items of one run."""

    seed: int
    _candidates: list[list[int]] = field(init=False, repr=False)
    _features: list[list[float]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.seed, 0xFEED])
        appeal = 1.0 / np.arange(1, ITEMS + 1) ** 0.6
        chance = appeal / appeal.sum()
        candidates = [
            [int(item) for item in rng.choice(ITEMS, size=CANDIDATES_PER_TOPIC, replace=False, p=chance)]
            for _ in range(TOPICS)
        ]
        features = np.column_stack(
            [
                rng.gamma(4.0, 1.6, ITEMS),
                rng.exponential(30.0, ITEMS),
                rng.beta(4, 3, ITEMS),
                rng.beta(3, 3, ITEMS),
                rng.beta(2, 20, ITEMS),
                rng.beta(1, 40, ITEMS),
                rng.beta(5, 3, ITEMS),
                rng.normal(3.2, 0.6, ITEMS),
                rng.beta(2, 2, ITEMS),
            ]
        )
        object.__setattr__(self, "_candidates", candidates)
        object.__setattr__(self, "_features", features.round(4).tolist())

    def candidates(self, topic: int) -> list[int]:
        """Item ids for a topic, best first by the source's own order. Raises IndexError outside the world."""
        if not 0 <= topic < TOPICS:
            raise IndexError(topic)
        return self._candidates[topic]

    def trending(self) -> list[int]:
        """The most popular items of all topics: what can be shown when nothing is known of the one asked for."""
        return list(range(CANDIDATES_PER_TOPIC))

    def features(self, item: int) -> list[float]:
        """Values of ITEM_FEATURES, in that order. Raises IndexError outside the world."""
        if not 0 <= item < ITEMS:
            raise IndexError(item)
        return self._features[item]
