"""How the change was let out in a run, as `result.json` keeps it: unseen, to a share that it harms, by its plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from fairlead.rollout import Evaluation, RolloutPlan
from fairlead.rollout.entry import Decided, Ended, Had, Looked, Written

__all__ = [
    "CanaryRecord",
    "DecisionRecord",
    "FieldRecord",
    "GuardrailRecord",
    "LetOutRecord",
    "RolloutRecord",
    "ShadowRecord",
    "rollout_record",
]


class FieldRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One field of the answers that were compared."""

    path: str
    differed: int
    """Requests in which treatment's differed from control's first answer."""
    only_treatment: int
    """Of those compared twice: treatment's differed, control's second did not."""
    only_control: int
    """Of those compared twice: control's second differed, treatment's did not."""
    p_value: float
    verdict: str
    """more, not shown, or too few: whether treatment differs more than control does from itself."""


class ShadowRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Treatment beside control on live requests, unseen."""

    seconds: float
    requests: int
    """Live requests sent."""
    failed: int
    """Of them, without a good answer."""
    compared: int
    compared_twice: int
    outcomes: Mapping[str, int]
    dropped: Mapping[str, int]
    """Live requests that were not compared, by reason; those that the share left out apart."""
    fields: tuple[FieldRecord, ...]
    p50_seconds: Mapping[str, float]
    """By arm, of requests that both answered: control its reader, treatment afterwards. Empty without any."""
    p99_seconds: Mapping[str, float]


class GuardrailRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollout watched."""

    name: str
    metric: str
    unit: str
    definition: str
    beside_control: bool
    relative: bool
    """Whether its effects are shares of control's figure."""


class DecisionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A decision with what it stood on."""

    after_seconds: float
    """Since treatment was first served, by the rollout's own clock."""
    stage: str
    share: float
    verdict: str
    ground: str
    reason: str
    guarded_seconds: float
    units: Mapping[str, int]
    sample_ratio_p: float | None
    evaluations: tuple[Evaluation, ...]
    evidence: tuple[str, ...]
    """Ids in the run's ledger."""


class RolloutRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One rollout, from its first stage to its end."""

    rollout: str
    treatment: str
    control: str
    virtual: bool
    """Whether its time was virtual, and its events recorded ones."""
    outcome: str
    """completed, rolled_back, or empty where it had not ended."""
    reason: str
    seconds: float
    """From the first stage served to the end, by the rollout's own clock."""
    guardrails: tuple[GuardrailRecord, ...]
    decisions: tuple[DecisionRecord, ...]
    """Every one but holds."""


class CanaryRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A regression that was planted in live traffic."""

    rollout: RolloutRecord
    planted: str
    share: float
    """Of the users, that were served it."""
    requests: int
    failed: int
    """Of all live requests, without a good answer."""
    decided_seconds: float | None
    """From the moment in which it was served until the rollback was decided; None: it was not."""
    withdrawn_seconds: float | None
    """From that decision until the service's flag was read back, and written down, as serving nobody."""
    last_page_seconds: float | None
    """From that decision until the last page of the variant was begun; below 0: none was after it."""
    incident: str
    """As it was written into the run's copy of the change file; empty: none was."""


class LetOutRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All three, in their order."""

    shadow: ShadowRecord
    canary: CanaryRecord
    rollout: RolloutRecord


def rollout_record(
    rollout: str, plan: RolloutPlan, entries: Sequence[Written], *, virtual: bool
) -> RolloutRecord:
    """What a journal adds up to."""
    served = next((each.at_utc_seconds for each in entries if isinstance(each.entry, Had)), None)
    began = served if served is not None else entries[0].at_utc_seconds
    ended = next((each.entry for each in entries if isinstance(each.entry, Ended)), None)
    decisions = []
    looked = None
    for written in entries:
        entry = written.entry
        if isinstance(entry, Looked):
            looked = entry
        elif isinstance(entry, Decided) and entry.verdict != "hold":
            stage = plan.stages[entry.stage]
            decisions.append(
                DecisionRecord(
                    after_seconds=written.at_utc_seconds - began,
                    stage=stage.name,
                    share=stage.share,
                    verdict=entry.verdict,
                    ground=entry.ground,
                    reason=entry.reason,
                    guarded_seconds=looked.guarded_seconds if looked else 0.0,
                    units=looked.units if looked else {},
                    sample_ratio_p=looked.sample_ratio_p if looked else None,
                    evaluations=looked.evaluations if looked else (),
                    evidence=entry.evidence,
                )
            )
    return RolloutRecord(
        rollout=rollout,
        treatment=plan.treatment,
        control=plan.control,
        virtual=virtual,
        outcome=ended.outcome if ended else "",
        reason=ended.reason if ended else "",
        seconds=entries[-1].at_utc_seconds - began,
        guardrails=tuple(
            GuardrailRecord(
                name=each.name,
                metric=each.metric.name,
                unit=each.metric.unit,
                definition=each.metric.definition(),
                beside_control=each.is_relative,
                relative=each.is_relative and each.relative,
            )
            for each in plan.guardrails
        ),
        decisions=tuple(decisions),
    )
