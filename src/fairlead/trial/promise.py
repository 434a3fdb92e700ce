"""What a run promises goes into its ledger before the load, and every figure after it.

A report that was written beside its numbers can be edited with them. So a run has a ledger of its own (`ledger.db` in
its folder). Before a process starts it holds the change file, the plan, and each target with its limit and phase;
afterwards each figure with its definition and the hashes of its data and program, then each target's outcome, with
the figures that it stands on.

    freeze    a new file -> change file -> plan -> targets -> its head is kept in memory
    record    the chain still has that head -> figures -> read back -> targets judged from them -> the chain is whole

Figures and targets of the result are what the ledger says. Charts are drawn from the single requests, whose files the
evidence names by their hash; docs/guides/ledger.md says what else is not in it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fairlead import __version__
from fairlead.change import freeze_change
from fairlead.clock import SYSTEM_CLOCK
from fairlead.errors import InvalidInput, LedgerBroken
from fairlead.ledger import Decision, FrozenChange, Head, Ledger
from fairlead.metrics import Metric, Target
from fairlead.store import Database
from fairlead.trial.evidence import Basis, figure_evidence, figure_read_back, recorded_budget, recorded_users
from fairlead.trial.program import program_sha256
from fairlead.trial.rehearsal import check_promise, metrics_of, places
from fairlead.trial.result import ChangeRecord, EvidenceFile, Figure, Result
from fairlead.trial.system import Plan, System
from fairlead.trial.targets import judge_targets

__all__ = ["LEDGER", "Promise", "freeze_promise", "record_result"]

LEDGER = "ledger.db"
"""The file of a run's ledger, in its folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Promise:
    """What was written down before the run."""

    change: str
    """Name of the change that evidence and decisions belong to."""
    frozen: FrozenChange | None
    """The change file as it was frozen; None for a system without one."""
    metrics: tuple[Metric, ...]
    """Every metric that the run computes."""
    targets: tuple[tuple[str, Target], ...]
    """What is judged, each with its phase."""
    program_sha256: str
    """Of the source that computes the figures, before it computed one."""
    head: Head
    """The end of the ledger when all this was in it."""


def freeze_promise(system: System, plan: Plan, directory: Path) -> Promise:
    """Makes the run's ledger and freezes in it what the run will be judged by. Blocks.

    Raises InvalidInput where the folder has a ledger already, the change file has errors or does not define what the
    system's targets are about, or where some figure of the run could not be recorded.
    """
    content, metrics, targets = system.change, metrics_of(system, plan), tuple(system.targets)
    check_promise(system.name, metrics, targets, plan, content)
    program = program_sha256(system)
    _make_file(directory / LEDGER)
    with Database(directory / LEDGER) as database:
        database.migrate()
        ledger = Ledger(database)
        frozen = None
        if content is not None:
            frozen = freeze_change(content, ledger, name=f"{system.name}: change file")
        change = system.name if frozen is None else frozen.name
        at = SYSTEM_CLOCK.utc()
        rehearsed = Basis(
            change=change, program_sha256=program, data_sha256=program, measured_at=at, valid=False
        )
        for metric in metrics:
            for arm, phase in places(plan):
                figure = Figure(metric=metric.name, arm=arm, phase=phase, value=None, n=0, caveat="rehearsed")
                figure_evidence(figure, metric, rehearsed)
        for said in (_plan_in_words(plan, program), *(_target_in_words(*each) for each in targets)):
            ledger.record_decision(
                Decision(
                    change=change,
                    decided_by=_decider(directory.name),
                    verdict="promised",
                    reason=_prose(said),
                    decided_at_utc_seconds=at,
                )
            )
        head = ledger.head()
    return Promise(
        change=change, frozen=frozen, metrics=metrics, targets=targets, program_sha256=program, head=head
    )


