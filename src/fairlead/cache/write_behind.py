"""Writes to the shared tier, behind the callers: nobody waits for them.

    queued --one task writes, in order--> written        queued --the tier is away, or too much waits--> dropped

A load that is dropped costs a load. A set that is dropped is owed as a removal, because what lies in the tier is
then older than what is known. Leases are given back by the same task, behind the values written before.

A set that waits here can be overtaken by a read of this process. So reads see their answers through it: what was set
wins over what the tier says, unless the tier's is newer, and unless an invalidation came in between.

Invariant: a read that begins after a set answers with what was set, or with something newer, or with nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

from fairlead.cache.budget import AT_ONCE, PATIENCE, within, words_of
from fairlead.cache.debts import Debts
from fairlead.cache.entry import Entry
from fairlead.cache.invalidation import Message
from fairlead.cache.lease import Leases
from fairlead.cache.store import Invalidation, InvalidationKind, Put, Store
from fairlead.cache.tier_stats import TierStats
from fairlead.clock import Clock

__all__ = ["Unwritten", "WriteBehind"]


class Unwritten(NamedTuple):
    """What was set and not yet written at one moment."""

    sets: dict[Hashable, Entry[Any]]
    invalidations: int
    """How many there had been."""


class WriteBehind:
    """The writes of one `SecondTier`. Per process, and for one event loop at a time."""

    def __init__(
        self,
        store: Store,
        *,
        most: int,
        debts: Debts,
        stats: TierStats,
        clock: Clock,
        name: str,
        start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        publish: Callable[[Sequence[Message]], Coroutine[Any, Any, None]],
        on_debt: Callable[[], object],
    ) -> None:
        """most: writes that wait; above it new ones are dropped. start: runs work in a task that the tier owns.
        publish: tells other processes. on_debt: called when something is owed now."""
        self.task: asyncio.Task[None] | None = None
        """The one that writes; None when nothing waits."""
        self.sets: dict[Hashable, Entry[Any]] = {}
        """By key, what was set here and is not yet written."""
        self._store = store
        self._leases = store if isinstance(store, Leases) else None
        self._most = most
        self._debts = debts
        self._stats = stats
        self._clock = clock
        self._name = name
        self._start = start
        self._publish = publish
        self._on_debt = on_debt
        self._queue: deque[Put] = deque()
        self._releases: list[tuple[Hashable, str]] = []
        self._invalidations = 0

    def add(self, put: Put) -> None:
        """Has it written, or drops it when too much waits."""
        if len(self._queue) >= self._most:
            self.drop((put,))
            return
        self._queue.append(put)
        if put.replaces:
            self.sets[put.key] = put.entry
        self._wake()

    def release(self, key: Hashable, token: str) -> None:
        """Gives a lease back, behind the values written before."""
        self._releases.append((key, token))
        self._wake()

    def drop(self, puts: Sequence[Put]) -> None:
        """Counts them as not written, and owes what was set."""
        self._no_longer_wait(puts)
        for put in puts:
            self._stats.dropped_writes += 1
            if put.replaces:
                self._debts.add(Invalidation("remove", put.key, put.entry.began_at))
        if self._debts:
            self._on_debt()

    def forget(self) -> None:
        """Drops what an event loop that is gone was to write."""
        self.task, self._releases = None, []
        left, self._queue = self._queue, deque()
        self.drop(left)

    def invalidated(self, kind: InvalidationKind, subject: Hashable) -> None:
        """Keeps reads from being answered with a set that was invalidated before it was written."""
        self._invalidations += 1
        if kind == "clear":
            self.sets.clear()
        elif kind == "remove_tag":
            self.sets = {key: entry for key, entry in self.sets.items() if subject not in entry.tags}
        else:
            self.sets.pop(subject, None)

    def as_they_are(self) -> Unwritten | None:
        """For a question that leaves now, and may come back when they are written; None for no sets."""
        return Unwritten(self.sets.copy(), self._invalidations) if self.sets else None

    def seen_through(
        self, key: Hashable, entry: Entry[Any] | None, before: Unwritten | None
    ) -> Entry[Any] | None:
        """What a read may see of the tier's answer. before: the sets when it was asked."""
        waiting = self.sets.get(key)
        mine = before.sets.get(key) if waiting is None and before is not None else waiting
        if mine is None or (entry is not None and entry.began_at > mine.began_at):
            return entry
        # Written by now, or invalidated since, and then there is no answer.
        unchanged = before is not None and before.invalidations == self._invalidations
        return mine if waiting is not None or unchanged else None

    def _wake(self) -> None:
        if self.task is None:
            self.task = self._start(self._write())

    async def _write(self) -> None:
        try:
            while self._queue or self._releases:
                chunk = [self._queue.popleft() for _ in range(min(AT_ONCE, len(self._queue)))]
                releases, self._releases = self._releases, []
                if chunk:
                    await self._write_some(chunk)
                if releases and self._leases is not None:
                    try:
                        await within(
                            self._clock,
                            PATIENCE,
                            self._leases.release(releases),
                            f"{self._name}: a release",
                        )
                    except Exception as error:  # the lease ends by itself
                        self._stats.last_error = words_of(error)
        finally:
            self.task = None

    async def _write_some(self, chunk: list[Put]) -> None:
        try:
            refused = await within(
                self._clock, PATIENCE, self._store.put_many(chunk), f"{self._name}: a write"
            )
        except asyncio.CancelledError:
            self.drop(chunk)
            raise
        except Exception as error:
            self._stats.last_error = words_of(error)
            self.drop(chunk)
            return
        self._no_longer_wait(chunk)
        self._stats.refused_writes += refused
        self._stats.writes += len(chunk)
        await self._publish([Message("remove", put.key) for put in chunk if put.replaces])

    def _no_longer_wait(self, puts: Iterable[Put]) -> None:
        for put in puts:
            if self.sets.get(put.key) is put.entry:
                del self.sets[put.key]
