"""What happens when memory has no fresh answer: wait, stand in, refresh, keep.

    stale, within stale_while_revalidate  -> returned at once, one refresh runs behind it
    missing                               -> one load, in a task that the cache owns; others join it
    the load fails                        -> the old value within stale_if_error, else the error
    the load is slow                      -> after soft_timeout the old value within stale_if_error
    fresh, but about to expire            -> now and then one caller sets off a refresh early

With a second tier, a load looks there first (`shared_load`), and what it brings, from there or from the origin,
lies in memory for `memory_ttl` at most.

A load lands once: its value is kept if its flight still held the key's slot, that is, if nobody has written or
invalidated the key since it began.
"""

from __future__ import annotations

import asyncio
import math
import random
import weakref
from collections.abc import Awaitable, Callable, Hashable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import msgspec

from fairlead.cache.entry import Entry
from fairlead.cache.flight_group import FlightGroup, LoadMany, Part
from fairlead.cache.freshness import Freshness
from fairlead.cache.keys import check_key, check_tags, is_plain, key_text, shown
from fairlead.cache.memory import MemoryStore
from fairlead.cache.single_flight import Flight, SingleFlight
from fairlead.cache.stats import CacheStats
from fairlead.calls.batch import Batcher
from fairlead.clock import Clock
from fairlead.context import current
from fairlead.deadline import Deadline

if TYPE_CHECKING:
    from fairlead.cache.invalidation import Message
    from fairlead.cache.second_tier import SecondTier
    from fairlead.cache.shared_load import SharedLoad
    from fairlead.cache.two_nodes import TwoNodes
    from fairlead.telemetry.tracing import Span, Tracer

__all__ = ["Loads", "Lookup", "Source", "Together"]

_T = TypeVar("_T")

_MOST_AT_ONCE = 1_000_000  # the largest batch that a Batcher takes

Source = Literal["hit", "stale", "stale_error", "stale_slow", "second", "load", "joined"]


class Lookup(msgspec.Struct, Generic[_T], frozen=True):
    """An answer and where it came from."""

    value: _T
    source: Source
    """hit: fresh, from memory. stale: past its ttl, a refresh was due. stale_error: past its ttl, the load
    failed. stale_slow: past its ttl, the load took longer than `soft_timeout`. second: the second tier had it.
    load: this caller's load. joined: a load, or a question to the second tier, that somebody else had
    started."""
    age: float
    """Seconds since the load that made the value began; since `set`, for a value that was set."""
    staleness: float
    """Seconds past its fresh life when it was read; 0 when fresh."""


class _Separately:
    """In a group's place where each load has a task of its own: they meet in one batch at the end of the turn."""

    __slots__ = ("_batcher",)

    def __init__(self, batcher: Batcher[Any, Any]) -> None:
        self._batcher = batcher

    def part(self, argument: Hashable) -> Callable[[], Awaitable[Any]]:
        return partial(self._batcher.load, argument)

    def depart(self) -> None:
        """They have left, each by itself."""


Together = FlightGroup | _Separately


