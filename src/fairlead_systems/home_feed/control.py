"""The control: what a competent team writes in a hurry. It works, until it is busy.

A plain TTL cache without coalescing, features fetched one by one, fixed timeouts, three attempts each, a page
that fails with any of its parts, the model called in line. Every line here has been written, reviewed and shipped
somewhere. What is shown follows the same rules as in the treatment (`selection`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from fairlead_systems.home_feed.answer import Answer, NoAnswer
from fairlead_systems.home_feed.clients import (
    CandidateClient,
    Candidates,
    DownstreamError,
    FeatureClient,
    Label,
    LabelClient,
)
from fairlead_systems.home_feed.ranking import InlineRanking
from fairlead_systems.home_feed.selection import SOURCES, first_stage, shortlist, spread

if TYPE_CHECKING:
    from fairlead_systems.home_feed.feature_protocol import Features

__all__ = ["Control", "TtlCache", "with_retries"]

TTL = 1.0
"""Seconds that candidates of a topic are kept."""
ITEM_TTL = 5.0
"""Of what is known of an item: its label, its popularity, its features."""
USER_TTL = 10.0
"""Of candidates that belong to one user: whom he follows and what he likes changes slowly."""
CANDIDATE_TIMEOUT = 1.0
LABEL_TIMEOUT = 0.5
FEATURE_TIMEOUT = 0.5
ATTEMPTS = 3

A = TypeVar("A")
V = TypeVar("V")


class TtlCache(Generic[V]):
    """A dict with expiry, bounded by dropping the oldest entry."""

    def __init__(self, ttl: float, max_entries: int = 10_000) -> None:
        self._ttl = ttl
        self._max_entries = max_entries
        self._entries: dict[Hashable, tuple[float, V]] = {}

    def get(self, key: Hashable) -> V | None:
        entry = self._entries.get(key)
        if entry is None or entry[0] <= time.monotonic():
            return None
        return entry[1]

    def set(self, key: Hashable, value: V) -> None:
        if len(self._entries) >= self._max_entries and key not in self._entries:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = (time.monotonic() + self._ttl, value)

    def clear(self) -> None:
        self._entries.clear()


async def with_retries(call: Callable[[A], Awaitable[V]], argument: A, timeout: float) -> V:
    """Three attempts, a fixed timeout each, no pause in between."""
    for attempt in range(ATTEMPTS):
        try:
            async with asyncio.timeout(timeout):
                return await call(argument)
        except (TimeoutError, DownstreamError):
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


class Control:
    def __init__(
        self,
        sources: Mapping[str, CandidateClient],
        labels: LabelClient,
        features: FeatureClient,
        ranking: InlineRanking,
    ) -> None:
        self._sources = sources
        self._labels = labels
        self._features = features
        self._ranking = ranking
        self._candidate_cache: TtlCache[Candidates] = TtlCache(TTL)
        self._user_cache: TtlCache[Candidates] = TtlCache(USER_TTL)
        self._label_cache: TtlCache[tuple[Label | None, Label | None]] = TtlCache(ITEM_TTL)
        self._feature_cache: TtlCache[Features] = TtlCache(ITEM_TTL)

    def clear(self) -> None:
        for cache in (self._candidate_cache, self._user_cache, self._label_cache, self._feature_cache):
            cache.clear()

    async def page(
        self, user: str, topic: int, *, shown: Sequence[int] = (), seen: Sequence[int] = ()
    ) -> Answer:
        hits: list[bool] = []
        try:
            found = await asyncio.gather(*(self._candidates(source, user, topic, hits) for source in SOURCES))
        except (TimeoutError, DownstreamError) as error:
            raise NoAnswer(502, f"no candidates: {error!r}") from error
        offers = {source: each for source, each in zip(SOURCES, found, strict=True) if each is not None}
        if "trending" not in offers:
            raise NoAnswer(404, f"no topic {topic}")
        oldest = min(each.as_of_seconds for each in offers.values())
        candidates = shortlist(
            {source: each.items for source, each in offers.items()}, shown=shown, seen=seen
        )
        labels = await self._labelled(list(candidates))
        safe = {item: score for item, score in candidates.items() if _is_safe(labels[item][0])}
        popularity = {item: label.value for item in safe if (label := labels[item][1]) is not None}
        top = first_stage(safe, popularity)
        rows: list[list[float]] = []
        for item in top:
            features = self._feature_cache.get(item)
            hits.append(features is not None)
            if features is None:
                try:
                    features = await with_retries(self._features.get, item, FEATURE_TIMEOUT)
                except (TimeoutError, DownstreamError) as error:
                    raise NoAnswer(502, f"no features of item {item}: {error!r}") from error
                self._feature_cache.set(item, features)
            oldest = min(oldest, features.as_of_seconds)
            rows.append(features.values)
        ranked, model = self._ranking.rank(user, top, rows) if top else ([], "")
        page = spread(ranked, shown)
        for item in safe:
            oldest = min(oldest, *(label.as_of_seconds for label in labels[item] if label is not None))
        return Answer(
            items=page,
            model=model,
            more=bool(page) and len(safe) > len(page),
            staleness=0.0,
            age=time.monotonic() - oldest,
            hit=all(hits),
        )

    async def _candidates(self, source: str, user: str, topic: int, hits: list[bool]) -> Candidates | None:
        key = str(topic) if source == "trending" else user
        cache = self._candidate_cache if source == "trending" else self._user_cache
        found = cache.get((source, key))
        hits.append(found is not None)
        if found is None:
            found = await with_retries(self._sources[source].fetch, key, CANDIDATE_TIMEOUT)
            if found is not None:
                cache.set((source, key), found)
        return found

    async def _labelled(self, items: list[int]) -> dict[int, tuple[Label | None, Label | None]]:
        """Safety and popularity by item."""
        known = {item: self._label_cache.get(item) for item in items}
        labels = {item: found for item, found in known.items() if found is not None}
        missing = [item for item in items if item not in labels]
        if missing:
            try:
                safety = await with_retries(self._labels.safety, missing, LABEL_TIMEOUT)
                popularity = await with_retries(self._labels.popularity, missing, LABEL_TIMEOUT)
            except (TimeoutError, DownstreamError) as error:
                raise NoAnswer(502, f"no labels: {error!r}") from error
            for item, *found in zip(missing, safety, popularity, strict=True):
                labels[item] = (found[0], found[1])
                self._label_cache.set(item, labels[item])
        return labels


def _is_safe(label: Label | None) -> bool:
    # An item without a label is not shown, here as there: that is the product, not a mechanism.
    return label is not None and bool(label.value)
