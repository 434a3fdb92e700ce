"""Copies the rows that were there before the migration, a batch at a time, and goes on where it was killed.

    scan the old store behind the last key → offer the batch to the new store → note the last key, durably → pause

The new store takes a row only if it has no newer one, so a batch that was read a moment before a dual write cannot undo
it, nor bring back what was deleted; and a batch that is offered twice changes nothing. So the checkpoint may lag behind
the rows, and never runs ahead of them.

Users come first: the rate is bounded, and when the old store answers slowly, either store refuses, or `may_run` says
no, the backfill pauses, each time twice as long, until they have recovered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from fairlead.calls.bounds import check_number, check_whole
from fairlead.errors import DeadlineExceeded, Refused, StageRefused, StoreUnavailable
from fairlead.migration.dual_write import Migration
from fairlead.migration.notes import BackfillNote, Notes
from fairlead.migration.stage import Stage
from fairlead.migration.store import Row
from fairlead.telemetry import MetricRegistry

__all__ = ["Backfill", "BackfillProgress", "Throttle"]

_FIRST_PAUSE = 0.5
_STAGES = (Stage.DUAL_WRITE, Stage.SHADOW_READ)


@dataclass(frozen=True, kw_only=True, slots=True)
class Throttle:
    """How much a backfill may ask of the two stores."""

    rows_per_second: float = 1_000.0
    """Rows offered per second on average, above 0 up to 10,000,000. 1,000: a million rows in 17 minutes."""
    batch: int = 200
    """Rows per scan and per transaction of the new store, 1 to 10,000."""
    slow_after: float = 0.25
    """Seconds for the scan of one batch above which the old store is called slow, above 0 up to 60."""
    longest_pause: float = 30.0
    """Seconds of the longest pause, 0.5 to 3600."""
    patience: float = 600.0
    """Seconds without a batch, while a store does not answer, after which the error is raised; 0 to a week."""

    def __post_init__(self) -> None:
        check_number("Throttle.rows_per_second", self.rows_per_second, above=0.0, high=10_000_000.0)
        check_whole("Throttle.batch", self.batch, low=1, high=10_000)
        check_number("Throttle.slow_after", self.slow_after, above=0.0, high=60.0)
        check_number("Throttle.longest_pause", self.longest_pause, low=_FIRST_PAUSE, high=3_600.0)
        check_number("Throttle.patience", self.patience, low=0.0, high=604_800.0)


class BackfillProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a backfill is."""

    copied: int
    """Rows offered to the new store, by all runs together."""
    total: int
    """Rows of the old store when this run began."""
    done: bool
    rows_per_second: float
    """Of this run, its pauses included."""
    eta_seconds: float | None
    """Seconds until the end at this rate; None while there is no rate, 0 at the end."""
    pauses: int
    """Pauses of this run because a store was slow or refused, or `may_run` said no."""


class Backfill:
    """The copy from the old store to the new one. Run it in one process; a second one would only do the work twice.

    migration: entered, and in dual-write or shadow-read.
    may_run: asked before each batch; False pauses it. For a signal of the service's own, such as a load shedder's.
    metrics: where the rows are counted; private by default.
    """

    def __init__(
        self,
        migration: Migration,
        *,
        throttle: Throttle | None = None,
        may_run: Callable[[], bool] | None = None,
        metrics: MetricRegistry | None = None,
    ) -> None:
        self._migration = migration
        self._throttle = throttle or Throttle()
        self._may_run = may_run or (lambda: True)
        self._clock = migration.clock
        self._notes = Notes(migration.pair["new"], migration.name)
        self._note = BackfillNote()
        self._total = self._rows = self._pauses = 0
        self._began = self._went = self._clock.now()
        self._pause = _FIRST_PAUSE
        self._counted = (
            (metrics or MetricRegistry())
            .counter(
                "fairlead_migration_backfilled_rows_total",
                "Rows that a backfill offered to the new store.",
                labels=("migration",),
            )
            .labels(migration=migration.name)
        )

    @property
    def progress(self) -> BackfillProgress:
        """Where it is now; safe to ask while it runs."""
        seconds = self._clock.now() - self._began
        rate = self._rows / seconds if seconds > 0 else 0.0
        left = 0 if self._note.done else max(0, self._total - self._note.copied)
        return BackfillProgress(
            copied=self._note.copied,
            total=self._total,
            done=self._note.done,
            rows_per_second=rate,
            eta_seconds=0.0 if self._note.done else left / rate if rate > 0 else None,
            pauses=self._pauses,
        )

    async def run(self, *, restart: bool = False) -> BackfillProgress:
        """Copies until the end of the old store, from the checkpoint on; returns at once if it had ended.

        restart: begins with the first row again.
        Raises StageRefused outside dual-write and shadow-read, and a store's own error when it has not answered for
        `patience`. Cancelled or killed, it goes on from the last batch that was noted.
        """
        old = self._migration.pair["old"]
        self._check_stage()
        self._note = (None if restart else await self._notes.backfill()) or BackfillNote()
        if self._note.done:
            return self.progress
        self._total = await old.count()
        self._began = self._went = self._clock.now()
        self._rows = 0
        while not self.progress.done:
            self._check_stage()
            if not self._may_run():
                await self._wait(None)
                continue
            try:
                slow = await self._batch()
            except (StoreUnavailable, Refused, DeadlineExceeded, OSError) as error:
                if (
                    isinstance(error, StageRefused)
                    or self._clock.now() - self._went >= self._throttle.patience
                ):
                    raise
                await self._wait(error)
                continue
            self._went = self._clock.now()
            if slow:
                await self._wait(None)
            else:
                self._pause = _FIRST_PAUSE
                await self._keep_to_the_rate()
        return self.progress

    async def _batch(self) -> bool:
        """Copies one batch; returns whether the old store was slow to give it."""
        throttle, pair = self._throttle, self._migration.pair
        asked = self._clock.now()
        rows: list[Row] = await pair["old"].scan(self._note.after, throttle.batch)
        slow = self._clock.now() - asked > throttle.slow_after
        if rows:
            await pair["new"].apply(rows)
        note = BackfillNote(
            after=rows[-1].key if rows else self._note.after,
            copied=self._note.copied + len(rows),
            done=len(rows) < throttle.batch,
            at=self._clock.utc(),
        )
        await self._notes.keep_backfill(note)
        self._note = note
        self._rows += len(rows)
        self._counted.add(len(rows))
        return slow and not note.done

    async def _keep_to_the_rate(self) -> None:
        due = self._began + self._rows / self._throttle.rows_per_second
        ahead = due - self._clock.now()
        if ahead > 0:
            await self._clock.sleep(ahead)
        else:
            # What a pause or a slow store has cost is not made up for by a burst.
            self._began -= ahead if -ahead > 1.0 else 0.0
            await self._clock.sleep(0)

    async def _wait(self, error: Exception | None) -> None:
        asked = getattr(error, "retry_after", None) or 0.0
        self._pauses += 1
        await self._clock.sleep(min(max(self._pause, asked), self._throttle.longest_pause))
        self._pause = min(self._pause * 2, self._throttle.longest_pause)

    def _check_stage(self) -> None:
        stage = self._migration.stage
        if stage not in _STAGES:
            raise StageRefused(
                f"{self._migration.name}: a backfill runs in {' or '.join(_STAGES)}, not in {stage}; "
                f"what was copied is kept, and it goes on from there"
            )
