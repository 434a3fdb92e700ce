"""A cache in front of a slow origin: answers from memory, and asks the origin as seldom as freshness allows.

    fresh   -> returned at once; the call does not suspend
    stale   -> within stale_while_revalidate: returned at once, one refresh runs in the background
    missing -> one load per key, however many callers wait; should it fail, the old value
               within stale_if_error, else the error

Invariants: no value is served at or past its bound, also when refreshes fail or find no place to run. A
write or an invalidation is never undone by a load that began before it. No caller's cancellation or
deadline reaches another.

Per process: entries, counters, loads in flight and the bound on refreshes. For one event loop at a time;
not safe between threads. After a fork the child keeps the entries, and starts its own loads.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import random
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, Literal, ParamSpec, TypeVar

import msgspec

from fairlead.cache.entry import Entry
from fairlead.cache.freshness import Freshness
from fairlead.cache.keys import check_key, shown, unhashable
from fairlead.cache.memory import MemoryStore
from fairlead.cache.single_flight import Flight, SingleFlight
from fairlead.cache.stats import CacheStats
from fairlead.calls.batch import Batcher
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.context import current
from fairlead.errors import InvalidInput

__all__ = ["Cache", "Lookup", "Source"]

_T = TypeVar("_T")
_K = TypeVar("_K", bound=Hashable)
_P = ParamSpec("_P")

Source = Literal["hit", "stale", "stale_error", "load", "joined"]

_MOST_REFRESHES = 10_000
_MOST_AT_ONCE = 1_000_000  # the largest batch that a Batcher takes


class Lookup(msgspec.Struct, Generic[_T], frozen=True):
    """An answer and where it came from."""

    value: _T
    source: Source
    """hit: fresh, from memory. stale: past its ttl, a refresh was due. stale_error: past its ttl, the load
    failed. load:
    this caller's load. joined: a load that somebody else had started."""
    age: float
    """Seconds since the load that made the value began; since `set`, for a value that was set."""
    staleness: float
    """Seconds past its fresh life when it was read; 0 when fresh."""


