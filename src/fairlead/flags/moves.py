"""Who changes the variant when one document replaces another?

The units of a split are counted exactly, slot by slot. A targeting that asks for more than a bucket is compared as a
whole, and said to differ: who it moves depends on who comes.
"""

from __future__ import annotations

import itertools

import msgspec

from fairlead.flags.bucketing import SLOTS
from fairlead.flags.flag import Flag, FlagDocument, Place
from fairlead.flags.rule import Slots

__all__ = ["FlagChange", "compare_documents"]


class FlagChange(msgspec.Struct, frozen=True, kw_only=True):
    """What is different about one flag."""

    flag: str
    what: tuple[str, ...]
    """In words: "added", "switched off", "default control → treatment", "split"."""
    moves: dict[str, float] | None = None
    """Share of the units by "from → to", 0–1; None where it cannot be said."""
    between_arms: bool = False
    """Whether units move from one drawn arm to another, which an experiment does not survive."""


def compare_documents(old: FlagDocument, new: FlagDocument) -> tuple[FlagChange, ...]:
    """The flags that differ, in the order of their names."""
    names = sorted({*old.flags, *new.flags})
    found = (_compared(name, old.flags.get(name), new.flags.get(name)) for name in names)
    return tuple(change for change in found if change is not None)


def _compared(name: str, old: Flag | None, new: Flag | None) -> FlagChange | None:
    if old == new:
        return None
    if old is None or new is None:
        return FlagChange(flag=name, what=("added" if old is None else "removed",))
    what = []
    if old.enabled != new.enabled:
        what.append("switched on" if new.enabled else "switched off")
    if old.variants != new.variants:
        what.append("variants")
    if old.default_variant != new.default_variant:
        what.append(f"default {old.default_variant} → {new.default_variant}")
    if old.targeting != new.targeting:
        what.append("targeting")
    if old.metadata != new.metadata:
        what.append("metadata")
    before, after = _owners(old), _owners(new)
    if before is None or after is None:
        return FlagChange(flag=name, what=tuple(what))
    (salted, owned), (other, owns) = before, after
    if salted is not None and other is not None and salted != other:
        # Another salt or another unit: everybody is drawn anew, independently of before.
        return FlagChange(
            flag=name, what=(*what, "drawn anew (salt or unit)"), moves=_anew(owned, owns), between_arms=True
        )
    moves: dict[str, float] = {}
    between = False
    for start, end, was, becomes in _aligned(owned, owns):
        if was != becomes:
            key = f"{was or 'default of the caller'} → {becomes or 'default of the caller'}"
            moves[key] = moves.get(key, 0.0) + (end - start) / SLOTS
            between = between or (was in _drawn(owned, old) and becomes in _drawn(owns, new))
    return FlagChange(flag=name, what=tuple(what), moves=moves, between_arms=between)


_Ranges = list[tuple[int, int, str | None]]


def _owners(flag: Flag) -> tuple[tuple[bytes, str] | None, _Ranges] | None:
    """Salt and unit of the one bucket, and which variant each slot is served; None for a richer targeting."""
    if not flag.enabled:
        return None, [(0, SLOTS, None)]
    if flag.targeting is None:
        return None, [(0, SLOTS, flag.default_variant)]
    node = flag.targeting
    if not isinstance(node, dict) or set(node) != {"bucket"}:
        return None
    slots = Slots(node["bucket"], Place("the document"))
    ranges: _Ranges = []
    at = 0
    for start, end, label in zip(slots.starts, slots.ends, slots.labels, strict=True):
        if at < start:
            ranges.append((at, start, flag.default_variant))
        ranges.append((start, end, label))
        at = end
    if at < SLOTS:
        ranges.append((at, SLOTS, flag.default_variant))
    return (slots.prefix, slots.by), ranges


def _drawn(ranges: _Ranges, flag: Flag) -> set[str | None]:
    """Variants that were given by a draw, and not for want of one."""
    given: set[str | None] = {label for _, _, label in ranges if label is not None}
    return given - {flag.default_variant}


def _aligned(old: _Ranges, new: _Ranges) -> list[tuple[int, int, str | None, str | None]]:
    edges = sorted({edge for start, end, _ in (*old, *new) for edge in (start, end)})
    return [(start, end, _owner(old, start), _owner(new, start)) for start, end in itertools.pairwise(edges)]


def _owner(ranges: _Ranges, slot: int) -> str | None:
    return next(label for start, end, label in ranges if start <= slot < end)


def _anew(old: _Ranges, new: _Ranges) -> dict[str, float]:
    """Shares that move when both draws are independent."""
    shares: list[dict[str | None, float]] = []
    for ranges in (old, new):
        of: dict[str | None, float] = {}
        for start, end, label in ranges:
            of[label] = of.get(label, 0.0) + (end - start) / SLOTS
        shares.append(of)
    return {
        f"{was or 'default of the caller'} → {becomes or 'default of the caller'}": a * b
        for was, a in shares[0].items()
        for becomes, b in shares[1].items()
        if was != becomes
    }
