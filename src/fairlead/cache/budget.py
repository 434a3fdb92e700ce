"""How long the shared tier is waited for: by callers a budget, in the background more patiently.

A question runs in a task of its own, and those who asked wait for futures. When the budget is spent they are let
go with nothing, the breaker hears of it, and the question is given up unless it is a delivery, which is owed anyhow:

    asked --answered--> answered        asked --the budget is spent--> let go, and a failure of the tier

Spent is what the event loop was there to see. After a stall of the loop, a timer is late and the answer lies in the
socket, or the question was not even sent: that says nothing about the tier. So the budget is watched in parts, and a
part counts once, however long the loop was away.

Invariant: nobody waits longer than the budget, the loop's own stalls, and once more a part, whatever became of the
task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from fairlead.cache.tier_stats import TierStats
from fairlead.clock import Clock
from fairlead.errors import DeadlineExceeded

__all__ = ["AT_ONCE", "PATIENCE", "Budget", "let_go", "within", "words_of"]

_T = TypeVar("_T")

PATIENCE = 2.0
"""Seconds for a write, a message or an attempt to replay: nobody waits for them."""

AT_ONCE = 500
"""Reads, writes or invalidations in one call of the store: more would need more than the time it has."""


_PARTS = 4
_PROMPT = 0.0015  # seconds by which a timer of an idle loop may be late: it sleeps in whole milliseconds


class Budget:
    """The seconds that the callers of one tier wait. Per process."""

    __slots__ = ("_clock", "_name", "_on_failure", "_stats", "seconds")

    def __init__(
        self,
        seconds: float,
        *,
        name: str,
        stats: TierStats,
        on_failure: Callable[[Exception, int], object],
        clock: Clock,
    ) -> None:
        """on_failure: called with the error and the breaker's generation when somebody had to be let go."""
        self.seconds = seconds
        self._name = name
        self._stats = stats
        self._on_failure = on_failure
        self._clock = clock

    def bound(
        self,
        task: asyncio.Task[None],
        futures: Sequence[asyncio.Future[Any]],
        generation: int,
        *,
        gives_up: bool = True,
    ) -> None:
        """Lets those go who wait for `futures` once the budget is spent, unless `task` has ended before.

        gives_up: `task` is cancelled then. generation: the breaker's, when the question was asked.
        """
        watch = _Watch(self, task, futures, generation, gives_up=gives_up)
        task.add_done_callback(watch.end)

    def _spent(self, watch: _Watch) -> None:
        released = let_go(watch.futures)
        if watch.gives_up:
            self._stats.errors += released
            watch.task.cancel()
        if released:
            what = f"{self._name}: no answer within its budget of {self.seconds * 1000:g} ms"
            self._on_failure(DeadlineExceeded(what), watch.generation)


class _Watch:
    """The budget of one question, part after part."""

    __slots__ = (
        "_budget",
        "_end",
        "_left",
        "_part",
        "_spared",
        "_timer",
        "futures",
        "generation",
        "gives_up",
        "task",
    )

    def __init__(
        self,
        budget: Budget,
        task: asyncio.Task[None],
        futures: Sequence[asyncio.Future[Any]],
        generation: int,
        *,
        gives_up: bool,
    ) -> None:
        self.task = task
        self.futures = futures
        self.generation = generation
        self.gives_up = gives_up
        self._budget = budget
        self._part = budget.seconds / _PARTS
        self._left = _PARTS - 1
        self._end = budget._clock.now() + budget.seconds
        self._spared = False
        self._timer = budget._clock.call_at(self._end - self._left * self._part, self._look)

    def end(self, task: asyncio.Task[None]) -> None:
        """The question is answered, or failed."""
        self._timer.cancel()

    def _look(self) -> None:
        clock = self._budget._clock
        late = clock.now() - (self._end - self._left * self._part)
        if self._left > 0:
            self._left -= 1
            if late > _PROMPT:
                self._end += late
        elif late > _PROMPT and not self._spared:  # the answer may lie in the socket
            self._spared = True
            self._end += late + min(late, self._part)
        else:
            self._budget._spent(self)
            return
        self._timer = clock.call_at(self._end - self._left * self._part, self._look)


def let_go(futures: Iterable[asyncio.Future[Any]]) -> int:
    """Lets those go who still wait, with None; how many."""
    released = 0
    for future in futures:
        if not future.done():
            future.set_result(None)
            released += 1
    return released


async def within(clock: Clock, seconds: float, work: Awaitable[_T], what: str) -> _T:
    """What `work` returns; cancels it and raises DeadlineExceeded after `seconds`."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 (a coroutine runs in a task)
    late = False

    def give_up() -> None:
        nonlocal late
        late = True
        task.cancel()

    timer = clock.call_at(clock.now() + seconds, give_up)
    try:
        return await work
    except asyncio.CancelledError:
        if late and task.uncancel() == 0:
            raise DeadlineExceeded(f"{what} took longer than {seconds:g} s") from None
        raise
    finally:
        timer.cancel()


def words_of(error: BaseException) -> str:
    """Type and message, cut to 200 characters."""
    return f"{type(error).__name__}: {error}"[:200]
