"""The shared tier as a cache may use it: bounded in time, and not missed when it is gone.

A cache that waits for its cache is slower than none. A read here costs at most `budget`; one failure or one
budget spent opens the breaker, and then reads cost nothing until a probe, which no caller runs, has succeeded:

    closed --a read fails or is late--> open --a probe: replay what is owed, then an answer in time--> closed

Reads of one turn of the event loop go out together, as do writes. Writes wait for nobody and nobody waits for
them; an invalidation is waited for, as long as a read. Those that could not be delivered are owed: kept, newest
per key, and replayed before the tier's answers are used again. Too many of them become one `clear`.

Invariant: no entry that this process has invalidated comes back out of the tier, delivered or owed.

Per process: budget, breaker, queue, debts and counters. For one event loop at a time; another one starts with
the debts and without the tasks of the last.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable, Coroutine, Hashable, Iterable
from functools import partial
from typing import Any

from fairlead.cache.entry import Entry
from fairlead.cache.store import Invalidation, InvalidationKind, Put, Store
from fairlead.cache.tier_stats import TierStats
from fairlead.calls.bounds import check_number, check_whole
from fairlead.calls.circuit_breaker import BreakerState, CircuitBreaker
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import CircuitOpen, DeadlineExceeded
from fairlead.telemetry.event import StateChanged

__all__ = ["SecondTier"]

_AT_ONCE = 500  # writes or invalidations in one call of the store
_REPLAY_WITHIN = 2.0  # seconds for one attempt to replay, and for one write: nobody waits for either
_ONE_FAILURE = 1e-6  # of the calls in the breaker's window


class SecondTier:
    """A `Store` behind a budget and a breaker, whose absence is a miss."""

    def __init__(
        self,
        store: Store,
        *,
        budget: float = 0.03,
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
        """budget: seconds that a read, or an invalidation, waits at most. 0.03: far above a healthy round
        trip in one zone, and less than most loads.

        probe_after, probe_cap: seconds until the first probe of a tier that failed, and the most between two
        as they double. most_writes: values waiting to be written; above it new ones are dropped. most_owed:
        invalidations kept while the tier is away; above it they become one `clear`. owed_for: seconds after
        which a debt is forgotten; not less than the store's longest life of an entry. on_event: receives the
        breaker's state changes.
        """
        check_number("SecondTier.budget", budget, above=0.0, high=60.0)
        check_number("SecondTier.owed_for", owed_for, above=0.0, high=10 * 366 * 86_400.0)
        check_whole("SecondTier.most_writes", most_writes, low=1, high=10_000_000)
        check_whole("SecondTier.most_owed", most_owed, low=1, high=10_000_000)
        self.name = name
        self.store = store
        self.stats = TierStats(lambda: store.mismatches, lambda: len(self._told))
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
        self.clock = clock
        self._budget = budget
        self._probe_after = probe_after
        self._probe_cap = probe_cap
        self._most_writes = most_writes
        self._most_owed = most_owed
        self._owed_for = owed_for
        # Invalidations on their way or owed, newest per subject; "" stands for clear.
        self._told: dict[tuple[str, Hashable], Invalidation] = {}
        self._asked: list[tuple[Hashable, asyncio.Future[Entry[Any] | None]]] = []
        self._telling: list[tuple[tuple[str, Hashable], asyncio.Future[None]]] = []
        self._writes: deque[Put] = deque()
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._writer: asyncio.Task[None] | None = None
        self._recovery: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"SecondTier({self.store!r}, {self.breaker.state.value}, owes {len(self._told)})"

    @property
    def is_trusted(self) -> bool:
        """Whether reads are sent to it now."""
        return self.breaker.state is BreakerState.CLOSED

    async def get(self, key: Hashable) -> Entry[Any] | None:
        """The entry of `key`, stale or not; None when there is none, or when the tier cannot say in time.

        Does not suspend while the breaker is open. Raises nothing but cancellation.
        """
        loop = self._here()
        if not self.is_trusted:
            self.stats.skipped += 1
            self._recover()
            return None
        future: asyncio.Future[Entry[Any] | None] = loop.create_future()
        if not self._asked:
            loop.call_soon(self._ask, context=contextvars.Context())
        self._asked.append((key, future))
        return await future

    def put(self, key: Hashable, entry: Entry[Any], *, replaces: bool = False) -> None:
        """Has `entry` written in the background, or dropped when the tier is away or too much waits.

        replaces: it was set, not loaded. A set that is dropped is owed as a removal, because what lies in the
        tier is then older than what is known.
        """
        self._here()
        put = Put(key, entry, replaces)
        if not self.is_trusted or len(self._writes) >= self._most_writes:
            self._drop((put,))
            return
        self._writes.append(put)
        if self._writer is None:
            self._writer = self._start(self._write())

    async def invalidate(self, kind: InvalidationKind, subject: Hashable = None) -> None:
        """Tells the tier, and waits for its answer at most the budget; afterwards it is owed."""
        loop = self._here()
        slot = self._owe(Invalidation(kind, subject, self.clock.now()))
        if not self.is_trusted:
            self._recover()
            return
        future: asyncio.Future[None] = loop.create_future()
        if not self._telling:
            loop.call_soon(self._tell, context=contextvars.Context())
        self._telling.append((slot, future))
        await future

    async def close(self, timeout: float = 1.0) -> None:
        """Writes what waits and replays what is owed, at most `timeout` seconds, then ends the tasks and
        closes the store. Later calls work."""
        self._here()
        self._closing = True
        try:
            left = [task for task in (self._writer,) if task is not None]
            if self._told:
                left.append(self._start(self._replay()))
                left[-1].add_done_callback(_look_at)
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

    # Reads

    def _ask(self) -> None:
        asked, self._asked = self._asked, []
        asked = [each for each in asked if not each[1].done()]
        if asked:
            generation = self.breaker.generation
            task = self._start(self._read(asked, generation))
            late = partial(self._late, [future for _, future in asked], generation, task)
            timer = self.clock.call_at(self.clock.now() + self._budget, late)
            task.add_done_callback(lambda _: timer.cancel())

    async def _read(
        self, asked: list[tuple[Hashable, asyncio.Future[Entry[Any] | None]]], generation: int
    ) -> None:
        stats = self.stats
        try:
            found = await self.store.get_many([key for key, _ in asked])
        except asyncio.CancelledError:
            _release(future for _, future in asked)
            raise
        except Exception as error:
            stats.errors += _release(future for _, future in asked)
            self._failed(error, generation)
            return
        self.breaker.record(generation, True, self.clock.now())
        told = self._told
        for (key, future), entry in zip(asked, found, strict=True):
            if entry is not None and told:
                entry = self._as_told(key, entry)
            if future.done():
                continue
            if entry is None:
                stats.misses += 1
            else:
                stats.hits += 1
            future.set_result(entry)

    def _as_told(self, key: Hashable, entry: Entry[Any]) -> Entry[Any] | None:
        """What this process may see of `entry`, given what it has invalidated and the tier may not know."""
        told, began = self._told, entry.began_at
        by_key = told.get(("key", key))
        if by_key is not None and began <= by_key.at:
            if by_key.kind == "remove":
                return None
            entry = entry.expired(by_key.at)
        for slot in (("", None), *(("tag", tag) for tag in entry.tags)):
            invalidation = told.get(slot)
            if invalidation is not None and began <= invalidation.at:
                return None
        return entry

    def _late(
        self, futures: list[asyncio.Future[Any]], generation: int, task: asyncio.Task[Any] | None
    ) -> None:
        released = _release(futures)
        if task is not None:
            self.stats.errors += released
            task.cancel()
        if released:
            what = f"{self.name}: no answer within its budget of {self._budget * 1000:g} ms"
            self._failed(DeadlineExceeded(what), generation)

    # Writes

    async def _write(self) -> None:
        try:
            while self._writes:
                chunk = [self._writes.popleft() for _ in range(min(_AT_ONCE, len(self._writes)))]
                try:
                    self.stats.refused_writes += await self._within(
                        _REPLAY_WITHIN, self.store.put_many(chunk), "a write"
                    )
                    self.stats.writes += len(chunk)
                except asyncio.CancelledError:
                    self._drop(chunk)
                    raise
                except Exception as error:
                    self.stats.last_error = _words(error)
                    self._drop(chunk)
        finally:
            self._writer = None

    def _drop(self, puts: Iterable[Put]) -> None:
        for put in puts:
            self.stats.dropped_writes += 1
            if put.replaces:
                self._owe(Invalidation("remove", put.key, put.entry.began_at))
        if self._told:
            self._recover()

    # Invalidations

    def _owe(self, new: Invalidation) -> tuple[str, Hashable]:
        slot: tuple[str, Hashable] = (_SLOTS[new.kind], new.subject)
        old = self._told.pop(slot, None)
        if old is not None:
            kind = "remove" if "remove" in (old.kind, new.kind) else new.kind
            new = Invalidation(kind, new.subject, max(old.at, new.at))
        self._told[slot] = new
        if len(self._told) > self._most_owed:
            self._told = {_CLEAR: Invalidation("clear", None, max(each.at for each in self._told.values()))}
            self.stats.collapsed += 1
            return _CLEAR
        return slot

    def _settled(self, slot: tuple[str, Hashable], delivered: Invalidation) -> None:
        if self._told.get(slot) is delivered:
            del self._told[slot]

    def _tell(self) -> None:
        telling, self._telling = self._telling, []
        told = {slot: self._told[slot] for slot, _ in telling if slot in self._told}
        futures = [future for _, future in telling]
        generation = self.breaker.generation
        task = self._start(self._deliver(told, futures))
        timer = self.clock.call_at(
            self.clock.now() + self._budget, partial(self._late, futures, generation, None)
        )
        task.add_done_callback(lambda _: timer.cancel())

    async def _deliver(
        self, told: dict[tuple[str, Hashable], Invalidation], futures: list[asyncio.Future[None]]
    ) -> None:
        try:
            await self._within(_REPLAY_WITHIN, self.store.invalidate(list(told.values())), "an invalidation")
        except Exception as error:
            self.stats.last_error = _words(error)
            self._recover()
        else:
            for slot, delivered in told.items():
                self._settled(slot, delivered)
        finally:
            _release(futures)

    # Recovery

    def _failed(self, error: Exception, generation: int) -> None:
        self.stats.last_error = _words(error)
        self.breaker.record(generation, False, self.clock.now())
        self._recover()

    def _recover(self) -> None:
        if self._recovery is None and not self._closing:
            self._recovery = self._start(self._until_well())

    async def _until_well(self) -> None:
        """Probes, and replays what is owed, until the tier answers and nothing is owed."""
        wait = self._probe_after
        try:
            while self._told or not self.is_trusted:
                try:
                    if self.is_trusted:  # it answers reads but did not take an invalidation
                        await self._replay()
                    else:
                        with self.breaker.permit():
                            await self._replay()
                            await self._within(self._budget, self.store.get_many(()), "a probe")
                            await self._replay()  # what came in between; then no turn of the loop is left
                except CircuitOpen as refused:
                    await self.clock.sleep(refused.retry_after or self._probe_after)
                except Exception as error:
                    self.stats.last_error = _words(error)
                    await self.clock.sleep(wait)
                    wait = min(2 * wait, self._probe_cap)
        finally:
            self._recovery = None

    async def _replay(self) -> None:
        while self._told:
            now = self.clock.now()
            for slot, each in list(self._told.items()):
                if now - each.at > self._owed_for:
                    del self._told[slot]
            chunk = dict(list(self._told.items())[:_AT_ONCE])
            if not chunk:
                return
            await self._within(_REPLAY_WITHIN, self.store.invalidate(list(chunk.values())), "a replay")
            self.stats.replayed += len(chunk)
            for slot, delivered in chunk.items():
                self._settled(slot, delivered)

    # Tasks

    def _here(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            self._tasks = {task for task in self._tasks if not task.get_loop().is_closed()}
            self._asked, self._telling = [], []
            self._writer = self._recovery = None
            left, self._writes = self._writes, deque()
            self._drop(left)
        return loop

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # Outside every request: its deadline, and whatever else its context holds, end before the work does.
        task = self._here().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _within(self, seconds: float, work: Coroutine[Any, Any, Any], what: str) -> Any:
        """What `work` returns; cancels it and raises DeadlineExceeded after `seconds`."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (awaited from the tasks above only)
        late = False

        def give_up() -> None:
            nonlocal late
            late = True
            task.cancel()

        timer = self.clock.call_at(self.clock.now() + seconds, give_up)
        try:
            return await work
        except asyncio.CancelledError:
            if late and task.uncancel() == 0:
                raise DeadlineExceeded(f"{self.name}: {what} took longer than {seconds:g} s") from None
            raise
        finally:
            timer.cancel()


_CLEAR: tuple[str, Hashable] = ("", None)
_SLOTS: dict[InvalidationKind, str] = {"expire": "key", "remove": "key", "remove_tag": "tag", "clear": ""}


def _release(futures: Iterable[asyncio.Future[Any]]) -> int:
    """Lets those go who still wait, with None; how many."""
    released = 0
    for future in futures:
        if not future.done():
            future.set_result(None)
            released += 1
    return released


def _look_at(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200]
