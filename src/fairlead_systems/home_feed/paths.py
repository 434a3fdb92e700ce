"""The ways in which a page is made: as before, or treated; for lab runs also with a planted defect.

A share of the pages that are made as before, none at first, is made by the treatment too once its reader has the page,
and compared with it. Control is asked again for some of them; its cache answers then, so it hardly differs from itself.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fairlead.shadow import FieldDiff, Mirror
from fairlead_systems.home_feed.answer import Answer, NoAnswer

if TYPE_CHECKING:
    from fairlead.deadline import Deadline
    from fairlead.telemetry import EventSink
    from fairlead_systems.home_feed.control import Control
    from fairlead_systems.home_feed.treatment import Treatment

__all__ = ["FLAG", "REGRESSED", "REGRESSION", "Asked", "Paths"]

FLAG = "feed_path"
"""Its variants are `control`, `treatment` and, for lab runs, REGRESSED."""
REGRESSED = "regressed"
REGRESSION = 0.3
"""Share of the pages of that variant that end in an error."""

_DIFF = FieldDiff(unordered={"items": ""})
_NOISE = 0.5
_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A page as it was asked for, and what its user has seen."""

    user: str
    topic: int
    deadline: Deadline | None
    request_id: str
    shown: tuple[int, ...]
    seen: Sequence[int]


class Paths:
    """Both paths of one process, and the mirror between them. Close it before them."""

    def __init__(
        self, control: Control, treatment: Treatment, *, sink: EventSink, regressed: random.Random | None
    ) -> None:
        """sink: gets each comparison. regressed: decides which pages of that variant fail; None: there is none."""
        self._control = control
        self._treatment = treatment
        self._regressed = regressed
        self.mirror = Mirror(
            FLAG, diff=_DIFF, share=0.0, noise_share=_NOISE, concurrency=_AT_ONCE, view=_viewed, sink=sink
        )

    async def page(self, variant: str, asked: Asked) -> Answer:
        """Raises NoAnswer. A variant that is not known is served as before."""
        if variant == "treatment":
            return await self._treated(asked)
        if variant == REGRESSED and self._regressed is not None:
            if self._regressed.random() < REGRESSION:
                raise NoAnswer(500, "a planted defect")
            return await self._treated(asked)
        return await self.mirror.call(self._as_before, self._unseen, asked)

    async def close(self) -> None:
        await self.mirror.close()

    async def _as_before(self, asked: Asked) -> Answer:
        return await self._control.page(asked.user, asked.topic, shown=asked.shown, seen=asked.seen)

    async def _treated(self, asked: Asked) -> Answer:
        return await self._treatment.page(
            asked.user, asked.topic, asked.deadline, asked.request_id, shown=asked.shown, seen=asked.seen
        )

    async def _unseen(self, asked: Asked) -> Answer:
        # The caller's deadline was for the page that he has.
        return await self._treated(replace(asked, deadline=None, request_id=f"{asked.request_id}-shadow"))


def _viewed(answer: object) -> dict[str, object]:
    """What its reader sees of a page: which items, which first, in which order, and what is missing."""
    assert isinstance(answer, Answer)  # noqa: S101 - both paths return one
    return {
        "items": answer.items,
        "first": answer.items[:1],
        "order": answer.items,
        "missing": list(answer.missing),
        "degraded": answer.degraded,
    }
