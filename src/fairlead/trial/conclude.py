"""From a record to a result: figures, targets judged, and whether any of it may be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from fairlead import __version__
from fairlead.clock import SYSTEM_CLOCK
from fairlead.errors import InvalidInput
from fairlead.trial.budgets import budgets_of
from fairlead.trial.definitions import load_metrics
from fairlead.trial.figures import WHOLE_RUN, load_figures, metric_record, of_phase
from fairlead.trial.live import CHANGE_FILE
from fairlead.trial.machine import this_machine
from fairlead.trial.result import (
    ArmRecord,
    Figure,
    PhaseRecord,
    Result,
    hash_evidence,
)
from fairlead.trial.rollout_record import LetOutRecord
from fairlead.trial.system import Settings, System
from fairlead.trial.targets import judge_targets
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
    let_out: LetOutRecord | None = None,
    ended_early: str = "",
) -> Result:
    """The result of what `recorded` holds.

    let_out: what came of letting the change out; None where that was not played.
    ended_early: why the run did not finish; makes the result invalid, and the figures those of the complete
    turns.
    """
    plan = recorded.plan
    metrics = (*load_metrics(plan.patience, plan.primary), *system.metrics)
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
    _check_figures(figures, {each.name for each in metrics})
    users = None if ended_early else users_of(system, recorded, settings, directory)
    budgets = () if ended_early else budgets_of(system, recorded, directory)
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
        run_seconds=SYSTEM_CLOCK.now() - recorded.began,
        validity=judged.validity,
        machine=this_machine(),
        workload=dict(plan.workload),
        arms=tuple(ArmRecord(name=arm.name, variant=arm.variant, without=arm.without) for arm in plan.arms),
        phases=tuple(
            PhaseRecord(name=each.name, title=each.title, seconds=each.seconds, measured=each.measured)
            for each in plan.phases
        ),
        metrics=tuple(metric_record(each) for each in metrics),
        figures=tuple(figures),
        targets=judge_targets(
            system.targets, [arm.name for arm in plan.arms], figures, valid=judged.validity.valid
        ),
        simulated=tuple(system.simulated),
        users=users,
        budgets=budgets,
        let_out=let_out,
        evidence=hash_evidence(
            directory,
            ["events/**/*.jsonl", "metrics/*.jsonl.gz", "rollout/*.json", CHANGE_FILE, *system.inputs],
        ),
    )


def _check_figures(figures: Iterable[Figure], defined: Collection[str]) -> None:
    """Of two figures of one name a reader would see one, the ledger both; one without a definition says nothing."""
    counted = Counter((figure.metric, figure.arm, figure.phase) for figure in figures)
    for (metric, arm, phase), times in counted.items():
        if metric not in defined or times > 1:
            said = "measured twice" if metric in defined else "measured, and not defined"
            raise InvalidInput(
                f"figure {metric} of {arm}, {phase}: it was {said}; correct the system's measure"
            )
