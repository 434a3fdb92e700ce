"""Many single loads of one moment become one load of many.

A handler that asks for one thing per item of a list costs one round trip per item: the N+1 pattern. With a
batcher each item still asks for its own, and what is asked for in the same turn of the event loop (or within
`max_wait`) is loaded together, each key once (after DataLoader, Facebook 2010).

The load runs in a task that the batcher owns: a caller that is cancelled leaves, and harms nobody who
asked for the same batch. It runs outside every caller's context, until the last deadline among those who
wait when it starts. A key fails by itself: its callers get its exception, each an instance of their own,
and the others get their values.

With `remember`, a value that was loaded is kept for the life of the batcher, which then is that of one request: the
parts of one page agree with each other, and the next page sees what has changed. Failures are never kept.
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

__all__ = ["Batcher", "BatcherStats", "MissingKey", "by_key", "outcome_of"]

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
    remembered: int
    """Of the loads, those answered by what an earlier batch had loaded, or was loading; 0 without `remember`."""
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
    remember: keeps every value for the batcher's life, and lets a load that is under way answer for its key.
        Nothing bounds what is kept, and nothing ages it: make such a batcher for one request, and let it go.
    name: of the load, in errors.
    """

    def __init__(
        self,
        load_many: Callable[[list[_K]], Awaitable[Mapping[_K, _V | Exception] | Sequence[_V | Exception]]],
        *,
        max_batch: int = 100,
        max_wait: float = 0.0,
        timeout: float | None = None,
        remember: bool = False,
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
        self._loads = self._batches = self._keys = self._remembered = 0
        self._remember = remember
        self._kept: dict[_K, _V] = {}
        self._loading: dict[_K, _Batch[_K, _V]] = {}

    @property
    def stats(self) -> BatcherStats:
        return BatcherStats(
            loads=self._loads, batches=self._batches, keys=self._keys, remembered=self._remembered
        )

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

    def prime(self, key: _K, value: _V) -> None:
        """Remembers a value that came another way, unless one is remembered already. Needs `remember`."""
        if not self._remember:
            raise InvalidInput(f"{self.name}: prime() needs Batcher(remember=True), or the value is lost")
        self._kept.setdefault(key, value)

    def forget(self, key: _K) -> None:
        """Loads the key anew when it is next asked for; what is being loaded for it now is not remembered."""
        self._kept.pop(key, None)
        self._loading.pop(key, None)

    def forget_all(self) -> None:
        """The same for every key."""
        self._kept.clear()
        self._loading.clear()

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
        self._loads += 1
        wait: asyncio.Future[_Outcome[_V]] = loop.create_future()
        if self._remember and self._recall(key, wait, deadline):
            self._remembered += 1
            return wait
        batch = self._open
        if batch is None or batch.loop is not loop:  # a batch left behind in a closed loop never starts
            batch = self._open = _Batch(loop)
            if self._max_wait:
                batch.timer = self._clock.call_at(
                    self._clock.now() + self._max_wait, partial(self._start, batch)
                )
            else:
                batch.timer = loop.call_soon(self._start, batch)
        batch.waits.setdefault(key, []).append(wait)
        batch.end = max(batch.end, self._clock.now() + deadline.remaining())
        if self._remember:
            self._loading[key] = batch
        if len(batch.waits) >= self._max_batch:
            self._start(batch)
        return wait

    def _recall(self, key: _K, wait: asyncio.Future[_Outcome[_V]], deadline: Deadline) -> bool:
        """Whether what is kept, or being loaded, answers."""
        if key in self._kept:
            wait.set_result(_Outcome(self._kept[key], None))
            return True
        batch = self._loading.get(key)
        if (
            batch is None
            or batch is self._open  # joined as ever
            or batch.loop is not wait.get_loop()
            or batch.end < self._clock.now() + deadline.remaining()  # it may end before this caller must
        ):
            return False
        batch.waits[key].append(wait)
        return True

    def _start(self, batch: _Batch[_K, _V]) -> None:
        if batch.timer is not None:
            batch.timer.cancel()
        if self._open is batch:
            self._open = None
        waits = {key: each for key, each in batch.waits.items() if not all(wait.done() for wait in each)}
        for key in batch.waits.keys() - waits.keys():
            self._loaded(batch, key)  # its callers left, so it is not loaded
        if waits:
            self._batches += 1
            self._keys += len(waits)
            task = batch.loop.create_task(self._run(batch, waits), context=Context())
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, batch, waits))

    def _loaded(self, batch: _Batch[_K, _V], key: _K) -> bool:
        """Ends the loading of a key; True if its value is to be kept, because nobody has forgotten it since."""
        if self._loading.get(key) is not batch:
            return False
        del self._loading[key]
        return True

    def _ended(
        self,
        batch: _Batch[_K, _V],
        waits: dict[_K, list[asyncio.Future[_Outcome[_V]]]],
        task: asyncio.Task[None],
    ) -> None:
        self._tasks.discard(task)
        for key in waits:
            self._loaded(batch, key)
        if task.cancelled():  # perhaps before its first step, so that nothing in it could tell its callers
            error = LoadCancelled(f"{self.name}: the load of {len(waits)} keys was cancelled")
            _hand_out(waits, dict.fromkeys(waits, error), self.name)

    async def _run(self, batch: _Batch[_K, _V], waits: dict[_K, list[asyncio.Future[_Outcome[_V]]]]) -> None:
        keys = list(waits)
        outcomes: Mapping[_K, _V | Exception]
        try:
            with request_context(RequestContext(deadline=Deadline(batch.end, self._clock))):
                answer = await self._policy.call(self._load_many, keys)
            outcomes = by_key(self.name, keys, answer)
        except Exception as error:
            outcomes = dict.fromkeys(keys, error)
        except BaseException as error:
            cancelled = LoadCancelled(f"{self.name}: the load of {len(keys)} keys was cancelled")
            cancelled.__cause__ = error
            for key in keys:
                self._loaded(batch, key)
            _hand_out(waits, dict.fromkeys(keys, cancelled), self.name)
            raise
        for key in keys:
            if self._loaded(batch, key) and key in outcomes:
                value = outcomes[key]
                if not isinstance(value, BaseException):
                    self._kept[key] = value
        _hand_out(waits, outcomes, self.name)


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


def by_key(
    name: str, keys: list[_K], answer: Mapping[_K, _V | Exception] | Sequence[_V | Exception]
) -> Mapping[_K, _V | Exception]:
    """What a `load_many` answered, by key; raises InvalidInput for a sequence of another length."""
    if isinstance(answer, Mapping):
        return {key: answer[key] for key in keys if key in answer}
    if len(answer) != len(keys):
        raise InvalidInput(f"{name}: load_many answered {len(answer)} values for {len(keys)} keys")
    return dict(zip(keys, answer, strict=True))


def outcome_of(key: _K, outcomes: Mapping[_K, _V | Exception], name: str) -> _Outcome[_V]:
    """The value or the failure of one key; a key without either failed."""
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
        outcome = outcome_of(key, outcomes, name)
        for wait in each:
            if not wait.done():
                wait.set_result(outcome)
