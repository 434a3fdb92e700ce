"""From one store to another under live writes, a stage at a time, with a way back from each.

A `Migration` stands where a service reads and writes a table. A flag says the `Stage`: which store answers, which is
written first, and what the failure of the other one means. What the other store lacks is marked in the transaction of
the write itself, so `reconcile` finds it after any crash. `Backfill` copies what was there before, `verify` counts what
differs, `ShadowReads` compares answers while users are served by the other store.

`fairlead.migration.sqlalchemy` moves tables of SQLite and PostgreSQL; another store implements `MigrationStore`.
"""

from __future__ import annotations

from fairlead.migration.backfill import Backfill, BackfillProgress, Throttle
from fairlead.migration.dual_write import Migration
from fairlead.migration.reconcile import Reconciliation
from fairlead.migration.shadow_read import ShadowOutcome, ShadowReads
from fairlead.migration.stage import Side, Stage, StagePlan, StageSource, flag_stage
from fairlead.migration.store import Key, MigrationStore, Row, Value, next_version
from fairlead.migration.verify import Difference, Verification, verify

__all__ = [
    "Backfill",
    "BackfillProgress",
    "Difference",
    "Key",
    "Migration",
    "MigrationStore",
    "Reconciliation",
    "Row",
    "ShadowOutcome",
    "ShadowReads",
    "Side",
    "Stage",
    "StagePlan",
    "StageSource",
    "Throttle",
    "Value",
    "Verification",
    "flag_stage",
    "next_version",
    "verify",
]
