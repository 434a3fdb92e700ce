"""What each user was shown of late, so that it is not shown again at once.

Bounded twice: PER_USER items of a user, and so many users, of whom the one not served for longest is forgotten. Per
process: with several feeds it holds only where a user always comes to the same one (`fairlead.cache.Rendezvous`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from fairlead.clock import SYSTEM_CLOCK, Clock

__all__ = ["Seen"]

PER_USER = 24
"""Items remembered of a user: two pages."""
FORGOTTEN_AFTER = 600.0
"""Seconds after which an item may come again."""


class Seen:
    def __init__(self, most_users: int = 20_000, clock: Clock = SYSTEM_CLOCK) -> None:
        self._most_users = most_users
        self._clock = clock
        self._shown: OrderedDict[str, list[tuple[float, int]]] = OrderedDict()

    def of(self, user: str) -> list[int]:
        """Items shown to the user within the bounds, oldest first."""
        since = self._clock.now() - FORGOTTEN_AFTER
        return [item for at, item in self._shown.get(user, ()) if at > since]

    def add(self, user: str, items: Sequence[int]) -> None:
        now = self._clock.now()
        fresh = frozenset(items)
        kept = [each for each in self._shown.pop(user, []) if each[1] not in fresh]
        self._shown[user] = [*kept, *((now, item) for item in items)][-PER_USER:]
        if len(self._shown) > self._most_users:
            self._shown.popitem(last=False)
