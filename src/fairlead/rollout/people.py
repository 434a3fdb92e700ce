"""Tells people what a rollout does, and calls one where somebody has to look; a notice that fails harms nothing.

tell    on its way in a task of its own; one that failed stands in the journal
page    the same, and in the journal: once for each thing and phase, however often a look finds it
heard   waits for what is on its way: after an end longer than a webhook tries, above all for a rollback's
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from fairlead.clock import Clock
from fairlead.errors import FairleadError
from fairlead.rollout.entry import Paged
from fairlead.rollout.state import RolloutState
from fairlead.rollout.watch import said

__all__ = ["Notice", "People"]

Notice = Callable[[str, RolloutState], Awaitable[None]]
"""Tells a person: a sentence, and the state. Must not block; what it raises is recorded and harms nothing."""

_AFTER_AN_END = 35.0
"""Seconds that notices may still be on their way after an end: longer than a webhook tries."""
_OTHERWISE = 5.0


class People:
    """Who is told of one rollout."""

    def __init__(
        self,
        notice: Notice | None,
        *,
        state: Callable[[], RolloutState],
        write: Callable[[Paged], Awaitable[None]],
        clock: Clock,
    ) -> None:
        """notice: None tells nobody, and pages are in the journal only. state: as it is now. write: to the journal."""
        self._notice = notice
        self._state = state
        self._write = write
        self._clock = clock
        self._paged: set[tuple[object, ...]] = set()
        self._told: list[asyncio.Task[None]] = []

    def tell(self, what: str) -> None:
        """Sends a notice, and does not wait for it."""
        if self._notice is not None:
            self._told = [task for task in self._told if not task.done()]
            self._told.append(asyncio.create_task(self._notified(self._notice, what), name=what))

    async def page(self, what: str) -> None:
        """Calls a person, once for each thing and phase: a thing is a sentence without its figures."""
        state = self._state()
        key = (state.phase, state.stage, "".join(letter for letter in what if not letter.isdigit())[:80])
        if key in self._paged:
            return
        self._paged.add(key)
        with contextlib.suppress(FairleadError):
            await self._write(Paged(what=what))
        self.tell(f"page: {what}")

    async def heard(self) -> None:
        """Waits for notices that are on their way, and not for long where the rollout goes on without this process."""
        longest = _AFTER_AN_END if self._state().ended else _OTHERWISE
        timer = asyncio.create_task(self._clock.sleep(longest))
        late = {task for task in self._told if not task.done()}
        while late and not timer.done():
            await asyncio.wait({*late, timer}, return_when=asyncio.FIRST_COMPLETED)
            late = {task for task in late if not task.done()}
        for task in (*late, timer):
            task.cancel()
        await asyncio.gather(*late, timer, return_exceptions=True)
        for task in late:
            await self._failed(f"no answer within {longest:g} s: {task.get_name()}")

    async def _notified(self, notice: Notice, what: str) -> None:
        try:
            await notice(what, self._state())
        except Exception as error:  # a notice is the caller's, and must not end a rollout
            await self._failed(f"{type(error).__name__}: {said(error)}")

    async def _failed(self, why: str) -> None:
        with contextlib.suppress(FairleadError):
            await self._write(Paged(what=f"a notice failed: {why}"))