class Loads:
    """The loads of one cache: starts them, bounds the background ones, keeps what they bring."""

    def __init__(
        self,
        store: MemoryStore,
        stats: CacheStats,
        *,
        clock: Clock,
        rng: random.Random | None,
        refresh_concurrency: int,
        load_timeout: float,
        second: SecondTier | TwoNodes | None = None,
        tracer: Tracer | None = None,
        name: str = "cache",
    ) -> None:
        self._tracer = tracer
        self._name = name
        self.flights = SingleFlight(load_timeout=load_timeout, clock=clock)
        self._store = store
        self._entry_of = store.entries.get
        self._stats = stats
        self._clock = clock
        self._now = clock.now
        self._draw = random.random if rng is None else rng.random
        self._refresh_concurrency = refresh_concurrency
        self._refreshing: set[Flight[Any]] = set()
        self._second = second
        self.batchers: weakref.WeakSet[Batcher[Any, Any]] = weakref.WeakSet()
        """Kept alive by their loads."""
        self._looking: dict[Hashable, tuple[asyncio.Future[Entry[Any] | None], int]] = {}
        if second is not None:
            from fairlead.cache.shared_load import SharedLoad  # with the tier that it needs, and not without

            self._new_shared_load = SharedLoad
            second.subscribe(self._heard, self._missed_messages)

    def check(self, key: Hashable) -> None:
        """Raises InvalidInput for a key that a later request, or another process that shares the second tier,
        could not find again."""
        check_key(key)
        if self._second is not None and not is_plain(key):
            key_text(key)

    def begin(
        self,
        key: Hashable,
        load: Callable[[], Awaitable[_T]] | Part,
        freshness: Freshness,
        tags: Iterable[str],
        entry: Entry[Any] | None,
        now: float,
        *,
        looked: bool = False,
    ) -> Lookup[_T] | tuple[Flight[_T], Source]:
        """The answer that memory has, or the flight to wait for; suspends nowhere.

        looked: the second tier was asked just now, and has nothing.
        """
        stats = self._stats
        if entry is not None:
            if now < entry.fresh_until:
                stats.hits += 1
                self._store.touch(key)
                if self._is_early(entry, freshness, now):
                    stats.early_refreshes += self._refresh(key, load, freshness, tags)
                return Lookup(entry.value, "hit", now - entry.began_at, 0.0)
            if now < entry.stale_until:
                self._refresh(key, load, freshness, tags)
                stats.stale_served += 1
                return self._stale(key, entry, now, "stale")
        stats.misses += 1
        self.check(key)
        flight: Flight[_T] | None = self.flights.joinable(key)
        if flight is not None:
            stats.joined += 1
            if flight.span is not None and self._tracer is not None:
                self._tracer.link(flight.span)
            return flight, "joined"
        deadline = current().deadline
        if deadline.at != math.inf:
            deadline.check(f"cache load of {shown(key)}")
        return self._load(key, load, freshness, tags, looked=looked), "load"

    async def look(
        self,
        key: Hashable,
        load: Callable[[], Awaitable[_T]],
        freshness: Freshness,
        tags: Iterable[str],
        entry: Entry[Any] | None,
        now: float,
    ) -> Lookup[_T] | bool:
        """The second tier's answer to a caller for whom memory has none; else whether it was asked for one.

        The caller asks by itself: a flight, with its task and timer, costs four times the question. Of callers
        for one key the first asks and the others wait for it; with a deadline that the tier's budget might
        outlast they go by a flight.
        """
        second = self._second
        if second is None or (entry is not None and now < entry.stale_until):
            return False
        deadline = current().deadline
        if deadline.at != math.inf and deadline.remaining() <= second.budget:
            return False
        if freshness.soft_timeout is not None and entry is not None and now < entry.error_until:
            return False  # the old value answers at the soft timeout, however long the tier takes
        loop = asyncio.get_running_loop()
        while (asked := self._looking.get(key)) is not None and asked[0].get_loop() is loop:
            other, asked_at = asked
            is_current = asked_at == self.flights.forgotten  # else it may bring what was invalidated since
            shared = await asyncio.shield(other)
            now = self._now()
            mine = self._entry_of(key)
            if mine is not None and now < mine.stale_until:
                return False
            # Memory may not keep it, for its size or by its admission: then each would ask after the other.
            if shared is not None and is_current and now < max(shared.fresh_until, shared.stale_until):
                self._stats.joined += 1
                return self._from_second(shared, now, "joined")
        if not second.is_trusted or self.flights.joinable(key) is not None:
            return False
        self.check(key)
        forgotten = self.flights.forgotten
        looking: asyncio.Future[Entry[Any] | None] = loop.create_future()
        self._looking[key] = looking, forgotten
        found = None
        try:
            found = await second.get(key)
        finally:
            if self._looking.get(key) == (looking, forgotten):
                del self._looking[key]
            if not looking.done():
                looking.set_result(found)
        if found is None:
            return True
        now = self._now()
        if now >= max(found.fresh_until, found.stale_until):
            return False
        mine = self._entry_of(key)
        # What was invalidated while the tier was asked may be answered to who asked before, and not kept.
        if self.flights.forgotten == forgotten and (mine is None or mine.began_at <= found.began_at):
            self._remember(key, found)
            if now >= found.fresh_until:
                self._refresh(key, load, freshness, tags)
        return self._from_second(found, now, "second")

    def _from_second(self, found: Entry[Any], now: float, source: Source) -> Lookup[Any]:
        staleness = max(0.0, now - found.fresh_until)
        self._stats.misses += 1
        self._count_staleness(staleness)
        return Lookup(found.value, source, now - found.began_at, staleness)

    def _count_staleness(self, staleness: float) -> None:
        self._stats.max_staleness_served = max(self._stats.max_staleness_served, staleness)
        if staleness and self._tracer is not None:
            self._tracer.mark(stale=True, staleness_seconds=staleness)

    def begin_now(
        self,
        key: Hashable,
        load: Callable[[], Awaitable[_T]] | Part,
        freshness: Freshness,
        tags: Iterable[str] = (),
    ) -> Lookup[_T] | tuple[Flight[_T], Source]:
        """As `begin`, of a key that was not looked for yet."""
        return self.begin(key, load, freshness, tags, self._entry_of(key), self._now())

    def at_hand(self, key: Hashable, now: float) -> Lookup[Any] | None:
        """The answer that memory has, when nothing else is due."""
        entry = self._entry_of(key)
        if entry is None or now >= entry.quiet_until:
            return None
        self._store.touch(key)
        self._stats.hits += 1
        return Lookup(entry.value, "hit", now - entry.began_at, 0.0)

    def together(
        self, load_many: LoadMany, name: str, key_of: Callable[[Any], Hashable] | None = None
    ) -> Together:
        """Loads that `load_many` answers in one call: `part` of each is begun, then `depart` begins the call.

        key_of: the key of what `load_many` knows by another name.
        """
        if self._second is None and self._tracer is None:
            return FlightGroup(self.flights, load_many, name)
        # Each key asks the tier by itself, or is a span of its own; what is to be loaded meets at the origin.
        batcher: Batcher[Any, Any] = Batcher(
            self.flights.as_part_of_loads(load_many, key_of),
            max_batch=_MOST_AT_ONCE,
            clock=self._clock,
            name=name,
        )
        self.batchers.add(batcher)
        return _Separately(batcher)

    async def landing(self, flight: Flight[_T], source: Source, freshness: Freshness) -> Lookup[_T]:
        """The answer once `flight` has landed, or what stands in for it when it failed or is slow."""
        key = flight.key
        deadline = current().deadline
        patience = self._patience(key, freshness, deadline)
        while True:
            try:
                value = await flight.wait(patience or deadline)
            except Exception:
                now = self._now()
                if not flight.landed and (patience is None or deadline.expired()):
                    raise  # this caller's own deadline: nothing is known against the origin
                entry = self._entry_of(key)
                if entry is None or now >= entry.error_until:
                    if flight.landed:
                        raise
                    patience = None  # what could have stood in has gone since
                    continue
            else:
                return self._landed_as(flight, value, source)
            if now < entry.fresh_until:  # somebody set it in the meantime
                return Lookup(entry.value, "hit", now - entry.began_at, 0.0)
            if flight.landed:
                self._stats.stale_error_served += 1
                return self._stale(key, entry, now, "stale_error")
            self._stats.stale_slow_served += 1
            return self._stale(key, entry, now, "stale_slow")

    def _landed_as(self, flight: Flight[_T], value: _T, source: Source) -> Lookup[_T]:
        now = self._now()
        found = flight.entry
        if found is None:
            return Lookup(value, source, now - flight.began_at, 0.0)
        staleness = max(0.0, now - found.fresh_until)
        self._count_staleness(staleness)
        return Lookup(value, "second" if source == "load" else source, now - found.began_at, staleness)

    def keep(
        self,
        key: Hashable,
        value: object,
        freshness: Freshness,
        tags: frozenset[str],
        began_at: float,
        *,
        replaces: bool = False,
    ) -> None:
        """Stores what a load that began at `began_at`, or a `set`, brought."""
        now = self._now()
        before = self._entry_of(key) if freshness.adaptive else None
        entry = Entry.keep(
            value, freshness, began_at=began_at, now=now, draw=self._draw(), tags=tags, before=before
        )
        self._remember(key, entry)
        if self._second is not None and (replaces or not entry.is_dead(now)):
            self._second.put(key, entry, replaces=replaces)

    def _remember(self, key: Hashable, entry: Entry[Any]) -> None:
        now = self._now()
        if self._second is not None:
            entry = entry.kept_until(now + self._second.memory_ttl)
        if entry.is_dead(now):
            self._store.drop(key)  # nobody may read it, and what it replaces is older still
        else:
            self._stats.evictions += self._store.put(key, entry)

    def _patience(self, key: Hashable, freshness: Freshness, deadline: Deadline) -> Deadline | None:
        """Until when a caller waits for a load that something can stand in for; None: as long as for any."""
        if freshness.soft_timeout is None:
            return None
        entry = self._entry_of(key)
        now = self._now()
        end = now + freshness.soft_timeout
        if entry is None or end >= entry.error_until or end >= now + deadline.remaining():
            return None
        return Deadline(end, self._clock)

    def _is_early(self, entry: Entry[Any], freshness: Freshness, now: float) -> bool:
        """Whether this caller, by lot, finds a fresh value due for a refresh: XFetch.

        The lot falls on a caller with probability exp(-left / (beta * cost)), `left` seconds before the end
        and for a load that took `cost` seconds (Vattani, Chierichetti and Lowenstein 2015).
        """
        cost = freshness.early_refresh * (entry.stored_at - entry.began_at)
        if cost <= 0.0:
            return False
        return now - cost * math.log(1.0 - self._draw()) >= entry.fresh_until

    def _stale(self, key: Hashable, entry: Entry[Any], now: float, source: Source) -> Lookup[Any]:
        self._store.touch(key)
        staleness = max(0.0, now - entry.fresh_until)
        self._count_staleness(staleness)
        return Lookup(entry.value, source, now - entry.began_at, staleness)

    def _refresh(
        self,
        key: Hashable,
        load: Callable[[], Awaitable[_T]] | Part,
        freshness: Freshness,
        tags: Iterable[str],
    ) -> bool:
        """Starts a load in the background; False when one runs already, or too many do."""
        if self.flights.joinable(key) is not None:
            return False
        if len(self._refreshing) >= self._refresh_concurrency and not self._drop_strayed_refreshes():
            self._stats.refreshes_skipped += 1
            return False
        self._stats.refreshes += 1
        flight = self._load(key, load, freshness, tags, refresh=True)
        if not flight.landed:  # an eager task may have ended already
            self._refreshing.add(flight)
        return True

    def _drop_strayed_refreshes(self) -> bool:
        """Frees the places of refreshes whose loop is gone (closed, or the parent's of a fork); whether
        any was."""
        strayed = {flight for flight in self._refreshing if not self.flights.is_here(flight)}
        self._refreshing -= strayed
        return bool(strayed)

    def _load(
        self,
        key: Hashable,
        load: Callable[[], Awaitable[_T]] | Part,
        freshness: Freshness,
        tags: Iterable[str],
        *,
        refresh: bool = False,
        looked: bool = False,
    ) -> Flight[_T]:
        labels = check_tags(tags)
        if isinstance(load, Part):
            together = load.group.add(key, load.argument, partial(self._landed, freshness, refresh), labels)
            self._count_load()
            return together
        span = None if self._tracer is None else self._span(self._tracer, key, refresh)
        if self._second is None:
            landed = partial(self._landed, freshness, refresh)
            flight = self.flights.start(key, load, on_landing=landed, tags=labels, span=span)
            self._count_load()
            return flight
        mine = self._entry_of(key) if refresh else None
        shared: SharedLoad[_T] = self._new_shared_load(
            key,
            load,
            self._second,
            refresh=refresh,
            in_memory=mine if mine is not None and self._now() < mine.fresh_until else None,
            looked=looked,
            on_load=self._count_load,
            clock=self._clock,
        )
        landed = partial(self._landed_shared, load, freshness, refresh, shared, self._second)
        return self.flights.start(key, shared, on_landing=landed, tags=labels, span=span)

    def _span(self, tracer: Tracer, key: Hashable, refresh: bool) -> Span | None:
        # The rest of a key may name a person.
        first = key[0] if isinstance(key, tuple) and key and isinstance(key[0], str) else ""
        return tracer.root("cache.load", cache=self._name, key_class=first, refresh=refresh)

    def _count_load(self) -> None:
        self._stats.loads += 1
        self._stats.max_concurrent_loads = self.flights.peak_per_key

    def _landed(self, freshness: Freshness, refresh: bool, flight: Flight[Any], listed: bool) -> None:
        self._refreshing.discard(flight)
        if flight.error is not None:
            self._stats.load_errors += 1
            self._stats.refresh_failures += refresh
            self._stats.last_error = f"{type(flight.error).__name__}: {flight.error}"[:200]
        elif listed:
            self.keep(flight.key, flight.value, freshness, flight.tags, flight.began_at)

    def _landed_shared(
        self,
        load: Callable[[], Awaitable[Any]],
        freshness: Freshness,
        refresh: bool,
        shared: SharedLoad[Any],
        second: SecondTier | TwoNodes,
        flight: Flight[Any],
        listed: bool,
    ) -> None:
        """As `_landed`, when the second tier was asked first."""
        found = flight.entry = None if flight.error is not None else shared.entry
        if found is None:
            if flight.error is None:
                flight.began_at = shared.began_at
            elif listed and shared.older is not None:
                mine = self._entry_of(flight.key)
                if mine is None or mine.error_until < shared.older.error_until:
                    self._remember(flight.key, shared.older)  # it stands in for the error
            self._landed(freshness, refresh, flight, listed)
            second.release(flight.key, shared.token)  # behind the value, which those who wait will look for
            return
        self._refreshing.discard(flight)
        second.release(flight.key, shared.token)
        if listed:
            self._remember(flight.key, found)
            if self._now() >= found.fresh_until:
                self._refresh(flight.key, load, freshness, flight.tags)

    def _heard(self, message: Message) -> None:
        """Does here what another process has done."""
        kind, subject = message
        if kind == "clear":
            self.flights.forget_all()
            self._store.clear()
        elif kind == "remove_tag":
            self.flights.forget_tag(str(subject))
            self._store.drop_tag(str(subject))
        else:
            self.flights.forget(subject)
            if kind == "expire":
                self._store.expire(subject, self._now())
            else:
                self._store.drop(subject)

    def _missed_messages(self) -> None:
        """Has everything in memory asked for anew: what other processes did meanwhile is not known."""
        self.flights.forget_all()
        now = self._now()
        for key in list(self._store.entries):
            self._store.expire(key, now)
