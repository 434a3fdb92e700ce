"""Asks the other store the same question, after the caller has its answer, and counts how the two differ.

The comparison runs in a task of its own, at most `concurrency` of them, each within `timeout`; what finds no place is
dropped and counted. The caller waits for none of it.

Two reads at two moments differ by what was written between them. So versions decide first: rows of one version must be
equal, and rows of two are read once more after `recheck_after`; only what is still behind then is counted against the
other store.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fairlead.calls.bounds import check_number, check_whole
from fairlead.calls.policy import Policy
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import DeadlineExceeded
from fairlead.migration.pair import PARITY, Pair, fields_that_differ, other
from fairlead.migration.stage import Side
from fairlead.migration.store import Row

__all__ = ["ShadowOutcome", "ShadowReads"]

_log = logging.getLogger(__name__)

ShadowOutcome = Literal[
    "same", "different", "missing", "extra", "behind", "ahead", "error", "timeout", "dropped"
]
"""`same`: equal. `different`: equal versions with unequal fields. `missing`, `extra`: of equal versions, only the
authority, or only the other store, has a row. `behind`, `ahead`: the other store still has an older version, or a newer
one: a write is under way, or marked. `error`, `timeout`: it was not to be asked. `dropped`: too many were under way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowReads:
    """How much is compared, and what it may cost."""

    share: float = 1.0
    """Share of reads that are compared, 0–1. 1: the other store is to carry all of them soon."""
    concurrency: int = 16
    """Comparisons at once in this process, 1 to 10,000; more are dropped."""
    timeout: float = 1.0
    """Seconds for the other store's answer, above 0 up to 60."""
    recheck_after: float = 0.5
    """Seconds after which rows of different versions are read again, 0 to 60. 0.5: longer than a second write takes."""
    repair: bool = False
    """Whether a row that is different, missing or extra is marked at the authority, so that reconciliation sends it."""

    def __post_init__(self) -> None:
        check_number("ShadowReads.share", self.share, low=0.0, high=1.0)
        check_whole("ShadowReads.concurrency", self.concurrency, low=1, high=10_000)
        check_number("ShadowReads.timeout", self.timeout, above=0.0, high=60.0)
        check_number("ShadowReads.recheck_after", self.recheck_after, low=0.0, high=60.0)


class Comparing:
    """The comparisons of one process."""

    def __init__(
        self,
        pair: Pair,
        settings: ShadowReads,
        count: Callable[[ShadowOutcome], object],
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
    ) -> None:
        self._pair = pair
        self._settings = settings
        self._count = count
        self._clock = clock
        self._rng = rng or random.SystemRandom()
        self._policy = Policy(name=f"{pair.name} shadow read", timeout=settings.timeout, clock=clock)
        self._tasks: set[asyncio.Task[None]] = set()
        self.fields: Counter[str] = Counter()
        """How often each field differed."""

    def compare(self, authority: Side, row: Row) -> None:
        """Begins a comparison with what the authority answered. Neither blocks nor raises."""
        if self._settings.share < 1.0 and self._rng.random() >= self._settings.share:
            return
        if len(self._tasks) >= self._settings.concurrency:
            self._count("dropped")
            return
        task = asyncio.get_running_loop().create_task(self._compare(authority, row))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Ends the comparisons that are under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _compare(self, authority: Side, row: Row) -> None:
        try:
            self._count(await self._outcome(authority, row))
        except (DeadlineExceeded, TimeoutError):
            self._count("timeout")
        except Exception:  # the task's edge: nobody awaits its outcome
            _log.debug("%s: a shadow read failed", self._pair.name, exc_info=True)
            self._count("error")

    async def _outcome(self, authority: Side, row: Row) -> ShadowOutcome:
        shadow = other(authority)
        (there,) = await self._policy.call(self._pair[shadow].read, (row.key,))
        if there.version != row.version:
            await self._clock.sleep(self._settings.recheck_after)
            (row,) = await self._policy.call(self._pair[authority].read, (row.key,))
            (there,) = await self._policy.call(self._pair[shadow].read, (row.key,))
        outcome = self._judge(row, there)
        if outcome in ("different", "missing", "extra") and self._settings.repair:
            await self._pair[authority].touch(row.key, version=row.version, parity=PARITY[authority])
        return outcome

    def _judge(self, row: Row, there: Row) -> ShadowOutcome:
        if row.value is None and there.value is None:
            return "same"
        if there.version != row.version:
            return "behind" if there.version < row.version else "ahead"
        if row.value is None or there.value is None:
            return "missing" if there.value is None else "extra"
        fields = fields_that_differ(row.value, there.value)
        self.fields.update(fields)
        return "different" if fields else "same"
