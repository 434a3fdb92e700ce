"""Hears of every change, by asking for what came after the last version seen: after a notice, at the latest by poll.

    waiting --notice or poll_every--> asking "what came after version v?" --> each change is handed on --> waiting
                                        '-- no answer: counted; asked again after poll_every

A notice carries nothing but "now": it only makes the question come sooner, so one that is lost, doubled or reordered
costs time and no correctness. The bound on that time is `poll_every` and one question. A table that is older than what
was seen (a backup was played back), or that has moved on by more than can be followed one by one, is handed on as None:
forget all.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead_systems.remote_config.table import Changed

__all__ = ["Follower"]

MOST_FOLLOWED = 20_000
"""Changes handed on one by one; beyond, forgetting everything is cheaper."""


class Follower:
    """Follows one table. Per process."""

    def __init__(
        self,
        ask: Callable[[int], Awaitable[tuple[int, Sequence[Changed]]]],
        tell: Callable[[Sequence[Changed] | None], Awaitable[None]],
        *,
        poll_every: float,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
    ) -> None:
        """ask: the last version, and the changes after the one given, oldest first, perhaps not all of them.

        tell: is handed the changes; None: forget all. What it raises leaves them unseen, to be handed on again.
        """
        self._ask = ask
        self._tell = tell
        self._poll_every = poll_every
        self._clock = clock
        self._rng = rng or random.Random()
        self._wake = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self.seen: int | None = None
        """The last version whose change was handed on; None before the first answer."""
        self.confirmed_at: float | None = None
        """When the last question was asked that was answered; what is in memory was right then."""
        self.notices = 0
        self.polls = 0
        self.changes = 0
        self.forgot_all = 0

    def notice(self) -> None:
        """There may be something new."""
        self.notices += 1
        self._wake.set()

    async def wait(self) -> None:
        """Until a notice comes, or it is time to ask without one."""
        # Spread by a tenth: the processes of a fleet that were deployed together must not ask together.
        until = self._clock.now() + self._poll_every * self._rng.uniform(0.9, 1.0)
        timer = self._clock.call_at(until, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
        self._wake.clear()

    async def catch_up(self) -> None:
        """Hands on all that came until now. Raises what the question or `tell` raised."""
        async with self._one_at_a_time:
            self.polls += 1
            while True:
                seen, asked_at = self.seen, self._clock.now()
                latest, changes = await self._ask(seen or 0)
                if seen is None or latest < seen or latest - seen > MOST_FOLLOWED:
                    self.forgot_all += seen is not None
                    await self._tell(None)
                    self.seen, changes = latest, ()
                elif changes:
                    await self._tell(changes)
                    self.changes += len(changes)
                    self.seen = changes[-1].version
                if not changes or changes[-1].version >= latest:
                    self.confirmed_at = asked_at
                    return