def record_result(result: Result, promise: Promise, directory: Path) -> Result:
    """The result as the run's ledger has it, each figure with the id of its evidence. Blocks.

    Raises LedgerBroken where the ledger no longer holds what was promised.
    """
    metrics = {metric.name: metric for metric in promise.metrics}
    basis = Basis(
        change=promise.change,
        program_sha256=promise.program_sha256,
        data_sha256=_hash_of(result.evidence),
        measured_at=result.started_at_utc_seconds + result.run_seconds,
        valid=result.validity.valid,
    )
    with Database(directory / LEDGER) as database:
        ledger = Ledger(database)
        _check_whole(ledger, promise.head)
        ids = [
            ledger.record_evidence(figure_evidence(figure, metrics[figure.metric], basis))
            for figure in result.figures
        ]
        recorded = ledger.evidence_by_ids(ids)
        figures = tuple(
            figure_read_back(figure, id, recorded[id]) for figure, id in zip(result.figures, ids, strict=True)
        )
        users = result.users and recorded_users(ledger, result.users, basis)
        budgets = tuple(recorded_budget(ledger, one, basis) for one in result.budgets)
        targets = judge_targets(
            promise.targets, [arm.name for arm in result.arms], figures, valid=result.validity.valid
        )
        result = msgspec.structs.replace(
            result, figures=figures, targets=targets, users=users, budgets=budgets
        )
        for decision in _decisions(result, promise.change):
            ledger.record_decision(decision)
        _check_whole(ledger, promise.head)
        head = str(ledger.head())
    frozen = promise.frozen
    return msgspec.structs.replace(
        result,
        change=None
        if frozen is None
        else ChangeRecord(name=frozen.name, version=frozen.version, sha256=frozen.sha256),
        ledger_head=head,
    )


def _make_file(path: Path) -> None:
    """An empty file, which only one of those who want it gets."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    except FileExistsError:
        raise InvalidInput(
            f"{path}: another run has its ledger here; give this one a folder of its own"
        ) from None
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}; choose another --out") from error


def _check_whole(ledger: Ledger, promised: Head) -> None:
    report = ledger.verify(promised)
    if not report.is_whole:
        raise LedgerBroken(
            f"the run's ledger was changed since the run was promised: {report.problems[0]}; repeat the run, and let "
            f"nobody write into its {LEDGER} meanwhile"
        )


def _plan_in_words(plan: Plan, program: str) -> str:
    arms = ", ".join(arm.name for arm in plan.arms)
    phases = ", ".join(
        f"{each.name} {each.seconds:g} s{'' if each.measured else ' (not measured)'}" for each in plan.phases
    )
    return (
        f"the plan: arms {arms}; {plan.cycles} cycles of {phases}; {plan.rate:g} requests per second; patience "
        f"{plan.patience:g} s; judged by {plan.primary}; program {program}"
    )


def _target_in_words(phase: str, target: Target) -> str:
    bound = f"{target.metric.better} is better, limit {target.limit!r}{', itself a miss' * target.strict}"
    return (
        f"{target.statement}, in {phase}: {target.relation} of {target.metric.name}, {bound}; "
        f"definition {target.metric.sha256}"
    )


def _decisions(result: Result, change: str) -> Iterable[Decision]:
    ids = {(figure.metric, figure.arm, figure.phase): figure.evidence for figure in result.figures}
    arms = [arm.name for arm in result.arms[:2]]
    for target in result.targets:
        verdict = {True: "met", False: "missed", None: "not_judged"}[target.met]
        valid = result.validity.valid
        why = "" if valid else f"; the run is invalid: {'; '.join(result.validity.reasons)}"
        caveat = f"; {target.caveat}" if target.caveat else ""
        stands_on = [ids.get((target.metric, arm, target.phase)) for arm in arms]
        yield Decision(
            change=change,
            decided_by=_decider(result.id),
            verdict=verdict if valid else "void",
            reason=_prose(f"{target.statement}, in {target.phase}: {target.wording}{caveat}{why}"),
            decided_at_utc_seconds=result.started_at_utc_seconds + result.run_seconds,
            evidence=tuple(dict.fromkeys(id for id in stands_on if id)),
        )


def _decider(run: str) -> str:
    return _prose(f"fairlead {__version__}, trial {run}").strip()[:200].strip()


def _prose(text: str) -> str:
    """As the ledger takes it: what a process said before it died may hold anything."""
    return "".join(each if each.isprintable() else " " for each in text)[:4000]


def _hash_of(files: tuple[EvidenceFile, ...]) -> str:
    listed = json.dumps([[file.path, file.bytes, file.sha256] for file in files])
    return hashlib.sha256(listed.encode()).hexdigest()
