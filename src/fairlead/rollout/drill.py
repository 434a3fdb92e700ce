"""Practises a rollback: serves a little, takes it back, and says how long that took.

A way back that was never walked is a hope. The drill is a rollout of its own, with one stage and no guardrail to wait
for: everything in it is real, the traffic, the journal, the driver, the read-back.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import msgspec

from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import InvalidInput
from fairlead.ledger import Evidence
from fairlead.rollout.controller import Controller
from fairlead.rollout.plan import RolloutPlan, Stage

__all__ = ["Drilled", "drill", "drill_evidence", "drill_plan"]

_SHORTEST_SHARE = 0.0001


@dataclass(frozen=True, kw_only=True, slots=True)
class Drilled:
    """What a drill measured."""

    share: float
    served_seconds: float
    """From the decision to serve it until it was read back."""
    rollback_seconds: float
    """From the decision to take it back until nobody was served, read back."""
    rollout: str


def drill_plan(plan: RolloutPlan, share: float | None = None) -> RolloutPlan:
    """The plan of a drill: one stage with the smallest share of the plan, or with this one. Raises InvalidInput."""
    shares = [stage.share for stage in plan.stages if stage.share]
    chosen = share if share is not None else min(shares, default=0.01)
    if not _SHORTEST_SHARE <= chosen <= 1:
        raise InvalidInput(f"drill: a share of {chosen:g} serves nobody; give 0.0001 to 1")
    return replace(plan, stages=(Stage(share=chosen, bake=3600.0, gate="manual"),))


def drill_evidence(plan: RolloutPlan, drilled: Drilled, traffic: str, at_utc_seconds: float) -> Evidence:
    """What the ledger keeps of a drill: the seconds, and through what."""
    definition = (
        f"seconds from the decision to take {plan.treatment} back until {traffic} said that nobody is served it, "
        "measured by the controller, in a drill; lower is better"
    )
    return Evidence(
        change=plan.name,
        metric="rollback_seconds",
        definition=definition,
        statistic="one measurement",
        arm=plan.treatment,
        value=drilled.rollback_seconds,
        unit="seconds",
        side="server",
        window=f"drill {drilled.rollout}",
        segment=f"{drilled.share:.2%} of the units",
        unit_of_analysis="rollback",
        n=1,
        low=None,
        high=None,
        confidence=None,
        design="load_test",
        method="monotonic clock of the controller, traffic read back",
        query_sha256=hashlib.sha256(definition.encode()).hexdigest(),
        data_sha256=hashlib.sha256(msgspec.json.encode(drilled)).hexdigest(),
        measured_at_utc_seconds=at_utc_seconds,
        caveats=("one rollback has no interval",),
    )


async def drill(controller: Controller, share: float, *, clock: Clock = SYSTEM_CLOCK) -> Drilled:
    """Runs the drill of a controller that has not begun. Raises what the controller raises."""
    await controller.begin()
    began = clock.now()
    await controller.step()
    state = controller.state
    if state.have is None or not state.have.share:
        await controller.take_back("drill: nothing was served")
        raise InvalidInput(f"drill: traffic did not move to {share:.2%}; see the journal of {state.rollout}")
    served = clock.now() - began
    began = clock.now()
    state = await controller.take_back("drill")
    assert controller.withdrawn_at is not None  # noqa: S101 - it was taken back
    return Drilled(
        share=share,
        served_seconds=served,
        rollback_seconds=controller.withdrawn_at - began,
        rollout=state.rollout,
    )
