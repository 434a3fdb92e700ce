"""Tells the other processes what this one invalidated, and listens to them.

    connecting --listening--> hears --the connection is lost--> a gap: everything may have changed --> connecting

Sending is a courtesy that may fail; hearing is for as long as somebody listens. What neither brings is bounded
by the age at which memory asks the shared tier again.

Per process. A fork hears, and sends, as a process of its own.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence

from fairlead.cache.budget import PATIENCE, within, words_of
from fairlead.cache.invalidation import Backplane, Message, pack_message, unpack_message
from fairlead.cache.tier_stats import TierStats
from fairlead.clock import Clock

__all__ = ["Messenger"]


class Messenger:
    """One process's end of a `Backplane`."""

    def __init__(
        self, backplane: Backplane, stats: TierStats, *, clock: Clock, waits: tuple[float, float]
    ) -> None:
        """waits: seconds before it connects again, the first time and, doubling, at most."""
        self._backplane = backplane
        self._stats = stats
        self._clock = clock
        self._waits = waits
        self._token = secrets.token_hex(8)
        self._on_message: Callable[[Message], object] | None = None
        self._on_gap: Callable[[], object] | None = None

    def subscribe(self, on_message: Callable[[Message], object], on_gap: Callable[[], object]) -> None:
        """Has `on_message` called for what others invalidated, `on_gap` when some of it may be missed."""
        self._on_message, self._on_gap = on_message, on_gap

    async def publish(self, messages: Sequence[Message]) -> None:
        """Sends them, or counts them as lost."""
        packed = [pack_message(self._sender(), message) for message in messages]
        try:
            await within(self._clock, PATIENCE, self._backplane.publish(packed), "a message")
        except Exception as error:
            self._stats.last_error = words_of(error)
            self._stats.lost_messages += len(packed)

    async def listen(self) -> None:
        """Listens, and connects again, until cancelled."""
        wait = self._waits[0]
        may_have_missed = False

        def connected() -> None:
            nonlocal wait, may_have_missed
            wait = self._waits[0]
            if may_have_missed:
                self._stats.gaps += 1
                if self._on_gap is not None:
                    self._on_gap()
            may_have_missed = True

        while True:
            try:
                await self._backplane.listen(self._heard, connected)
            except Exception as error:
                self._stats.last_error = words_of(error)
                may_have_missed = True  # memory may have been filled before the first connection
            await self._clock.sleep(wait)
            wait = min(2 * wait, self._waits[1])

    def _heard(self, data: bytes) -> None:
        message = unpack_message(data, self._sender())
        if message is not None and self._on_message is not None:
            self._stats.heard += 1
            self._on_message(message)

    def _sender(self) -> str:
        return f"{self._token}.{os.getpid()}"
