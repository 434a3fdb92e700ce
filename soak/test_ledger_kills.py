"""Hundreds of SIGKILLs of a process that writes into the ledger, on SQLite and on PostgreSQL.

`make soak` runs this; FAIRLEAD_SOAK_KILLS sets how many of each (default 200).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.ledger import Ledger
from fairlead.store import Database
from fairlead.testing import PostgresServer
from tests.integration.ledger.writers import Writer, record
from tests.unit.ledger.contract import figure

KILLS = int(os.environ.get("FAIRLEAD_SOAK_KILLS", "200"))


@pytest.fixture(params=["sqlite", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield str(tmp_path / "fairlead.db")
    else:
        with PostgresServer() as server:
            yield server.url


def test_a_chain_stays_whole_however_often_its_writers_are_killed(where: str, tmp_path: Path) -> None:
    rng = random.Random(55)
    kept = 0
    with Database(where) as database:
        database.migrate()
        ledger = Ledger(database)
        for turn in range(KILLS):
            # Two at once, so that one is killed while the other waits for the writer's place.
            writers = [Writer(record, where, f"turn{turn}-{n}", 1_000_000, tmp_path) for n in range(2)]
            limit = time.monotonic() + 30
            while not all(writer.told() for writer in writers) and time.monotonic() < limit:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.05))
            for writer in writers:
                writer.process.kill()
            for writer in writers:
                writer.process.join()
            report = ledger.verify()
            assert report.problems == ()
            assert report.entries > kept
            kept = report.entries
            for writer in writers:
                told = [id for id in writer.told() if len(id) == 64]
                assert told
                assert list(ledger.evidence_by_ids(told)) == told
            ledger.record_evidence(figure(n=turn))
    print(f"{KILLS} rounds, {kept} entries")
