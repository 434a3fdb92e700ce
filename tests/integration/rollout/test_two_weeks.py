"""A plan of two weeks on virtual time: internal, 1 %, 5 %, 25 %, everybody; once well, once with a leak on day five."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from fairlead.metrics import Metric
from fairlead.rollout import Guardrail, RolloutPlan, RolloutState, Stage
from fairlead.rollout.entry import Decided
from tests.unit.rollout.conftest import ERRORS, LATENCY, make_world, plan

if TYPE_CHECKING:
    from tests.unit.rollout.conftest import World

__all__ = ["make_world"]

HOUR, DAY = 3_600.0, 86_400.0
LOOK = 3_600.0


def two_weeks() -> RolloutPlan:
    def rail(metric: Metric, worse_by: float) -> Guardrail:
        return Guardrail(metric=metric, worse_by=worse_by)

    return plan(
        stages=(
            Stage(audience="internal", bake=6 * HOUR),
            Stage(share=0.01, bake=1 * DAY),
            Stage(share=0.05, bake=2 * DAY),
            Stage(share=0.25, bake=4 * DAY),
            Stage(share=1.0, bake=6 * DAY),
        ),
        guardrails=(
            rail(ERRORS, 0.25),
            rail(LATENCY, 0.10),
            Guardrail(metric=ERRORS, above=0.2, for_seconds=HOUR),
        ),
        look_every=LOOK,
        stale_after=2 * HOUR,
        silence=6 * HOUR,
        patience=3 * DAY,
        expected_rate=0.1,
    )


async def played(world: World, until: Callable[[RolloutState], bool] = lambda _: False) -> RolloutState:
    """Turn by turn, an hour each, to the end or until a state is reached."""
    controller = world.controller()
    await controller.begin()
    while not controller.state.ended and not until(controller.state):
        world.clock.advance(LOOK)
        await controller.step()
    return controller.state


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world(two_weeks(), rate=0.1, internal=0.02)


async def test_a_good_change_reaches_everybody_in_two_weeks_and_more(world: World) -> None:
    began = world.clock.now()
    state = await played(world)
    assert state.phase == "completed"
    days = (world.clock.now() - began) / DAY
    assert (
        13 < days < 35
    )  # a stage that is sure early still bakes; one that is not takes up to three times as long
    served = [split.share for split in world.traffic.sets]
    assert list(dict.fromkeys(served)) == [0.0, 0.01, 0.05, 0.25, 1.0]
    advances = [each.entry for each in world.journal.read() if isinstance(each.entry, Decided)]
    assert [each.stage for each in advances if each.verdict == "advance"] == [0, 1, 2, 3, 4]


async def test_a_leak_that_begins_on_day_five_is_taken_back_within_a_day(world: World) -> None:
    await played(world, lambda state: world.clock.now() > 5 * DAY)
    began = world.clock.now()
    world.service.treatment_errors = 0.06
    state = await played(world)
    assert state.phase == "rolled_back"
    assert (world.clock.now() - began) / DAY < 1.5
    assert world.traffic.served.latched
