"""What every `Traffic` must do, as tests that a driver's author runs against a real target.

    class TestMyTraffic(TrafficContract):
        @pytest.fixture
        async def target(self):
            yield TrafficTarget(MyTraffic(...), MyTraffic(...), salt="feed", serves=ask_the_target)

The two drivers stand for two controllers on one target, which serves nobody when a test begins. Who is served is asked
of the target itself: a driver that reads back what it wrote, while users meet something else, does not pass. Tests
are coroutines (pytest-asyncio, `asyncio_mode = "auto"`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from fairlead.errors import StaleEpoch
from fairlead.flags import bucket
from fairlead.rollout.traffic import Split, Traffic

__all__ = ["TrafficContract", "TrafficTarget"]

_UNITS = tuple(f"user-{n}" for n in range(200))


@dataclass(frozen=True, slots=True)
class TrafficTarget:
    """One target with two controllers, and a way to ask it as a user does."""

    first: Traffic
    second: Traffic
    salt: str
    """Of the buckets that it draws."""
    serves: Callable[[str, str], Awaitable[bool]]
    """Whether it serves treatment to this unit, "" for none, in this audience, "" for none."""

    async def treated(self, audience: str = "") -> set[str]:
        """Which of some units meet treatment."""
        return {unit for unit in _UNITS if await self.serves(unit, audience)}


def _below(target: TrafficTarget, slots: int) -> set[str]:
    return {unit for unit in _UNITS if bucket(target.salt, unit) < slots}


def _split(share: float, *, rollout: str = "feed/1", epoch: int = 1, audience: str = "") -> Split:
    return Split(share=share, audience=audience, rollout=rollout, epoch=epoch)


def _rollback(*, rollout: str = "feed/1", epoch: int = 1) -> Split:
    return Split(share=0.0, rollout=rollout, epoch=epoch, latched=True)


async def _refusal(call: Awaitable[None]) -> str:
    try:
        await call
    except StaleEpoch as error:
        return str(error)
    return ""


class TrafficContract:
    """Subclass it with a fixture `target` that yields a `TrafficTarget`."""

    async def test_nobody_is_served_treatment_before_a_rollout(self, target: TrafficTarget) -> None:
        assert await target.first.read() == Split(share=0.0)
        assert await target.treated("internal") == set()

    async def test_another_controller_reads_each_split_that_was_set(self, target: TrafficTarget) -> None:
        for share, audience in (
            (0.0, "internal"),
            (0.0001, "internal"),
            (0.05, ""),
            (0.5, ""),
            (1.0, ""),
            (0.0, ""),
        ):
            await target.first.set(_split(share, audience=audience))
            assert await target.second.read() == _split(share, audience=audience)

    async def test_a_share_is_served_to_the_units_of_its_slots_and_to_no_other(
        self, target: TrafficTarget
    ) -> None:
        for share in (0.05, 0.3, 1.0):
            await target.first.set(_split(share))
            assert await target.treated() == _below(target, round(share * 10_000))

    async def test_a_unit_without_a_key_meets_control_at_any_share(self, target: TrafficTarget) -> None:
        await target.first.set(_split(1.0))
        assert not await target.serves("", "")

    async def test_an_audience_is_served_whatever_the_slot(self, target: TrafficTarget) -> None:
        await target.first.set(_split(0.05, audience="internal"))
        assert await target.treated("internal") == set(_UNITS)
        assert await target.treated("internals") == await target.treated() == _below(target, 500)
        await target.first.set(_split(0.05))
        assert await target.treated("internal") == _below(target, 500)

    async def test_an_older_epoch_is_refused_and_moves_nobody(self, target: TrafficTarget) -> None:
        await target.first.set(_split(0.05, epoch=3))
        for late in (_split(1.0, epoch=2), _split(0.0, epoch=2), _rollback(rollout="other/1", epoch=2)):
            assert await _refusal(target.second.set(late))
        assert await target.first.read() == _split(0.05, epoch=3)
        assert await target.treated() == _below(target, 500)
        await target.second.set(_split(0.3, epoch=3))
        assert await target.treated() == _below(target, 3000)

    async def test_a_rollback_serves_control_to_everybody_at_once(self, target: TrafficTarget) -> None:
        await target.first.set(_split(1.0, audience="internal"))
        await target.first.set(_rollback())
        assert await target.second.read() == _rollback()
        assert await target.treated("internal") == set()

    async def test_a_rolled_back_rollout_is_never_raised_again(self, target: TrafficTarget) -> None:
        await target.first.set(_split(0.3))
        await target.first.set(_rollback())
        for again in (_split(0.05), _split(0.05, epoch=9), _split(0.0, audience="internal", epoch=9)):
            assert "rolled back" in await _refusal(target.second.set(again))
        assert await target.treated("internal") == set()

    async def test_a_new_rollout_may_begin_after_a_rollback(self, target: TrafficTarget) -> None:
        await target.first.set(_split(0.3))
        await target.first.set(_rollback())
        await target.second.set(_split(0.05, rollout="feed/2", epoch=2))
        assert await target.first.read() == _split(0.05, rollout="feed/2", epoch=2)
        assert await target.treated() == _below(target, 500)

    async def test_a_late_rollback_is_let_through_to_its_own_rollout(self, target: TrafficTarget) -> None:
        await target.first.set(_split(0.3, epoch=7))
        await target.second.set(_rollback(epoch=2))
        assert (await target.first.read()).latched
        assert await target.treated() == set()

    async def test_setting_twice_is_setting_once(self, target: TrafficTarget) -> None:
        for split in (_split(0.3), _rollback()):
            await target.first.set(split)
            await target.first.set(split)
            await target.second.set(split)
            assert await target.first.read() == split

    async def test_a_call_that_is_cancelled_leaves_one_of_both_splits(self, target: TrafficTarget) -> None:
        before = _split(0.05)
        await target.first.set(before)
        for turns in range(40):
            after = _split((turns + 1) / 10_000, audience="internal")
            call = asyncio.create_task(target.first.set(after))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            now = await target.first.read()
            assert now in (before, after)
            assert await target.second.read() == now
            before = now

    async def test_of_two_controllers_the_later_epoch_stands(self, target: TrafficTarget) -> None:
        for epoch in range(2, 12, 2):
            outcomes = await asyncio.gather(
                target.first.set(_split(0.05, epoch=epoch)),
                target.second.set(_split(0.3, epoch=epoch + 1)),
                return_exceptions=True,
            )
            assert isinstance(outcomes[0], StaleEpoch | None)
            assert outcomes[1] is None
            assert await target.first.read() == _split(0.3, epoch=epoch + 1)

    async def test_a_rollback_wins_every_race(self, target: TrafficTarget) -> None:
        for turn in range(8):
            rollout = f"feed/{turn}"
            await target.first.set(_split(0.05, rollout=rollout, epoch=turn))
            forward = asyncio.create_task(target.first.set(_split(0.3, rollout=rollout, epoch=turn)))
            for _ in range(turn * 3):
                await asyncio.sleep(0)
            await target.second.set(_rollback(rollout=rollout, epoch=turn))
            await asyncio.gather(forward, return_exceptions=True)
            assert await target.first.read() == _rollback(rollout=rollout, epoch=turn)
            assert await target.treated() == set()

    async def test_a_closed_driver_leaves_what_is_served(self, target: TrafficTarget) -> None:
        await target.first.set(_split(0.3))
        await target.first.close()
        await target.first.close()
        assert await target.second.read() == replace(_split(0.3))
