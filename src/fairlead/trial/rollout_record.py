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
    """Adjusted for the number of fields, as the verdict is."""
    verdict: str
    """more, not shown, or too few: whether treatment differs more than control does from itself."""


class ShadowRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Treatment beside control on live requests, unseen."""

    seconds: float
    requests: int
    """Live requests that had ended, one way or another, when the traffic did."""
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
    """A decision with the look that it stood on; without figures where it stood on none, but was asked for, say."""

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
    drawn_from: Mapping[str, int] = {}
    """Of a virtual one: recorded requests by arm, of which each user met one. However many users, nothing is known of
    what is rarer than one of so many."""


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
    """From the moment in which its flag was read back as serving it until the rollback by a guardrail was written down;
    None: no guardrail failed."""
    withdrawn_seconds: float | None
    """From the rollback, whoever decided it, until it was written down that the flag was read back as serving nobody.
    The flag is moved meanwhile; when the service had read it, the last page says."""
    last_page_seconds: float | None
    """From the rollback until the last page of the variant was begun; below 0: none was after it. None: no page was."""
    incident: str
    """As it was written into the run's copy of the change file; empty: none was."""


class LetOutRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All three, in their order; None for what was not played to its end."""

    shadow: ShadowRecord | None = None
    canary: CanaryRecord | None = None
    rollout: RolloutRecord | None = None
    """The whole plan, on virtual time."""
    missing: str = ""
    """Why one of them is None; empty: none is."""


def rollout_record(
    rollout: str, plan: RolloutPlan, entries: Sequence[Written], *, virtual: bool
) -> RolloutRecord:
    """What a journal adds up to."""
    served = next((each.at_utc_seconds for each in entries if isinstance(each.entry, Had)), None)
    began = served if served is not None else entries[0].at_utc_seconds
    ended = next((each.entry for each in entries if isinstance(each.entry, Ended)), None)
    decisions = []
    looked: Looked | None = None
    for written in entries:
        entry = written.entry
        if isinstance(entry, Decided) and entry.verdict != "hold":
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
        # What a decision stood on is written with it, right before it; one that was asked for stands on no look.
        looked = entry if isinstance(entry, Looked) else None
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
