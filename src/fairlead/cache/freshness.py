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

from fairlead.errors import InvalidInput

__all__ = ["Freshness"]

_LONGEST = 10 * 366 * 86_400.0


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

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "negative_ttl" and value is None:
                continue
            highest, unit = (1.0, "") if field.name == "jitter" else (_LONGEST, " seconds (ten years)")
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and 0 <= value <= highest):
                raise InvalidInput(
                    f"Freshness.{field.name}: {value!r} is not a number from 0 to {highest:.0f}{unit}"
                )