class Cache:
    """Values by key, each as good as its `Freshness` says.

    >>> import asyncio
    >>> async def main():
    ...     cache = Cache(name="profiles")
    ...     async def load(): return {"name": "Ada"}
    ...     for _ in range(3):
    ...         profile = await cache.get_or_load(("profile", 7), load, Freshness(ttl=60))
    ...     return profile, cache.stats.loads, cache.stats.hits
    >>> asyncio.run(main())
    ({'name': 'Ada'}, 1, 2)
    """

    def __init__(
        self,
        store: MemoryStore | None = None,
        *,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        refresh_concurrency: int = 16,
        load_timeout: float = 30.0,
        name: str = "cache",
    ) -> None:
        """store: where entries lie; a `MemoryStore()` of its own by default. Two caches must not share one.

        rng: draws the jitter. By default Python's global generator, because a fork reseeds that one:
        workers that inherit the state of another would all expire at the same moments.
        refresh_concurrency: background refreshes at once, over all keys. 16: a mass invalidation refreshes
        at the pace of 16 loads, and the rest is served stale until its bound.
        load_timeout: seconds after which a load is given up. name: a label for metrics and `repr`.
        """
        whole = isinstance(refresh_concurrency, int) and not isinstance(refresh_concurrency, bool)
        if not (whole and 1 <= refresh_concurrency <= _MOST_REFRESHES):
            raise InvalidInput(
                f"refresh_concurrency: {refresh_concurrency!r} is not a whole number "
                f"from 1 to {_MOST_REFRESHES}"
            )
        self.name = name
        self.stats = CacheStats()
        self._store = MemoryStore() if store is None else store
        self._clock = clock
        self._now = clock.now
        self._draw = random.random if rng is None else rng.random
        self._flights = SingleFlight(load_timeout=load_timeout, clock=clock)
        self._refresh_concurrency = refresh_concurrency
        self._refreshing: set[Flight[Any]] = set()
        self._batchers: weakref.WeakSet[Batcher[Any, Any]] = weakref.WeakSet()  # kept alive by their loads
        # Bound once: the hit path is these three calls.
        self._entry_of = self._store.entries.get
        self._touch = self._store.entries.move_to_end

    def __repr__(self) -> str:
        return f"Cache({self.name!r}, {len(self._store)} entries)"

    async def get_or_load(self, key: Hashable, load: Callable[[], Awaitable[_T]], freshness: Freshness) -> _T:
        """The value of `key`: from memory while it is good enough, else what `load()` returns.

        Of callers that miss together, the first one's `load` and `freshness` are used. A hit does not
        suspend and looks at no deadline; a wait ends with DeadlineExceeded at the caller's ambient
        deadline. The value is handed out as it is, not copied: load frozen types or bytes. What the load
        sees and raises: `SingleFlight.do`. Raises InvalidInput for a key that is unhashable or hashes by
        identity.
        """
        try:
            entry = self._entry_of(key)
        except TypeError as error:
            raise unhashable(key) from error
        now = self._now()
        if entry is not None and now < entry.fresh_until:
            self._touch(key)
            self.stats.hits += 1
            value: _T = entry.value
            return value
        answer = await self._answer(key, load, freshness, entry, now)
        return answer.value

    async def lookup(
        self, key: Hashable, load: Callable[[], Awaitable[_T]], freshness: Freshness
    ) -> Lookup[_T]:
        """As `get_or_load`, and says where the value came from and how old it is."""
        try:
            entry = self._entry_of(key)
        except TypeError as error:
            raise unhashable(key) from error
        now = self._now()
        if entry is not None and now < entry.fresh_until:
            self._touch(key)
            self.stats.hits += 1
            return Lookup(entry.value, "hit", now - entry.began_at, 0.0)
        return await self._answer(key, load, freshness, entry, now)

    async def get_many(
        self,
        keys: Iterable[_K],
        load_many: Callable[[list[_K]], Awaitable[Mapping[_K, _T | Exception] | Sequence[_T | Exception]]],
        freshness: Freshness,
    ) -> dict[_K, _T]:
        """The values of `keys`, each by the rules of `get_or_load`; what is missing is loaded in one call.

        load_many: gets the keys that no entry answers and nobody is loading, stale ones that are due for a
        refresh among them, each once and in the order given. It answers as a `Batcher`'s does: a mapping, or
        a sequence in the same order; an exception as a value is the failure of that key alone. It runs
        outside every caller's context, for at most `load_timeout`.

        Returns one item per distinct key, in the order given. Raises the failure of the first key that has
        one and no value to stand in for it; MissingKey for a key that `load_many` did not answer. Loads of
        the other keys go on, and a cancelled caller ends none. A key that cannot be one raises InvalidInput
        before anything is loaded.
        """
        wanted: dict[_K, None] = {}
        for key in keys:
            check_key(key)
            wanted[key] = None
        begun: dict[_K, Lookup[_T] | tuple[Flight[_T], Source]] = {}
        due: list[_K] = []
        now = self._now()
        for key in wanted:
            entry = self._entry_of(key)
            if entry is None or now >= entry.fresh_until:
                due.append(key)
                continue
            self._touch(key)
            self.stats.hits += 1
            begun[key] = Lookup(entry.value, "hit", now - entry.began_at, 0.0)
        if due:
            batcher: Batcher[_K, _T] = Batcher(
                self._flights.as_part_of_loads(load_many),
                max_batch=min(len(due), _MOST_AT_ONCE),
                clock=self._clock,
                name=f"{self.name}.get_many",
            )
            self._batchers.add(batcher)
            # All begin before any is waited for: their loads then meet in one batch.
            for key in due:
                load = partial(batcher.load, key)
                begun[key] = self._begin(key, load, freshness, self._entry_of(key), now)
        return {
            key: (answer if isinstance(answer := begun[key], Lookup) else await self._landing(*answer)).value
            for key in wanted
        }

    async def get(self, key: Hashable, default: Any = None) -> Any:
        """The value of `key` while it is fresh, else `default`. Starts nothing and counts nothing."""
        check_key(key)
        entry = self._entry_of(key)
        if entry is None or self._now() >= entry.fresh_until:
            return default
        self._touch(key)
        return entry.value

    async def set(self, key: Hashable, value: object, freshness: Freshness) -> None:
        """Stores `value`; a load of `key` that is under way will not replace it."""
        check_key(key)
        self._flights.forget(key)
        self._keep(key, value, freshness, self._now())

    async def expire(self, key: Hashable) -> None:
        """Ends the fresh life of `key` now: the next caller gets it stale, if its `Freshness` allows, or
        loads it.

        A load under way does not land in the cache; callers that already wait for it get its answer.
        """
        check_key(key)
        self._flights.forget(key)
        await self._store.expire(key, self._now())

    async def remove(self, key: Hashable) -> None:
        """Forgets `key`, stale windows included. A load under way is treated as by `expire`."""
        check_key(key)
        self._flights.forget(key)
        await self._store.remove(key)

    async def clear(self) -> None:
        """Forgets every key, as `remove` would."""
        self._flights.forget_all()
        await self._store.clear()

    async def close(self, timeout: float = 5.0) -> None:
        """Cancels the loads and refreshes that run and waits for them, at most `timeout` seconds.

        Whoever waits for one gets LoadCancelled. Entries stay, and later calls work.
        """
        await asyncio.gather(
            self._flights.close(timeout), *(batcher.close(timeout) for batcher in self._batchers)
        )

    def cached(
        self, *, key: Callable[_P, Hashable], freshness: Freshness
    ) -> Callable[[Callable[_P, Awaitable[_T]]], Callable[_P, Coroutine[Any, Any, _T]]]:
        """Decorates a coroutine function so that calls with one key share one value.

        key: called with the arguments, defaults filled in, as they were bound to the function's
        parameters; returns the cache key. Begin it with a word of its own, as two functions with equal
        keys share a value:
        `key=lambda user_id: ("profile", user_id)`.
        """

        def decorate(function: Callable[_P, Awaitable[_T]]) -> Callable[_P, Coroutine[Any, Any, _T]]:
            signature = inspect.signature(function)
            positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            all_positional = all(each.kind in positional for each in signature.parameters.values())
            count = len(signature.parameters)

            @functools.wraps(function)
            async def answered(*args: _P.args, **kwargs: _P.kwargs) -> _T:
                if not kwargs and all_positional and len(args) == count:
                    found = key(*args, **kwargs)  # bound already: binding costs ten times the hit
                else:
                    bound = signature.bind(*args, **kwargs)
                    bound.apply_defaults()
                    found = key(*bound.args, **bound.kwargs)
                return await self.get_or_load(found, partial(function, *args, **kwargs), freshness)

            return answered

        return decorate

    async def _answer(
        self,
        key: Hashable,
        load: Callable[[], Awaitable[_T]],
        freshness: Freshness,
        entry: Entry[Any] | None,
        now: float,
    ) -> Lookup[_T]:
        begun = self._begin(key, load, freshness, entry, now)
        return begun if isinstance(begun, Lookup) else await self._landing(*begun)

    def _begin(
        self,
        key: Hashable,
        load: Callable[[], Awaitable[_T]],
        freshness: Freshness,
        entry: Entry[Any] | None,
        now: float,
    ) -> Lookup[_T] | tuple[Flight[_T], Source]:
        """The stale answer, or the flight to wait for; suspends nowhere."""
        stats = self.stats
        if entry is not None and now < entry.stale_until:
            self._refresh(key, load, freshness)
            stats.stale_served += 1
            return self._stale(key, entry, now, "stale")
        stats.misses += 1
        check_key(key)
        flight: Flight[_T] | None = self._flights.joinable(key)
        if flight is not None:
            stats.joined += 1
            return flight, "joined"
        deadline = current().deadline
        if deadline.at != math.inf:
            deadline.check(f"cache load of {shown(key)}")
        return self._load(key, load, freshness), "load"

    async def _landing(self, flight: Flight[_T], source: Source) -> Lookup[_T]:
        """The answer once `flight` has landed, or what stands in for it when it failed."""
        try:
            value = await flight.wait(current().deadline)
        except Exception:
            if not flight.landed:
                raise  # this caller's own deadline: nothing is known against the origin
            key = flight.key
            now = self._now()
            entry = self._entry_of(key)
            if entry is None or now >= entry.error_until:
                raise
            if now < entry.fresh_until:  # somebody set it while the load was failing
                return Lookup(entry.value, "hit", now - entry.began_at, 0.0)
            self.stats.stale_error_served += 1
            return self._stale(key, entry, now, "stale_error")
        return Lookup(value, source, self._now() - flight.began_at, 0.0)

    def _stale(self, key: Hashable, entry: Entry[Any], now: float, source: Source) -> Lookup[Any]:
        self._touch(key)
        staleness = max(0.0, now - entry.fresh_until)
        self.stats.max_staleness_served = max(self.stats.max_staleness_served, staleness)
        return Lookup(entry.value, source, now - entry.began_at, staleness)

    def _refresh(self, key: Hashable, load: Callable[[], Awaitable[_T]], freshness: Freshness) -> None:
        if self._flights.joinable(key) is not None:
            return
        if len(self._refreshing) >= self._refresh_concurrency and not self._drop_strayed_refreshes():
            self.stats.refreshes_skipped += 1
            return
        self.stats.refreshes += 1
        flight = self._load(key, load, freshness, refresh=True)
        if not flight.landed:  # an eager task may have ended already
            self._refreshing.add(flight)

    def _drop_strayed_refreshes(self) -> bool:
        """Frees the places of refreshes whose loop is gone (closed, or the parent's of a fork); whether
        any was."""
        strayed = {flight for flight in self._refreshing if not self._flights.is_here(flight)}
        self._refreshing -= strayed
        return bool(strayed)

    def _load(
        self,
        key: Hashable,
        load: Callable[[], Awaitable[_T]],
        freshness: Freshness,
        *,
        refresh: bool = False,
    ) -> Flight[_T]:
        flight = self._flights.start(key, load, on_landing=partial(self._landed, freshness, refresh))
        self.stats.loads += 1
        self.stats.max_concurrent_loads = self._flights.peak_per_key
        return flight

    def _landed(self, freshness: Freshness, refresh: bool, flight: Flight[Any], listed: bool) -> None:
        self._refreshing.discard(flight)
        if flight.error is not None:
            self.stats.load_errors += 1
            self.stats.refresh_failures += refresh
            self.stats.last_error = f"{type(flight.error).__name__}: {flight.error}"[:200]
        elif listed:
            self._keep(flight.key, flight.value, freshness, flight.began_at)

    def _keep(self, key: Hashable, value: object, freshness: Freshness, began_at: float) -> None:
        now = self._now()
        entry = Entry.keep(value, freshness, began_at=began_at, now=now, draw=self._draw())
        if entry.is_dead(now):
            self._store.entries.pop(key, None)  # nobody may read it, and what it replaces is older still
        else:
            self.stats.evictions += self._store.put(key, entry)
