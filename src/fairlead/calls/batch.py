"""Many single loads of one moment become one load of many.

A handler that asks for one thing per item of a list costs one round trip per item: the N+1 pattern. With a
batcher each item still asks for its own, and what is asked for in the same turn of the event loop (or within
`max_wait`) is loaded together, each key once (after DataLoader, Facebook 2010).

The load runs in a task that the batcher owns: a caller that is cancelled leaves, and harms nobody who
asked for the same batch. It runs outside every caller's context, until the last deadline among those who
wait when it starts. A key fails by itself: its callers get its exception, each an instance of their own,
and the others get their values.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Generic, TypeVar, cast

from fairlead.calls.bounds import check_number, check_whole
from fairlead.calls.exception_copy import own_instance
from fairlead.calls.policy import Policy
from fairlead.clock import SYSTEM_CLOCK, Clock, Timer
from fairlead.context import RequestContext, current, request_context
from fairlead.deadline import Deadline
from fairlead.errors import DeadlineExceeded, FairleadError, InvalidInput, LoadCancelled

__all__ = ["Batcher", "BatcherStats", "MissingKey"]

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class MissingKey(FairleadError, KeyError):
    """The batch was loaded, and its answer holds nothing for this key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatcherStats:
    """Counted since the start, in this process."""

    loads: int
    """Calls of `load`, and keys given to `load_all`."""
    batches: int
    """Calls of `load_many`."""
    keys: int
    """Keys handed to `load_many`: loads less those that shared a key or left before the batch began."""


