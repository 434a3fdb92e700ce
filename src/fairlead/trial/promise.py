"""What a run promises goes into its ledger before the load, and every figure after it.

A report that was written beside its numbers can be edited with them. So the change file is frozen in the run's own
ledger (`ledger.db` in its folder) before a process starts; each figure is recorded there with its definition and the
hash of the data it was computed from; each target's outcome is a decision that names the figures it stands on. The
result that is written and shown is read back from the ledger: what is not in it is not in the report.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from fairlead.change import freeze_change, parse_change
from fairlead.errors import InvalidInput
from fairlead.experiment import ExperimentResult
from fairlead.experiment.result import ArmResult, MetricResult
from fairlead.ledger import Decision, Evidence, FrozenChange, Ledger
from fairlead.metrics import Metric
from fairlead.metrics.metric import percentile
from fairlead.store import Database
from fairlead.trial.budgets import BudgetRecord
from fairlead.trial.definitions import load_metrics
from fairlead.trial.result import ChangeRecord, EvidenceFile, Figure, Result
from fairlead.trial.system import Plan, System
from fairlead.trial.users import UsersRecord

__all__ = ["LEDGER", "Promise", "freeze_promise", "record_result"]

LEDGER = "ledger.db"
"""The file of a run's ledger, in its folder."""
_CONFIDENCE = 0.95
_NO_INTERVAL = "no interval: one is not defined for this figure, or the data cannot carry it"
_METHOD = "computed from all requests of the run; intervals from half-second slices of the schedule"


@dataclass(frozen=True, kw_only=True, slots=True)
class Promise:
    """What was written down before the run."""

    change: str
    """Name of the change that evidence and decisions belong to."""
    frozen: FrozenChange | None
    """The change file as it was frozen; None for a system without one."""
    primary: str
    """The latency that the change is judged by."""


def freeze_promise(system: System, plan: Plan, directory: Path) -> Promise:
    """Makes the run's ledger and freezes the system's change file in it. Blocks.

    Raises InvalidInput where the file has errors, or does not define what the system's targets are about.
    """
    content = system.change
    if content is not None:
        _check_targets(system, content)
    with Database(directory / LEDGER) as database:
        database.migrate()
        if content is None:
            return Promise(change=system.name, frozen=None, primary=plan.primary)
        frozen = freeze_change(content, Ledger(database), name=f"{system.name}: change file")
    return Promise(change=frozen.name, frozen=frozen, primary=plan.primary)


def record_result(result: Result, system: System, promise: Promise, directory: Path) -> Result:
    """The result as the run's ledger has it, each figure with the id of its evidence. Blocks."""
    metrics = {metric.name: metric for metric in _metrics(system, result, promise)}
    data = _hash_of(result.evidence)
    with Database(directory / LEDGER) as database:
        ledger = Ledger(database)
        ids = [
            ledger.record_evidence(_evidence(figure, metrics[figure.metric], result, promise.change, data))
            for figure in result.figures
        ]
        recorded = ledger.evidence_by_ids(ids)
        figures = tuple(
            _read_back(figure, id, recorded[id]) for figure, id in zip(result.figures, ids, strict=True)
        )
        users = result.users and _recorded_users(ledger, result, result.users, promise.change, data)
        budgets = tuple(_recorded_budget(ledger, result, one, promise.change, data) for one in result.budgets)
        for decision in _decisions(result, figures, promise.change):
            ledger.record_decision(decision)
        head = str(ledger.head())
    frozen = promise.frozen
    return msgspec.structs.replace(
        result,
        figures=figures,
        users=users,
        budgets=budgets,
        change=None
        if frozen is None
        else ChangeRecord(name=frozen.name, version=frozen.version, sha256=frozen.sha256),
        ledger_head=head,
    )


def _recorded_users(
    ledger: Ledger, result: Result, users: UsersRecord, change: str, data: str
) -> UsersRecord:
    """The experiment with its figures as the ledger has them: both arms and the effect of every metric."""
    metrics = []
    for found in users.experiment.metrics:
        ids = [
            ledger.record_evidence(evidence)
            for evidence in _experiment_evidence(found, users.experiment, result, change, data)
        ]
        recorded = ledger.evidence_by_ids(ids)
        control, treatment, effect = (recorded[id] for id in ids)
        interval = found.effect_ci if found.effect_ci is None else (effect.low, effect.high)
        metrics.append(
            msgspec.structs.replace(
                found,
                control=_arm_read_back(found.control, control),
                treatment=_arm_read_back(found.treatment, treatment),
                effect=effect.value,
                effect_ci=interval,
                evidence=tuple(ids),
            )
        )
    return msgspec.structs.replace(
        users, experiment=msgspec.structs.replace(users.experiment, metrics=tuple(metrics))
    )


def _arm_read_back(arm: ArmResult, evidence: Evidence) -> ArmResult:
    name = "mean" if arm.mean is not msgspec.UNSET else "value"
    return msgspec.structs.replace(arm, n=evidence.n, **{name: evidence.value})


