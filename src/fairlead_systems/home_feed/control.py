"""The control: what a competent team writes in a hurry. It works, until it is busy.

A plain TTL cache without coalescing, features fetched one by one, fixed timeouts, three attempts each, the
model called in line. Every line here has been written, reviewed and shipped somewhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from fairlead_systems.home_feed.answer import Answer, NoAnswer
from fairlead_systems.home_feed.clients import (
    CandidateClient,
    Candidates,
    DownstreamError,
    FeatureClient,
    UnknownTopic,
)
from fairlead_systems.home_feed.ranking import InlineRanking

if TYPE_CHECKING:
    from fairlead_systems.home_feed.feature_protocol import Features

__all__ = ["Control", "TtlCache", "with_retries"]

TTL = 1.0
CANDIDATE_TIMEOUT = 1.0
FEATURE_TIMEOUT = 0.5
ATTEMPTS = 3

V = TypeVar("V")


class TtlCache(Generic[V]):
    """A dict with expiry, bounded by dropping the oldest entry."""

    def __init__(self, ttl: float, max_entries: int = 10_000) -> None:
        self._ttl = ttl
        self._max_entries = max_entries
        self._entries: dict[int, tuple[float, V]] = {}

    def get(self, key: int) -> V | None:
        entry = self._entries.get(key)
        if entry is None or entry[0] <= time.monotonic():
            return None
        return entry[1]

    def set(self, key: int, value: V) -> None:
        if len(self._entries) >= self._max_entries and key not in self._entries:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = (time.monotonic() + self._ttl, value)

    def clear(self) -> None:
        self._entries.clear()


async def with_retries(call: Callable[[int], Awaitable[V]], argument: int, timeout: float) -> V:
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
    def __init__(self, candidates: CandidateClient, features: FeatureClient, ranking: InlineRanking) -> None:
        self._candidates = candidates
        self._features = features
        self._ranking = ranking
        self._candidate_cache: TtlCache[Candidates] = TtlCache(TTL)
        self._feature_cache: TtlCache[Features] = TtlCache(TTL)

    def clear(self) -> None:
        self._candidate_cache.clear()
        self._feature_cache.clear()

    async def page(self, user: str, topic: int) -> Answer:
        hit = True
        candidates = self._candidate_cache.get(topic)
        if candidates is None:
            hit = False
            try:
                candidates = await with_retries(self._candidates.fetch, topic, CANDIDATE_TIMEOUT)
            except UnknownTopic as error:
                raise NoAnswer(404, str(error)) from error
            except (TimeoutError, DownstreamError) as error:
                raise NoAnswer(502, f"no candidates: {error!r}") from error
            self._candidate_cache.set(topic, candidates)
        oldest = candidates.as_of_seconds
        rows: list[list[float]] = []
        for item in candidates.items:
            features = self._feature_cache.get(item)
            if features is None:
                hit = False
                try:
                    features = await with_retries(self._features.get, item, FEATURE_TIMEOUT)
                except (TimeoutError, DownstreamError) as error:
                    raise NoAnswer(502, f"no features of item {item}: {error!r}") from error
                self._feature_cache.set(item, features)
            oldest = min(oldest, features.as_of_seconds)
            rows.append(features.values)
        ranked, model = self._ranking.rank(user, candidates.items, rows)
        return Answer(items=ranked, model=model, staleness=0.0, age=time.monotonic() - oldest, hit=hit)
