"""Two second tiers, both active: each knows all that was written, either can answer alone.

A cache that loses its only shared tier sends every process to the origin at once. Here writes and
invalidations go to both nodes. Reads go to one, and move to the other when it stops being trusted:

    reading a --a fails--> reading b --b fails--> reading a, and of it only what was loaded after it came back

They do not move back by themselves: the node that answers is the one that missed nothing. While a node is away
its invalidations are owed (`SecondTier`), yet those of another process may be lost with that process. So of a
node that was away nothing is believed that was loaded before it returned.

Invariant: a value that this process, or one that still runs, invalidated during a node's absence is never
served after the failover. What else could be stale is bounded by its own `Freshness`.

Per process: which node is read, and what is believed of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from functools import partial
from math import inf
from typing import Any

from fairlead.cache.entry import Entry
from fairlead.cache.invalidation import Message
from fairlead.cache.second_tier import SecondTier
from fairlead.cache.stats import export_counts
from fairlead.cache.store import InvalidationKind
from fairlead.calls.circuit_breaker import BreakerState
from fairlead.errors import InvalidInput
from fairlead.telemetry.event import StateChanged
from fairlead.telemetry.metrics import MetricRegistry

__all__ = ["TwoNodes"]


class TwoNodes:
    """Stands where a `SecondTier` stands, for two of them on different servers."""

    def __init__(self, first: SecondTier, second: SecondTier) -> None:
        """first: the one that is read first. Each keeps its own budget, breaker, debts and `stats`."""
        if first is second or first.store is second.store:
            raise InvalidInput("TwoNodes: both nodes are one; give it two tiers on two servers")
        self.nodes = (first, second)
        self.distrusted = 0
        """Entries not believed because their node had been away since they were loaded; of this process."""
        self.moves = 0
        """Times that reads moved to the other node; of this process."""
        self._reading = 0
        self._believed_from = [-inf, -inf]
        for index, node in enumerate(self.nodes):
            node.breaker.subscribe(partial(self._changed, index))

    def __repr__(self) -> str:
        return f"TwoNodes({self.nodes[0]!r}, {self.nodes[1]!r}, reads {self.reading.name!r})"

    @property
    def reading(self) -> SecondTier:
        """The node that reads go to now."""
        return self.nodes[self._reading]

    def export(self, registry: MetricRegistry, *, cache: str) -> None:
        """As `SecondTier.export`, of both, and what only two can do."""
        is_told_apart = self.nodes[0].name != self.nodes[1].name
        for number, node in enumerate(self.nodes, start=1):
            node.export(registry, cache=cache, tier=node.name if is_told_apart else f"{node.name} {number}")
        export_counts(
            "fairlead_cache_two_nodes_total",
            "Times that reads moved to the other node, and entries not believed since.",
            self,
            ("distrusted", "moves"),
            registry,
            cache=cache,
        )

    @property
    def is_trusted(self) -> bool:
        """Whether either is asked now."""
        return self.nodes[0].is_trusted or self.nodes[1].is_trusted

    async def get(self, key: Hashable) -> Entry[Any] | None:
        """As `SecondTier.get`, of the node that reads go to."""
        self._choose()
        index = self._reading
        entry = await self.nodes[index].get(key)
        if entry is not None and entry.began_at < self._believed_from[index]:
            self.distrusted += 1
            return None
        return entry

    def put(self, key: Hashable, entry: Entry[Any], *, replaces: bool = False) -> None:
        """As `SecondTier.put`, to both."""
        for node in self.nodes:
            node.put(key, entry, replaces=replaces)

    async def invalidate(self, kind: InvalidationKind, subject: Hashable = None) -> None:
        """As `SecondTier.invalidate`, on both at once."""
        await asyncio.gather(*(node.invalidate(kind, subject) for node in self.nodes))

    @property
    def lease_for(self) -> float:
        """As `SecondTier.lease_for`, of the node that reads go to."""
        return self.reading.lease_for

    @property
    def budget(self) -> float:
        """As of a `SecondTier`, the longer of the two."""
        return max(node.budget for node in self.nodes)

    @property
    def memory_ttl(self) -> float:
        """As `SecondTier.memory_ttl`, the shorter of the two."""
        return min(node.memory_ttl for node in self.nodes)

    def subscribe(self, on_message: Callable[[Message], object], on_gap: Callable[[], object]) -> None:
        """As `SecondTier.subscribe`, of both: what one does not bring the other may."""
        for node in self.nodes:
            node.subscribe(on_message, on_gap)

    async def acquire(self, key: Hashable) -> str | None:
        """As `SecondTier.acquire`, of the node that reads go to."""
        self._choose()
        return await self.reading.acquire(key)

    def release(self, key: Hashable, token: str) -> None:
        """As `SecondTier.release`; on both, as reads may have moved since."""
        for node in self.nodes:
            node.release(key, token)

    async def close(self, timeout: float = 1.0) -> None:
        """Closes both."""
        await asyncio.gather(*(node.close(timeout) for node in self.nodes))

    def _choose(self) -> None:
        if not self.reading.is_trusted and self.nodes[1 - self._reading].is_trusted:
            self._reading = 1 - self._reading
            self.moves += 1

    def _changed(self, index: int, event: StateChanged) -> None:
        if event.current == BreakerState.CLOSED:
            self._believed_from[index] = self.nodes[index].clock.now()
        else:
            self._choose()  # at once: a node that is back before the next read would be read again
