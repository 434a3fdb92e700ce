"""Reads and writes a row where the stage says, and keeps the other store within reach of a reconciliation.

    write:  first store: row, version and mark, in one transaction → second store: the row if newer → mark away
            └ a failure is the caller's: nothing was done            └ a failure leaves the mark; the caller has
                                                                       succeeded, except in live

A process that dies, is cancelled or cannot reach the second store leaves a mark and nothing else to repair. The second
write has a time of its own and a circuit breaker where the caller does not need it, so a store that hangs costs that
time a few times, and then nothing until it answers again.

A new stage is taken up before the next read or write, if it is a neighbour of the last one and its conditions hold; if
not, the process goes on as before and says why. The stage is noted in the stores, so that a process which starts later
cannot make a jump either.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from fairlead.calls.bounds import check_number
from fairlead.calls.circuit_breaker import CircuitBreaker
from fairlead.calls.policy import Policy
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import CircuitOpen, DeadlineExceeded, InvalidInput, StageRefused, StoreUnavailable
from fairlead.migration.gate import Gate
from fairlead.migration.pair import Pair, other
from fairlead.migration.reconcile import Reconciliation, reconcile
from fairlead.migration.settling import Settling
from fairlead.migration.shadow_read import Comparing, ShadowReads
from fairlead.migration.stage import Side, Stage, StagePlan, StageSource
from fairlead.migration.store import Key, MigrationStore, Value
from fairlead.telemetry import MetricRegistry, StateChanged

__all__ = ["Migration"]

_log = logging.getLogger(__name__)

_ASKED_AGAIN_AFTER = 1.0
"""Seconds before a refused stage is looked into again: the conditions are read from the stores."""


class Migration:
    """The way to a table that moves from one store to another. One per table and process, used as a context manager.

    name: of the migration, in notes, errors, events and metrics; the same in every process.
    old, new: the two stores. `close` leaves them open.
    stage: says the stage that is wanted: `flag_stage(...)`, or any function.
    second_timeout: seconds for the second write where the caller does not need it, above 0 up to 60.
    shadow: how reads are compared in shadow-read and live; None: the defaults.
    metrics: where counters are kept; private by default.
    on_event: called with a StateChanged when this process takes up a stage. It must not block.

    Entering it raises StageRefused if the stage is not the one that the stores were last in, or a neighbour.
    Safe for any number of tasks of one loop.
    """

    def __init__(
        self,
        name: str,
        *,
        old: MigrationStore,
        new: MigrationStore,
        stage: StageSource,
        second_timeout: float = 1.0,
        shadow: ShadowReads | None = None,
        metrics: MetricRegistry | None = None,
        on_event: Callable[[StateChanged], object] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
    ) -> None:
        check_number("Migration.second_timeout", second_timeout, above=0.0, high=60.0)
        if old is new:
            raise InvalidInput(f"{name}: old and new are one store; a migration needs two")
        self.name = name
        self.pair = Pair(name, old, new)
        """The two stores, for a backfill or a verification."""
        self.clock = clock
        self._source = stage
        self._gate = Gate(self.pair, clock)
        self._stage: Stage | None = None
        self._plan = Stage.OFF.plan
        self._refusal: tuple[object, str, float] | None = None
        self._moving = asyncio.Lock()
        self._on_event = on_event
        self._count(metrics or MetricRegistry())
        self._comparing = Comparing(
            self.pair,
            shadow or ShadowReads(),
            lambda outcome: self._compared.labels(migration=name, outcome=outcome).add(),
            clock,
            rng,
        )
        self._settling = {side: Settling(self.pair[side], name) for side in self.pair.stores}
        self._seconds: dict[Side, Policy] = {
            side: Policy(
                name=f"{name} second write to the {side} store",
                timeout=second_timeout,
                # By calls, not by seconds: a quiet table's writes would never be enough to open it.
                breaker=CircuitBreaker(
                    f"{name}, {side} store",
                    last_calls=20,
                    minimum_calls=5,
                    is_failure=_speaks_against,
                    clock=clock,
                ),
                clock=clock,
            )
            for side in self.pair.stores
        }

    def _count(self, metrics: MetricRegistry) -> None:
        self._writes = metrics.counter(
            "fairlead_migration_writes_total",
            "Writes by outcome: single, both, marked (the second store lacks it for now), failed.",
            labels=("migration", "outcome"),
        )
        self._compared = metrics.counter(
            "fairlead_migration_shadow_reads_total",
            "Reads compared with the other store, by outcome.",
            labels=("migration", "outcome"),
        )
        self._reconciled = metrics.counter(
            "fairlead_migration_reconciled_total",
            "Marked keys that a reconciliation carried, found superseded, or failed to carry.",
            labels=("migration", "outcome"),
        )
        self._refusals = metrics.counter(
            "fairlead_migration_refused_stages_total",
            "Looks at a stage that was wanted and refused; the process goes on in the stage before.",
            labels=("migration",),
        ).labels(migration=self.name)
        stage = metrics.gauge(
            "fairlead_migration_stage", "The stage: 0 off to 5 complete.", labels=("migration",), merge="min"
        ).labels(migration=self.name)
        stage.track(lambda: float("nan") if self._stage is None else self._stage.number)
        self._marks = metrics.gauge(
            "fairlead_migration_marked_keys",
            "Keys that the other store may lack, as the last reconciliation left them.",
            labels=("migration",),
            merge="max",
        ).labels(migration=self.name)

    async def __aenter__(self) -> Self:
        wanted = self._source()
        if wanted is None:
            raise StageRefused(f"{self.name}: the flag says no stage, so there is none to begin in; set it")
        stage = await self._gate.admit(wanted)
        self._become(stage)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends comparisons and takes away the marks of writes that both stores have. The stores stay open."""
        await self._comparing.close()
        for settling in self._settling.values():
            await settling.close()

    @property
    def stage(self) -> Stage:
        """The stage that this process is in. Raises InvalidInput before the migration was entered."""
        if self._stage is None:
            raise InvalidInput(f"{self.name}: not begun; use it as `async with migration:`")
        return self._stage

    @property
    def refusal(self) -> str:
        """Why the stage that is wanted was not taken up; empty when it was."""
        return self._refusal[1] if self._refusal is not None else ""

    @property
    def differing_fields(self) -> dict[str, int]:
        """How often each field differed in shadow reads of this process."""
        return dict(self._comparing.fields)

    async def read(self, key: Key) -> Value | None:
        """The row's fields from the authority, or None. Raises what that store raises; the other one costs nothing."""
        plan = await self._follow()
        (row,) = await self.pair[plan.reads].read((key,))
        if plan.compares is not None:
            self._comparing.compare(plan.reads, row)
        return row.value

    async def write(self, key: Key, value: Value) -> None:
        """Replaces the whole row, or makes it.

        Raises what the first store raises, and nothing was written then unless it says that this is not known. In live
        it raises what the second store raises too; the row is then in the old store, and a reconciliation brings it to
        the new one unless it is written again. On cancellation the write may be done in one store, and is marked there.
        """
        await self._write(key, value)

    async def delete(self, key: Key) -> None:
        """Removes the row; nothing happens if there is none. Raises as `write`."""
        await self._write(key, None)

    async def reconcile(self) -> Reconciliation:
        """Carries what is marked to the other store, once. Safe in several processes at once.

        In off and complete, where only one store is in use, it does nothing. Raises StoreUnavailable when a store's
        marks cannot be read.
        """
        plan = await self._follow()
        if len(plan.writes) < 2:
            return Reconciliation()
        done = await reconcile(self.pair)
        for outcome in ("carried", "superseded", "failed"):
            self._reconciled.labels(migration=self.name, outcome=outcome).add(getattr(done, outcome))
        self._marks.set(done.left)
        return done

    async def keep_reconciled(self, every: float = 1.0) -> None:
        """Reconciles again and again, `every` seconds after the end of the last pass, until cancelled."""
        check_number("keep_reconciled.every", every, above=0.0, high=86_400.0)
        while True:
            try:
                await self.reconcile()
            except StoreUnavailable:
                _log.warning("%s: the marks could not be read", self.name, exc_info=True)
            await self.clock.sleep(every)

    async def permit(self, stage: Stage, *, confirm: bool = False) -> None:
        """Lets the fleet go on to live or to complete once the flag says so; other steps need no permit.

        live: the backfill has ended, a verification since then found no difference, and a reconciliation leaves
        nothing behind. complete: `confirm=True`, since the old store falls behind from then on; it is the last step
        from which a flag alone leads back at once. Raises StageRefused, which says what is missing.
        """
        if Stage(stage) is Stage.LIVE:
            done = await self.reconcile()
            if done.failed:
                raise StageRefused(
                    f"{self.name}: {done.failed} marked keys cannot be carried to the new store "
                    f"({done.errors[0] if done.errors else 'see the log'}); repair that first"
                )
        await self._gate.permit(self.stage, Stage(stage), confirm=confirm)

    async def _write(self, key: Key, value: Value | None) -> None:
        plan = await self._follow()
        first = plan.writes[0]
        try:
            version = await self.pair.write(first, key, value)
        except BaseException:
            self._wrote("failed")
            raise
        if len(plan.writes) == 1:
            self._wrote("single")
            return
        if plan.needs_both:
            try:
                settled = await self.pair.follow(first, key, value, version)
            except BaseException:
                self._wrote("failed")
                raise
        else:
            try:
                settled = await self._seconds[other(first)].call(self.pair.follow, first, key, value, version)
            except (
                Exception
            ) as error:  # whatever it is, the row is written and marked, and the caller has succeeded
                if not isinstance(error, CircuitOpen):
                    _log.debug("%s: a second write failed", self.name, exc_info=True)
                self._wrote("marked")
                return
        if settled >= 0:
            self._settling[first].add(key, settled)
        self._wrote("both")

    def _wrote(self, outcome: str) -> None:
        self._writes.labels(migration=self.name, outcome=outcome).add()

    async def _follow(self) -> StagePlan:
        """The plan of the stage that holds for this call."""
        wanted = self._source()
        if self._stage is None:
            raise InvalidInput(f"{self.name}: not begun; use it as `async with migration:`")
        if wanted is None or wanted == self._stage:
            self._refusal = None
            return self._plan
        refusal = self._refusal
        if refusal is None or refusal[0] != wanted or self.clock.now() >= refusal[2]:
            async with self._moving:
                if wanted != self._stage:
                    await self._go(wanted)
        return self._plan

    async def _go(self, wanted: str) -> None:
        try:
            stage = await self._gate.step(self._stage or Stage.OFF, wanted)
        except (StageRefused, StoreUnavailable) as error:
            if self._refusal is None or self._refusal[1] != str(error):
                _log.error("%s", error)
            self._refusals.add()
            self._refusal = (wanted, str(error), self.clock.now() + _ASKED_AGAIN_AFTER)
        else:
            self._refusal = None
            self._become(stage)

    def _become(self, stage: Stage) -> None:
        previous, self._stage, self._plan = self._stage, stage, stage.plan
        if self._on_event is not None:
            event = StateChanged(
                at_utc_seconds=self.clock.utc(),
                component="migration",
                name=self.name,
                previous=previous or "",
                current=stage,
            )
            # A broken listener must not fail the request that happened to be the first of a stage.
            with suppress(Exception):
                self._on_event(event)


def _speaks_against(error: BaseException) -> bool:
    """Whether a failed second write says something about the store, rather than about the row."""
    return isinstance(error, StoreUnavailable | DeadlineExceeded | OSError)
