"""Takes marks away a little later and many at once: the caller of a write need not wait for it.

A mark that stays because this process died, or because the queue was full, costs one needless write in the next
reconciliation.
"""

from __future__ import annotations

import asyncio
import logging

from fairlead.migration.store import Key, MigrationStore

__all__ = ["Settling"]

_log = logging.getLogger(__name__)

_MOST = 10_000
_AT_ONCE = 200
_PATIENCE = 5.0


class Settling:
    """The marks of one store that are to be taken away."""

    def __init__(self, store: MigrationStore, name: str) -> None:
        self._store = store
        self._name = name
        self._waiting: dict[Key, int] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, key: Key, version: int) -> None:
        """The other store has this version, or a newer one. Does not wait."""
        if len(self._waiting) < _MOST or key in self._waiting:
            self._waiting[key] = max(version, self._waiting.get(key, 0))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        """Waits until what was added is taken away, or failed; not for longer than five seconds."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=_PATIENCE)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        while self._waiting:
            some = dict(list(self._waiting.items())[:_AT_ONCE])
            for key in some:
                del self._waiting[key]
            try:
                await self._store.settle(some)
            except Exception:  # the task's edge: the marks stay, and a reconciliation finds them
                _log.debug("%s: %d marks stay for a reconciliation", self._name, len(some), exc_info=True)
