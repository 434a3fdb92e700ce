"""When traffic stood still: the periods of a change's rollouts in which one share was served, from their journals.

An experiment within a rollout is sound only where it knows which share was served when. A period begins when what
serves the traffic has said so (`had`), and ends when it is wanted otherwise (`wanted`), when a rollback is decided, or
with the first move of the change's next rollout. A pause moves nobody, and a controller that takes over sets what is
served already: neither ends a period. What a completed rollout left is served on.

The order of entries is that of their numbers. Where a clock was moved back, one moment stands for two: what two
periods both lay claim to belongs to neither of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fairlead.rollout.entry import Asked
from fairlead.rollout.journal import RolloutJournal
from fairlead.rollout.state import RolloutState, fold
from fairlead.rollout.traffic import Split

__all__ = ["SteadyPeriod", "steady_periods"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SteadyPeriod:
    """A stretch of time in which the same units were served treatment."""

    rollout: str
    """Which one: "home_feed/3"."""
    stage: int
    """Index of the stage."""
    share: float
    """Of the units, 0–1."""
    began_utc_seconds: float
    """When what serves the traffic said so. Processes that read it later serve the share before for as long."""
    ended_utc_seconds: float | None
    """When it was wanted otherwise; None: it is still served. Not above the beginning where nothing of it is left."""
    cut_seconds: float = 0.0
    """Of its length, taken off because a clock was moved back."""


@dataclass(slots=True)
class _Open:
    rollout: str
    stage: int
    split: Split
    began: float
    low: float
    """The earliest stamp of an entry in it."""
    high: float
    """The latest."""
    ended: float | None = None


def steady_periods(journals: Iterable[RolloutJournal]) -> tuple[SteadyPeriod, ...]:
    """The steady periods of rollouts of one change, in their order. Reads each journal, and blocks as they do."""
    found: list[_Open] = []
    for journal in journals:
        state = RolloutState(rollout=journal.rollout)
        for written in journal.read():
            at = written.at_utc_seconds
            before, state = state, fold(journal.rollout, [written], after=state)
            last = found[-1] if found and found[-1].ended is None else None
            # A wish is stamped by the clock of whoever has it, which may be a laptop's.
            if last is not None and not isinstance(written.entry, Asked):
                last.low, last.high = min(last.low, at), max(last.high, at)
            if len(state.stages_began) > len(before.stages_began) and state.want is not None:
                if last is not None:
                    last.ended = at
                found.append(_Open(journal.rollout, state.stage, state.want, at, at, at))
            elif last is not None and _moved(last, before, state):
                last.ended = at
    return tuple(_cut(found, index) for index in range(len(found)))


def _moved(last: _Open, before: RolloutState, state: RolloutState) -> bool:
    """Whether something else is wanted now than what the period serves."""
    if state.rollout == last.rollout and state.withdrawn and not before.withdrawn:
        return True
    return state.want is not None and not state.want.serves_as(last.split)


def _cut(found: list[_Open], index: int) -> SteadyPeriod:
    """The period without what the clock gave to another one, too."""
    one = found[index]
    end = math.inf if one.ended is None else one.ended
    starts = max([one.began, *(each.high for each in found[:index])])
    ends = min([end, *(each.low for each in found[index + 1 :])])
    if not math.isfinite(end):
        lost = starts - one.began + (0.0 if math.isinf(ends) else one.high - ends)
    else:
        lost = max(0.0, end - one.began) - max(0.0, ends - starts)
    return SteadyPeriod(
        rollout=one.rollout,
        stage=one.stage,
        share=one.split.share,
        began_utc_seconds=starts,
        ended_utc_seconds=ends if math.isfinite(ends) else None,
        cut_seconds=max(0.0, lost),
    )
