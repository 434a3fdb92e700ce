"""Who changes the variant when one document replaces another?

A draw is a number that a salt and a key have fixed for ever, so the units of a split are counted exactly, slot by slot:
draws that both documents make are the same draw, and any two others are independent. What is asked before the draw
depends on who comes; where both documents ask the same, each branch is counted by itself, and where they do not, the
flag is said to differ and no more.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from fractions import Fraction

import msgspec

from fairlead.flags.flag import Flag, FlagDocument, Place
from fairlead.flags.slots import Draw, Slots

__all__ = ["FlagChange", "Move", "compare_documents", "served_variants"]

Owner = str | None | Slots
"""A variant, the caller's own default, or a draw between several."""

_Part = tuple[Fraction, Fraction]
_EVERYTHING: _Part = (Fraction(0), Fraction(1))


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """Units that get another variant."""

    among: str
    """Of whom the share is: "everybody", or a condition that both documents ask."""
    was: str | None
    """Variant; None for the caller's own default."""
    becomes: str | None
    share: float
    """0–1, of those."""
    between_arms: bool
    """Whether units go from one drawn arm to another in a way that no experiment on the flag survives."""


class FlagChange(msgspec.Struct, frozen=True, kw_only=True):
    """What is different about one flag."""

    flag: str
    what: tuple[str, ...]
    """In words: "added", "switched off", "default control → treatment", "targeting"."""
    moves: tuple[Move, ...] | None = None
    """Empty where nobody moves; None where it cannot be said who does."""

    @property
    def between_arms(self) -> bool:
        """Whether units move from one drawn arm to another."""
        return any(move.between_arms for move in self.moves or ())


def compare_documents(old: FlagDocument, new: FlagDocument) -> tuple[FlagChange, ...]:
    """The flags that differ, in the order of their names."""
    names = sorted({*old.flags, *new.flags})
    found = (_compared(name, old.flags.get(name), new.flags.get(name)) for name in names)
    return tuple(change for change in found if change is not None)


def served_variants(flag: Flag) -> set[str | None] | None:
    """What units with a key can be served, overrides aside; None stands for the caller's own default.

    None where a rule computes the variant.
    """
    if not flag.enabled:
        return {None}
    branches = _of_result(flag.targeting, flag.default_variant, "")
    if branches is None:
        return None
    return {variant for _, owner in branches for variant in _marginal(owner, flag.default_variant)}


def _compared(name: str, old: Flag | None, new: Flag | None) -> FlagChange | None:
    if old == new:
        return None
    if old is None or new is None:
        return FlagChange(flag=name, what=("added" if old is None else "removed",))
    what = []
    if old.enabled != new.enabled:
        what.append("switched on" if new.enabled else "killed" if new.killed else "switched off")
    if old.variants != new.variants:
        what.append("variants")
    if old.default_variant != new.default_variant:
        what.append(f"default {old.default_variant} → {new.default_variant}")
    if old.targeting != new.targeting:
        what.append("targeting")
    if old.override_rule != new.override_rule:
        what.append("overrides")
    if old.metadata != new.metadata:
        what.append("metadata")
    return FlagChange(flag=name, what=tuple(what), moves=_moves(old, new))


def _moves(old: Flag, new: Flag) -> tuple[Move, ...] | None:
    before, after = _branches(old), _branches(new)
    if before is None or after is None:
        return None
    if len(before) == 1 or len(after) == 1:
        # One side serves everybody alike, so each branch of the other can be compared with it.
        before, after = _spread(before, after), _spread(after, before)
    if [among for among, _ in before] != [among for among, _ in after]:
        return None
    found: list[Move] = []
    for (among, was), (_, becomes) in zip(before, after, strict=True):
        found += _counted(among, (was, old), (becomes, new))
    return tuple(found)


_Branches = list[tuple[str, Owner]]


def _branches(flag: Flag) -> _Branches | None:
    """What is served to whom, in the order in which it is asked; None where a rule computes it."""
    if not flag.enabled:
        return [("everybody", None)]
    found: _Branches = []
    if flag.override_rule is not None:
        ahead = _of_result(flag.override_rule, None, "")
        if ahead is None:
            return None
        # Who is overridden by nothing goes on to the targeting.
        found = [branch for branch in ahead if branch[1] is not None]
        found = [(f"overridden: {among}", owner) for among, owner in found]
    rest = _of_result(flag.targeting, flag.default_variant, "")
    if rest is None:
        return None
    last = [(among or ("the others" if found else "everybody"), owner) for among, owner in rest]
    return found + last


