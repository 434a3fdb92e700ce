"""What the second tier did, counted where it happens: plain integers of one process."""

from __future__ import annotations

from fairlead.cache.debts import Debts
from fairlead.cache.store import Store

__all__ = ["TierStats"]


class TierStats:
    """Counters of one `SecondTier` in one process since it was made.

    Every read is one of `hits`, `misses`, `errors` and `skipped`.
    """

    __slots__ = (
        "_debts",
        "_store",
        "dropped_writes",
        "errors",
        "gaps",
        "heard",
        "hits",
        "last_error",
        "lost_messages",
        "misses",
        "refused_writes",
        "replayed",
        "skipped",
        "writes",
    )

    def __init__(self, store: Store, debts: Debts) -> None:
        self._store = store
        self._debts = debts
        self.hits = 0
        """Reads that found an entry, stale or not."""
        self.misses = 0
        """Reads to which the tier answered that it has none; `mismatches` among them."""
        self.errors = 0
        """Reads that failed, or outlived the budget."""
        self.skipped = 0
        """Reads not sent because the breaker was open."""
        self.writes = 0
        """Entries sent; `refused_writes` among them."""
        self.refused_writes = 0
        """Entries that the tier refused because a later load or an invalidation had been there."""
        self.dropped_writes = 0
        """Entries not sent, or lost on the way, because the tier was away or the queue full."""
        self.replayed = 0
        """Owed invalidations that were delivered."""
        self.heard = 0
        """Invalidations by other processes that the backplane brought."""
        self.lost_messages = 0
        """Messages that could not be sent to other processes."""
        self.gaps = 0
        """Times that the backplane connected again, so that messages may have been missed."""
        self.last_error = ""
        """The latest failure, type and message, cut to 200 characters."""

    @property
    def mismatches(self) -> int:
        """Entries that could not be read as what they should be."""
        return self._store.mismatches

    @property
    def unwritable(self) -> int:
        """Entries not sent because their value, or their key, cannot be written."""
        return self._store.unwritable

    @property
    def owed(self) -> int:
        """Invalidations that the tier has not acknowledged, now."""
        return len(self._debts)

    @property
    def collapsed(self) -> int:
        """Times that more was owed than is kept, so that it became one `clear`."""
        return self._debts.collapsed

    @classmethod
    def counts(cls) -> list[str]:
        """The names of those that only grow."""
        return [
            *(name for name in cls.__slots__ if not name.startswith(("_", "last_"))),
            "collapsed",
            "mismatches",
            "unwritable",
        ]

    def as_dict(self) -> dict[str, int | str]:
        """The counters by name, in alphabetical order."""
        names = [name for name in self.__slots__ if not name.startswith("_")]
        return {
            name: getattr(self, name)
            for name in sorted([*names, "collapsed", "mismatches", "owed", "unwritable"])
        }

    def __repr__(self) -> str:
        return (
            f"TierStats({', '.join(f'{name}={value!r}' for name, value in self.as_dict().items() if value)})"
        )
