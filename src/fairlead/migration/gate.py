"""Whether a process may take up a stage: the way so far is noted in the stores themselves.

A flag can be set to anything, and a process that has just started knows no stage before. So the stage that was last
taken up is a note in each store that it writes, and two steps ask for more than being next:

    shadow-read → live      a permit, given after backfill, verification and reconciliation
    live → shadow-read      no mark in the new store: else the old one lacks what ramp-down acknowledged
    ramp-down → complete    a permit with a confirmation

A way back never needs a permit.
"""

from __future__ import annotations

from fairlead.clock import Clock
from fairlead.errors import StageRefused, StoreUnavailable
from fairlead.migration.notes import Notes
from fairlead.migration.pair import Pair
from fairlead.migration.stage import Side, Stage, why_no_step

__all__ = ["Gate"]


class Gate:
    """The stages of one migration, as its stores remember them."""

    def __init__(self, pair: Pair, clock: Clock) -> None:
        self._pair = pair
        self._clock = clock
        self._notes: dict[Side, Notes] = {side: Notes(pair[side], pair.name) for side in pair.stores}

    async def admit(self, wanted: str) -> Stage:
        """The stage for a process that starts. Raises StageRefused, or StoreUnavailable for a store that it needs."""
        stage = self._known(wanted)
        for side in stage.plan.writes:
            try:
                noted = await self._notes[side].stage()
            except StoreUnavailable:
                if side == stage.plan.writes[0] or stage.plan.needs_both:
                    raise
                continue  # the second store may be down: what was last noted in the first one decides
            if noted is None:
                # Nothing was ever written here through a migration: so only its first two stages can be meant.
                if side == stage.plan.writes[0] and stage.number > Stage.DUAL_WRITE.number:
                    raise StageRefused(
                        f"{self._pair.name}: the {side} store knows of no migration, so it cannot begin in {stage}; "
                        f"begin in {Stage.OFF}"
                    )
            elif noted != stage:
                await self._check(noted, stage)
        await self._note(stage)
        return stage

    async def step(self, current: Stage, wanted: str) -> Stage:
        """The stage for a process that was in `current`. Raises StageRefused or StoreUnavailable: it stays there."""
        stage = self._known(wanted)
        await self._check(current, stage)
        await self._note(stage)
        return stage

    async def permit(self, current: Stage, stage: Stage, *, confirm: bool) -> None:
        """Notes that the fleet may go on to this stage. Raises StageRefused, which says what is missing."""
        if (reason := why_no_step(current, stage)) is not None:
            raise StageRefused(f"{self._pair.name}: {reason}")
        if stage is Stage.LIVE and current is Stage.SHADOW_READ:
            await self._check_copy()
            await self._notes["old"].permit(stage)
        elif stage is Stage.COMPLETE:
            if not confirm:
                raise StageRefused(
                    f"{self._pair.name}: from {stage} on the old store no longer gets what is written, and the "
                    f"way back needs a reconciliation of all of it; say confirm=True if that is meant"
                )
            await self._notes["new"].permit(stage)

    async def _check_copy(self) -> None:
        backfill, verified = await self._notes["new"].backfill(), await self._notes["old"].verification()
        what = None
        if backfill is None or not backfill.done:
            what = "the backfill has not ended; run Backfill to its end"
        elif verified is None or verified.at < backfill.at:
            what = "nothing was verified since the backfill ended; call verify()"
        elif verified.differences:
            what = f"the last verification found {verified.differences} differences; repair them and verify again"
        if what is not None:
            raise StageRefused(
                f"{self._pair.name}: {Stage.LIVE} would serve what is not known to be right: {what}"
            )

    def _known(self, wanted: str) -> Stage:
        try:
            return Stage(wanted)
        except ValueError as error:
            raise StageRefused(
                f"{self._pair.name}: {str(wanted)[:64]!r} is no stage; the stages are {', '.join(Stage)}"
            ) from error

    async def _check(self, current: Stage, stage: Stage) -> None:
        name = self._pair.name
        if (reason := why_no_step(current, stage)) is not None:
            raise StageRefused(f"{name}: {reason}")
        if (current, stage) == (Stage.SHADOW_READ, Stage.LIVE) and not await self._notes["old"].permitted(
            stage
        ):
            raise StageRefused(f"{name}: {stage} needs a permit; call permit({str(stage)!r}) in {current}")
        if (current, stage) == (Stage.RAMP_DOWN, Stage.COMPLETE) and not await self._notes["new"].permitted(
            stage
        ):
            raise StageRefused(
                f"{name}: {stage} needs a permit; call permit({str(stage)!r}, confirm=True) in {current}"
            )
        if (current, stage) == (Stage.LIVE, Stage.SHADOW_READ) and (
            marked := await self._pair["new"].count_marked()
        ):
            raise StageRefused(
                f"{name}: the old store lacks {marked} keys that were written in {Stage.RAMP_DOWN}; "
                f"call reconcile() until none is left, then go to {stage}"
            )

    async def _note(self, stage: Stage) -> None:
        """Keeps the stage in each store that it writes; only the first one has to be there."""
        for side in stage.plan.writes:
            try:
                await self._notes[side].take_up(stage)
            except StoreUnavailable:
                if side == stage.plan.writes[0]:
                    raise
