"""From a record to a result: figures, targets judged, and whether any of it may be used."""

from __future__ import annotations

import time
from pathlib import Path

from fairlead import __version__
from fairlead.trial.budgets import budgets_of
from fairlead.trial.definitions import load_metrics
from fairlead.trial.figures import WHOLE_RUN, load_figures, metric_record, of_phase
from fairlead.trial.machine import this_machine
from fairlead.trial.result import (
    ArmRecord,
    Figure,
    PhaseRecord,
    Result,
    TargetRecord,
    hash_evidence,
)
from fairlead.trial.system import Settings, System
from fairlead.trial.users import users_of
from fairlead.trial.validity import judge
from fairlead.trial.walk import Recorded

__all__ = ["conclude"]


def conclude(
    system: System,
    settings: Settings,
    recorded: Recorded,
    directory: Path,
    *,
    ended_early: str = "",
) -> Result:
    """The result of what `recorded` holds.

    ended_early: why the run did not finish; makes the result invalid, and the figures those of the complete
    turns.
    """
    plan = recorded.plan
    judged = judge(recorded, ended_early)
    recorded = judged.kept
    figures: list[Figure] = []
    phases = [phase for phase in plan.phases if phase.measured]
    for phase in [*phases, WHOLE_RUN]:
        names = [phase.name] if phase is not WHOLE_RUN else [each.name for each in phases]
        for arm in plan.arms:
            part = of_phase(recorded, arm, phase)
            if part is None:
                continue
            observed = [turn.observed[name] for turn in recorded.of_arm(arm) for name in names]
            figures += load_figures(arm, phase, part, plan.patience)
            figures += system.measure(arm, phase, observed, part.samples, part.slices)
    users = None if ended_early else users_of(system, recorded, settings, directory)
    budgets = () if ended_early else budgets_of(system, recorded, directory)
    by_name = {(figure.metric, figure.arm, figure.phase): figure for figure in figures}
    targets = []
    for phase_name, target in system.targets:
        name = target.metric.name
        pair = [by_name.get((name, arm.name, phase_name)) for arm in plan.arms[:2]]
        outcome = target.judge(*(None if figure is None else figure.value for figure in pair))
        targets.append(
            TargetRecord(
                metric=name,
                phase=phase_name,
                statement=target.statement,
                source=target.source,
                met=outcome.met,
                observed=outcome.observed,
                wording=outcome.wording,
                caveat=_overlap(*pair) if target.relation != "absolute" else "",
            )
        )
    return Result(
        id=directory.name,
        fairlead_version=__version__,
        system=system.name,
        title=system.title,
        summary=system.summary,
        seed=settings.seed,
        quick=settings.quick,
        command=settings.command(system.name),
        rate_per_second=plan.rate,
        cycles=plan.cycles,
        patience_seconds=plan.patience,
        started_at_utc_seconds=recorded.started_at,
        run_seconds=time.time() - recorded.started_at,
        validity=judged.validity,
        machine=this_machine(),
        workload=dict(plan.workload),
        arms=tuple(ArmRecord(name=arm.name, variant=arm.variant, without=arm.without) for arm in plan.arms),
        phases=tuple(
            PhaseRecord(name=each.name, title=each.title, seconds=each.seconds, measured=each.measured)
            for each in plan.phases
        ),
        metrics=tuple(
            metric_record(each) for each in (*load_metrics(plan.patience, plan.primary), *system.metrics)
        ),
        figures=tuple(figures),
        targets=tuple(targets),
        simulated=tuple(system.simulated),
        users=users,
        budgets=budgets,
        evidence=hash_evidence(directory, ["events/**/*.jsonl", "metrics/*.jsonl.gz", *system.inputs]),
    )


def _overlap(control: Figure | None, treatment: Figure | None) -> str:
    """What a reader must know when the point figures differ by less than they are uncertain."""
    if control is None or treatment is None:
        return ""
    if control.low is None or control.high is None or treatment.low is None or treatment.high is None:
        return ""
    apart = control.high < treatment.low or treatment.high < control.low
    return "" if apart else "the intervals overlap"
