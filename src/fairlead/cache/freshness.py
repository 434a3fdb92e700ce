"""How long an answer may be given, and how long past that it is better than none (RFC 5861).

    stored             ttl ends           + stale_while_revalidate        + stale_if_error
      |------ fresh ------|------ stale, one refresh runs ------|                 |
      |                   |------ stale, only when a load has just failed --------|

Both windows start where the ttl ends, and neither extends the other. Jitter only ever subtracts from the ttl,
so a ttl is a promise about age and not an average. A value is never served at or past the end of its window,
whatever fails.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf

from fairlead.errors import InvalidInput

__all__ = ["Freshness"]

_LONGEST = 10 * 366 * 86_400.0
_HIGHEST = {"jitter": (1.0, ""), "adaptive": (1.0, ""), "early_refresh": (10.0, "")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Freshness:
    """Ages, in seconds, at which a cached value stops being good enough."""

    ttl: float
    """Upper bound of the age at which a value is served without asking the origin, counted from the moment
    its load completed. 0: never fresh, though concurrent callers still share one load."""
    jitter: float = 0.1
    """Share of the ttl, 0–1, of which a random part is subtracted per value. 0.1: values stored together
    expire spread over the last tenth of their ttl instead of in one herd."""
    stale_while_revalidate: float = 0.0
    """Seconds past the ttl in which the old value is served at once while one refresh runs (RFC 5861 section
    3). 0: callers wait for the load."""
    stale_if_error: float = 0.0
    """Seconds past the ttl in which the old value replaces the error of a failed load (RFC 5861 section 4).
    0: the error is raised."""
    negative_ttl: float | None = None
    """Ttl of a load that returned None, which then has no stale windows: a wrong "not there" is worse than a
    wait. None: a None is a value like any other. 0: a None is not stored."""
    max_ttl: float = inf
    """Age, from the start of its load, at which a value is gone whatever the windows and `adaptive` allow: the
    longest that a missed invalidation can matter. Infinite: the windows alone bound it."""
    early_refresh: float = 0.0
    """Beta of XFetch, 0–10: a hot key is refreshed in the background shortly before it expires, by a lot that
    falls the sooner the longer its loads take (Vattani, Chierichetti and Lowenstein 2015). 1 is their optimum
    for equal costs of a load too early and one too late. 0: off, since a `stale_while_revalidate` takes the
    same wait away; use this where nothing stale may be served."""
    adaptive: float = 0.0
    """Share, 0–1, of the time a value has not changed for which it is fresh, if that is more than the ttl
    (Cate 1992): what has not changed for an hour is then not asked for every 10 s. Counts only for keys that
    are asked for again within a ttl of their end, and needs a `max_ttl`. 0: off."""
    soft_timeout: float | None = None
    """Seconds that a caller waits for a load while an old value within `stale_if_error` could answer; then it
    does, and the load goes on. None: callers wait until the load ends or is given up."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("negative_ttl", "soft_timeout") and value is None:
                continue
            highest, unit = _HIGHEST.get(field.name, (_LONGEST, " seconds (ten years)"))
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if field.name == "max_ttl" and value == inf:
                continue
            if not (number and 0 <= value <= highest):
                raise InvalidInput(
                    f"Freshness.{field.name}: {value!r} is not a number from 0 to {highest:.0f}{unit}"
                )
        if self.max_ttl < self.ttl:
            raise InvalidInput(
                f"Freshness.max_ttl: {self.max_ttl!r} is less than the ttl of {self.ttl!r}; raise it, or lower the ttl"
            )
        if self.adaptive and self.max_ttl == inf:
            raise InvalidInput("Freshness.adaptive needs a max_ttl: without one, a ttl could grow for ever")
        if self.soft_timeout is not None and not self.stale_if_error:
            raise InvalidInput(
                "Freshness.soft_timeout needs stale_if_error: without it no old value may answer for a slow load"
            )
