"""The port of a tier that processes share, behind each one's own memory.

Four verbs, each for many keys at once, because a shared tier is far away and the way there is what costs.
`SecondTier` collects the requests of a turn of the event loop into them, bounds the wait and survives the
tier's absence; a driver may be slow and may fail, and need not care.

A write must not undo a later invalidation, though the load behind it may have begun in another process long
before. So every write and every invalidation carries the moment from which it speaks, and the later moment
wins, whatever order they arrive in:

    put        speaks from the start of its load; refused by any invalidation, and any put, from later
    expire     ends the fresh life of what was loaded before, and refuses what began before
    remove     forgets it, and refuses what began before
    remove_tag, clear   as remove, for every entry that bears the tag, or for all

Moments are monotonic seconds of this process. A driver translates them, and where it cannot do so exactly it
errs towards the shorter life and the wider invalidation.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from fairlead.cache.entry import Entry

__all__ = ["Invalidation", "InvalidationKind", "Put", "Store"]

InvalidationKind = Literal["expire", "remove", "remove_tag", "clear"]


class Put(NamedTuple):
    """An entry to be stored under a key."""

    key: Hashable
    entry: Entry[Any]
    replaces: bool = False
    """True: the value was set, not loaded, so loads that began before it are refused as by `remove`."""


class Invalidation(NamedTuple):
    """The end of what was loaded before a moment."""

    kind: InvalidationKind
    subject: Hashable
    """The key; the tag; None for clear."""
    at: float
    """The moment: what began at it or before is meant."""


class Store(Protocol):
    """A tier of the cache, shared by processes. Every verb raises StoreUnavailable when it cannot tell."""

    mismatches: int
    """Entries that could not be read as what they should be, and counted as absent; of this process."""
    unwritable: int
    """Entries not stored because their value, or their key, cannot be written; of this process."""

    async def get_many(self, keys: Sequence[Hashable]) -> list[Entry[Any] | None]:
        """The entry of each key, in the same order; None where there is none that a reader may see.

        Stale entries are returned, dead ones need not be. Without keys it is a question whether the tier
        answers.
        """
        ...

    async def put_many(self, puts: Sequence[Put]) -> int:
        """Stores entries, none beyond its last bound; how many were refused by what spoke later."""
        ...

    async def invalidate(self, invalidations: Sequence[Invalidation]) -> None:
        """Returns once no reader sees what was meant. The same one twice does no harm."""
        ...

    async def close(self) -> None:
        """Lets go of what it holds; the next verb takes it up again."""
        ...
