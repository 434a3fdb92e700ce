"""A cache in front of a slow origin: answers from memory, and asks the origin as seldom as freshness allows.

    fresh   -> returned at once; the call does not suspend
    stale   -> within stale_while_revalidate: returned at once, one refresh runs in the background
    missing -> one load per key, however many callers wait; should it fail, the old value
               within stale_if_error, else the error. With a second tier, the load looks there first

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
import random
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from fairlead.cache.entry import Entry
from fairlead.cache.events import CacheEvent, Generations
from fairlead.cache.freshness import Freshness
from fairlead.cache.keys import check_key, check_tags, unhashable
from fairlead.cache.loading import Loads, Lookup, Source
from fairlead.cache.memory import MemoryStore
from fairlead.cache.single_flight import Flight
from fairlead.cache.stats import CacheStats, export_counts
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import InvalidInput
from fairlead.telemetry.metrics import MetricRegistry
from fairlead.telemetry.snapshot import Merge

if TYPE_CHECKING:
    from fairlead.cache.second_tier import SecondTier
    from fairlead.cache.two_nodes import TwoNodes
    from fairlead.telemetry.tracing import Tracer

__all__ = ["Cache"]

_T = TypeVar("_T")
_K = TypeVar("_K", bound=Hashable)
_P = ParamSpec("_P")

_MOST_REFRESHES = 10_000
_MOST_GENERATIONS = 100_000


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
        second: SecondTier | TwoNodes | None = None,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        refresh_concurrency: int = 16,
        load_timeout: float = 30.0,
        name: str = "cache",
        tracer: Tracer | None = None,
    ) -> None:
        """store: where entries lie; a `MemoryStore()` of its own by default. Two caches must not share one.

        second: the tier that processes share, asked before a load; it gets what is loaded and set, and hears of
        every invalidation. `close` closes it.
        rng: draws the jitter. By default Python's global generator, because a fork reseeds that one:
        workers that inherit the state of another would all expire at the same moments.
        refresh_concurrency: background refreshes at once, over all keys. 16: a mass invalidation refreshes
        at the pace of 16 loads, and the rest is served stale until its bound.
        load_timeout: seconds after which a load is given up. name: a label for metrics and `repr`.
        tracer: told of loads and stale answers, never of a hit; `fairlead.telemetry.opentelemetry` has one.
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
        self._second = second
        self._clock = clock
        self._now = clock.now
        self._loads = Loads(
            self._store,
            self.stats,
            clock=clock,
            rng=rng,
            refresh_concurrency=refresh_concurrency,
            load_timeout=load_timeout,
            second=second,
            tracer=tracer,
            name=name,
        )
        self._flights = self._loads.flights
        self._generations = Generations(_MOST_GENERATIONS)
        self._tag_generations = Generations(_MOST_GENERATIONS)
        self._batchers = self._loads.batchers
        # Bound once: the hit path is these three calls.
        self._entry_of = self._store.entries.get
        self._touch = self._store.touch

    def __len__(self) -> int:
        return len(self._store)

    def __repr__(self) -> str:
        return f"Cache({self.name!r}, {len(self._store)} entries)"

    async def get_or_load(
        self,
        key: Hashable,
        load: Callable[[], Awaitable[_T]],
        freshness: Freshness,
        tags: Iterable[str] = (),
    ) -> _T:
        """The value of `key`: from memory while it is good enough, else what `load()` returns.

        Of callers that miss together, the first one's `load`, `freshness` and `tags` are used. tags: names by
        which `remove_tag` forgets the value together with others. A hit does not suspend and looks at no
        deadline; a wait ends with DeadlineExceeded at the caller's ambient deadline. The value is handed out
        as it is, not copied: load frozen types or bytes. What the load sees and raises: `SingleFlight.do`.
        Raises InvalidInput for a key that is unhashable or hashes by identity.
        """
        try:
            entry = self._entry_of(key)
        except TypeError as error:
            raise unhashable(key) from error
        now = self._now()
        if entry is not None and now < entry.quiet_until:
            self._touch(key)
            self.stats.hits += 1
            value: _T = entry.value
            return value
        answer = await self._answer(key, load, freshness, tags, entry, now)
        return answer.value

    async def lookup(
        self,
        key: Hashable,
        load: Callable[[], Awaitable[_T]],
        freshness: Freshness,
        tags: Iterable[str] = (),
    ) -> Lookup[_T]:
        """As `get_or_load`, and says where the value came from and how old it is."""
        try:
            entry = self._entry_of(key)
        except TypeError as error:
            raise unhashable(key) from error
        now = self._now()
        if entry is not None and now < entry.quiet_until:
            self._touch(key)
            self.stats.hits += 1
            return Lookup(entry.value, "hit", now - entry.began_at, 0.0)
        return await self._answer(key, load, freshness, tags, entry, now)

    async def get_many(
        self,
        keys: Iterable[_K],
        load_many: Callable[[list[_K]], Awaitable[Mapping[_K, _T | Exception] | Sequence[_T | Exception]]],
        freshness: Freshness,
        *,
        tags: Iterable[str] = (),
    ) -> dict[_K, _T]:
        """The values of `keys`, each by the rules of `get_or_load`; what is missing is loaded in one call."""
        found = await self.lookup_many(keys, load_many, freshness, tags=tags)
        return {key: answer.value for key, answer in found.items()}

    async def lookup_many(
        self,
        keys: Iterable[_K],
        load_many: Callable[[list[_K]], Awaitable[Mapping[_K, _T | Exception] | Sequence[_T | Exception]]],
        freshness: Freshness,
        *,
        tags: Iterable[str] = (),
    ) -> dict[_K, Lookup[_T]]:
        """As `get_many`, and says of each value where it came from and how old it is.

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
            self._loads.check(key)
            wanted[key] = None
        begun: dict[_K, Lookup[_T] | tuple[Flight[_T], Source]] = {}
        due: list[_K] = []
        now = self._now()
        for key in wanted:
            entry = self._entry_of(key)
            if entry is None or now >= entry.quiet_until:
                due.append(key)
                continue
            self._touch(key)
            self.stats.hits += 1
            begun[key] = Lookup(entry.value, "hit", now - entry.began_at, 0.0)
        if due:
            together = self._loads.together(load_many, f"{self.name}.get_many")
            try:
                for key in due:
                    part = together.part(key)
                    begun[key] = self._loads.begin(key, part, freshness, tags, self._entry_of(key), now)
            finally:
                together.depart()
        return {
            key: answer
            if isinstance(answer := begun[key], Lookup)
            else await self._loads.landing(*answer, freshness)
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

    async def set(
        self, key: Hashable, value: object, freshness: Freshness, *, tags: Iterable[str] = ()
    ) -> None:
        """Stores `value`; a load of `key` that is under way will not replace it."""
        self._loads.check(key)
        labels = check_tags(tags)
        self._flights.forget(key)
        self._loads.keep(key, value, freshness, labels, self._now(), replaces=True)

    async def expire(self, key: Hashable) -> None:
        """Ends the fresh life of `key` now: the next caller gets it stale, if its `Freshness` allows, or
        loads it.

        A load under way does not land in the cache; callers that already wait for it get its answer.
        """
        self._loads.check(key)
        self._flights.forget(key)
        self._store.expire(key, self._now())
        if self._second is not None:
            await self._second.invalidate("expire", key)

    async def remove(self, key: Hashable) -> None:
        """Forgets `key`, stale windows included. A load under way is treated as by `expire`."""
        self._loads.check(key)
        self._flights.forget(key)
        self._store.drop(key)
        if self._second is not None:
            await self._second.invalidate("remove", key)

    async def remove_tag(self, tag: str) -> None:
        """Forgets every key that was loaded or set with `tag`, as `remove` would; loads under way, too.

        Costs time in proportion to the keys in memory that bear it, none to the others.
        """
        (name,) = check_tags((tag,))
        self._flights.forget_tag(name)
        self._store.drop_tag(name)
        if self._second is not None:
            await self._second.invalidate("remove_tag", name)

    async def apply(self, event: CacheEvent) -> bool:
        """Writes a change through that a stream reports; False for one that is not newer than the last.

        Twice or out of order does no harm: see `CacheEvent.generation`. Generations are remembered in this
        process for the 100,000 keys, and as many tags, that changed last; an older event of any other is applied.
        Of a key that is loaded as well, the event counts as what is written now: a load under way does not undo it.
        """
        by_tag = event.kind == "remove_tag"
        if not by_tag:
            self._loads.check(
                event.key
            )  # first: an event that is refused is not applied, however often it comes
        generations = self._tag_generations if by_tag else self._generations
        if not generations.advance(event.key, event.generation):
            self.stats.events_ignored += 1
            return False
        self.stats.events_applied += 1
        if by_tag:
            await self.remove_tag(str(event.key))
        elif event.kind == "expire":
            await self.expire(event.key)
        elif event.freshness is None or self._tag_generations.reached(event.tags, event.generation):
            await self.remove(event.key)
        else:
            await self.set(event.key, event.value, event.freshness, tags=event.tags)
        return True

    async def clear(self) -> None:
        """Forgets every key, as `remove` would."""
        self._flights.forget_all()
        self._store.clear()
        if self._second is not None:
            await self._second.invalidate("clear")

    async def close(self, timeout: float = 5.0) -> None:
        """Cancels the loads and refreshes that run and waits for them, at most `timeout` seconds.

        Whoever waits for one gets LoadCancelled. Entries stay, and later calls work.
        """
        await asyncio.gather(
            self._flights.close(timeout), *(batcher.close(timeout) for batcher in self._batchers)
        )
        if self._second is not None:
            await self._second.close(timeout)

    def export(self, registry: MetricRegistry) -> None:
        """Shows what the cache and its second tier count in `registry`; read at each scrape, free on a hit."""
        export_counts(
            "fairlead_cache_total",
            "What caches did, by the names of CacheStats.",
            self.stats,
            CacheStats.counts(),
            registry,
            cache=self.name,
        )
        export_counts(
            "fairlead_cache_memory_total",
            "What memory turned away: entries evicted for a bound, and rejected before they were kept.",
            self._store,
            ("evicted", "rejected"),
            registry,
            cache=self.name,
        )
        gauges: tuple[tuple[str, str, Merge, Callable[[], float]], ...] = (
            ("entries", "Entries in memory.", "sum", lambda: len(self._store)),
            ("bytes", "Bytes in memory, if they are bounded.", "sum", lambda: self._store.bytes),
            (
                "max_staleness_seconds",
                "Seconds past its fresh life of the stalest answer since the start.",
                "max",
                lambda: self.stats.max_staleness_served,
            ),
            (
                "max_concurrent_loads",
                "Most loads of one key at once since the start.",
                "max",
                lambda: self.stats.max_concurrent_loads,
            ),
        )
        for name, meaning, merge, read in gauges:
            gauge = registry.gauge(f"fairlead_cache_{name}", meaning, labels=("cache",), merge=merge)
            gauge.labels(cache=self.name).track(read)
        if self._second is not None:
            self._second.export(registry, cache=self.name)

    def cached(
        self,
        *,
        key: Callable[_P, Hashable],
        freshness: Freshness,
        tags: Callable[_P, Iterable[str]] | Iterable[str] = (),
    ) -> Callable[[Callable[_P, Awaitable[_T]]], Callable[_P, Coroutine[Any, Any, _T]]]:
        """Decorates a coroutine function so that calls with one key share one value.

        key: called with the arguments, defaults filled in, as they were bound to the function's
        parameters; returns the cache key. Begin it with a word of its own, as two functions with equal
        keys share a value:
        `key=lambda user_id: ("profile", user_id)`. A `KeyBuilder` makes one from the arguments, and caps the
        freshness. tags: of every value, or called as `key` is.
        """
        cap = getattr(key, "cap", None)  # of a KeyBuilder
        capped: Freshness = freshness if cap is None else cap(freshness)

        def decorate(function: Callable[_P, Awaitable[_T]]) -> Callable[_P, Coroutine[Any, Any, _T]]:
            signature = inspect.signature(function)
            positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            all_positional = all(each.kind in positional for each in signature.parameters.values())
            count = len(signature.parameters)

            @functools.wraps(function)
            async def answered(*args: _P.args, **kwargs: _P.kwargs) -> _T:
                if not kwargs and all_positional and len(args) == count:
                    found = key(*args, **kwargs)  # bound already: binding costs ten times the hit
                    labels = tags(*args, **kwargs) if callable(tags) else tags
                else:
                    bound = signature.bind(*args, **kwargs)
                    bound.apply_defaults()
                    found = key(*bound.args, **bound.kwargs)
                    labels = tags(*bound.args, **bound.kwargs) if callable(tags) else tags
                return await self.get_or_load(found, partial(function, *args, **kwargs), capped, tags=labels)

            return answered

        return decorate

    async def _answer(
        self,
        key: Hashable,
        load: Callable[[], Awaitable[_T]],
        freshness: Freshness,
        tags: Iterable[str],
        entry: Entry[Any] | None,
        now: float,
    ) -> Lookup[_T]:
        looked = False
        if self._second is not None:
            found = await self._loads.look(key, load, freshness, tags, entry, now)
            if isinstance(found, Lookup):
                return found
            looked = found
            entry, now = self._entry_of(key), self._now()
        begun = self._loads.begin(key, load, freshness, tags, entry, now, looked=looked)
        return begun if isinstance(begun, Lookup) else await self._loads.landing(*begun, freshness)
