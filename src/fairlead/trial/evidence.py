"""A run's figures as evidence of its ledger, and back.

Each field is to be true of the figure and not of figures at large: the window says which phase, the method how this
one was computed, and a figure of a run that is not valid says so wherever it is read.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, replace

import msgspec

from fairlead.experiment.evidence import NO_INTERVAL, Scope, metric_evidence
from fairlead.experiment.result import ArmResult
from fairlead.ledger import Evidence, Ledger
from fairlead.metrics import Metric
from fairlead.metrics.metric import percentile
from fairlead.trial.budgets import BudgetRecord
from fairlead.trial.rehearsal import WHOLE_RUN
from fairlead.trial.result import Figure
from fairlead.trial.users import UsersRecord

__all__ = ["Basis", "figure_evidence", "figure_read_back", "recorded_budget", "recorded_users"]

_CONFIDENCE = 0.95
_MADE_USERS = Scope(
    side="client", window="run", segment="made users", unit_of_analysis="user", design="simulated"
)
_INVALID = "the run is not valid: do not use its figures"
_METHODS = {
    "load_sample": "from the requests of the arm as the load engine met them; late cycles left out",
    "load_window": "from what the system counted between the edges of its phases; late cycles left out",
}
"""By the kind of event, for a figure that does not say it itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Basis:
    """What all figures of a run stand on."""

    change: str
    """Name of the change that they were measured for."""
    program_sha256: str
    data_sha256: str
    measured_at: float
    """UTC seconds."""
    valid: bool
    """Whether they may be used."""


def figure_evidence(figure: Figure, metric: Metric, basis: Basis) -> Evidence:
    """What the ledger holds of a figure of the load or of the system."""
    whole_run = figure.phase == WHOLE_RUN
    has_interval = figure.low is not None or figure.high is not None
    caveats = [
        *([figure.caveat] if figure.caveat else []),
        *([NO_INTERVAL] if figure.low is None or figure.high is None else []),
        *([] if basis.valid else [_INVALID]),
    ]
    return Evidence(
        change=basis.change,
        metric=figure.metric,
        definition=(replace(metric, window="run") if whole_run else metric).definition(),
        statistic=percentile(metric.q) if metric.q is not None else metric.kind,
        arm=figure.arm,
        value=figure.value,
        unit=metric.unit,
        side=metric.side,
        window="run: all measured phases" if whole_run else f"{metric.window} {figure.phase}",
        segment=metric.segment,
        unit_of_analysis=metric.unit_of_analysis,
        n=figure.n,
        low=figure.low,
        high=figure.high,
        confidence=_CONFIDENCE if has_interval else None,
        design=metric.design,
        method=figure.method or _METHODS.get(metric.event, f"by the system, from {metric.event} events"),
        query_sha256=hashlib.sha256(f"{basis.program_sha256} {metric.sha256}".encode()).hexdigest(),
        data_sha256=basis.data_sha256,
        measured_at_utc_seconds=basis.measured_at,
        caveats=tuple(dict.fromkeys(caveats)),
    )


def figure_read_back(figure: Figure, id: str, evidence: Evidence) -> Figure:
    """The figure as the ledger has it."""
    said = tuple(caveat for caveat in evidence.caveats if caveat not in (NO_INTERVAL, _INVALID))
    return Figure(
        metric=evidence.metric,
        arm=evidence.arm,
        phase=figure.phase,
        value=evidence.value,
        low=evidence.low,
        high=evidence.high,
        n=evidence.n,
        caveat="; ".join(said),
        method=evidence.method,
        evidence=id,
    )


def recorded_users(ledger: Ledger, users: UsersRecord, basis: Basis) -> UsersRecord:
    """The experiment with its figures as the ledger has them: both arms and the effect of every metric."""
    metrics = []
    for found in users.experiment.metrics:
        figures = metric_evidence(
            found,
            users.experiment,
            _MADE_USERS,
            change=basis.change,
            data_sha256=basis.data_sha256,
            measured_at=basis.measured_at,
            caveats=() if basis.valid else (_INVALID,),
        )
        ids = [ledger.record_evidence(evidence) for evidence in itertools.islice(figures, 3)]
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


def recorded_budget(ledger: Ledger, budget: BudgetRecord, basis: Basis) -> BudgetRecord:
    """The burn rate as the ledger has it."""
    id = ledger.record_evidence(
        Evidence(
            change=basis.change,
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
            query_sha256=hashlib.sha256(f"{basis.program_sha256} {budget.definition}".encode()).hexdigest(),
            data_sha256=basis.data_sha256,
            measured_at_utc_seconds=basis.measured_at,
            caveats=(NO_INTERVAL,) if basis.valid else (NO_INTERVAL, _INVALID),
        )
    )
    return msgspec.structs.replace(budget, burn_rate=ledger.evidence_by_ids([id])[id].value, evidence=id)
