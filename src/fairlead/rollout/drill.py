"""Practises a rollback: serves a little, takes it back, and says how long that took.

A way back that was never walked is a hope. The drill is a rollout of its own, with one stage and no guardrail to wait
for: everything in it is real, the traffic, the journal, the driver, the read-back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import InvalidInput
from fairlead.rollout.controller import Controller
from fairlead.rollout.plan import RolloutPlan, Stage

__all__ = ["Drilled", "drill", "drill_plan"]

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
