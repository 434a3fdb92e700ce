"""Where a rollout stands: what its entries add up to, and nothing else.

    moving ──► baking ──► gate ──► moving (next stage) … ──► completed
       │          │ ▲       │
       │          ▼ │       │          paused: asked for by a person, from any of these
       │        frozen      │          frozen: neither arm reports
       └──────────┴─────────┴──► rolling_back ──► rolled_back

Every state but the last two has a deadline, and then goes to rolling_back. Rolled back is final: no entry leads on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from fairlead.rollout.entry import (
    Asked,
    Claimed,
    Decided,
    Ended,
    Had,
    Looked,
    Started,
    Wanted,
    Written,
)
from fairlead.rollout.guardrail import Evaluation
from fairlead.rollout.traffic import Split

__all__ = ["Phase", "RolloutState", "fold"]

Phase = Literal["moving", "baking", "gate", "paused", "frozen", "rolling_back", "rolled_back", "completed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutState:
    """A rollout as of its last entry."""

    rollout: str
    """Which one, such as "home_feed/3"."""
    plan_sha256: str = ""
    number: int = 0
    """Of the last entry; 0 before the first."""
    epoch: int = 0
    """Of the controller that leads it."""
    leader: str = ""
    """Which process that is."""
    stage: int = 0
    """Index of the stage."""
    phase: Phase = "moving"
    since_utc_seconds: float = 0.0
    """When this phase began."""
    want: Split | None = None
    """Where traffic is to be; None before the first stage."""
    have: Split | None = None
    """Where it was, when last asked."""
    stage_began_utc_seconds: float | None = None
    """When the stage was first served; None while it is not."""
    guarded_seconds: float = 0.0
    """Of this stage, under guard."""
    waited_seconds: float = 0.0
    """In this phase, as of the last look: what a deadline is measured by, whoever led meanwhile."""
    looked_utc_seconds: float | None = None
    """When guardrails were last evaluated."""
    evaluations: tuple[Evaluation, ...] = ()
    """The last ones."""
    units: Mapping[str, int] = field(default_factory=dict)
    log_e_values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """By guardrail: of the stages behind this one in which arms were compared."""
    stages_began: tuple[tuple[int, float], ...] = ()
    """Index and moment of each stage that was served so far."""
    paused: bool = False
    paused_from: Phase = "moving"
    """What a pause interrupted: a resume goes on there."""
    gate_open: bool = False
    """Whether a person lets this stage end."""
    wish_by: str = ""
    """Who asked for the last advance or rollback."""
    rollback_asked: str = ""
    """Why a person wants it rolled back; empty: nobody does."""
    reason: str = ""
    """Of the last decision, or of the end."""
    decision: str = ""
    """Id in the ledger of the last advance or rollback; empty: none yet."""
    started_utc_seconds: float = 0.0
    started_by: str = ""
    places: Mapping[str, str] = field(default_factory=dict)
    """Where its traffic and its facts are."""

    @property
    def ended(self) -> bool:
        """Whether nothing follows."""
        return self.phase in ("rolled_back", "completed")

    @property
    def withdrawn(self) -> bool:
        """Whether it is being rolled back, or was."""
        return self.phase in ("rolling_back", "rolled_back")


def fold(rollout: str, entries: Iterable[Written], *, after: RolloutState | None = None) -> RolloutState:
    """The state after these entries. after: the state that they follow; None: they are all of the rollout's."""
    state = after or RolloutState(rollout=rollout)
    for written in entries:
        before, state = state, _after(state, written)
        if (state.phase, state.stage) != (before.phase, before.stage):
            state = replace(state, waited_seconds=0.0)
    return state


