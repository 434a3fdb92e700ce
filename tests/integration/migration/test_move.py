"""20,000 orders move from SQLite to PostgreSQL while five writers change them, one of them killed again and again.

Each writer has keys of its own and remembers what was acknowledged last, so the test can say of every key which row it
must have, besides that the two stores must be equal.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa

from fairlead.errors import FairleadError
from fairlead.flags import FlagSet
from fairlead.migration import (
    Backfill,
    Migration,
    ShadowReads,
    Stage,
    Throttle,
    Verification,
    flag_stage,
    verify,
)
from fairlead.migration.sqlalchemy import TableStore
from fairlead.telemetry import MetricRegistry
from tests.integration.migration.tables import ORDERS, create
from tests.integration.migration.writer import order

ROWS = 20_000
WRITERS = 5
HERE = Path(__file__)


@dataclass
class Fleet:
    """One process in this test with four writers, and one of its own that is killed."""

    folder: Path
    old_url: str
    new_url: str
    expected: dict[int, int | None] = field(default_factory=dict)
    """Cents of each key that was acknowledged last; None where it was deleted."""
    unsure: set[int] = field(default_factory=set)
    """Keys whose last write failed, or was cut off by the kill."""
    writes: int = 0
    kills: int = 0
    stages_of_the_other: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.flag_file = self.folder / "flags.json"
        self.set_stage(Stage.OFF)
        self.config = self.folder / "config.json"
        self.config.write_text(
            json.dumps(
                {
                    "old": self.old_url,
                    "new": self.new_url,
                    "flags": str(self.flag_file),
                    "rows": ROWS,
                    "writers": WRITERS,
                }
            )
        )
        self.metrics = MetricRegistry()
        self.flags = FlagSet.from_file(self.flag_file)
        self.old, self.new = TableStore(self.old_url, ORDERS), TableStore(self.new_url, ORDERS)
        self.migration = Migration(
            "orders",
            old=self.old,
            new=self.new,
            stage=flag_stage(self.flags, "orders"),
            second_timeout=5.0,
            shadow=ShadowReads(concurrency=8, timeout=5.0),
            metrics=self.metrics,
        )
        self.child: subprocess.Popen[str] | None = None
        self.child_said = self.folder / "said.jsonl"

    def set_stage(self, stage: Stage) -> None:
        document = {
            "flags": {
                "orders": {
                    "state": "ENABLED",
                    "variants": {each.name.lower(): each for each in Stage},
                    "defaultVariant": stage.name.lower(),
                }
            }
        }
        beside = self.flag_file.with_suffix(".next")
        beside.write_text(json.dumps(document))
        beside.replace(self.flag_file)

    async def go(self, stage: Stage) -> None:
        """Sets the flag, and waits until both processes are there."""
        self.set_stage(stage)
        assert self.flags.reload() is None
        self.stages_of_the_other.clear()
        async with asyncio.timeout(20):
            while self.migration.stage is not stage or stage not in self.stages_of_the_other:
                assert self.migration.refusal == ""
                await asyncio.sleep(0.05)
                self.listen()
                if self.child is None or self.child.poll() is not None:
                    self.start_child()

    def start_child(self) -> None:
        with self.child_said.open("a") as said:
            self.child = subprocess.Popen(
                [sys.executable, str(HERE.with_name("writer.py")), str(self.config), "0"],
                stdout=said,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )

    def kill_child(self) -> None:
        assert self.child is not None
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()
        self.kills += 1
        self.listen(ended=True)

    def listen(self, *, ended: bool = False) -> None:
        """Takes in what the other process has said since."""
        begun: set[int] = set()
        self.stages_of_the_other = set()
        for line in self.child_said.read_text().splitlines():
            with suppress(ValueError):
                said = json.loads(line)
                if (key := said.get("begins")) is not None:
                    begun.add(key)
                elif (key := said.get("done")) is not None:
                    begun.discard(key)
                    self.unsure.discard(key)
                    self.expected[key] = said["cents"]
                    self.stages_of_the_other = {said["stage"]}
                elif (key := said.get("failed")) is not None:
                    begun.discard(key)
                    self.unsure.add(key)
        self.unsure |= begun

    async def write(self, seed: int) -> None:
        rng = random.Random(seed)
        keys = [key for key in range(1, ROWS + 500) if key % WRITERS == seed]
        while True:
            key = rng.choice(keys)
            value = None if rng.random() < 0.2 else order(rng)
            self.unsure.add(key)  # until it is acknowledged: a cancelled write may be done
            with suppress(FairleadError):
                await (self.migration.delete(key) if value is None else self.migration.write(key, value))
                self.unsure.discard(key)
                self.expected[key] = None if value is None else int(str(value["cents"]))
                self.writes += 1
            row = await self.migration.read(rng.choice(keys))
            assert row is None or row.keys() == {"customer", "cents", "paid", "rate", "payload"}

    async def check(self) -> None:
        """Both stores are equal, and have what was acknowledged."""
        found = await self.settled()
        for store in (self.old, self.new):
            keys = sorted(self.expected)
            cents = {row.key: row.value and row.value["cents"] for row in await store.read(keys)}
            wrong = [key for key in keys if key not in self.unsure and cents[key] != self.expected[key]]
            assert wrong == []
        assert (found.differences, found.unsettled) == (0, 0), found
        assert found.compared > ROWS / 2

    async def settled(self) -> Verification:
        """What is found once nothing is marked any more.

        A write that was cancelled may still be done, by a thread that nobody waits for, and after a reconciliation: it
        is marked then, and of a key that is unsure.
        """
        for _ in range(5):
            while (await self.migration.reconcile()).left:
                pass
            found = await verify(self.migration, recheck_after=0.05)
            if not found.differences:
                break
            assert all(each.marked and each.key in self.unsure for each in found.examples), found
        return found


@pytest.fixture
async def fleet(tmp_path: Path, postgres_url: str) -> AsyncIterator[Fleet]:
    old_url = f"sqlite:///{tmp_path}/orders.db"
    for url in (old_url, postgres_url):
        create(url, ORDERS)
    engine, rng = sa.create_engine(old_url), random.Random(20_000)
    with engine.begin() as connection:
        connection.execute(sa.insert(ORDERS), [{"id": key, **order(rng)} for key in range(1, ROWS + 1)])
    engine.dispose()
    fleet = Fleet(tmp_path, old_url, postgres_url)
    yield fleet
    if fleet.child is not None:
        fleet.child.kill()
        fleet.child.wait()
    await fleet.migration.close()
    for store in (fleet.old, fleet.new):
        await store.close()


@pytest.mark.parametrize("walk", ["forward", "back"])
async def test_a_table_moves_under_writes_with_zero_differences(fleet: Fleet, walk: str):
    async with fleet.migration as migration, asyncio.TaskGroup() as tasks:
        writers = [tasks.create_task(fleet.write(seed)) for seed in range(1, WRITERS)]
        fleet.start_child()
        await fleet.go(Stage.OFF)
        await fleet.go(Stage.DUAL_WRITE)
        backfill = Backfill(migration, throttle=Throttle(rows_per_second=6_000.0, batch=500, slow_after=5.0))
        copying = tasks.create_task(backfill.run())
        for _ in range(3):
            await asyncio.sleep(0.7)
            fleet.kill_child()
            fleet.start_child()
        copying.cancel()
        await asyncio.wait([copying])
        cut_at = backfill.progress.copied
        again = Backfill(migration, throttle=Throttle(rows_per_second=20_000.0, batch=500, slow_after=5.0))
        assert (await again.run()).done
        assert 0 < cut_at <= again.progress.copied

        await fleet.go(Stage.SHADOW_READ)
        await migration.reconcile()
        found = await verify(migration, recheck_after=0.1)
        assert found.differences == 0, found
        await migration.permit(Stage.LIVE)
        await fleet.go(Stage.LIVE)
        fleet.kill_child()
        await fleet.go(Stage.LIVE)
        if walk == "forward":
            await fleet.go(Stage.RAMP_DOWN)
            fleet.kill_child()
            await fleet.go(Stage.RAMP_DOWN)
        else:
            for stage in (Stage.SHADOW_READ, Stage.DUAL_WRITE, Stage.OFF, Stage.DUAL_WRITE):
                await fleet.go(stage)
                await asyncio.sleep(0.3)
        fleet.kill_child()
        for writer in writers:
            writer.cancel()
        await asyncio.wait(writers)
        await fleet.check()
        if walk == "forward":
            await migration.permit(Stage.COMPLETE, confirm=True)
            fleet.set_stage(Stage.COMPLETE)
            assert fleet.flags.reload() is None
            await migration.write(1, order(random.Random(1)))
            assert migration.stage is Stage.COMPLETE
            assert (await fleet.old.read([1])) != (await fleet.new.read([1]))
    counted = {
        (family.name, *labels): value
        for family in fleet.metrics.snapshot().families
        for labels, value in family.values.items()
        if family.name.startswith("fairlead_migration_shadow")
    }
    print(f"writes {fleet.writes} and more in the other process, kills {fleet.kills}, {counted}")
    assert not any("different" in str(labels) or "extra" in str(labels) for labels in counted)
    assert fleet.writes > 200
    assert fleet.kills >= 5
