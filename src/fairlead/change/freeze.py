"""Frozen before the data: what was promised, byte by byte, and what became of it since.

A hypothesis that is written after the result is a story. So the file goes into the ledger before anything is
measured, and its hash is the pre-registration. Afterwards it may grow: incidents, what surprised, when a milestone was
reached. What may not change is what the result is judged by; if it did, the pre-registration is broken, and says where.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from fairlead.change.check import check_change
from fairlead.change.parse import parse_change
from fairlead.errors import BrokenDocument, InvalidInput

if TYPE_CHECKING:
    from fairlead.ledger import FrozenChange, Ledger

__all__ = ["Difference", "compare_changes", "freeze_change", "moved_promises"]

GROWS = ("incidents", "reflection", "ai_use", "conflicts", "highest_risk.result")
"""What is written afterwards, and changes no promise."""
PROMISED = (
    "change.name",
    "change.goal",
    "change.hypothesis",
    "metrics",
    "experiment",
    "rollout",
    "assumptions",
)
"""What the result is judged by. The rest (prose, options, risks) is shown when it changed, and breaks nothing."""

_DONE = re.compile(r"milestones\[\d+\]\.done")
_MOST_LINES = 3000


def freeze_change(content: bytes, ledger: Ledger, *, name: str = "change file") -> FrozenChange:
    """Puts the file into the ledger, under the change's own name. Blocks; the same bytes again change nothing.

    Raises InvalidInput while `check_change` finds an error, BrokenDocument for what is no change file, and what the
    ledger raises.
    """
    errors = [finding for finding in check_change(content, name) if finding.severity == "error"]
    if errors:
        more = f" and {len(errors) - 1} more" if len(errors) > 1 else ""
        raise InvalidInput(
            f"{name}: {errors[0].message}{more}; fairlead change check lists them, then freeze again"
        )
    return ledger.freeze(parse_change(content, name).change.name, content)


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """What changed since a file was frozen."""

    broken: tuple[str, ...]
    """Keys of what was promised that are no longer the same; any of them breaks the pre-registration."""
    grown: tuple[str, ...]
    """Keys that are meant to be written afterwards."""
    reworded: tuple[str, ...]
    """Other keys: prose, options, risks."""
    diff: str
    """Of the text, unified; empty when not a byte changed."""

    @property
    def is_broken(self) -> bool:
        """Whether the pre-registration no longer holds."""
        return bool(self.broken)


def moved_promises(ledger: Ledger, name: str) -> tuple[str, ...]:
    """Keys of what was promised that a later version changed after evidence had been recorded for the change.

    To freeze again is allowed: plans are mended. But who has seen a figure and then moves the target has promised
    nothing, whatever the last version says. Blocks.
    """
    from fairlead.ledger import Evidence, FrozenChange  # with the extra that whoever has a ledger has

    moved: dict[str, None] = {}
    before: FrozenChange | None = None
    is_measured = False
    for entry in ledger.entries(change=name):
        if isinstance(entry.body, Evidence):
            is_measured = True
        elif isinstance(entry.body, FrozenChange):
            if before is not None and is_measured:
                moved |= dict.fromkeys(compare_changes(before.content, entry.body.content).broken)
            before = entry.body
    return tuple(moved)


def compare_changes(frozen: bytes, present: bytes) -> Difference:
    """What changed between two versions. One that cannot be read breaks the pre-registration."""
    try:
        before = _flat(parse_change(frozen, "frozen file"))
        after = _flat(parse_change(present, "present file"))
    except BrokenDocument as error:
        return Difference(broken=(str(error),), grown=(), reworded=(), diff=_diff(frozen, present))
    changed = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
    # What was written down and is gone has not grown: an incident that vanishes is to be seen.
    grown = tuple(
        key for key in changed if key in after and (_below(key, GROWS) or _DONE.fullmatch(key) is not None)
    )
    broken = tuple(key for key in changed if _below(key, PROMISED) and key not in grown)
    reworded = tuple(key for key in changed if key not in grown and key not in broken)
    return Difference(broken=broken, grown=grown, reworded=reworded, diff=_diff(frozen, present))


def _below(key: str, roots: tuple[str, ...]) -> bool:
    return any(key == root or key.startswith((f"{root}.", f"{root}[")) for root in roots)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every leaf by its path."""
    plain = msgspec.to_builtins(value) if isinstance(value, msgspec.Struct) else value
    if isinstance(plain, dict):
        parts = ((f"{path}.{key}" if path else key, part) for key, part in plain.items())
    elif isinstance(plain, list | tuple) and plain:
        parts = ((f"{path}[{index}]", part) for index, part in enumerate(plain))
    else:
        return {} if plain in (None, "", (), []) else {path: plain}
    found: dict[str, Any] = {}
    for inner, part in parts:
        found |= _flat(part, inner)
    return found


def _diff(frozen: bytes, present: bytes) -> str:
    before, after = (content.decode("utf-8", errors="replace").splitlines() for content in (frozen, present))
    if max(len(before), len(after)) > _MOST_LINES:  # difflib takes quadratic time, and worse
        return "" if frozen == present else f"more than {_MOST_LINES:,} lines: not compared line by line"
    return "\n".join(difflib.unified_diff(before, after, fromfile="frozen", tofile="present", lineterm=""))
