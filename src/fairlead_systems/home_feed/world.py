"""The short videos and topics that the feed is made of, the same in every process of a run.

Each process rebuilds the world from the seed instead of shipping it: a topic's candidates, an item's features,
label and vector, a user's follows and taste are pure functions of the seed. Topics overlap (popular items appear
under several), as real candidate sets do. Vectors have the structure that training gives real ones: items of one
theme lie near each other, and a user near the themes of his choice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = [
    "AUTHORS",
    "CANDIDATES_PER_TOPIC",
    "ITEMS",
    "ITEM_FEATURES",
    "PER_SOURCE",
    "TOPICS",
    "USERS",
    "World",
    "author_of",
]

TOPICS = 400
ITEMS = 3_000
USERS = 5_000
"""Users are named u0, u1, …; the world knows nobody else."""
AUTHORS = 600
CANDIDATES_PER_TOPIC = 18
PER_SOURCE = 18
"""Candidates that each of the user's own sources offers."""

_THEMES = 40
_DIMENSIONS = 32
_FOLLOWS = 12
_THEMES_OF_A_USER = 3
_NOISE = 0.12
"""Standard deviation of each coordinate around its theme: cosines within a theme come out near 0.7."""
_UNSAFE = 0.02
_REVIEWED = 24

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
    _unsafe: frozenset[int] = field(init=False, repr=False)
    vectors: np.ndarray = field(init=False, repr=False)
    """Shape (ITEMS, 32), float32, each row of length 1."""
    _themes: np.ndarray = field(init=False, repr=False)

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
        rng = np.random.default_rng([self.seed, 0x5AFE])
        unsafe = {int(item) for item in np.flatnonzero(rng.random(ITEMS) < _UNSAFE)}
        rng = np.random.default_rng([self.seed, 0x7EC7])
        themes = _unit(rng.normal(size=(_THEMES, _DIMENSIONS)))
        of_item = rng.integers(_THEMES, size=ITEMS)
        vectors = _unit(themes[of_item] + rng.normal(0.0, _NOISE, (ITEMS, _DIMENSIONS)))
        object.__setattr__(self, "_unsafe", frozenset(unsafe))
        object.__setattr__(self, "vectors", vectors.astype(np.float32))
        object.__setattr__(self, "_themes", themes)
        object.__setattr__(self, "_candidates", candidates)
        object.__setattr__(self, "_features", features.round(4).tolist())

    def candidates(self, topic: int) -> list[int]:
        """Item ids for a topic, best first by the source's own order. Raises IndexError outside the world."""
        if not 0 <= topic < TOPICS:
            raise IndexError(topic)
        return self._candidates[topic]

    def user(self, name: str) -> int | None:
        """The number of a user; None for a name that the world does not know."""
        digits = name[1:]
        if name[:1] != "u" or not (digits.isascii() and digits.isdigit()) or len(digits) > 9:
            return None
        number = int(digits)
        return number if number < USERS and digits == str(number) else None

    def in_network(self, user: int) -> list[int]:
        """Items of the authors that the user follows, most popular first."""
        rng = np.random.default_rng([self.seed, 0xF0110, user])
        followed = rng.choice(AUTHORS, size=_FOLLOWS, replace=False)
        items = (np.arange(0, ITEMS, AUTHORS)[None, :] + followed[:, None]).ravel()
        return [int(item) for item in np.sort(items)[:PER_SOURCE]]

    def taste(self, user: int) -> np.ndarray:
        """The user's vector, shape (32,), float32, of length 1."""
        rng = np.random.default_rng([self.seed, 0x7A57E, user])
        themes = rng.choice(_THEMES, size=_THEMES_OF_A_USER, replace=False)
        weights = rng.dirichlet(np.full(_THEMES_OF_A_USER, 2.0))
        blend = weights @ self._themes[themes] + rng.normal(0.0, _NOISE / 2, _DIMENSIONS)
        taste: np.ndarray = (blend / np.linalg.norm(blend)).astype(np.float32)
        return taste

    def nearest(self, taste: np.ndarray) -> list[int]:
        """Items whose vectors lie nearest to `taste` by cosine, nearest first: one matrix product over all items."""
        cosines = self.vectors @ taste
        best = np.argpartition(-cosines, PER_SOURCE)[:PER_SOURCE]
        return [int(item) for item in best[np.argsort(-cosines[best], kind="stable")]]

    def is_safe(self, item: int) -> bool:
        """What the reviewers said. Raises IndexError outside the world."""
        if not 0 <= item < ITEMS:
            raise IndexError(item)
        return item not in self._unsafe

    def popularity(self, item: int) -> float:
        """Views relative to the most viewed item, 0-1. Raises IndexError outside the world."""
        if not 0 <= item < ITEMS:
            raise IndexError(item)
        return float((item + 1) ** -0.6)

    def reviewed(self) -> list[int]:
        """Popular items whose label was checked by hand and does not change within a run: what may be shown when
        nothing is known of the one asked for, and when no label can be had.
        """
        safe = (item for item in range(ITEMS) if item not in self._unsafe)
        return [next(safe) for _ in range(_REVIEWED)]

    def features(self, item: int) -> list[float]:
        """Values of ITEM_FEATURES, in that order. Raises IndexError outside the world."""
        if not 0 <= item < ITEMS:
            raise IndexError(item)
        return self._features[item]


def author_of(item: int) -> int:
    """Who made it; an item's name tells, as a video's does that lies under its author's page."""
    return item % AUTHORS


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths: np.ndarray = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / lengths)
