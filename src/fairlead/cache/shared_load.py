"""A load that looks into the second tier first, and may leave the origin to another process.

    second tier: fresh -> that is the answer          stale, within stale_while_revalidate -> it answers a caller,
                                                      a refresh goes on
    else ask for the lease:  ours, or none to be had -> load
                             another process's       -> look again, a little less often each time, until its
                                                        value is there, the lease is free, or it must be over

It runs as the load of a flight, so all callers of the process share the question as they share the load.
Invariant: it ends in an entry or a load, however the tier and the lease fare.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar

from fairlead.cache.entry import Entry
from fairlead.cache.second_tier import SecondTier
from fairlead.cache.two_nodes import TwoNodes
from fairlead.clock import Clock

__all__ = ["SharedLoad"]

_T = TypeVar("_T")

_SAME_LOAD = 0.05  # seconds by which the tier's and the memory's moment of one load may differ
_FIRST_LOOK = 0.005  # seconds
_LAST_LOOK = 0.05


class SharedLoad(Generic[_T]):
    """The load of one flight through the second tier; called once."""

    __slots__ = (
        "_clock",
        "_in_memory",
        "_key",
        "_load",
        "_looked",
        "_on_load",
        "_refresh",
        "_tier",
        "began_at",
        "entry",
        "older",
        "token",
    )

    def __init__(
        self,
        key: Hashable,
        load: Callable[[], Awaitable[_T]],
        tier: SecondTier | TwoNodes,
        *,
        refresh: bool,
        in_memory: Entry[Any] | None,
        looked: bool,
        on_load: Callable[[], object],
        clock: Clock,
    ) -> None:
        """refresh: a stale value is no answer. looked: the tier was asked just now, and has nothing.
        in_memory: a fresh one that is to be replaced early, so neither is its like. on_load: called when `load`
        is, in case it is."""
        self.entry: Entry[Any] | None = None
        """The second tier's, when that is the answer."""
        self.older: Entry[Any] | None = None
        """A stale one, which stands in for a load that fails."""
        self.began_at = 0.0
        """When `load` was called."""
        self.token = ""
        """Of the lease; "" without one."""
        self._key = key
        self._load = load
        self._tier = tier
        self._refresh = refresh
        self._in_memory = in_memory
        self._looked = looked
        self._on_load = on_load
        self._clock = clock

    async def __call__(self) -> _T:
        if (not self._looked and await self._found()) or not await self._may_load():
            value: _T = self.entry.value  # type: ignore[union-attr]  # either way there is one now
            return value
        self._on_load()
        self.began_at = self._clock.now()
        return await self._load()

    async def _found(self) -> bool:
        entry = await self._tier.get(self._key)
        if entry is None:
            return False
        now = self._clock.now()
        if self._in_memory is not None and entry.began_at < self._in_memory.began_at + _SAME_LOAD:
            return False
        if now < entry.fresh_until or (now < entry.stale_until and not self._refresh):
            self.entry = entry
            return True
        self.older = entry
        return False

    async def _may_load(self) -> bool:
        """Waits for the lease; False once another process's value is there."""
        token = await self._tier.acquire(self._key)
        end = self._clock.now() + self._tier.lease_for
        wait = _FIRST_LOOK
        while token is None and self._clock.now() < end:
            await self._clock.sleep(wait)
            wait = min(2 * wait, _LAST_LOOK)
            if await self._found():
                return False
            token = await self._tier.acquire(self._key)
        if not token:
            return True
        self.token = token
        # The last holder may have left its value between our look and our lease.
        return not await self._found()
