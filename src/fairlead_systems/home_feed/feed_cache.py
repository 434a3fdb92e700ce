"""The treatment's cache, with the switches that a trial turns: coalescing, jitter, stale answers, negative entries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

from fairlead.cache import Cache, Freshness, MemoryStore, SecondTier
from fairlead.clock import Clock
from fairlead_systems.home_feed.control import ITEM_TTL, TTL, USER_TTL
from fairlead_systems.home_feed.mechanisms import Mechanisms

__all__ = ["STALENESS_BOUND", "FeedCache", "Found"]

STALENESS_BOUND = 0.4
"""Seconds an answer may be past its lifetime. The account this system is modelled on bounds it at 300 to
500 ms.
"""
NEGATIVE_TTL = 1.0
"""Seconds for which nobody asks again after a topic, user or item that does not exist."""

K = TypeVar("K", bound=Hashable)


class Found(NamedTuple):
    """A value and how it was come by."""

    value: Any
    staleness: float
    """Seconds past its lifetime."""
    hit: bool
    """It came without waiting."""


class FeedCache:
    """A `Cache` whose lifetimes are the control's, so that the comparison is not one of lifetimes. Per process."""

    def __init__(self, uses: Mechanisms, second: SecondTier | None, clock: Clock) -> None:
        self.cache = Cache(MemoryStore(max_entries=40_000), second=second, clock=clock, name="feed")
        self._coalescing = uses.coalescing
        self._uses = uses
        self.of_topic = self.lifetime(TTL, stale=STALENESS_BOUND)
        """Of a topic's candidates."""
        self.of_item = self.lifetime(ITEM_TTL, stale=STALENESS_BOUND)
        """Of an item's features and popularity."""
        self.of_user = self.lifetime(USER_TTL, stale=STALENESS_BOUND)
        """Of a user's candidates."""

    def lifetime(self, ttl: float, *, stale: float = 0.0, early_refresh: float = 0.0) -> Freshness:
        uses = self._uses
        return Freshness(
            ttl=ttl,
            jitter=0.1 if uses.jitter else 0.0,
            stale_while_revalidate=stale if uses.stale_while_revalidate else 0.0,
            negative_ttl=NEGATIVE_TTL if uses.negative_caching else 0.0,
            early_refresh=early_refresh,
        )

    async def find(
        self, key: tuple[str | int, ...], load: Callable[[], Awaitable[Any]], freshness: Freshness
    ) -> Found:
        if self._coalescing:
            found = await self.cache.lookup(key, load, freshness)
            return Found(found.value, found.staleness, found.source in ("hit", "stale"))
        # A null in the cache reads as a miss here, as it does in the control.
        value = await self.cache.get(key)
        if value is not None:
            return Found(value, 0.0, True)
        value = await load()
        await self.cache.set(key, value, freshness)
        return Found(value, 0.0, False)

    async def find_all(
        self,
        kind: str,
        items: Sequence[int],
        load: Callable[[list[int]], Awaitable[Sequence[Any]]],
        freshness: Freshness,
    ) -> list[Found]:
        """What is found for each of `items`, in their order; what is missing is loaded in one call."""
        keys = [(kind, item) for item in items]

        async def load_keys(missing: list[tuple[str, int]]) -> Sequence[Any]:
            return await load([item for _, item in missing])

        if self._coalescing:
            found = await self.cache.lookup_many(keys, load_keys, freshness)
            return [
                Found(each.value, each.staleness, each.source in ("hit", "stale"))
                for each in map(found.__getitem__, keys)
            ]
        values = {key: await self.cache.get(key) for key in keys}
        missing = [key for key in keys if values[key] is None]
        if missing:
            for key, value in zip(missing, await load_keys(missing), strict=True):
                values[key] = value
                await self.cache.set(key, value, freshness)
        late = frozenset(missing)
        return [Found(values[key], 0.0, key not in late) for key in keys]
