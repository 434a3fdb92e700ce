"""The checked argument of `bucket`: who is drawn, by which layout, and who owns which slots.

An owner is a label, or another draw: one salt decides who is in, the other which variant they get, so that letting more
users in moves nobody from one variant to another.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right

from fairlead.flags.attribute import TARGETING_KEY, EvaluationContext, attribute
from fairlead.flags.flag import Place, quoted
from fairlead.flags.layout import layout_of

__all__ = ["Slots"]

_KEYS = ("by", "salt", "algo", "slots")

Draw = tuple[str, str, str]


class Slots:
    """A draw, and what each of its slots is for."""

    __slots__ = ("by", "count", "draw", "ends", "owners", "read", "slot_of", "starts")

    def __init__(self, argument: object, place: Place, within: tuple[Draw, ...] = ()) -> None:
        if not isinstance(argument, dict) or set(argument) != set(_KEYS):
            place.refuse(f"takes an object with exactly {', '.join(_KEYS)}; correct its keys")
        layout = layout_of(argument["algo"], argument["salt"], place)
        by = argument["by"]
        if not isinstance(by, str) or not by:
            place.at("by").refuse(
                f"{quoted(by)} names no attribute; write {quoted(TARGETING_KEY)} or an attribute"
            )
        self.by = by
        self.read = attribute(by, place.at("by"))
        self.count = layout.slots
        self.slot_of = layout.slot_of
        self.draw: Draw = (*layout.draw, by)
        if self.draw in within:
            place.at("salt").refuse(
                f"{quoted(argument['salt'])} is also the salt of the draw around it, so some of these slots hold "
                f"nobody; give each draw a salt of its own"
            )
        self._read_ranges(argument["slots"], place.at("slots"), (*within, self.draw))

    def _read_ranges(self, slots: object, place: Place, within: tuple[Draw, ...]) -> None:
        if not isinstance(slots, list) or not slots:
            place.refuse(f'takes a list such as [["on", 0, 500]]; {self.count} slots are 100 %')
        ranges: list[tuple[int, int, int, str | Slots]] = []
        for index, slot in enumerate(slots):
            here = place.at(index)
            if not isinstance(slot, list) or len(slot) != 3:
                here.refuse(f'{quoted(slot)} is not ["label", from, to]; write for example ["on", 0, 500]')
            label, start, end = slot
            if type(start) is not int or type(end) is not int or not 0 <= start < end <= self.count:
                here.refuse(
                    f"[{quoted(start)}, {quoted(end)}) is no range within 0 to {self.count}; use whole from < to"
                )
            ranges.append((start, end, index, self._owner(label, here.at(0), within)))
        ranges.sort(key=lambda each: each[:2])
        for (_, end, index, owner), (start, _, later, other) in itertools.pairwise(ranges):
            if start < end:
                place.at(later).refuse(
                    f"{_name(other)} overlaps {_name(owner)} of slots[{index}]; give each slot one owner"
                )
        self.starts = [start for start, _, _, _ in ranges]
        self.ends = [end for _, end, _, _ in ranges]
        self.owners = [owner for _, _, _, owner in ranges]

    @staticmethod
    def _owner(label: object, place: Place, within: tuple[Draw, ...]) -> str | Slots:
        if isinstance(label, dict) and set(label) == {"bucket"}:
            return Slots(label["bucket"], place.at("bucket"), within)
        if not isinstance(label, str) or not label:
            place.refuse(f'{quoted(label)} is no label; write one, or another {{"bucket": …}}')
        return label

    def slot(self, context: EvaluationContext) -> int:
        """The slot of who asks; -1 where there is nobody to draw for."""
        return self.slot_of(self.read(context))

    def index(self, slot: int) -> int:
        """Which range owns the slot, -1 for none."""
        found = bisect_right(self.starts, slot) - 1
        return found if found >= 0 and slot < self.ends[found] else -1


def _name(owner: str | Slots) -> str:
    return quoted(owner) if isinstance(owner, str) else "the draw by " + quoted(owner.draw[1])
