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
from fairlead.ledger import Decision, Evidence, FrozenChange, Ledger
from fairlead.metrics import Metric
from fairlead.metrics.metric import percentile
from fairlead.store import Database
from fairlead.trial.definitions import load_metrics
from fairlead.trial.result import ChangeRecord, EvidenceFile, Figure, Result
from fairlead.trial.system import Plan, System

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
        for decision in _decisions(result, figures, promise.change):
            ledger.record_decision(decision)
        head = str(ledger.head())
    frozen = promise.frozen
    return msgspec.structs.replace(
        result,
        figures=figures,
        change=None
        if frozen is None
        else ChangeRecord(name=frozen.name, version=frozen.version, sha256=frozen.sha256),
        ledger_head=head,
    )


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
