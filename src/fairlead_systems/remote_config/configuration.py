"""The configuration of one process: answers from memory, reads the table behind it, and survives without it.

    shared layers and the user's entries, fresh in memory   -> the document, without a wait
    past their lifetime                                     -> the same, while one refresh runs
    not in memory                                           -> one read per key, however many ask
    the table hangs or is gone                              -> what was last read, marked degraded: from memory, at a
                                                               start from the last-known-good file, else defaults

A change reaches memory by `Follower`: within one poll, sooner by a notice. So lifetimes can be long; they bound only
how long a process stays wrong that hears of nothing at all. All state is per process; the fleet shares the table.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from fairlead.cache import Cache, Freshness, Lookup, MemoryStore
from fairlead.calls import Bulkhead, CircuitBreaker, Policy, Retry, RetryBudget
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import BrokenDocument, FairleadError
from fairlead.telemetry import MetricRegistry
from fairlead_systems.remote_config.documents import Document, OwnEntries, SharedLayers
from fairlead_systems.remote_config.following import Follower
from fairlead_systems.remote_config.last_known_good import (
    LastKnownGood,
    read_last_known_good,
    write_last_known_good,
)
from fairlead_systems.remote_config.mechanisms import Mechanisms
from fairlead_systems.remote_config.schema import Schema
from fairlead_systems.remote_config.table import (
    CHANNEL,
    Change,
    Changed,
    ConfigTable,
    Layer,
    Revision,
    TableUnavailable,
)
from fairlead_systems.remote_config.threads import DatabaseThreads

__all__ = ["STALENESS_BOUND", "Configuration", "Served"]

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)

TTL = 30.0
"""Seconds. Changes arrive by the follower; this is for a process that cannot hear of any."""
STALENESS_BOUND = 1.0
"""Seconds past a lifetime, or past a change, for which the old value may be served while one refresh runs."""
KEPT = 86_400.0
"""Seconds past its lifetime for which an old value stands in for a table that cannot be read: an old configuration is
better than none."""
ENTRIES = Freshness(
    ttl=TTL,
    stale_while_revalidate=STALENESS_BOUND,
    stale_if_error=KEPT,
    soft_timeout=0.05,
    negative_ttl=TTL,
)
POLL_EVERY = 0.5
"""Seconds between two looks for changes where no notices come; one indexed query each."""
POLL_EVERY_WITH_NOTICES = 5.0
"""Seconds for which a lost notice may go unnoticed."""
READ_TIMEOUT = 0.2
WRITE_TIMEOUT = 6.0
"""Above the 5 s for which a writer waits for its turn, so that he is told that rather than left without an answer."""
START_WITHIN = 1.0
"""Seconds that a start waits for the table before it goes on with the last-known-good file."""
READERS = 4
USERS_IN_MEMORY = 100_000

_SHARED = ("shared",)
_FAILURES = (FairleadError, TableUnavailable, TimeoutError)
_STAND_INS = ("stale_error", "stale_slow")


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A document and how it came about."""

    document: Document
    version: int
    """Of the shared layers in it."""
    degraded_by: str
    """Why something older or less than the table's answer was served; empty when it was the table's."""
    staleness: float
    """Seconds past the lifetime of its stalest part."""
    age: float | None
    """Seconds since its oldest part was known to be what the table says: since it was read, or since the last look for
    changes that brought none of it. None when no part ever was."""
    hit: bool
    """True when nothing had to be waited for."""


