"""What this process has invalidated and the shared tier has not acknowledged.

Newest per key and per tag; a removal is not weakened by a later expire. More than `most` of them become one
`clear`: to forget too much costs loads, to forget a removal serves what must not be served. A debt older than
any entry can be is dropped.

Until it is settled, a debt hides what it is about from this process's own reads, so an answer that was made
before the tier heard of it does no harm. A read that left before then takes a copy along: it may come back later.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from fairlead.cache.entry import Entry
from fairlead.cache.store import Invalidation, InvalidationKind

__all__ = ["Debts", "Slot"]

Slot = tuple[str, Hashable]
"""What a debt is about: ("key", key), ("tag", tag), or `_ALL`."""

_ALL: Slot = ("all", None)
_SLOTS: dict[InvalidationKind, str] = {
    "expire": "key",
    "remove": "key",
    "remove_tag": "tag",
    "clear": "all",
}


class Debts:
    """Invalidations on their way, or owed."""

    def __init__(self, *, most: int, kept_for: float) -> None:
        self.collapsed = 0
        """Times that there were too many."""
        self._most = most
        self._kept_for = kept_for
        self._owed: dict[Slot, Invalidation] = {}

    def __len__(self) -> int:
        return len(self._owed)

    def as_they_are(self) -> Debts | None:
        """A copy for a read that leaves now, which may come back when they are settled; None for no debts."""
        if not self._owed:
            return None
        copy = Debts(most=self._most, kept_for=self._kept_for)
        copy._owed = self._owed.copy()
        return copy

    def add(self, new: Invalidation) -> Slot:
        """Takes it on, joined with an older one of the same subject."""
        slot: Slot = (_SLOTS[new.kind], new.subject)
        old = self._owed.pop(slot, None)
        if old is not None:
            kind = "remove" if "remove" in (old.kind, new.kind) else new.kind
            new = Invalidation(kind, new.subject, max(old.at, new.at))
        self._owed[slot] = new
        if len(self._owed) > self._most:
            self._owed = {_ALL: Invalidation("clear", None, max(each.at for each in self._owed.values()))}
            self.collapsed += 1
            return _ALL
        return slot

    def chunk(self, most: int, now: float) -> dict[Slot, Invalidation]:
        """The oldest ones that still matter, at most `most`; empty when nothing is owed."""
        chunk: dict[Slot, Invalidation] = {}
        for slot, each in list(self._owed.items()):
            if now - each.at > self._kept_for:
                del self._owed[slot]
            elif len(chunk) < most:
                chunk[slot] = each
        return chunk

    def of(self, slots: list[Slot]) -> dict[Slot, Invalidation]:
        """Those of `slots` that are still owed."""
        return {slot: self._owed[slot] for slot in slots if slot in self._owed}

    def settle(self, delivered: dict[Slot, Invalidation]) -> None:
        """Strikes what was delivered, unless a newer one has taken its place."""
        for slot, each in delivered.items():
            if self._owed.get(slot) is each:
                del self._owed[slot]

    def seen_through(self, key: Hashable, entry: Entry[Any]) -> Entry[Any] | None:
        """What this process may see of `entry`."""
        owed, began = self._owed, entry.began_at
        by_key = owed.get(("key", key))
        if by_key is not None and began <= by_key.at:
            if by_key.kind == "remove":
                return None
            entry = entry.expired(by_key.at)
        for slot in (_ALL, *(("tag", tag) for tag in entry.tags)):
            each = owed.get(slot)
            if each is not None and began <= each.at:
                return None
        return entry