def _after(state: RolloutState, written: Written) -> RolloutState:
    entry, at = written.entry, written.at_utc_seconds
    state = replace(state, number=written.number)
    if state.ended:
        return state  # a wish that came late, or a notice that failed; nothing else is written behind an end
    match entry:
        case Started():
            return replace(
                state,
                plan_sha256=entry.plan_sha256,
                started_utc_seconds=at,
                since_utc_seconds=at,
                started_by=entry.by,
                places=entry.places,
            )
        case Claimed():
            return replace(state, epoch=written.epoch, leader=entry.by)
        case Wanted():
            return _wanted(state, entry, written.epoch, at)
        case Had():
            return _had(state, entry, written.epoch, at)
        case Looked():
            return replace(
                state,
                guarded_seconds=entry.guarded_seconds,
                waited_seconds=entry.waited_seconds,
                looked_utc_seconds=at,
                evaluations=entry.evaluations,
                units=entry.units,
            )
        case Decided():
            return _decided(state, entry, at)
        case Asked():
            return _asked(state, entry, at)
        case Ended():
            return replace(
                state, phase=entry.outcome, reason=entry.reason or state.reason, since_utc_seconds=at
            )
    return state


def _wanted(state: RolloutState, entry: Wanted, epoch: int, at: float) -> RolloutState:
    want = Split(
        share=entry.share, audience=entry.audience, rollout=state.rollout, epoch=epoch, latched=entry.latched
    )
    if entry.latched:
        return replace(
            state,
            want=want,
            phase="rolling_back",
            since_utc_seconds=state.since_utc_seconds if state.withdrawn else at,
        )
    if state.withdrawn:
        return state  # nothing is let in again
    if entry.stage == state.stage and state.want is not None and state.want.serves_as(want):
        return replace(state, want=want)  # a controller that took over sets it once more, under its own epoch
    behind = state.log_e_values
    if entry.stage != state.stage:
        finished = {
            each.guardrail: each.log_e_value for each in state.evaluations if each.reason != "no_control"
        }
        behind = {
            name: (*behind.get(name, ()), *((finished[name],) if name in finished else ()))
            for name in {*behind, *finished}
        }
    return replace(
        state,
        want=want,
        stage=entry.stage,
        phase="paused" if state.paused else "moving",
        paused_from="moving",
        since_utc_seconds=at,
        stage_began_utc_seconds=None,
        guarded_seconds=0.0,
        evaluations=(),
        units={},
        log_e_values=behind,
        gate_open=False,
    )


def _had(state: RolloutState, entry: Had, epoch: int, at: float) -> RolloutState:
    have = Split(
        share=entry.share, audience=entry.audience, rollout=state.rollout, epoch=epoch, latched=entry.latched
    )
    state = replace(state, have=have)
    if state.phase == "moving":
        state = replace(state, phase="baking", since_utc_seconds=at)
    if state.paused_from == "moving":
        state = replace(state, paused_from="baking")
    if state.stage_began_utc_seconds is None and not state.withdrawn:
        state = replace(
            state, stage_began_utc_seconds=at, stages_began=(*state.stages_began, (entry.stage, at))
        )
    return state


def _decided(state: RolloutState, entry: Decided, at: float) -> RolloutState:
    state = replace(state, reason=entry.reason, decision=entry.decision or state.decision)
    if entry.verdict == "rollback":
        return state if state.withdrawn else replace(state, phase="rolling_back", since_utc_seconds=at)
    moves = entry.verdict == "hold" and entry.state not in ("", state.phase)
    if moves and not state.withdrawn and not state.paused:
        return replace(state, phase=entry.state or state.phase, since_utc_seconds=at)
    return state


def _asked(state: RolloutState, entry: Asked, at: float) -> RolloutState:
    if entry.what == "rollback":
        return replace(state, rollback_asked=entry.why or "asked for", wish_by=entry.by)
    if state.withdrawn:
        return state
    if entry.what == "pause":
        return replace(
            state,
            paused=True,
            paused_from=state.paused_from if state.paused else state.phase,
            phase="paused",
            since_utc_seconds=at,
            reason=entry.why or f"paused by {entry.by}",
        )
    if entry.what == "resume":
        phase = state.paused_from if state.paused else state.phase
        return replace(state, paused=False, phase=phase, since_utc_seconds=at)
    return replace(state, gate_open=True, wish_by=entry.by)
