"""The journal on both engines: what it refuses, who leads, and that nobody can rewrite it."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from fairlead.errors import InvalidInput, StaleEpoch
from fairlead.rollout import Journal
from fairlead.rollout.entry import Asked, Ended, Had, Paged, Wanted
from fairlead.rollout.journal import ROLLOUT, plan_sha256
from fairlead.store import Database
from tests.unit.rollout.conftest import plan

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__, "fairlead.store.migration", "fairlead.store.postgres"])
WANTED = Wanted(stage=0, share=0.05)


def ended(journal: Journal) -> None:
    journal.append([Ended(outcome="rolled_back")], journal.claim("ender"))


# What the database itself refuses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        sa.update(ROLLOUT).values(epoch=99),
        sa.update(ROLLOUT).where(ROLLOUT.c.number == 2).values(payload=b"{}"),
        sa.delete(ROLLOUT),
        sa.delete(ROLLOUT).where(ROLLOUT.c.number == 2),
    ],
    ids=["update all", "update one", "delete all", "delete one"],
)
def test_no_entry_is_changed_or_deleted(database: Database, statement: sa.Update):
    journal = Journal.start(database, plan(), by="ann")
    journal.append([WANTED], journal.claim("one"))
    before = journal.read()
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), database.write() as connection:
        connection.execute(statement)
    assert journal.read() == before


@pytest.mark.parametrize("number", [0, 1, 3, 4, 6, 100, -1])
def test_a_number_that_is_not_the_next_is_refused(database: Database, number: int):
    journal = Journal.start(database, plan(), by="ann")
    journal.append([WANTED, WANTED], journal.claim("one"))
    row = {
        "change": "feed", "run": 1, "number": number, "epoch": 1, "kind": "paged", "at_utc_seconds": 0.0,
        "payload": b"{}",
    }  # fmt: skip
    assert len(journal.read()) == 4
    for statement in (
        sa.insert(ROLLOUT),
        sa.insert(ROLLOUT).prefix_with("OR REPLACE", dialect="sqlite"),
    ):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), database.write() as connection:
            connection.execute(statement, row)
    assert len(journal.read()) == 4


def test_postgres_refuses_to_empty_the_table(postgres_url: str):
    with Database(postgres_url) as database:
        database.migrate()
        journal = Journal.start(database, plan(), by="ann")
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), database.write() as connection:
            connection.execute(sa.text("TRUNCATE fairlead_rollout"))
        assert len(journal.read()) == 1


# Who leads -----------------------------------------------------------------------------------------------------------


def test_who_lost_the_lead_writes_nothing(database: Database):
    journal = Journal.start(database, plan(), by="ann")
    first, second = journal.claim("first"), journal.claim("second")
    assert second > first
    with pytest.raises(StaleEpoch, match=f"another controller leads with {second}"):
        journal.append([WANTED], first)
    journal.append([WANTED], second)
    assert [written.epoch for written in journal.read()][-1] == second
    assert journal.state().leader == "second"


def test_all_entries_of_a_call_are_written_or_none(database: Database, monkeypatch: pytest.MonkeyPatch):
    journal = Journal.start(database, plan(), by="ann")
    epoch = journal.claim("one")
    before = journal.read()

    def failing(entry: object) -> bytes:
        if isinstance(entry, Had):
            raise RuntimeError("killed here")
        return b'{"kind":"paged","what":"x"}'

    monkeypatch.setattr("fairlead.rollout.journal.encode_entry", failing)
    with pytest.raises(RuntimeError):
        journal.append([Paged(what="x"), Had(stage=0, share=0.0)], epoch)
    assert journal.read() == before


def test_epochs_rise_over_the_rollouts_of_a_change_and_over_all_changes(database: Database):
    epochs = []
    for _ in range(3):
        journal = Journal.start(database, plan(), by="ann")
        epochs += [journal.claim("one"), journal.claim("two")]
        ended(journal)
    other = Journal.start(database, plan(name="other"), by="ann")
    epochs.append(other.claim("one"))  # it may move the flag that the change before has moved
    assert epochs == sorted(set(epochs))
    assert other.append([WANTED], epochs[-1])


def test_a_rollout_that_was_followed_by_another_can_no_longer_be_led(database: Database):
    old = Journal.start(database, plan(), by="ann")
    late = old.claim("late")
    old.append([Ended(outcome="rolled_back")], late)
    new = Journal.start(database, plan(), by="ann")
    leading = new.claim("leader")
    with pytest.raises(StaleEpoch, match="feed/2 has started since; lead that one"):
        old.claim("late")
    with pytest.raises(StaleEpoch):
        old.append([WANTED], late)
    assert new.append([WANTED], leading)


def test_one_rollout_of_a_change_at_a_time(database: Database):
    journal = Journal.start(database, plan(), by="ann")
    with pytest.raises(InvalidInput, match="rollout feed/1 is moving; end it before"):
        Journal.start(database, plan(), by="bob")
    ended(journal)
    assert Journal.start(database, plan(), by="bob").rollout == "feed/2"
    assert Journal.last(database, "feed").rollout == "feed/2"
    assert Journal.last(database, "other") is None


def test_two_changes_do_not_move_one_flag_at_a_time(database: Database, tmp_path: Path):
    flags = tmp_path / "flags.json"
    (tmp_path / "link.json").symlink_to(flags)
    journal = Journal.start(database, plan(), by="ann", places={"flags": str(flags)})
    linked = {"flags": str(tmp_path / "link.json")}
    with pytest.raises(
        InvalidInput, match=r"rollout feed/1 is moving, and moves flag feed in .*flags\.json too"
    ):
        Journal.start(database, plan(name="other"), by="bob", places=linked)
    assert Journal.last(database, "other") is None
    Journal.start(database, plan(name="third", flag="third"), by="bob", places={"flags": str(flags)})
    Journal.start(database, plan(name="staging"), by="bob", places={"flags": str(tmp_path / "staging.json")})
    ended(journal)
    assert Journal.start(database, plan(name="other"), by="bob", places=linked).rollout == "other/1"


@pytest.mark.parametrize(
    "places", [{}, {"haproxy": "/run/admin.sock", "map": "/etc/haproxy/feed.map"}], ids=["unnamed", "map"]
)
def test_two_changes_do_not_move_one_map_nor_an_unnamed_flag(database: Database, places: dict[str, str]):
    Journal.start(database, plan(), by="ann", places=places)
    with pytest.raises(InvalidInput, match="rollout feed/1 is moving, and moves"):
        Journal.start(database, plan(name="other"), by="bob", places=places)
    assert Journal.last(database, "other") is None


def test_a_wish_needs_no_epoch_and_is_found_by_whoever_leads(database: Database):
    journal = Journal.start(database, plan(), by="ann")
    journal.claim("one")
    Journal.last(database, "feed").ask(Asked(what="rollback", by="bob", why="a bad feeling"))
    assert journal.state().rollback_asked == "a bad feeling"


# Several processes ----------------------------------------------------------------------------------------------------


def _fight(where: str, told: Path, turns: int) -> None:
    """Claims, and appends until another one has claimed; tells which epochs it had and what it appended."""
    with Database(where) as database, told.open("w") as file:
        journal = Journal(database, "feed", 1)
        for turn in range(turns):
            epoch = journal.claim(told.name)
            for n in range(3):
                try:
                    journal.append([Paged(what=f"{told.name} {turn} {n}"), Paged(what="and")], epoch)
                except StaleEpoch:
                    break
                print(epoch, turn, n, file=file, flush=True)


def test_controllers_that_claim_at_once_never_write_into_each_others_epoch(
    where: str, database: Database, tmp_path: Path
):
    journal = Journal.start(database, plan(), by="ann")
    told = [tmp_path / f"p{n}" for n in range(3)]
    processes = [_CONTEXT.Process(target=_fight, args=(where, each, 8)) for each in told]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    entries = journal.read()
    assert [written.number for written in entries] == list(range(1, len(entries) + 1))
    epochs = [written.epoch for written in entries]
    assert epochs == sorted(epochs)
    assert max(epochs) == 24  # each claim is its own
    leaders: dict[int, str] = {}
    pages = []
    for written in entries:
        match written.entry.__struct_config__.tag:
            case "claimed":
                leaders[written.epoch] = written.entry.by  # type: ignore[union-attr]
            case "paged" if written.entry.what != "and":  # type: ignore[union-attr]
                who, turn, n = written.entry.what.split()  # type: ignore[union-attr]
                assert leaders[written.epoch] == who
                pages.append((who, f"{written.epoch} {turn} {n}"))
    said = [(each.name, line) for each in told for line in each.read_text().splitlines()]
    assert sorted(pages) == sorted(said)


def _start(where: str, told: Path) -> None:
    with Database(where) as database:
        try:
            told.write_text(Journal.start(database, plan(), by=told.name).rollout)
        except InvalidInput as error:
            told.write_text(str(error))


def test_of_processes_that_start_a_rollout_at_once_one_does(where: str, database: Database, tmp_path: Path):
    told = [tmp_path / f"p{n}" for n in range(4)]
    processes = [_CONTEXT.Process(target=_start, args=(where, each)) for each in told]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    said = [each.read_text() for each in told]
    assert said.count("feed/1") == 1
    assert sum("end it before another one starts" in each for each in said) == 3


def test_another_plan_has_another_hash(database: Database):
    journal = Journal.start(database, plan(), by="ann")
    assert journal.state().plan_sha256 == plan_sha256(plan())
    assert journal.state().plan_sha256 != plan_sha256(replace(plan(), alpha=0.01))


def test_a_state_goes_on_from_where_it_was(database: Database):
    journal = Journal.start(database, plan(), by="ann")
    before = journal.state()
    ended(journal)
    assert journal.state(after=before) == journal.state()
    assert journal.state(after=journal.state()).phase == "rolled_back"
