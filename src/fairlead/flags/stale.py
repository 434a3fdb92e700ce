"""Which flags have outlived their question?

A flag that serves one variant to everybody keeps a branch that nobody takes, and the day somebody flips it by mistake
that branch runs again, untested for a year. Nothing here is guessed: a date is one that the flag's metadata says
(`created`, `expires`), what is served follows from the document, and what was met from the exposures that were kept. A
flag that is meant to stay says `"permanent": true`.

Whether code still asks for a flag cannot be said from here: a flag that is asked without a targeting key, or that is
switched off, leaves no exposure.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime

import msgspec

from fairlead.flags.flag import Flag, FlagDocument, quoted
from fairlead.flags.moves import served_variants
from fairlead.telemetry import Event, Exposure

__all__ = ["SeenFlags", "Stale", "stale_flags"]

_DAY = 86_400.0


class Stale(msgspec.Struct, frozen=True, kw_only=True):
    """Why a flag should be looked at."""

    flag: str
    why: str
    """expired, no_date, switched_off, one_variant, never_exposed or one_exposed."""
    said: str
    """The same for a person."""


class SeenFlags(msgspec.Struct, kw_only=True):
    """Which variants of which flags were exposed, and when."""

    variants: dict[str, set[str]] = {}
    first_utc_seconds: float = float("inf")
    last_utc_seconds: float = float("-inf")

    @classmethod
    def of(cls, events: Iterable[Event]) -> SeenFlags:
        """What the exposures among the events say."""
        seen = cls()
        for event in events:
            if isinstance(event, Exposure):
                seen.variants.setdefault(event.flag, set()).add(event.variant)
                seen.first_utc_seconds = min(seen.first_utc_seconds, event.at_utc_seconds)
                seen.last_utc_seconds = max(seen.last_utc_seconds, event.at_utc_seconds)
        return seen

    @property
    def days(self) -> float:
        """How many days lie between the first and the last exposure; 0 without any."""
        return max(0.0, (self.last_utc_seconds - self.first_utc_seconds) / _DAY)


def stale_flags(
    document: FlagDocument, *, now: float, after: float = 90 * _DAY, seen: SeenFlags | None = None
) -> tuple[Stale, ...]:
    """What should be looked at, in the order of the document.

    now: seconds since 1970. after: seconds for which one variant alone makes a flag stale. seen: what was exposed.
    """
    today = datetime.fromtimestamp(now, UTC).date()
    found: list[Stale] = []
    for flag in document.flags.values():
        dates: dict[str, date] = {}
        for key in ("created", "expires"):
            if key in flag.metadata:
                read = _date(flag.metadata[key])
                if read is None:
                    said = f"{key} {quoted(flag.metadata[key])} is no date; write one such as 2026-03-31"
                    found.append(Stale(flag=flag.name, why="no_date", said=said))
                else:
                    dates[key] = read
        if (expires := dates.get("expires")) is not None and expires < today:
            said = f"expired on {expires}, {(today - expires).days} days ago"
            found.append(Stale(flag=flag.name, why="expired", said=said))
        if flag.metadata.get("permanent") is not True:
            created = dates.get("created")
            age = None if created is None else (today - created).days
            found += _unused(flag, age, after / _DAY, seen)
    return tuple(found)


def _date(value: object) -> date | None:
    try:
        return date.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _unused(flag: Flag, age: int | None, after: float, seen: SeenFlags | None) -> Iterable[Stale]:
    old = age is not None and age >= after
    served = served_variants(flag)
    if not flag.enabled:
        if old:
            yield Stale(flag=flag.name, why="switched_off", said=f"is switched off, and {age} days old")
        return
    if served is not None and len(served) == 1:
        (variant,) = served
        whose = "the caller's default" if variant is None else quoted(variant)
        # Without a targeting that is what a setting looks like; with one, or after a while, what is left of a rollout.
        if old or (age is None and flag.targeting is not None):
            since = "since when is not written (created)" if age is None else f"{age} days old"
            yield Stale(flag=flag.name, why="one_variant", said=f"serves {whose} to everybody; {since}")
    if seen is None or seen.days <= 0:
        return
    exposed = seen.variants.get(flag.name, set())
    span = f"in {seen.days:.1f} days of events"
    if not exposed:
        yield Stale(flag=flag.name, why="never_exposed", said=f"was exposed to nobody {span}")
    elif len(exposed) == 1 and seen.days >= after and (served is None or len(served) > 1):
        only = quoted(next(iter(exposed)))
        yield Stale(
            flag=flag.name, why="one_exposed", said=f"showed only {only} {span}, though it may serve more"
        )
