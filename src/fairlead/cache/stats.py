"""What a cache did, counted where it happens.

Plain integers of one process: the hit path adds one and nothing else. A fleet's figures are the sums of
its processes', but for the two maxima.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from fairlead.telemetry.metrics import MetricRegistry

__all__ = ["CacheStats", "export_counts"]


class CacheStats:
    """Counters of one `Cache` in one process since it was made.

    Every `get_or_load` and `lookup` is one of `hits`, `stale_served` and `misses`.
    """

    __slots__ = (
        "early_refreshes",
        "events_applied",
        "events_ignored",
        "evictions",
        "hits",
        "joined",
        "last_error",
        "load_errors",
        "loads",
        "max_concurrent_loads",
        "max_staleness_served",
        "misses",
        "refresh_failures",
        "refreshes",
        "refreshes_skipped",
        "stale_error_served",
        "stale_served",
        "stale_slow_served",
    )

    def __init__(self) -> None:
        self.hits = 0
        """Answers from a fresh entry."""
        self.misses = 0
        """Callers that had to wait for a load, whatever came of it."""
        self.joined = 0
        """Misses that waited for a load which somebody else had started."""
        self.loads = 0
        """Loads started: what the origin sees, refreshes included."""
        self.load_errors = 0
        """Loads that failed, timed out or were cancelled, refreshes included."""
        self.refreshes = 0
        """Loads started in the background, behind a stale answer or an early one."""
        self.early_refreshes = 0
        """Those of them that a fresh answer set off, by `early_refresh`."""
        self.refresh_failures = 0
        """Load errors of those."""
        self.refreshes_skipped = 0
        """Stale answers that started no refresh because `refresh_concurrency` of them were running."""
        self.stale_served = 0
        """Answers from an entry within `stale_while_revalidate`."""
        self.stale_error_served = 0
        """Misses whose load failed and that were answered within `stale_if_error`."""
        self.stale_slow_served = 0
        """Misses whose load outlasted `soft_timeout` and that were answered within `stale_if_error`."""
        self.evictions = 0
        """Entries dropped to keep the store's bound."""
        self.events_applied = 0
        """Changes written through by `apply`."""
        self.events_ignored = 0
        """Changes that `apply` had seen, or a newer one of the same key."""
        self.max_concurrent_loads = 0
        """Most loads of one key at once; above 1 only after an invalidation or a timeout during a load."""
        self.max_staleness_served = 0.0
        """Seconds past its fresh life of the stalest answer given."""
        self.last_error = ""
        """The latest load error, type and message, cut to 200 characters."""

    @classmethod
    def counts(cls) -> list[str]:
        """The names of those that only grow."""
        return [name for name in cls.__slots__ if not name.startswith(("max_", "last_"))]

    def as_dict(self) -> dict[str, int | float | str]:
        """The counters by name, in alphabetical order."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __repr__(self) -> str:
        return (
            f"CacheStats({', '.join(f'{name}={value!r}' for name, value in self.as_dict().items() if value)})"
        )


def export_counts(
    family: str, meaning: str, stats: object, names: Iterable[str], registry: MetricRegistry, **labels: str
) -> None:
    """Has each count of `stats` read at the scrape, under the label `what`."""
    counter = registry.counter(family, meaning, labels=(*labels, "what"))
    for name in names:
        counter.labels(**labels, what=name).track(partial(getattr, stats, name))
