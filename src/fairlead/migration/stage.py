"""The six stages of a move between two stores, and which steps between them are allowed.

    stage         reads   compared   written, in order   a failure of the second write
    off           old     -          old                 -
    dual-write    old     -          old, new            is marked; the caller succeeds
    shadow-read   old     new        old, new            is marked; the caller succeeds
    live          new     old        old, new            is marked; the caller gets it
    ramp-down     new     -          new, old            is marked; the caller succeeds
    complete      new     -          new                 -

A fleet learns of a new stage one process at a time, so two neighbouring stages are always in force at once. Neighbours
are safe together because they have a store in common in which every acknowledged write of either lies: the old one up
to live, the new one from live on. That is why live needs both. A jump over a stage has no such store and is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Literal

import msgspec

from fairlead.errors import InvalidInput
from fairlead.flags import EvaluationContext, FlagSet

__all__ = ["Side", "Stage", "StagePlan", "StageSource", "flag_stage"]

Side = Literal["old", "new"]
"""One of the two stores of a migration."""


class StagePlan(msgspec.Struct, frozen=True):
    """What a stage does with a read and with a write."""

    reads: Side
    """The authority: the store that answers reads."""
    compares: Side | None
    """The store whose answer a shadow read compares with the authority's."""
    writes: tuple[Side, ...]
    """The stores written, in this order; the first gives each write its version."""
    needs_both: bool = False
    """Whether a write has failed for its caller when the second store failed."""


class Stage(StrEnum):
    """How far a migration has come; the values are those of the flag's variants."""

    OFF = "off"
    """The old store alone; what is written is marked, so that it is carried over later."""
    DUAL_WRITE = "dual-write"
    """Both are written, the old one is read; the backfill runs."""
    SHADOW_READ = "shadow-read"
    """As before, and the new store's answers are compared."""
    LIVE = "live"
    """The new store is read, and nothing is acknowledged that the old one lacks: going back loses nothing."""
    RAMP_DOWN = "ramp-down"
    """The new store is written first; the old one follows, and no longer stops a write."""
    COMPLETE = "complete"
    """The new store alone. The old one falls behind: the way back needs a reconciliation first."""

    @property
    def plan(self) -> StagePlan:
        """What this stage does with reads and writes."""
        return _PLANS[self]

    @property
    def number(self) -> int:
        """0 for off to 5 for complete."""
        return _ORDER.index(self)


_ORDER = tuple(Stage)
_PLANS = {
    Stage.OFF: StagePlan("old", None, ("old",)),
    Stage.DUAL_WRITE: StagePlan("old", None, ("old", "new")),
    Stage.SHADOW_READ: StagePlan("old", "new", ("old", "new")),
    Stage.LIVE: StagePlan("new", "old", ("old", "new"), needs_both=True),
    Stage.RAMP_DOWN: StagePlan("new", None, ("new", "old")),
    Stage.COMPLETE: StagePlan("new", None, ("new",)),
}

StageSource = Callable[[], str | None]
"""Says the stage that is wanted now, or None for "as before". Asked before each read and write, so it must be quick."""


def flag_stage(
    flags: FlagSet, flag: str, *, context: EvaluationContext | None = None
) -> Callable[[], str | None]:
    """The stage from a string flag: a change of stage is a change of the flag.

    flag: its variants have the six stages as values. A flag that is disabled, gone or broken says nothing, and the
        stage stays: the caller's default would be a jump.
    context: of this process, for targeting by instance; None: an empty one. Not of a user: within one process
        two requests would be in two stages.

    Raises UnknownFlag, or InvalidInput for a flag of another type or with other values.
    """
    flags.require(flag, "string")
    values = {str(value) for value in flags.document.flags[flag].variants.values()}
    if values != set(Stage):
        wrong = sorted(values - set(Stage))
        lacks = [stage for stage in Stage if stage not in values]
        what = f"has the value {wrong[0]!r}" if wrong else f"has no variant with the value {lacks[0].value!r}"
        raise InvalidInput(f"flag {flag!r}: {what}; the stages are {', '.join(Stage)}")
    asked = context or EvaluationContext()

    def stage() -> str | None:
        evaluation = flags.evaluate(flag, asked)
        return str(evaluation.value) if evaluation.variant is not None else None

    return stage


def why_no_step(current: Stage, wanted: Stage) -> str | None:
    """Why there is no step between the two; None where there is."""
    distance = wanted.number - current.number
    if abs(distance) <= 1:
        return None
    towards = _ORDER[current.number + (1 if distance > 0 else -1)]
    between = _ORDER[min(current.number, wanted.number) + 1 : max(current.number, wanted.number)]
    return (
        f"{current} → {wanted} jumps over {', '.join(between)}, and processes in {current} and in {wanted} share no "
        f"store that has every write; go to {towards} first, and on once every process is there"
    )