class Batcher(Generic[_K, _V]):
    """Turns `await load(key)` of many callers into one `load_many(keys)`.

    load_many: gets the keys once each, in the order they were first asked for. Answers with a mapping, or
        with a sequence in the same order. An exception as a value is the failure of that key alone.
    max_batch: keys per call; a full batch starts at once.
    max_wait: seconds to wait for more keys. 0: until the end of this turn of the event loop, which costs
        no latency and collects everything that tasks already running ask for.
    timeout: seconds for one call of load_many. None: only the last deadline among its waiters bounds it.
    name: of the load, in errors.
    """

    def __init__(
        self,
        load_many: Callable[[list[_K]], Awaitable[Mapping[_K, _V | Exception] | Sequence[_V | Exception]]],
        *,
        max_batch: int = 100,
        max_wait: float = 0.0,
        timeout: float | None = None,
        name: str = "batch",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        check_whole("Batcher.max_batch", max_batch, low=1, high=1_000_000)
        check_number("Batcher.max_wait", max_wait, low=0.0, high=60.0)
        self.name = name
        self._load_many = load_many
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._clock = clock
        self._policy = Policy(name=name, timeout=timeout, clock=clock)
        self._open: _Batch[_K, _V] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loads = self._batches = self._keys = 0

    @property
    def stats(self) -> BatcherStats:
        return BatcherStats(loads=self._loads, batches=self._batches, keys=self._keys)

    async def load(self, key: _K) -> _V:
        """The value of `key`; callers of one batch that ask for the same key get the same object.

        Raises the key's own failure, or that of the whole batch; MissingKey when the answer does not hold the
        key; LoadCancelled when its load was cancelled; DeadlineExceeded when the deadline has passed, passes
        while this caller waits, or the batch ran out of time.
        """
        (value,) = await self.load_all((key,))
        return value

    async def load_all(self, keys: Iterable[_K]) -> list[_V]:
        """The values in the order of `keys`; raises the failure of the first key that has one."""
        deadline = current().deadline
        waits: list[asyncio.Future[_Outcome[_V]]] = []
        timer = None
        try:
            waits.extend(self._join(key, deadline) for key in keys)
            if waits and deadline.at != inf:
                timer = deadline.clock.call_at(deadline.at, partial(self._too_late, waits))
            return [_unwrap(await wait) for wait in waits]
        finally:
            if timer is not None:
                timer.cancel()
            for wait in waits:
                wait.cancel()

    async def close(self, timeout: float = 5.0) -> None:
        """Cancels this loop's batches and waits for them, at most `timeout` seconds.

        Whoever waits for one gets LoadCancelled. Later calls begin new batches.
        """
        loop = asyncio.get_running_loop()
        me = asyncio.current_task()
        if self._open is not None and self._open.loop is loop:
            self._start(self._open)
        mine = [task for task in self._tasks if task.get_loop() is loop and task is not me]
        for task in mine:
            task.cancel()
        if mine:
            await asyncio.wait(mine, timeout=timeout)

    def _too_late(self, waits: list[asyncio.Future[_Outcome[_V]]]) -> None:
        passed = DeadlineExceeded(
            f"{self.name}: this caller's deadline passed; the load goes on for those who have longer"
        )
        for wait in waits:
            if not wait.done():
                wait.set_result(_Outcome(None, passed))

    def _join(self, key: _K, deadline: Deadline) -> asyncio.Future[_Outcome[_V]]:
        deadline.check(self.name)
        loop = asyncio.get_running_loop()
        batch = self._open
        if batch is None or batch.loop is not loop:  # a batch left behind in a closed loop never starts
            batch = self._open = _Batch(loop)
            if self._max_wait:
                batch.timer = self._clock.call_at(
                    self._clock.now() + self._max_wait, partial(self._start, batch)
                )
            else:
                batch.timer = loop.call_soon(self._start, batch)
        wait: asyncio.Future[_Outcome[_V]] = loop.create_future()
        batch.waits.setdefault(key, []).append(wait)
        batch.end = max(batch.end, self._clock.now() + deadline.remaining())
        self._loads += 1
        if len(batch.waits) >= self._max_batch:
            self._start(batch)
        return wait

    def _start(self, batch: _Batch[_K, _V]) -> None:
        if batch.timer is not None:
            batch.timer.cancel()
        if self._open is batch:
            self._open = None
        waits = {key: each for key, each in batch.waits.items() if not all(wait.done() for wait in each)}
        if waits:
            self._batches += 1
            self._keys += len(waits)
            task = batch.loop.create_task(self._run(waits, batch.end), context=Context())
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, waits))

    def _ended(self, waits: dict[_K, list[asyncio.Future[_Outcome[_V]]]], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():  # perhaps before its first step, so that nothing in it could tell its callers
            error = LoadCancelled(f"{self.name}: the load of {len(waits)} keys was cancelled")
            _hand_out(waits, dict.fromkeys(waits, error), self.name)

    async def _run(self, waits: dict[_K, list[asyncio.Future[_Outcome[_V]]]], end: float) -> None:
        keys = list(waits)
        outcomes: Mapping[_K, _V | Exception]
        try:
            with request_context(RequestContext(deadline=Deadline(end, self._clock))):
                answer = await self._policy.call(self._load_many, keys)
            outcomes = self._by_key(keys, answer)
        except Exception as error:
            outcomes = dict.fromkeys(keys, error)
        except BaseException as error:
            cancelled = LoadCancelled(f"{self.name}: the load of {len(keys)} keys was cancelled")
            cancelled.__cause__ = error
            _hand_out(waits, dict.fromkeys(keys, cancelled), self.name)
            raise
        _hand_out(waits, outcomes, self.name)

    def _by_key(
        self, keys: list[_K], answer: Mapping[_K, _V | Exception] | Sequence[_V | Exception]
    ) -> Mapping[_K, _V | Exception]:
        if isinstance(answer, Mapping):
            return {key: answer[key] for key in keys if key in answer}
        if len(answer) != len(keys):
            raise InvalidInput(f"{self.name}: load_many answered {len(answer)} values for {len(keys)} keys")
        return dict(zip(keys, answer, strict=True))


class _Outcome(Generic[_V]):
    """A value or a failure. Not a future's exception: nobody may be left to retrieve that."""

    __slots__ = ("error", "value")

    def __init__(self, value: _V | None, error: Exception | None) -> None:
        self.value = value
        self.error = error


class _Batch(Generic[_K, _V]):
    __slots__ = ("end", "loop", "timer", "waits")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.timer: Timer | None = None
        self.waits: dict[_K, list[asyncio.Future[_Outcome[_V]]]] = {}
        self.end = -inf


def _unwrap(outcome: _Outcome[_V]) -> _V:
    if outcome.error is not None:
        raise own_instance(outcome.error)
    return cast(_V, outcome.value)


def _outcome(key: _K, outcomes: Mapping[_K, _V | Exception], name: str) -> _Outcome[_V]:
    try:
        found = outcomes[key]
    except KeyError:
        return _Outcome(None, MissingKey(f"{name}: load_many answered nothing for the key {_shown(key)}"))
    if isinstance(found, Exception):
        return _Outcome(None, found)
    if isinstance(found, BaseException):  # asyncio.gather hands out cancellations among its results
        cancelled = LoadCancelled(f"{name}: the load of the key {_shown(key)} was cancelled")
        cancelled.__cause__ = found
        return _Outcome(None, cancelled)
    return _Outcome(found, None)


def _shown(key: object) -> str:
    try:
        return f"{key!r:.100}"
    except Exception:  # whoever waits for a key must not wait for ever because it cannot be printed
        return f"<{type(key).__qualname__}>"


def _hand_out(
    waits: dict[_K, list[asyncio.Future[_Outcome[_V]]]], outcomes: Mapping[_K, _V | Exception], name: str
) -> None:
    for key, each in waits.items():
        outcome = _outcome(key, outcomes, name)
        for wait in each:
            if not wait.done():
                wait.set_result(outcome)