def _experiment_evidence(
    found: MetricResult, experiment: ExperimentResult, result: Result, change: str, data: str
) -> Iterable[Evidence]:
    def evidence(
        arm: str,
        statistic: str,
        value: float | None,
        n: int,
        interval: tuple[float | None, float | None] | None,
    ) -> Evidence:
        low, high = interval or (None, None)
        caveats = list(found.caveats)
        if None in (value, low, high):
            caveats.append(_NO_INTERVAL)
        return Evidence(
            change=change,
            metric=found.name,
            definition=found.definition,
            statistic=statistic,
            arm=arm,
            value=value,
            unit=found.unit,
            side="client",
            window="run",
            segment="made users",
            unit_of_analysis="user",
            n=n,
            low=low,
            high=high,
            confidence=None if low is None and high is None else found.confidence,
            design="simulated",
            method=found.method or "none: the data carry no effect",
            query_sha256=experiment.query_sha256,
            data_sha256=data,
            measured_at_utc_seconds=result.started_at_utc_seconds + result.run_seconds,
            caveats=tuple(dict.fromkeys(caveats)),
        )

    for arm, figure in ((experiment.control, found.control), (found.variant, found.treatment)):
        value = figure.mean if figure.mean is not msgspec.UNSET else figure.value
        yield evidence(arm, found.kind, value if isinstance(value, float) else None, figure.n, None)
    yield evidence(
        f"{found.variant} − {experiment.control}",
        f"effect on the {found.kind}",
        found.effect,
        found.control.n + found.treatment.n,
        found.effect_ci,
    )


def _recorded_budget(
    ledger: Ledger, result: Result, budget: BudgetRecord, change: str, data: str
) -> BudgetRecord:
    """The burn rate as the ledger has it."""
    id = ledger.record_evidence(
        Evidence(
            change=change,
            metric=budget.name,
            definition=budget.definition,
            statistic="burn rate",
            arm=budget.arm,
            value=budget.burn_rate,
            unit="times the budget",
            side="client",
            window="run",
            segment="all requests of the arm",
            unit_of_analysis="request",
            n=budget.valid,
            low=None,
            high=None,
            confidence=None,
            design="load_test",
            method="bad / (budget · valid), from the events of the load",
            query_sha256=hashlib.sha256(
                f"fairlead {result.fairlead_version} {budget.definition}".encode()
            ).hexdigest(),
            data_sha256=data,
            measured_at_utc_seconds=result.started_at_utc_seconds + result.run_seconds,
            caveats=(_NO_INTERVAL,),
        )
    )
    return msgspec.structs.replace(budget, burn_rate=ledger.evidence_by_ids([id])[id].value, evidence=id)


def _check_targets(system: System, content: bytes) -> None:
    # Today's figure and the one hoped for are the file's own; a run measures both anew.
    written = {
        metric.name: replace(metric, baseline=None, target=None)
        for metric in parse_change(content, f"{system.name}: change file").definitions()
    }
    for _, target in system.targets:
        name = target.metric.name
        if written.get(name) != replace(target.metric, baseline=None, target=None):
            raise InvalidInput(
                f"{system.name}: the target {target.statement!r} is about {name}, which the change file "
                f"{'defines otherwise' if name in written else 'does not define'}; a run is judged by what was written"
            )


def _metrics(system: System, result: Result, promise: Promise) -> Iterable[Metric]:
    return (*load_metrics(result.patience_seconds, promise.primary), *system.metrics)


def _evidence(figure: Figure, metric: Metric, result: Result, change: str, data: str) -> Evidence:
    whole = None not in (figure.value, figure.low, figure.high)
    has_interval = figure.low is not None or figure.high is not None
    caveats = [] if whole and not figure.caveat else [figure.caveat or _NO_INTERVAL]
    return Evidence(
        change=change,
        metric=figure.metric,
        definition=metric.definition(),
        statistic=percentile(metric.q) if metric.q is not None else metric.kind,
        arm=figure.arm,
        value=figure.value,
        unit=metric.unit,
        side=metric.side,
        window=f"{metric.window} {figure.phase}",
        segment=metric.segment,
        unit_of_analysis=metric.unit_of_analysis,
        n=figure.n,
        low=figure.low,
        high=figure.high,
        confidence=_CONFIDENCE if has_interval else None,
        design=metric.design,
        method=_METHOD,
        query_sha256=hashlib.sha256(
            f"fairlead {result.fairlead_version} {metric.sha256}".encode()
        ).hexdigest(),
        data_sha256=data,
        measured_at_utc_seconds=result.started_at_utc_seconds + result.run_seconds,
        caveats=tuple(caveats),
    )


def _read_back(figure: Figure, id: str, evidence: Evidence) -> Figure:
    said = tuple(caveat for caveat in evidence.caveats if caveat != _NO_INTERVAL)
    return Figure(
        metric=evidence.metric,
        arm=evidence.arm,
        phase=figure.phase,
        value=evidence.value,
        low=evidence.low,
        high=evidence.high,
        n=evidence.n,
        caveat="; ".join(said),
        evidence=id,
    )


def _decisions(result: Result, figures: tuple[Figure, ...], change: str) -> Iterable[Decision]:
    ids = {(figure.metric, figure.arm, figure.phase): figure.evidence for figure in figures}
    arms = [arm.name for arm in result.arms[:2]]
    for target in result.targets:
        verdict = {True: "met", False: "missed", None: "not_judged"}[target.met]
        void = (
            ""
            if result.validity.valid
            else f"; void, as the run is invalid: {'; '.join(result.validity.reasons)}"
        )
        stands_on = [ids.get((target.metric, arm, target.phase)) for arm in arms]
        yield Decision(
            change=change,
            decided_by=f"fairlead {result.fairlead_version}, trial {result.id}",
            verdict="void" if void else verdict,
            reason=f"{target.statement}, in {target.phase}: {target.wording}{void}"[:4000],
            decided_at_utc_seconds=result.started_at_utc_seconds + result.run_seconds,
            evidence=tuple(dict.fromkeys(id for id in stands_on if id)),
        )


def _hash_of(files: tuple[EvidenceFile, ...]) -> str:
    listed = json.dumps([[file.path, file.bytes, file.sha256] for file in files])
    return hashlib.sha256(listed.encode()).hexdigest()
