"""Changes that a stream reports, applied in whatever order they arrive.

A service that is told of changes (a queue, a change feed of its database) can write them through instead of
waiting for the ttl. Streams deliver twice and out of order, after a rebalance above all. So each event carries a
generation of its key, and one that is not newer than the last one applied is ignored.

A tag has generations of its own. A set that bears a tag which was removed at its generation or later may be older than
that removal, so it is applied as a removal of its key: to forget too much costs a load.

Invariant: of the events of one key that were applied, the one with the highest generation is what the cache
holds, for as long as the generation of that key is remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from fairlead.cache.freshness import Freshness
from fairlead.cache.keys import check_key, check_tags
from fairlead.calls.bounds import check_whole
from fairlead.errors import InvalidInput

__all__ = ["CacheEvent", "Generations"]

_HIGHEST = 2**63 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheEvent:
    """One change of one key, or of what a tag stands for, as a stream reports it."""

    key: Hashable
    """With remove_tag: the tag."""
    generation: int
    """Grows with each change of this key: a sequence number, an offset, a commit time in microseconds. 0 to
    2⁶³ − 1. Of a tag: from the same sequence as those of the keys that bear it, or their sets become removals."""
    kind: Literal["set", "expire", "remove", "remove_tag"] = "set"
    """set: `value` is the new one. Others: as the verbs of `Cache`."""
    value: Any = None
    freshness: Freshness | None = None
    """Needed for a set; else left out."""
    tags: tuple[str, ...] = ()
    """Of a set."""

    def __post_init__(self) -> None:
        check_key(self.key)
        check_whole("CacheEvent.generation", self.generation, low=0, high=_HIGHEST)
        check_tags(self.tags)
        if self.kind not in ("set", "expire", "remove", "remove_tag"):
            raise InvalidInput(f"CacheEvent.kind: {self.kind!r} is not set, expire, remove or remove_tag")
        if self.kind == "remove_tag" and not isinstance(self.key, str):
            raise InvalidInput(f"CacheEvent.key: {self.key!r} is no tag, which remove_tag needs")
        if (self.kind == "set") != (self.freshness is not None):
            raise InvalidInput("CacheEvent.freshness: needed for a set, and for nothing else")


class Generations:
    """The last generation applied per key, or per tag, of those that changed most recently. Per process."""

    __slots__ = ("_latest", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._latest: OrderedDict[Hashable, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._latest)

    def advance(self, key: Hashable, generation: int) -> bool:
        """Whether `generation` is newer than what was applied to `key`; notes it if so."""
        latest = self._latest
        if latest.get(key, -1) >= generation:
            return False
        latest[key] = generation
        latest.move_to_end(key)
        if len(latest) > self._most:
            latest.popitem(last=False)
        return True

    def reached(self, keys: Iterable[Hashable], generation: int) -> bool:
        """Whether to one of `keys` something as new as `generation` was applied."""
        return any(self._latest.get(key, -1) >= generation for key in keys)
