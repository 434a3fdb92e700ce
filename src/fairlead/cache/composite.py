"""One value of several fields, each as fresh as that field must be.

A product page is a price that must be right and a rating that may be an hour old. Cached as one value, it has
the ttl of its strictest field and fails with its weakest origin. Here each field is a cache entry of its own:

    strict   within its ttl, or the whole value fails: better no answer than a wrong price
    relaxed  within its stale windows, else its default, and the answer says which field is missing

All fields are asked for at once and loaded side by side; a field that can, loads many keys in one call. How stale
each one is when it is handed out is measured, field by field: a mean over fields would hide the one that matters.

Per process: the entries and the figures.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, TypeVar, cast

from fairlead.cache.cache import Cache
from fairlead.cache.flight_group import LoadMany, Part
from fairlead.cache.freshness import Freshness
from fairlead.cache.keys import check_key
from fairlead.cache.loading import Lookup, Source, Together
from fairlead.cache.single_flight import Flight
from fairlead.errors import InvalidInput
from fairlead.telemetry.metrics import MetricRegistry

__all__ = ["Composite", "CompositeAnswer", "Field"]

_K = TypeVar("_K", bound=Hashable)
_Begun = Lookup[Any] | tuple[Flight[Any], Source]


@dataclass(frozen=True, kw_only=True, slots=True)
class Field(Generic[_K]):
    """Where one field comes from and how fresh it must be."""

    load: Callable[[_K], Awaitable[Any]] | None = None
    """Loads the field of a key. None: `load_many` does."""
    load_many: Callable[[list[_K]], Awaitable[Mapping[_K, Any] | Sequence[Any]]] | None = None
    """Loads the field of many keys in one call, answering as for `Cache.lookup_many`: what one `get_many` misses costs
    one task, and not one a key. None: `load` does."""
    freshness: Freshness
    """Its bounds. A strict field has no stale windows; a relaxed one may be as stale as they say."""
    tier: Literal["strict", "relaxed"] = "strict"
    """strict: without this field there is no answer. relaxed: without it there is `default`."""
    default: Any = None
    """What stands for a relaxed field that cannot be had within its bounds. Immutable: all answers share it."""

    def __post_init__(self) -> None:
        if self.tier not in ("strict", "relaxed"):
            raise InvalidInput(f"Field.tier: {self.tier!r} is not strict or relaxed")
        if (self.load is None) == (self.load_many is None):
            raise InvalidInput("Field: give it one of load and load_many, which say where it comes from")
        stale = max(self.freshness.stale_while_revalidate, self.freshness.stale_if_error)
        if self.tier == "strict" and stale:
            raise InvalidInput(
                f"Field.freshness: a strict field may not be stale, and this one may for {stale:g} s; "
                "set both stale windows to 0, or make it relaxed"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class CompositeAnswer:
    """The fields of one value, by name."""

    values: dict[str, Any]
    staleness: dict[str, float]
    """Seconds past its fresh life, of each field that was found; 0 for a fresh one."""
    ages: dict[str, float]
    """Seconds since the load of each field that was found began."""
    missing: dict[str, str]
    """The relaxed fields that are their default, each with the error that says why."""

    @property
    def degraded(self) -> bool:
        """Whether any field is its default."""
        return bool(self.missing)


class Composite(Generic[_K]):
    """Values of several fields in one `Cache`, by key.

    name: begins the keys of its entries, (name, field, key), and labels its figures. metrics: where
    `fairlead_cache_field_staleness_seconds` and `fairlead_cache_field_missing_total` are kept; private by default.

    >>> import asyncio
    >>> async def price(product): return 9.5
    >>> async def rating(product): raise ConnectionError("ratings are down")
    >>> async def main():
    ...     products = Composite(Cache(), "product", {
    ...         "price": Field(load=price, freshness=Freshness(ttl=1)),
    ...         "rating": Field(load=rating, freshness=Freshness(ttl=60, stale_if_error=3600), tier="relaxed"),
    ...     })
    ...     answer = await products.get(7)
    ...     return answer.values, answer.missing
    >>> asyncio.run(main())
    ({'price': 9.5, 'rating': None}, {'rating': 'ConnectionError: ratings are down'})
    """

    def __init__(
        self,
        cache: Cache,
        name: str,
        fields: Mapping[str, Field[_K]],
        *,
        metrics: MetricRegistry | None = None,
    ) -> None:
        if not fields:
            raise InvalidInput(f"Composite {name!r} has no fields")
        self.name = name
        self._cache = cache
        self._fields = dict(fields)
        # Strict ones are waited for first: when one fails, nothing else is waited for.
        self._order = sorted(self._fields, key=lambda field: self._fields[field].tier == "relaxed")
        registry = MetricRegistry() if metrics is None else metrics
        staleness = registry.histogram(
            "fairlead_cache_field_staleness_seconds",
            "Seconds past its fresh life of a field when it was handed out.",
            labels=("composite", "field"),
        )
        missing = registry.counter(
            "fairlead_cache_field_missing_total",
            "Answers in which a relaxed field was its default.",
            labels=("composite", "field"),
        )
        self.staleness = {field: staleness.labels(composite=name, field=field) for field in self._fields}
        """A histogram per field, over the answers of this process."""
        self._missing = {field: missing.labels(composite=name, field=field) for field in self._fields}

    async def get(self, key: _K) -> CompositeAnswer:
        """The fields of `key`; does not suspend when all are in memory.

        Raises what the load of a strict field raised, with a note that names the field. A caller's own deadline
        that passes while only relaxed fields are outstanding makes those missing. Loads that nobody waits for
        any more go on and are kept.
        """
        check_key(key)
        return await self._landed(self._begun((key,))[key])

    async def get_many(self, keys: Iterable[_K]) -> dict[_K, CompositeAnswer | Exception]:
        """The fields of each of `keys`, once per distinct key and in their order; all loads begin at once.

        Where `get` would raise, the exception is that key's value, and the other keys have their answers. Of a field
        with `load_many`, what no entry answers and nobody is loading is one call and one task, which runs outside
        every caller's context. A key that cannot be one raises before anything is loaded.
        """
        wanted: dict[_K, None] = {}
        for key in keys:
            check_key(key)
            wanted[key] = None
        begun = self._begun(wanted)
        answers: dict[_K, CompositeAnswer | Exception] = {}
        for key in wanted:
            try:
                answers[key] = await self._landed(begun[key])
            except Exception as error:
                answers[key] = error
        return answers

    def _begun(self, keys: Iterable[_K]) -> dict[_K, dict[str, _Begun]]:
        """By key and field, what memory has or the flight to wait for; suspends nowhere."""
        loads = self._cache._loads
        now = self._cache._now()
        together: dict[str, Together] = {}
        begun: dict[_K, dict[str, _Begun]] = {}
        try:
            for key in keys:
                found: dict[str, _Begun] = {}
                for name, field in self._fields.items():
                    at = (self.name, name, key)
                    answer: _Begun | None = loads.at_hand(at, now)
                    if answer is None:
                        load: Callable[[], Awaitable[Any]] | Part
                        if field.load_many is None:
                            load = partial(cast(Callable[[_K], Awaitable[Any]], field.load), key)
                        else:
                            if name not in together:
                                together[name] = self._together(name, field.load_many)
                            load = together[name].part(key)
                        answer = loads.begin_now(at, load, field.freshness)
                    found[name] = answer
                begun[key] = found
        finally:
            for each in together.values():
                each.depart()
        return begun

    def _together(self, name: str, load_many: LoadMany) -> Together:
        return self._cache._loads.together(
            load_many, f"{self.name}.{name}", lambda key: (self.name, name, key)
        )

    async def _landed(self, begun: dict[str, _Begun]) -> CompositeAnswer:
        fields = self._fields
        loads = self._cache._loads
        found: dict[str, Lookup[Any]] = {}
        missing: dict[str, str] = {}
        for name in self._order:
            field, answer = fields[name], begun[name]
            try:
                if not isinstance(answer, Lookup):
                    answer = await loads.landing(*answer, field.freshness)
                found[name] = answer
            except Exception as error:
                if field.tier == "strict":
                    error.add_note(
                        f"{self.name}: the strict field {name!r} could not be had within its bounds"
                    )
                    raise
                missing[name] = f"{type(error).__name__}: {error}"[:200]
                self._missing[name].add()
            else:
                self.staleness[name].observe(found[name].staleness)
        return CompositeAnswer(
            values={
                name: found[name].value if name in found else field.default for name, field in fields.items()
            },
            staleness={name: found[name].staleness for name in fields if name in found},
            ages={name: found[name].age for name in fields if name in found},
            missing=missing,
        )

    async def remove(self, key: _K) -> None:
        """Forgets all fields of `key`."""
        for name in self._fields:
            await self._cache.remove((self.name, name, key))
