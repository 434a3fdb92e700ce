"""Threads of one database: blocking calls that never block the loop, and never hold up the process's end.

A database that hangs holds whoever asks it. Here that is one of a few threads of its own, never the loop and never the
threads that others use; callers wait as long as their policy says and leave. The threads are daemons: an executor of
the standard library would be joined when the interpreter ends, and a database that hangs keeps that process for ever.

    call -> queued -> taken by a thread -> answered        a caller who left before it was taken takes it out
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar

__all__ = ["DatabaseThreads"]

_T = TypeVar("_T")


@dataclass(kw_only=True, slots=True)
class _Call:
    work: Callable[[], Any] | None
    """None: the thread that takes it ends."""
    context: Context
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any]
    left: bool = field(default=False)


class DatabaseThreads:
    """`count` threads, started with the first call. For one event loop at a time."""

    def __init__(self, name: str, count: int = 4) -> None:
        self._name = name
        self._count = count
        self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._started = 0

    async def run(self, work: Callable[[], _T]) -> _T:
        """What `work()` returns or raises, from one of the threads, in a copy of the caller's context.

        A caller that is cancelled leaves at once; a call that a thread has begun goes on without him.
        """
        if self._started < self._count:
            self._started += 1
            threading.Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True).start()
        loop = asyncio.get_running_loop()
        call = _Call(work=work, context=copy_context(), loop=loop, answer=loop.create_future())
        self._calls.put(call)
        try:
            answer: _T = await call.answer
        except asyncio.CancelledError:
            call.left = True
            raise
        return answer

    async def close(self, within: float) -> None:
        """Ends the threads, each after the call it is in, and waits up to `within` seconds for that."""
        loop = asyncio.get_running_loop()
        ends = [loop.create_future() for _ in range(self._started)]
        self._started = 0
        for end in ends:
            self._calls.put(_Call(work=None, context=copy_context(), loop=loop, answer=end))
        if ends:
            await asyncio.wait(ends, timeout=within)

    def _serve(self) -> None:
        ended = False
        while not ended:
            call = self._calls.get()
            if call.left:
                continue
            found, error = None, None
            if call.work is None:
                ended = True
            else:
                try:
                    found = call.context.run(call.work)
                except Exception as raised:  # the thread's edge: it is the caller's to judge
                    error = raised
            with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
                call.loop.call_soon_threadsafe(_tell, call.answer, found, error)
            del call, found, error  # an idle thread keeps nothing of the last one alive


def _tell(answer: asyncio.Future[Any], found: object, error: Exception | None) -> None:
    if answer.done():  # the caller left
        return
    if error is None:
        answer.set_result(found)
    else:
        answer.set_exception(error)
