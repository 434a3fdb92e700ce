"""One stored value and the moments at which it stops being good enough.

The moments are decided once, when the value is stored, so that a read costs one comparison. They are
monotonic seconds of the cache's clock: setting the wall clock neither revives nor kills an entry.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from fairlead.cache.freshness import Freshness

__all__ = ["Entry"]

_T = TypeVar("_T")

_NO_TAGS: frozenset[str] = frozenset()
_EARLIEST = (
    20.0  # times beta and the cost of a load: before that, XFetch refreshes one read in half a billion
)


class Entry(Generic[_T]):
    """A value with its moments; replaced as a whole, never changed. A read at or past a moment is past it."""

    __slots__ = (
        "began_at",
        "error_until",
        "fresh_until",
        "quiet_until",
        "stale_until",
        "stored_at",
        "tags",
        "unchanged_since",
        "value",
    )

    def __init__(
        self,
        value: _T,
        *,
        began_at: float,
        stored_at: float,
        fresh_until: float,
        stale_until: float,
        error_until: float,
        quiet_until: float | None = None,
        unchanged_since: float | None = None,
        tags: frozenset[str] = _NO_TAGS,
    ) -> None:
        self.value = value
        self.began_at = began_at
        """When the load began: the value may describe the world as it was then."""
        self.stored_at = stored_at
        self.fresh_until = fresh_until
        self.stale_until = stale_until
        self.error_until = error_until
        self.quiet_until = fresh_until if quiet_until is None else quiet_until
        """A read before this moment has nothing to decide: fresh, and too early for a refresh."""
        self.unchanged_since = began_at if unchanged_since is None else unchanged_since
        """The start of the first of the loads in a row that brought this value."""
        self.tags = tags

    @classmethod
    def keep(
        cls,
        value: _T,
        freshness: Freshness,
        *,
        began_at: float,
        now: float,
        draw: float,
        tags: frozenset[str] = _NO_TAGS,
        before: Entry[Any] | None = None,
    ) -> Entry[_T]:
        """The entry of a value that completed `now`.

        draw: 0–1, picks its place in the jitter. before: the entry that it replaces, if the freshness is to
        adapt to it.
        """
        unchanged_since = began_at
        if value is None and freshness.negative_ttl is not None:
            ttl, while_revalidate, if_error = freshness.negative_ttl, 0.0, 0.0
        else:
            ttl = freshness.ttl
            while_revalidate, if_error = freshness.stale_while_revalidate, freshness.stale_if_error
            if before is not None and freshness.adaptive and before.is_confirmed_by(value, began_at, ttl):
                unchanged_since = before.unchanged_since
                ttl = max(ttl, freshness.adaptive * (now - unchanged_since))
        end = began_at + freshness.max_ttl
        fresh_until = min(now + ttl * (1.0 - freshness.jitter * draw), end)
        quiet_until = fresh_until
        if freshness.early_refresh:
            quiet_until -= _EARLIEST * freshness.early_refresh * (now - began_at)
        return cls(
            value,
            began_at=began_at,
            stored_at=now,
            fresh_until=fresh_until,
            stale_until=min(fresh_until + while_revalidate, end),
            error_until=min(fresh_until + if_error, end),
            quiet_until=quiet_until,
            unchanged_since=unchanged_since,
            tags=tags,
        )

    def is_confirmed_by(self, value: object, began_at: float, ttl: float) -> bool:
        """Whether a load that began at `began_at` and brought `value` says that nothing changed in between.

        Only a key that is asked for often says so: of one that was not looked at for longer than a `ttl` after
        it expired, two equal answers do not tell what it was meanwhile.
        """
        if began_at - self.fresh_until > ttl:
            return False
        try:
            return bool(self.value == value)
        except Exception:  # an array's comparison is no truth, and a value's own may raise anything
            return False

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
            unchanged_since=self.unchanged_since,
            tags=self.tags,
        )

    def kept_until(self, moment: float) -> Entry[_T]:
        """This entry fresh, or stale behind a refresh, until `moment` at the latest; in the place of an error
        as long as before."""
        if self.fresh_until <= moment and self.stale_until <= moment:
            return self
        return Entry(
            self.value,
            began_at=self.began_at,
            stored_at=self.stored_at,
            fresh_until=min(self.fresh_until, moment),
            stale_until=min(self.stale_until, moment),
            error_until=self.error_until,
            quiet_until=min(self.quiet_until, moment),
            unchanged_since=self.unchanged_since,
            tags=self.tags,
        )

    def is_dead(self, now: float) -> bool:
        """No reader may see this value any more, whatever fails."""
        return now >= self.fresh_until and now >= self.stale_until and now >= self.error_until
