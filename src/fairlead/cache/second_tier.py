"""The shared tier as a cache may use it: bounded in time, and not missed when it is gone.

A cache that waits for its cache is slower than none. A read here costs at most `budget`; one failure or one
budget spent opens the breaker, and then reads cost nothing until a probe, which no caller runs, has succeeded:

    closed --a read fails or is late--> open --a probe: replay what is owed, then an answer in time--> closed

Reads of one turn of the event loop go out together (`coalesced_reads`), writes behind the callers
(`write_behind`). An invalidation is waited for, as long as a read. Those that could not be delivered are owed
(`debts`) and replayed before the tier's answers are used again.

Invariant: no entry that this process has invalidated comes back out of the tier, delivered or owed.

Per process: budget, breaker, queue, debts and counters. For one event loop at a time; another one starts with
the debts and without the tasks of the last.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import secrets
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any

from fairlead.cache.budget import AT_ONCE, PATIENCE, Budget, let_go, within, words_of
from fairlead.cache.coalesced_reads import CoalescedReads
from fairlead.cache.debts import Debts, Slot
from fairlead.cache.entry import Entry
from fairlead.cache.invalidation import Backplane, Message
from fairlead.cache.lease import Leases
from fairlead.cache.messenger import Messenger
from fairlead.cache.stats import export_counts
from fairlead.cache.store import Invalidation, InvalidationKind, Put, Store
from fairlead.cache.tier_stats import TierStats
from fairlead.cache.write_behind import WriteBehind
from fairlead.calls.bounds import check_number, check_whole
from fairlead.calls.circuit_breaker import BreakerState, CircuitBreaker
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import CircuitOpen, InvalidInput
from fairlead.telemetry.event import StateChanged
from fairlead.telemetry.metrics import MetricRegistry

__all__ = ["SecondTier"]

_ONE_FAILURE = 1e-6  # of the calls in the breaker's window


class SecondTier:
    """A `Store` behind a budget and a breaker, whose absence is a miss."""

    def __init__(
        self,
        store: Store,
        *,
        backplane: Backplane | None = None,
        budget: float = 0.03,
        lease_for: float = 0.0,
        memory_ttl: float = 60.0,
        probe_after: float = 0.1,
        probe_cap: float = 5.0,
        most_writes: int = 10_000,
        most_owed: int = 10_000,
        owed_for: float = 86_400.0,
        name: str = "second tier",
        on_event: Callable[[StateChanged], object] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
    ) -> None:
        """backplane: tells other processes what this one invalidates, and listens to them; None: their
        memory keeps a value for as long as its own bounds, or `memory_ttl`, allow.

        budget: seconds that a read, or an invalidation, waits at most. 0.03: far above a healthy round trip in
        one zone, and less than most loads. lease_for: seconds for which one process may load a key while the
        others wait for its value; above the p99 of the loads. 0: each process loads for itself. memory_ttl:
        seconds after which a process asks this tier again for what it has in memory: the bound of a missed
        invalidation. probe_after, probe_cap: seconds until the first probe of a tier that failed, and the most
        between two as they double. most_writes: values waiting to be written; above it new ones are dropped.
        most_owed: invalidations kept while the tier is away; above it they become one `clear`. owed_for:
        seconds after which a debt is forgotten; not less than the store's longest life of an entry. on_event:
        receives the breaker's state changes.
        """
        check_number("SecondTier.budget", budget, above=0.0, high=60.0)
        check_number("SecondTier.lease_for", lease_for, low=0.0, high=3600.0)
        check_number("SecondTier.memory_ttl", memory_ttl, above=0.0, high=10 * 366 * 86_400.0)
        check_number("SecondTier.owed_for", owed_for, above=0.0, high=10 * 366 * 86_400.0)
        check_whole("SecondTier.most_writes", most_writes, low=1, high=10_000_000)
        check_whole("SecondTier.most_owed", most_owed, low=1, high=10_000_000)
        if lease_for and not isinstance(store, Leases):
            raise InvalidInput(f"SecondTier.lease_for: {store!r} holds no leases; leave it 0")
        self.name = name
        self.store = store
        self.lease_for = lease_for
        self.memory_ttl = memory_ttl
        self.clock = clock
        self._debts = Debts(most=most_owed, kept_for=owed_for)
        self.stats = TierStats(store, self._debts)
        self.breaker = CircuitBreaker(
            name,
            # Replies come in order: behind a late one every later one is later still.
            failure_ratio=_ONE_FAILURE,
            minimum_calls=1,
            window=1.0,
            open_for=probe_after,
            open_for_cap=probe_cap,
            half_open_permits=1,
            on_event=on_event,
            clock=clock,
            rng=rng,
        )
        self.is_trusted = True
        """Whether reads are sent to it now: the breaker is closed."""
        self.breaker.subscribe(self._changed)
        self._leases = store if isinstance(store, Leases) else None
        self._messenger = None
        if backplane is not None:
            waits = (probe_after, probe_cap)
            self._messenger = Messenger(backplane, self.stats, clock=clock, waits=waits)
        self.budget = budget
        self._probe_after = probe_after
        self._probe_cap = probe_cap
        self._budget = Budget(budget, name=name, stats=self.stats, on_failure=self._failed, clock=clock)
        self._writes = WriteBehind(
            store,
            most=most_writes,
            debts=self._debts,
            stats=self.stats,
            clock=clock,
            name=name,
            start=self._start,
            publish=self._publish,
            on_debt=self._recover,
        )
        self._reads = CoalescedReads(
            store,
            budget=self._budget,
            breaker=self.breaker,
            debts=self._debts,
            writes=self._writes,
            stats=self.stats,
            clock=clock,
            may_ask=lambda: self.is_trusted and not self._closing,
            start=self._start,
            on_failure=self._failed,
        )
        self._telling: list[tuple[Slot, asyncio.Future[None]]] = []
        self._subscribed = False
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._recovery: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"SecondTier({self.store!r}, {self.breaker.state.value}, owes {len(self._debts)})"

    def subscribe(self, on_message: Callable[[Message], object], on_gap: Callable[[], object]) -> None:
        """Has `on_message` called for what other processes invalidate, and `on_gap` whenever some of it may
        have been missed; both in the event loop, from the first use of the tier on. One subscriber: the cache
        in front."""
        if self._subscribed:
            raise InvalidInput(f"{self.name}: stands behind a cache already; give each cache its own")
        self._subscribed = True
        if self._messenger is not None:
            self._messenger.subscribe(on_message, on_gap)

    def export(self, registry: MetricRegistry, *, cache: str, tier: str = "") -> None:
        """Shows what the tier counts and owes in `registry`; the `export` of the cache in front of it calls this.

        cache: that one's name. tier: by default the tier's own name.
        """
        names = {"cache": cache, "tier": tier or self.name}
        export_counts(
            "fairlead_cache_second_tier_total",
            "What second tiers did, by the names of TierStats.",
            self.stats,
            self.stats.counts(),
            registry,
            **names,
        )
        owed = registry.gauge(
            "fairlead_cache_second_tier_owed",
            "Invalidations that the second tier has not acknowledged.",
            labels=tuple(names),
        )
        owed.labels(**names).track(lambda: self.stats.owed)
        away = registry.gauge(
            "fairlead_cache_second_tier_away",
            "1 while reads are not sent to the second tier because its breaker is not closed.",
            labels=tuple(names),
        )
        away.labels(**names).track(lambda: not self.is_trusted)

    async def get(self, key: Hashable) -> Entry[Any] | None:
        """The entry of `key`, stale or not; None when there is none, or when the tier cannot say in time.

        Does not suspend while the breaker is open. Raises nothing but cancellation.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._here()
        if not self.is_trusted:
            self.stats.skipped += 1
            self._recover()
            return None
        return await self._reads.ask(key, loop)

    def put(self, key: Hashable, entry: Entry[Any], *, replaces: bool = False) -> None:
        """Has `entry` written in the background, or dropped when the tier is away or too much waits.

        replaces: it was set, not loaded. A set that is dropped is owed as a removal, because what lies in the
        tier is then older than what is known.
        """
        self._here()
        put = Put(key, entry, replaces)
        if self.is_trusted:
            self._writes.add(put)
        else:
            self._writes.drop((put,))

    async def invalidate(self, kind: InvalidationKind, subject: Hashable = None) -> None:
        """Tells the tier, and waits for its answer at most the budget; afterwards it is owed."""
        loop = self._here()
        self._writes.invalidated(kind, subject)
        slot = self._debts.add(Invalidation(kind, subject, self.clock.now()))
        if not self.is_trusted:
            self._recover()
            return
        future: asyncio.Future[None] = loop.create_future()
        if not self._telling:
            loop.call_soon(self._tell, context=contextvars.Context())
        self._telling.append((slot, future))
        await future

    async def acquire(self, key: Hashable) -> str | None:
        """A token of the lease of `key`; "" when there is no lease to be had, so go ahead without; None when
        another process holds it."""
        loop = self._here()
        if not self.lease_for or self._leases is None or not self.is_trusted:
            return ""
        token = secrets.token_hex(8)
        future: asyncio.Future[bool | None] = loop.create_future()
        task = self._start(self._acquire(self._leases, key, token, future))
        self._budget.bound(task, [future], self.breaker.generation)
        return {True: token, False: None, None: ""}[await future]

    def release(self, key: Hashable, token: str) -> None:
        """Gives the lease back, in the background and behind the values written before."""
        if token and self._leases is not None and self.is_trusted:
            self._here()
            self._writes.release(key, token)

    async def close(self, timeout: float = 1.0) -> None:
        """Writes what waits and replays what is owed, at most `timeout` seconds, then ends the tasks and
        closes the store. Later calls work."""
        self._here()
        self._closing = True
        try:
            left = [self._writes.task] if self._writes.task is not None else []
            if self._debts:
                left.append(self._start(self._replay()))
            if left:
                await asyncio.wait(left, timeout=timeout)
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=timeout)
        finally:
            self._closing = False
        await self.store.close()

    async def _acquire(
        self, leases: Leases, key: Hashable, token: str, future: asyncio.Future[bool | None]
    ) -> None:
        try:
            held = await leases.acquire(key, token, self.lease_for)
            if not future.done():
                future.set_result(held)
        except Exception as error:
            self.stats.last_error = words_of(error)
        finally:
            let_go([future])

    # Invalidations

    def _tell(self) -> None:
        telling, self._telling = self._telling, []
        owed = self._debts.of([slot for slot, _ in telling])
        futures: list[asyncio.Future[Any]] = [future for _, future in telling]
        task = self._start(self._deliver(owed, futures))
        # The delivery goes on when the budget is spent: it is owed anyhow.
        self._budget.bound(task, futures, self.breaker.generation, gives_up=False)

    async def _deliver(self, owed: dict[Slot, Invalidation], futures: list[asyncio.Future[Any]]) -> None:
        try:
            await within(
                self.clock,
                PATIENCE,
                self.store.invalidate(list(owed.values())),
                f"{self.name}: an invalidation",
            )
        except Exception as error:
            self.stats.last_error = words_of(error)
            self._recover()
        else:
            self._debts.settle(owed)
            await self._publish([Message(each.kind, each.subject) for each in owed.values()])
        finally:
            let_go(futures)

    async def _publish(self, messages: Sequence[Message]) -> None:
        # After the tier was told: what the others then ask it is answered anew.
        if self._messenger is not None and messages:
            await self._messenger.publish(messages)

    # Recovery

    def _changed(self, event: StateChanged) -> None:
        self.is_trusted = event.current == BreakerState.CLOSED

    def _failed(self, error: Exception, generation: int) -> None:
        self.stats.last_error = words_of(error)
        self.breaker.record(generation, False, self.clock.now())
        self._recover()

    def _recover(self) -> None:
        if self._recovery is None and not self._closing:
            self._recovery = self._start(self._until_well())

    async def _until_well(self) -> None:
        """Probes, and replays what is owed, until the tier answers and nothing is owed."""
        wait = self._probe_after
        try:
            while self._debts or not self.is_trusted:
                try:
                    if self.is_trusted:  # it answers reads but did not take an invalidation
                        await self._replay()
                    else:
                        with self.breaker.permit():
                            await self._replay()
                            await within(
                                self.clock, self.budget, self.store.get_many(()), f"{self.name}: a probe"
                            )
                            await self._replay()  # what came in between; then no turn of the loop is left
                except CircuitOpen as refused:
                    await self.clock.sleep(refused.retry_after or self._probe_after)
                except Exception as error:
                    self.stats.last_error = words_of(error)
                    await self.clock.sleep(wait)
                    wait = min(2 * wait, self._probe_cap)
        finally:
            self._recovery = None

    async def _replay(self) -> None:
        while chunk := self._debts.chunk(AT_ONCE, self.clock.now()):
            await within(
                self.clock, PATIENCE, self.store.invalidate(list(chunk.values())), f"{self.name}: a replay"
            )
            self.stats.replayed += len(chunk)
            self._debts.settle(chunk)
            await self._publish([Message(each.kind, each.subject) for each in chunk.values()])

    # Tasks

    def _here(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            self._tasks = {task for task in self._tasks if not task.get_loop().is_closed()}
            self._telling = []
            self._recovery = self._listener = None
            self._reads.forget()
            self._writes.forget()
        if self._listener is None and self._messenger is not None and not self._closing:
            self._listener = self._start(self._messenger.listen())
            self._listener.add_done_callback(self._deaf)
        return loop

    def _deaf(self, task: asyncio.Task[None]) -> None:
        if self._listener is task:
            self._listener = None

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # Outside every request: its deadline, and whatever else its context holds, end before the work does.
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.stats.last_error = words_of(error)
