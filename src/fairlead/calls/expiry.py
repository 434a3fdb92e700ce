"""Ends a call at a moment, by cancelling it, and knows its own cancellation from everybody else's.

asyncio has one way to interrupt a task, and everyone uses it: the client that left, the server that shuts
down, the timeout. A timeout that takes a foreign cancellation for its own turns a shutdown into a retry;
one that misses its own turns a slow answer into a vanished request. So requests to cancel are counted, as
asyncio.timeout does: ours adds one, and only if no more than were outstanding before remain after we take
it back was it ours alone.

The count is compared with the one at the start (CPython 3.12; 3.11 compares with zero and so loses
timeouts in the clean-up of a cancelled task). If the coroutine swallows the cancellation, its result stands.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Coroutine, Generator
from typing import Any, TypeVar, cast

from fairlead.clock import Clock

__all__ = ["Expiry", "as_coroutine", "resume"]

_T = TypeVar("_T")


class Expiry:
    """Cancels the running task at `when`, unless closed before."""

    __slots__ = ("_before", "_task", "_timer", "expired")

    def __init__(self, when: float, clock: Clock) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a timeout can only end a call that runs in an asyncio task")
        self._task = task
        self._before = task.cancelling()
        self.expired = False
        """Whether the moment came before the call ended."""
        self._timer = clock.call_at(when, self._expire)

    def _expire(self) -> None:
        self.expired = True
        self._task.cancel()

    def close(self) -> bool:
        """Disarms; True if it cancelled the task and nobody else did. To be called exactly once."""
        self._timer.cancel()
        return self.expired and self._task.uncancel() <= self._before


@types.coroutine
def resume(coroutine: Coroutine[Any, Any, _T], waits_for: Any) -> Generator[Any, Any, _T]:
    """Awaits a coroutine that has been started by hand and now waits for `waits_for`."""
    while True:
        try:
            yield waits_for  # the loop answers a wait with None, or with an exception
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:
            try:
                waits_for = coroutine.throw(error)
            except StopIteration as stop:
                return cast(_T, stop.value)
        else:
            return cast(_T, (yield from coroutine))


async def as_coroutine(awaitable: Awaitable[_T]) -> _T:
    """Any awaitable (a future, a gRPC call) in the shape that can be started by hand."""
    return await awaitable