def _of_result(node: object, default: str | None, among: str) -> _Branches | None:
    if node is None:
        return [(among, default)]
    if isinstance(node, bool):
        return [(among, "true" if node else "false")]
    if isinstance(node, str):
        return [(among, node)]
    if not isinstance(node, dict):
        return None
    if set(node) == {"bucket"}:
        return [(among, Slots(node["bucket"], Place("the document")))]
    if set(node) != {"if"} or not isinstance(node["if"], list):
        return None
    given = list(node["if"])
    if len(given) % 2 == 0:
        given.append(None)
    found: _Branches = []
    asked: list[str] = []
    for index in range(0, len(given) - 1, 2):
        condition = json.dumps(given[index], ensure_ascii=False)
        inner = _of_result(given[index + 1], default, " and ".join([*([among] if among else []), condition]))
        if inner is None:
            return None
        found += inner
        asked.append(condition)
    others = " and ".join([*([among] if among else []), *(f"not {condition}" for condition in asked)])
    inner = _of_result(given[-1], default, others)
    return None if inner is None else found + inner


def _spread(branches: _Branches, over: _Branches) -> _Branches:
    return [(among, branches[0][1]) for among, _ in over] if len(branches) == 1 else branches


def _counted(among: str, old: tuple[Owner, Flag], new: tuple[Owner, Flag]) -> Iterator[Move]:
    (was, before), (becomes, after) = old, new
    theirs, ours = _draws(was), _draws(becomes)
    shares: dict[tuple[str | None, str | None], Fraction] = {}
    if theirs & ours:
        _add_joint(was, becomes, before, after, {}, Fraction(1), shares)
    else:  # independent, so each pair is a product
        for one, first in _marginal(was, before.default_variant).items():
            for other, second in _marginal(becomes, after.default_variant).items():
                shares[one, other] = shares.get((one, other), Fraction(0)) + first * second
    anew = bool(theirs and ours and theirs != ours)
    first_arms, then_arms = _drawn(was), _drawn(becomes)
    for (one, other), share in shares.items():
        if one == other or not share:
            continue
        drawn = one in first_arms and other in then_arms
        # From the default arm to another is how a rollout grows, and back is how it ends. Both at once is neither.
        swapped = drawn and bool(shares.get((other, one)))
        apart = drawn and one != before.default_variant and other != after.default_variant
        between = apart or swapped or (anew and (one in first_arms or other in then_arms))
        yield Move(among=among, was=one, becomes=other, share=float(share), between_arms=between)


def _draws(owner: Owner) -> frozenset[Draw]:
    if not isinstance(owner, Slots):
        return frozenset()
    return frozenset({owner.draw}).union(*map(_draws, owner.owners))


def _drawn(owner: Owner) -> set[str | None]:
    """Variants that a draw gives."""
    if not isinstance(owner, Slots):
        return set()
    found: set[str | None] = set()
    for one in owner.owners:
        found |= _drawn(one) if isinstance(one, Slots) else {one}
    return found


def _parts(slots: Slots, within: _Part, default: str | None) -> Iterator[tuple[_Part, Owner]]:
    """Who owns which part of a draw, gaps included, within a part of it."""
    low, high = within
    at = low
    first = bisect_right(slots.ends, low * slots.count)
    last = bisect_left(slots.starts, high * slots.count)
    for index in range(first, last):
        start = max(Fraction(slots.starts[index], slots.count), low)
        end = min(Fraction(slots.ends[index], slots.count), high)
        if at < start:
            yield (at, start), default
        yield (start, end), slots.owners[index]
        at = end
    if at < high:
        yield (at, high), default


def _marginal(owner: Owner, default: str | None) -> dict[str | None, Fraction]:
    if not isinstance(owner, Slots):
        return {owner: Fraction(1)}
    found: dict[str | None, Fraction] = {}
    for (start, end), part in _parts(owner, _EVERYTHING, default):
        for variant, share in _marginal(part, default).items():
            found[variant] = found.get(variant, Fraction(0)) + share * (end - start)
    return found


def _add_joint(
    was: Owner,
    becomes: Owner,
    old: Flag,
    new: Flag,
    known: Mapping[Draw, _Part],
    weight: Fraction,
    shares: dict[tuple[str | None, str | None], Fraction],
) -> None:
    """Adds what each pair of variants gets of `weight`, given in which part the known draws fell."""
    if isinstance(was, Slots):
        split = was
    elif isinstance(becomes, Slots):
        split = becomes
    else:
        shares[was, becomes] = shares.get((was, becomes), Fraction(0)) + weight
        return
    within = known.get(split.draw, _EVERYTHING)
    default = old.default_variant if split is was else new.default_variant
    for (start, end), owner in _parts(split, within, default):
        share = weight * (end - start) / (within[1] - within[0])
        deeper = {**known, split.draw: (start, end)}
        one, other = (owner, becomes) if split is was else (was, owner)
        _add_joint(one, other, old, new, deeper, share, shares)
