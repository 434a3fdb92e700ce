"""What the second tier did, counted where it happens: plain integers of one process."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["TierStats"]


class TierStats:
    """Counters of one `SecondTier` in one process since it was made.

    Every read is one of `hits`, `misses`, `errors` and `skipped`.
    """

    __slots__ = (
        "_mismatches",
        "_owed",
        "collapsed",
        "dropped_writes",
        "errors",
        "hits",
        "last_error",
        "misses",
        "refused_writes",
        "replayed",
        "skipped",
        "writes",
    )

    def __init__(self, mismatches: Callable[[], int], owed: Callable[[], int]) -> None:
        self._mismatches = mismatches
        self._owed = owed
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
        self.collapsed = 0
        """Times that more was owed than is kept, so that it became one `clear`."""
        self.last_error = ""
        """The latest failure, type and message, cut to 200 characters."""

    @property
    def mismatches(self) -> int:
        """Entries that could not be read as what they should be."""
        return self._mismatches()

    @property
    def owed(self) -> int:
        """Invalidations that the tier has not acknowledged, now."""
        return self._owed()

    def as_dict(self) -> dict[str, int | str]:
        """The counters by name, in alphabetical order."""
        names = [name for name in self.__slots__ if not name.startswith("_")]
        return {name: getattr(self, name) for name in sorted([*names, "mismatches", "owed"])}

    def __repr__(self) -> str:
        return (
            f"TierStats({', '.join(f'{name}={value!r}' for name, value in self.as_dict().items() if value)})"
        )