class Configuration:
    """Started and closed within one event loop."""

    def __init__(
        self,
        table: ConfigTable,
        schema: Schema,
        *,
        last_known_good: Path | None = None,
        poll_every: float | None = None,
        uses: Mechanisms | None = None,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
    ) -> None:
        """last_known_good: where the file lies, one for each process. None: a start needs the table, or the defaults.

        poll_every: seconds; None: 0.5, and 5 where notices come.
        """
        self.table = table
        self._schema = schema
        self._file = last_known_good
        self._uses = uses or Mechanisms()
        self._clock = clock
        self._freshness = replace(
            ENTRIES,
            stale_while_revalidate=STALENESS_BOUND if self._uses.stale_while_revalidate else 0.0,
            negative_ttl=TTL if self._uses.negative_entries else 0.0,
        )
        self.cache = Cache(MemoryStore(USERS_IN_MEMORY), clock=clock, rng=rng, name="remote_config")
        self._readers = DatabaseThreads("table-reader", READERS)
        # Of its own: a hung reader must not be in a writer's way, nor in reverse.
        self._writer = DatabaseThreads("table-writer", 1)
        self._files = DatabaseThreads("last-known-good", 1)
        self.reads = Policy(
            name="table",
            timeout=READ_TIMEOUT,
            idempotent=True,
            retry=Retry(
                attempts=2, on=(TableUnavailable,), base=0.005, cap=0.02, budget=RetryBudget(clock=clock)
            ),
            breaker=CircuitBreaker("table", minimum_calls=5, open_for=0.25, open_for_cap=2.0, clock=clock),
            limit=Bulkhead("table", calls=64, clock=clock),
            clock=clock,
        )
        self._writes = Policy(name="table_writes", timeout=WRITE_TIMEOUT, clock=clock)
        if poll_every is None:
            poll_every = POLL_EVERY_WITH_NOTICES if table.is_postgres else POLL_EVERY
        self.follower = Follower(
            self._changed_since, self._changed, poll_every=poll_every, clock=clock, rng=rng
        )
        self._good = SharedLayers(schema, 0)
        self._good_at: float | None = None
        self.source = "defaults"
        """Where the layers in memory come from: `defaults`, `last_known_good` or `table`."""
        self._kept: SharedLayers | None = None
        self._tried = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.poll_failures = 0
        self.file_failures = 0

    async def start(self) -> None:
        """Reads the file and then the table; returns when that is done, or after a second without the table."""
        await self._read_file()
        self._tasks.append(asyncio.create_task(self._follow()))
        if self.table.is_postgres:
            from fairlead_systems.remote_config.postgres import Listener  # its extra is needed there alone

            url = self.table.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
            self.listener = Listener(url, CHANNEL, self.follower.notice, clock=self._clock)
            self._tasks.append(asyncio.create_task(self.listener.run()))
        timer = self._clock.call_at(self._clock.now() + START_WITHIN, self._tried.set)
        try:
            await self._tried.wait()
        finally:
            timer.cancel()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self.cache.close(1.0)
        for threads in (self._readers, self._writer, self._files):
            await threads.close(within=0.5)

    async def document(self, user: str) -> Served:
        """The document of `user`. Never fails for want of the table, unless `last_known_good` is switched off."""
        degraded_by, hit, staleness = "", True, 0.0
        ages: list[float] = []
        try:
            found = await self._cached(_SHARED, self._read_shared)
            shared, hit = found.value, found.source in ("hit", "stale")
            staleness = found.staleness
            ages.append(self._age(found))
            degraded_by = found.source if found.source in _STAND_INS else ""
        except _FAILURES as error:
            if not self._uses.last_known_good:
                raise
            shared, degraded_by, hit = self._good, type(error).__name__, False
        if self.source == "last_known_good" and self._good_at is not None:
            ages.append(max(0.0, self._clock.utc() - self._good_at))
        own: OwnEntries | None = None
        try:
            of_user = await self._cached(("user", user), partial(self._read_own, user))
            own = of_user.value
            hit = hit and of_user.source in ("hit", "stale")
            staleness = max(staleness, of_user.staleness)
            ages.append(self._age(of_user))
            degraded_by = degraded_by or (of_user.source if of_user.source in _STAND_INS else "")
        except _FAILURES as error:
            if not self._uses.last_known_good:
                raise
            degraded_by, hit = degraded_by or type(error).__name__, False
        return Served(
            document=shared.document(own),
            version=shared.version,
            degraded_by=degraded_by,
            staleness=staleness,
            age=max(ages) if ages else None,
            hit=hit,
        )

    async def write(self, changes: Sequence[Change], *, actor: str, reason: str = "") -> int:
        """Writes, and reads its own write from now on; returns the table's version.

        Raises InvalidInput, TableUnavailable, or DeadlineExceeded, after which nobody knows whether it was written.
        """
        write = partial(self.table.write, changes, actor=actor, reason=reason)
        version = await self._writes.call(self._writer.run, write)
        with contextlib.suppress(*_FAILURES):  # it is written; the next poll brings it
            await self.follower.catch_up()
        for change in changes:
            if (
                change.layer == "user"
            ):  # the follower lets the old value answer once more, which is not for its writer
                await self.cache.remove(("user", change.subject))
        return version

    async def history(self, layer: Layer, subject: str, name: str) -> list[Revision]:
        """The last 100 changes of one entry, newest first. Raises TableUnavailable, DeadlineExceeded or Refused."""
        return await self._read(partial(self.table.history, layer, subject, name))

    def export(self, registry: MetricRegistry) -> None:
        """Shows cache, reads and follower in `registry`."""
        self.cache.export(registry)
        self.reads.export(registry)
        counters: tuple[tuple[str, str, Callable[[], float]], ...] = (
            ("polls", "Questions to the table for what has changed.", lambda: self.follower.polls),
            ("poll_failures", "Such questions without an answer.", lambda: self.poll_failures),
            ("notices", "Notices that something may have changed.", lambda: self.follower.notices),
            ("changes", "Changes that were followed.", lambda: self.follower.changes),
            ("file_failures", "Times the last-known-good file failed.", lambda: self.file_failures),
        )
        for name, meaning, read in counters:
            registry.counter(f"remote_config_{name}_total", meaning).track(read)
        registry.gauge("remote_config_version", "Version of the shared layers in memory.", merge="min").track(
            lambda: float(self._good.version)
        )
        registry.gauge(
            "remote_config_misfits", "Entries that the schema does not allow; defaults stand.", merge="max"
        ).track(lambda: float(len(self._good.misfits)))

    async def _cached(self, key: tuple[str, ...], load: Callable[[], Awaitable[_T]]) -> Lookup[_T]:
        if self._uses.cached_response:
            return await self.cache.lookup(key, load, self._freshness)
        return Lookup(await load(), "load", 0.0, 0.0)

    def _age(self, found: Lookup[_T]) -> float:
        if found.staleness > 0 or self.follower.confirmed_at is None:
            return found.age
        return min(found.age, self._clock.now() - self.follower.confirmed_at)

    async def _read_own(self, user: str) -> OwnEntries | None:
        return OwnEntries.of(await self._read(partial(self.table.read, "user", user)))

    async def _read_shared(self) -> SharedLayers:
        version, entries = await self._read(self.table.read_shared)
        if self.source != "table" or self._good.entries != tuple(entries):
            self._good = SharedLayers(self._schema, version, entries)
            for misfit in self._good.misfits:
                _logger.warning("version %d: %s", version, misfit)
        self._good_at = self._clock.utc()
        self.source = "table"
        return self._good

    async def _read(self, read: Callable[[], _T]) -> _T:
        return await self.reads.call(self._readers.run, read)

    async def _changed_since(self, seen: int) -> tuple[int, list[Changed]]:
        return await self._read(partial(self.table.changed_since, seen))

    async def _changed(self, changes: Sequence[Changed] | None) -> None:
        if changes is None:
            await self.cache.clear()
        else:
            for change in changes:
                if change.layer == "user":
                    await self.cache.expire(("user", change.subject))
        if changes is None or any(change.layer != "user" for change in changes):
            await self.cache.set(_SHARED, await self._read_shared(), self._freshness)

    async def _follow(self) -> None:
        failing = False
        while True:
            try:
                await self.follower.catch_up()
                await self._write_file()
                failing = False
            except Exception as error:  # the task's edge: whatever it was, the next question may be answered
                self.poll_failures += 1
                if not failing:
                    _logger.warning("cannot follow the table: %r", error)
                failing = True
            finally:
                self._tried.set()
            await self.follower.wait()

    async def _read_file(self) -> None:
        if self._file is None or not self._uses.last_known_good:
            return
        try:
            kept = await self._files.run(partial(read_last_known_good, self._file))
        except BrokenDocument as error:
            self.file_failures += 1
            _logger.warning("going on without the last-known-good file: %s", error)
            return
        if kept is not None:
            self._good = self._kept = SharedLayers(self._schema, kept.version, kept.entries)
            self._good_at = kept.at_utc_seconds
            self.source = "last_known_good"
            # As an old value it answers after 50 ms at most, where a table that hangs would cost the whole timeout.
            await self.cache.set(
                _SHARED, self._good, replace(self._freshness, ttl=0.0, stale_while_revalidate=0.0)
            )

    async def _write_file(self) -> None:
        good, at = self._good, self._good_at
        if self._file is None or not self._uses.last_known_good or self.source != "table" or at is None:
            return
        if self._kept is not None and self._kept.entries == good.entries:
            return
        kept = LastKnownGood(version=good.version, at_utc_seconds=at, entries=good.entries)
        try:
            await self._files.run(partial(write_last_known_good, self._file, kept))
        except FairleadError as error:
            self.file_failures += 1
            _logger.warning("the last-known-good file was not written: %s", error)
            return
        self._kept = good
