"""One stored value and the moments at which it stops being good enough.

The moments are decided once, when the value is stored, so that a read costs one comparison. They are
monotonic seconds of the cache's clock: setting the wall clock neither revives nor kills an entry.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from fairlead.cache.freshness import Freshness

__all__ = ["Entry"]

_T = TypeVar("_T")


class Entry(Generic[_T]):
    """A value with its moments; replaced as a whole, never changed. A read at or past a moment is past it."""

    __slots__ = ("began_at", "error_until", "fresh_until", "stale_until", "stored_at", "value")

    def __init__(
        self,
        value: _T,
        *,
        began_at: float,
        stored_at: float,
        fresh_until: float,
        stale_until: float,
        error_until: float,
    ) -> None:
        self.value = value
        self.began_at = began_at
        """When the load began: the value may describe the world as it was then."""
        self.stored_at = stored_at
        self.fresh_until = fresh_until
        self.stale_until = stale_until
        self.error_until = error_until

    @classmethod
    def keep(cls, value: _T, freshness: Freshness, *, began_at: float, now: float, draw: float) -> Entry[_T]:
        """The entry of a value that completed `now`; `draw`, 0–1, picks its place in the jitter."""
        if value is None and freshness.negative_ttl is not None:
            ttl, while_revalidate, if_error = freshness.negative_ttl, 0.0, 0.0
        else:
            ttl = freshness.ttl
            while_revalidate, if_error = freshness.stale_while_revalidate, freshness.stale_if_error
        fresh_until = now + ttl * (1.0 - freshness.jitter * draw)
        return cls(
            value,
            began_at=began_at,
            stored_at=now,
            fresh_until=fresh_until,
            stale_until=fresh_until + while_revalidate,
            error_until=fresh_until + if_error,
        )

    def expired(self, now: float) -> Entry[_T]:
        """This entry with its fresh life ended `now` at the latest.

        The stale windows move with it, so that a value expired by hand is not served longer past its end than
        one that expired by age.
        """
        early = self.fresh_until - now
        if early <= 0:
            return self
        return Entry(
            self.value,
            began_at=self.began_at,
            stored_at=self.stored_at,
            fresh_until=now,
            stale_until=self.stale_until - early,
            error_until=self.error_until - early,
        )

    def is_dead(self, now: float) -> bool:
        """No reader may see this value any more, whatever fails."""
        return now >= self.fresh_until and now >= self.stale_until and now >= self.error_until
