"""Several processes on one ledger, on both engines: at once, killed, kept waiting, starting together."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest

from fairlead.errors import DatabaseUnavailable
from fairlead.ledger import Decision, Evidence, Ledger
from fairlead.store import Database
from tests.integration.ledger.writers import Writer, barrier, freeze, migrate, record
from tests.unit.ledger.contract import figure


def test_eight_writing_processes_lose_nothing_and_double_nothing(where: str, ledger: Ledger, tmp_path: Path):
    start = barrier(8)
    writers = [Writer(record, where, f"p{n}", 12, tmp_path, start) for n in range(8)]
    told = [id for writer in writers for id in writer.ended()]
    assert ledger.verify(ledger.head()).problems == ()
    entries = list(ledger.entries())
    assert [entry.number for entry in entries] == list(range(1, 8 * 24 + 1))
    evidence = [entry.id for entry in entries if isinstance(entry.body, Evidence)]
    assert Counter(evidence) == Counter(told)
    assert len(set(told)) == 8 * 12
    assert sum(isinstance(entry.body, Decision) for entry in entries) == 8 * 12


def test_processes_that_record_the_same_record_it_once(where: str, ledger: Ledger, tmp_path: Path):
    start = barrier(4)
    writers = [Writer(_the_same, where, f"p{n}", 10, tmp_path, start) for n in range(4)]
    told = [writer.ended() for writer in writers]
    assert [ids == told[0] for ids in told] == [True] * 4
    assert ledger.verify().entries == 20


def test_processes_that_freeze_one_name_make_one_line_of_versions(where: str, ledger: Ledger, tmp_path: Path):
    start = barrier(2)
    writers = [Writer(freeze, where, f"p{n}", 15, tmp_path, start) for n in range(2)]
    told = [int(version) for writer in writers for version in writer.ended()]
    versions = list(ledger.history("home_feed"))
    assert [version.version for version in versions] == list(range(1, 31)) == sorted(told)
    assert [version.follows for version in versions] == [None, *(version.sha256 for version in versions[:-1])]


def test_a_killed_writer_leaves_a_whole_chain_with_all_it_was_told(
    where: str, ledger: Ledger, tmp_path: Path
):
    rng = random.Random(5)
    for turn in range(5):
        writer = Writer(record, where, f"turn{turn}", 1_000_000, tmp_path)
        end = time.monotonic() + 30
        while not writer.told() and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        writer.process.kill()
        writer.process.join()
        assert ledger.verify().problems == ()
        told = [id for id in writer.told() if len(id) == 64]
        assert told
        assert list(ledger.evidence_by_ids(told)) == told
        ledger.record_evidence(figure(n=turn))  # the dead writer's place is free


def test_processes_that_migrate_at_once_migrate_once(where: str, tmp_path: Path):
    start = barrier(6)
    for writer in [Writer(migrate, where, f"p{n}", 0, tmp_path, start) for n in range(6)]:
        writer.ended()
    with Database(where) as database:
        assert Ledger(database).verify().is_whole


def test_a_migration_that_is_killed_leaves_nothing(where: str, tmp_path: Path):
    rng = random.Random(6)
    for turn in range(4):
        writer = Writer(migrate, where, f"p{turn}", 0, tmp_path)
        while not writer.told():
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.03))
        writer.process.kill()
        writer.process.join()
    with Database(where) as database:
        database.migrate()
        assert Ledger(database).verify().is_whole


def test_a_writer_that_is_kept_waiting_gives_up_in_time_and_writes_nothing(
    where: str, database: Database, ledger: Ledger
):
    with Database(where, timeout=0.2) as other, database.write():
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match=r"writing for more than 0\.2 s"):
            Ledger(other).record_evidence(figure())
        assert 0.2 <= time.monotonic() - began < 5
        assert Ledger(other).verify().entries == 0  # who reads does not wait
    assert ledger.verify().entries == 0


def _the_same(where: str, who: str, *rest: object) -> None:
    record(where, "the_same", *rest)
