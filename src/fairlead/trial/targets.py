"""What became of each target, from the figures alone.

Judged twice: when a run is concluded, and again from what its ledger holds, which is what is shown. A run that is not
valid keeps no promise and breaks none: its targets are void.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fairlead.trial.result import Figure, TargetRecord

if TYPE_CHECKING:
    from fairlead.metrics import Target

__all__ = ["judge_targets"]


def judge_targets(
    targets: Iterable[tuple[str, Target]], arms: Sequence[str], figures: Iterable[Figure], *, valid: bool
) -> tuple[TargetRecord, ...]:
    """Each target with its outcome. arms: names, control first; valid: whether the figures may be used."""
    by_name = {(figure.metric, figure.arm, figure.phase): figure for figure in figures}
    judged = []
    for phase, target in targets:
        control, treatment = (by_name.get((target.metric.name, arm, phase)) for arm in arms[:2])
        outcome = target.judge(*(None if figure is None else figure.value for figure in (control, treatment)))
        void = outcome.met is not None and not valid
        judged.append(
            TargetRecord(
                metric=target.metric.name,
                phase=phase,
                statement=target.statement,
                source=target.source,
                met=None if void else outcome.met,
                observed=outcome.observed,
                wording=f"{outcome.wording.rpartition(':')[0]}: void, as the run is not valid"
                if void
                else outcome.wording,
                caveat=_caveat(target, control, treatment),
            )
        )
    return tuple(judged)


def _caveat(target: Target, control: Figure | None, treatment: Figure | None) -> str:
    """What a reader must know when a point figure is on one side and its uncertainty on both."""
    compared = [treatment] if target.relation == "absolute" else [control, treatment]
    figures = [figure for figure in compared if figure is not None and figure.value is not None]
    bounds = [
        (figure.low, figure.high) for figure in figures if figure.low is not None and figure.high is not None
    ]
    if len(bounds) < len(compared):
        # What has no interval by its nature, such as a maximum, has no caveat.
        too_few = any(figure.caveat for figure in figures if figure.low is None or figure.high is None)
        return "no interval: see the caveats of its figures" if too_few else ""
    if target.relation == "absolute":
        [(low, high)] = bounds
        return "the interval holds the limit" if low < target.limit < high else ""
    (low, high), (other_low, other_high) = bounds
    return "" if high < other_low or other_high < low else "the intervals overlap"
