"""A shared tier in memory that tests hang, take down and bring back, on the clock of the test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from fairlead.cache.entry import Entry
from fairlead.cache.freshness import Freshness
from fairlead.cache.second_tier import SecondTier
from fairlead.cache.store import Invalidation, Put
from fairlead.cache.two_nodes import TwoNodes
from fairlead.clock import ManualClock, settle
from fairlead.errors import StoreUnavailable

FRESHNESS = Freshness(ttl=60.0, jitter=0.0, stale_if_error=600.0)


class Shared:
    """What lies in the shared tier of a test."""

    def __init__(self) -> None:
        self.entries: dict[Any, Entry[Any]] = {}
        self.fences: dict[Any, float] = {}
        self.tags: dict[Any, float] = {}
        self.leases: dict[Any, tuple[str, float]] = {}


class SharedStore:
    """A `Store` in memory that can hang and fail."""

    def __init__(self, shared: Shared, now: Any = time.monotonic) -> None:
        self.shared = shared
        self.now = now
        self.mismatches = 0
        self.unwritable = 0
        self.hung = False
        self.down = False
        self.read_only = False
        self.calls: list[tuple[str, int]] = []
        self.closed = 0
        self.while_reading: Callable[[Sequence[Any]], object] = lambda keys: None

    async def _pass(self, verb: str, n: int) -> None:
        self.calls.append((verb, n))
        await asyncio.sleep(0)
        if self.hung:
            await asyncio.Event().wait()
        if self.down or (self.read_only and verb == "invalidate"):
            raise StoreUnavailable("shared: down")

    def count(self, verb: str) -> int:
        return sum(each == verb for each, _ in self.calls)

    async def get_many(self, keys: Sequence[Any]) -> list[Entry[Any] | None]:
        await self._pass("get_many", len(keys))
        self.while_reading(keys)
        return [self._get(key) for key in keys]

    def _get(self, key: Any) -> Entry[Any] | None:
        entry = self.shared.entries.get((type(key), key))
        if entry is None or entry.is_dead(self.now()):
            return None
        return (
            None if any(entry.began_at <= self.shared.tags.get(t, -1) for t in ("", *entry.tags)) else entry
        )

    async def put_many(self, puts: Sequence[Put]) -> int:
        await self._pass("put_many", len(puts))
        refused = 0
        for key, entry, replaces in puts:
            key = (type(key), key)
            old = self.shared.entries.get(key)
            if entry.began_at <= self.shared.fences.get(key, -1) or (old and old.began_at > entry.began_at):
                refused += 1
                continue
            self.shared.entries[key] = entry
            if replaces:
                self.shared.fences[key] = entry.began_at
        return refused

    async def invalidate(self, invalidations: Sequence[Invalidation]) -> None:
        await self._pass("invalidate", len(invalidations))
        for kind, subject, at in invalidations:
            if kind in ("remove_tag", "clear"):
                tag = subject if kind == "remove_tag" else ""
                self.shared.tags[tag] = max(at, self.shared.tags.get(tag, -1))
                continue
            key = (type(subject), subject)
            self.shared.fences[key] = max(at, self.shared.fences.get(key, -1))
            entry = self.shared.entries.get(key)
            if entry is not None and entry.began_at <= at:
                if kind == "remove":
                    del self.shared.entries[key]
                else:
                    self.shared.entries[key] = entry.expired(at)

    async def acquire(self, key: Any, token: str, seconds: float) -> bool:
        await self._pass("acquire", 1)
        if self.shared.leases.get(key, ("", -1.0))[1] > self.now():
            return False
        self.shared.leases[key] = (token, self.now() + seconds)
        return True

    async def release(self, held: Sequence[tuple[Any, str]]) -> None:
        await self._pass("release", len(held))
        for key, token in held:
            if self.shared.leases.get(key, ("", 0.0))[0] == token:
                del self.shared.leases[key]

    async def close(self) -> None:
        self.closed += 1


class SharedPlane:
    """A backplane in memory whose messages can be lost, and its connections."""

    def __init__(self) -> None:
        self.cut = False
        self.listeners: dict[asyncio.Future[None], Callable[[bytes], object]] = {}

    async def publish(self, messages: Sequence[bytes]) -> None:
        await asyncio.sleep(0)
        if self.cut:
            return
        for message in messages:
            for listener in list(self.listeners.values()):
                listener(message)

    async def listen(self, on_message: Callable[[bytes], object], on_connected: Callable[[], object]) -> None:
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.listeners[lost] = on_message
        on_connected()
        try:
            await lost
        finally:
            del self.listeners[lost]

    def lose_connections(self) -> None:
        for lost in self.listeners:
            lost.set_exception(StoreUnavailable("plane: lost"))
        self.listeners = dict(self.listeners)
        for lost in list(self.listeners):
            self.listeners[lost] = lambda data: None


def entry(value: object, clock: ManualClock, *tags: str) -> Entry[object]:
    made = Entry.keep(value, FRESHNESS, began_at=clock.now(), now=clock.now(), draw=0.0)
    return Entry(
        value,
        began_at=made.began_at,
        stored_at=made.stored_at,
        fresh_until=made.fresh_until,
        stale_until=made.stale_until,
        error_until=made.error_until,
        tags=frozenset(tags),
    )


async def read(tier: SecondTier | TwoNodes, key: object) -> object:
    found = await tier.get(key)
    return "absent" if found is None else found.value


async def put(
    tier: SecondTier | TwoNodes, key: object, value: object, clock: ManualClock, *tags: str
) -> None:
    tier.put(key, entry(value, clock, *tags))
    await settle()
    clock.advance(0.001)
