"""Whether a run may be used, and which of its cycles.

The load engine shares a machine with what it measures, and sometimes with strangers. A turn whose requests were
sent late measured the machine. Dropping that turn alone would favour one arm, so the whole cycle goes, for every
arm, and the result names it; a run that would lose more than one cycle in twenty is not valid at all. The rule
looks at lateness only, never at what the service answered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fairlead.lab.samples import Ending, Samples
from fairlead.trial.result import ValidityRecord
from fairlead.trial.walk import Recorded

__all__ = ["LARGEST_SHARE_LEFT_OUT", "MAX_SEND_LAG_P99", "Judged", "judge"]

MAX_SEND_LAG_P99 = 0.010
"""Seconds. Latency counts from the intended moment, so lag is in it: 10 ms is well below every figure reported."""
LARGEST_SHARE_LEFT_OUT = 0.05
"""Share of cycles, 0-1, that may be left out for lateness. In a run of three cycles, none."""
LOGS = "logs"


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What may be used of a run, and why not the rest."""

    kept: Recorded
    """The record without late cycles; the whole record where too many were late."""
    validity: ValidityRecord


def judge(recorded: Recorded, ended_early: str = "") -> Judged:
    """Looks at every turn. ended_early: why the run did not finish; makes it invalid."""
    reasons = [ended_early] if ended_early else []
    if not recorded.turns:
        reasons.append("no arm went through a whole cycle")
        return Judged(kept=recorded, validity=ValidityRecord(valid=False, reasons=tuple(reasons)))
    late: dict[int, list[str]] = {}
    for turn in recorded.turns:
        which = f"{turn.arm.name}, cycle {turn.cycle + 1}"
        checked = turn.samples.validity(max_lag_p99=MAX_SEND_LAG_P99)
        if not checked.valid:
            late.setdefault(turn.cycle, []).append(f"{which}: {checked.reason}")
        elif not turn.samples.count(Ending.OK):
            reasons.append(f"{which}: not one answer; see its log in {LOGS}/")
    named = [reason for cycle in sorted(late) for reason in late[cycle]]
    kept = recorded
    if late and len(late) <= LARGEST_SHARE_LEFT_OUT * recorded.plan.cycles:
        kept = replace(recorded, turns=[turn for turn in recorded.turns if turn.cycle not in late])
    else:
        reasons += named
        named = []
    samples = Samples.concatenate([turn.samples for turn in kept.turns])
    return Judged(
        kept=kept,
        validity=ValidityRecord(
            valid=not reasons,
            reasons=tuple(reasons),
            left_out=tuple(named),
            send_lag_p99_seconds=samples.lag_p99,
            requests=len(samples),
        ),
    )
