"""Reads of one turn of the event loop, sent to the shared tier as one question.

A read per command pays a round trip's overhead for each key. Here every caller leaves its key and waits; at the end
of the turn one task asks for all of them, in parts that each have the budget:

    asked --end of the turn--> one question --answered--> hits and misses
                                            --late or failed--> misses, and the breaker hears of it

An answer may be older than what this process did meanwhile. So it is seen through the debts from before the
question and after it, and through what was set here and not yet written.

Invariant: no answer shows an entry that this process had invalidated, or replaced, before it was asked for.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Hashable
from typing import Any

from fairlead.cache.budget import AT_ONCE, Budget, let_go
from fairlead.cache.debts import Debts
from fairlead.cache.entry import Entry
from fairlead.cache.store import Store
from fairlead.cache.tier_stats import TierStats
from fairlead.cache.write_behind import WriteBehind
from fairlead.calls.circuit_breaker import CircuitBreaker
from fairlead.clock import Clock

__all__ = ["CoalescedReads"]

_Asked = list[tuple[Hashable, asyncio.Future[Entry[Any] | None]]]


class CoalescedReads:
    """The reads of one `SecondTier`. Per process, and for one event loop at a time."""

    def __init__(
        self,
        store: Store,
        *,
        budget: Budget,
        breaker: CircuitBreaker,
        debts: Debts,
        writes: WriteBehind,
        stats: TierStats,
        clock: Clock,
        may_ask: Callable[[], bool],
        start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        on_failure: Callable[[Exception, int], object],
    ) -> None:
        """may_ask: whether the tier is sent anything now. start: runs work in a task that the tier owns."""
        self._store = store
        self._budget = budget
        self._breaker = breaker
        self._debts = debts
        self._writes = writes
        self._stats = stats
        self._clock = clock
        self._may_ask = may_ask
        self._start = start
        self._on_failure = on_failure
        self._asked: _Asked = []

    def ask(self, key: Hashable, loop: asyncio.AbstractEventLoop) -> asyncio.Future[Entry[Any] | None]:
        """The answer to come; None in the place of one that comes late, or not."""
        future: asyncio.Future[Entry[Any] | None] = loop.create_future()
        if not self._asked:
            loop.call_soon(self._send, context=contextvars.Context())
        self._asked.append((key, future))
        return future

    def forget(self) -> None:
        """Lets go of what an event loop that is gone had asked."""
        self._asked = []

    def _send(self) -> None:
        asked, self._asked = self._asked, []
        self._read_in_parts(asked)

    def _read_in_parts(self, asked: _Asked) -> None:
        """Each part has the budget, from the answer to the last: a long question is no hung tier."""
        asked = [each for each in asked if not each[1].done()]
        if not asked:
            return
        if not self._may_ask():
            self._stats.skipped += let_go(future for _, future in asked)
            return
        part, rest = asked[:AT_ONCE], asked[AT_ONCE:]
        generation = self._breaker.generation
        task = self._start(self._read(part, generation, self._debts.as_they_are()))
        self._budget.bound(task, [future for _, future in part], generation)
        if rest:
            task.add_done_callback(lambda _: self._read_in_parts(rest))

    async def _read(self, asked: _Asked, generation: int, owed: Debts | None) -> None:
        stats = self._stats
        unwritten = self._writes.as_they_are()
        try:
            found = await self._store.get_many([key for key, _ in asked])
        except asyncio.CancelledError:
            let_go(future for _, future in asked)
            raise
        except Exception as error:
            stats.errors += let_go(future for _, future in asked)
            self._on_failure(error, generation)
            return
        self._breaker.record(generation, True, self._clock.now())
        debts, writes = self._debts, self._writes
        owes, overtaken = (
            bool(debts),
            unwritten is not None or bool(writes.sets),
        )  # nothing changes either below
        for (key, future), entry in zip(asked, found, strict=True):
            # Those from before the question, though settled by now, and those that came while it was on its way.
            if owed is not None and entry is not None:
                entry = owed.seen_through(key, entry)
            if owes and entry is not None:
                entry = debts.seen_through(key, entry)
            if overtaken:
                entry = writes.seen_through(key, entry, unwritten)
            if future.done():
                continue
            if entry is None:
                stats.misses += 1
            else:
                stats.hits += 1
            future.set_result(entry)
