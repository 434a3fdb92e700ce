"""What else happened while the experiment ran: promotions, weather, deploys, incidents.

A randomised experiment survives a football final: both arms watched it. It does not survive a deploy to one arm, and
what it found in the week of a promotion need not hold in the week after. A calendar is kept by hand, and each
analysis says which of its entries fell into its time.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Literal

import msgspec

from fairlead.errors import BrokenDocument, InvalidInput

__all__ = ["CalendarEntry", "Confounded", "confounded", "read_calendar"]

MAX_BYTES = 1024 * 1024
Kind = Literal["promotion", "weather", "deploy", "incident", "holiday", "other"]


class CalendarEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that happened."""

    kind: Kind
    what: str
    """In a few words, for people."""
    start: datetime
    """When it began; without a zone: UTC. In a file it may be a day."""
    end: datetime | None = None
    """When it was over; None: at once. In a file it may be a day, which is included."""
    variant: str = ""
    """The arm that alone was concerned; empty: all alike."""

    @property
    def span(self) -> tuple[float, float]:
        """From and to, seconds since 1970, UTC."""
        return _seconds(self.start), _seconds(self.start if self.end is None else self.end)


@dataclass(frozen=True, kw_only=True, slots=True)
class Confounded:
    """An entry that fell into an experiment."""

    entry: CalendarEntry
    share: float
    """Of the experiment's time, 0–1."""
    message: str


class _File(msgspec.Struct, forbid_unknown_fields=True):
    entries: tuple[CalendarEntry, ...] = ()


def read_calendar(path: Path) -> tuple[CalendarEntry, ...]:
    """The entries of a TOML file, an `[[entries]]` each: kind, what, start, end, variant. Raises BrokenDocument."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise BrokenDocument(f"{path}: larger than {MAX_BYTES:,} bytes; keep a calendar a year")
        found = msgspec.convert(_moments(tomllib.loads(content.decode())), type=_File)
    except OSError as error:
        raise BrokenDocument(f"{path}: cannot be read ({error.strerror}); name a calendar in TOML") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise BrokenDocument(f"{path}: no calendar: {str(error)[:300]}") from error
    for entry in found.entries:
        start, end = entry.span
        if end < start:
            raise BrokenDocument(f"{path}: {entry.what[:80]!r} ends before it starts; exchange start and end")
    return found.entries


def confounded(entries: Iterable[CalendarEntry], start: float, end: float) -> tuple[Confounded, ...]:
    """Which entries fall between two moments, seconds since 1970; those of one arm first. Raises InvalidInput."""
    if not start <= end:
        raise InvalidInput(f"the experiment ends at {end!r}, before it starts at {start!r}")
    found = []
    for entry in entries:
        low, high = entry.span
        # What lasts ends before its end; what is a moment is all there is of it.
        if low > end or (high <= start if high > low else high < start):
            continue
        shared = max(0.0, min(high, end) - max(low, start))
        share = min(1.0, shared / (end - start)) if end > start else 1.0
        whom = (
            f"concerned {entry.variant} alone: the effect may be its"
            if entry.variant
            else ("concerned all arms alike: the effect holds for such times, and need not for others")
        )
        found.append(
            Confounded(
                entry=entry,
                share=share,
                message=f"{entry.kind} “{entry.what}” ({share:.0%} of the time) {whom}",
            )
        )
    return tuple(sorted(found, key=lambda one: (not one.entry.variant, -one.share)))


def _moments(document: Any) -> Any:
    """The document with every day in place of a moment made two: its beginning and its end."""
    entries = document.get("entries")
    if not isinstance(entries, list):
        return document
    made = []
    for entry in entries:
        if not isinstance(entry, dict):
            return document
        start, end = entry.get("start"), entry.get("end")
        if end is None and _is_day(start):
            end = start
        moments = {"start": _midnight(start) if _is_day(start) else start}
        if end is not None:
            # The last day is included; one before the first stays before it, and is refused.
            included = not (_is_day(start) and _is_day(end) and end < start)
            moments["end"] = _midnight(end) + timedelta(days=included) if _is_day(end) else end
        made.append({**entry, **moments})
    return {**document, "entries": made}


def _is_day(moment: object) -> bool:
    return isinstance(moment, date) and not isinstance(moment, datetime)


def _midnight(day: Any) -> datetime:
    return datetime.combine(day, time(), UTC)


def _seconds(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
