from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from fairlead.errors import BrokenDocument, DatabaseTooNew, DatabaseUnavailable, InvalidInput
from fairlead.ledger import Ledger
from fairlead.store import Database

Opened = Callable[..., Database]


def names(path: Path) -> set[str]:
    with sqlite3.connect(path) as connection:
        found = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    connection.close()
    return found


def note(database: Database, text: str) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS notes (text TEXT)")
        connection.execute(sa.text("INSERT INTO notes VALUES (:text)"), {"text": text})


def notes(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.scalars(sa.text("SELECT text FROM notes ORDER BY rowid")))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a folder with %41 ? and #" / "fairlead.db"


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Opens databases, and closes them when the test is over."""
    with contextlib.ExitStack() as stack:
        yield lambda *given, **named: stack.enter_context(Database(*given, **named))


@pytest.fixture
def database(path: Path, opened: Opened) -> Database:
    database = opened(path)
    database.migrate()
    return database


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("fairlead.db", "fairlead.db"),
        (Path("runs/fairlead.db"), "runs/fairlead.db"),
        ("sqlite:////var/lib/fairlead.db", "/var/lib/fairlead.db"),
        ("postgresql://ann:secret@db/fairlead", "postgresql://ann@db/fairlead"),
        ("postgres://ann:secret@db:5433/fairlead?sslmode=require", "postgresql://ann@db:5433/fairlead"),
        ("postgresql+psycopg://db/fairlead?password=secret&user=ann", "postgresql://db/fairlead"),
        ("postgresql://ann:s%40cret@db/fairlead", "postgresql://ann@db/fairlead"),
    ],
)
def test_the_name_of_a_database_says_where_it_is_and_no_password(where: str | Path, name: str):
    assert Database(where).name == name


@pytest.mark.parametrize(
    "where",
    [
        "",
        "a\0b",
        b"bytes",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///a.db?mode=memory",
        "sqlite://host/a.db",
        "mysql://ann:secret@db/fairlead",
        "postgresql://ann:secret@db:port/fairlead",
        "://secret",
        "postgresql//ann:secret@[::/x://",
    ],
)
def test_what_is_no_database_is_refused_without_showing_a_password(where: str):
    with pytest.raises(InvalidInput, match=r"^database") as refused:
        Database(where)
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "10", True])
def test_a_timeout_that_is_none_is_refused(timeout: object):
    with pytest.raises(InvalidInput, match="timeout"):
        Database("fairlead.db", timeout=timeout)


def test_nothing_is_made_before_it_is_asked_for(path: Path):
    database = Database(path)
    with pytest.raises(
        DatabaseUnavailable, match=r"there is no such file; correct the path, or begin one with migrate\(\)"
    ):
        notes(database)
    assert not path.parent.exists()


def test_a_file_without_tables_is_told(path: Path, opened: Opened):
    path.parent.mkdir()
    path.touch()
    with pytest.raises(DatabaseUnavailable, match=r"has no tables of Fairlead; call migrate\(\)"):
        notes(opened(path))


def test_migrating_again_changes_nothing_and_needs_no_writers_place(database: Database, path: Path):
    made = names(path)
    note(database, "kept")
    with database.write(), Database(path, timeout=0.01) as other:
        other.migrate()
    assert notes(database) == ["kept"]
    assert names(path) - made == {"notes"}


def test_a_block_that_raises_leaves_nothing(database: Database):
    note(database, "one")
    with contextlib.suppress(KeyboardInterrupt), database.write() as connection:
        connection.execute(sa.text("INSERT INTO notes VALUES ('two')"))
        raise KeyboardInterrupt
    assert notes(database) == ["one"]


def test_a_reader_sees_one_moment_and_waits_for_no_writer(database: Database):
    note(database, "one")
    with database.read() as connection:
        count = sa.text("SELECT count(*) FROM notes")
        assert connection.scalar(count) == 1
        note(database, "two")
        assert connection.scalar(count) == 1
    assert notes(database) == ["one", "two"]


def test_a_second_writer_waits_no_longer_than_its_timeout(database: Database, path: Path, opened: Opened):
    said = r"has been writing for more than 0\.02 s; try again later"
    other = opened(path, timeout=0.02)
    with database.write(), pytest.raises(DatabaseUnavailable, match=said):
        note(other, "x")
    with Database(path) as other:
        note(other, "free again")


def test_a_commit_is_durable_and_in_wal_mode(database: Database):
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_a_database_from_a_newer_fairlead_is_refused(database: Database, path: Path, opened: Opened):
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE fairlead_schema SET version_num = '9999'")
    said = r"its tables are of version 9999, this Fairlead knows up to \d{4}; upgrade Fairlead"
    other = opened(path)
    for use in (other.migrate, lambda: note(other, "x"), lambda: notes(other), lambda: note(database, "x")):
        with pytest.raises(DatabaseTooNew, match=said):
            use()


def test_a_file_that_is_no_database_is_told(tmp_path: Path, opened: Opened):
    path = tmp_path / "notes.txt"
    path.write_text("x" * 5_000)
    for use in (Database(path).migrate, lambda: notes(opened(path))):
        with pytest.raises(BrokenDocument, match="not a database"):
            use()
    assert path.read_text() == "x" * 5_000


def test_a_place_where_no_file_can_be_is_told(tmp_path: Path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "fairlead.db"):
        with pytest.raises(DatabaseUnavailable, match=str(path)):
            Database(path).migrate()


def test_a_file_that_was_removed_or_replaced_is_not_written_to_unseen(database: Database, path: Path):
    note(database, "one")
    for each in path.parent.iterdir():
        each.rename(each.with_name(f"old-{each.name}"))
    with pytest.raises(DatabaseUnavailable, match="there is no such file"):
        note(database, "lost")
    with Database(path) as other:
        other.migrate()
        note(other, "two")
    note(database, "three")
    assert notes(database) == ["two", "three"]


def test_a_forked_child_leaves_its_parents_connections_alone(database: Database):
    note(database, "parent")
    with database.write() as connection:
        connection.execute(sa.text("INSERT INTO notes VALUES ('parent, in the middle')"))
        pid = os.fork()
        if pid == 0:
            os._exit(0 if notes(database) == ["parent"] else 1)
        assert os.waitpid(pid, 0)[1] == 0
    assert notes(database) == ["parent", "parent, in the middle"]


def test_a_database_can_be_used_again_after_it_was_closed(database: Database):
    note(database, "one")
    database.close()
    database.close()
    assert notes(database) == ["one"]


def test_rooms_load_neither_drivers_nor_alembic():
    code = "import fairlead.store, fairlead.ledger, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"psycopg", "alembic", "fairlead.store.postgres", "fairlead.store.sqlite"} & set(loaded)


@pytest.mark.parametrize(
    ("package", "where", "extra"),
    [
        ("sqlalchemy", "x.db", "store"),
        ("psycopg", "postgresql://x/y", "postgres"),
        ("alembic.operations", "/dev/null/x.db", "store"),
    ],
)
def test_a_driver_that_is_missing_names_its_extra(package: str, where: str, extra: str):
    code = (
        "import sys; sys.modules[sys.argv[1]] = None\n"
        "from fairlead.errors import MissingExtra\n"
        "try:\n"
        "    from fairlead.store import Database\n"
        "    Database(sys.argv[2]).migrate()\n"
        "except MissingExtra as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, package, where], capture_output=True, text=True, check=True
    )
    assert run.stdout == f"{package.partition('.')[0]} is not installed: pip install 'fairlead[{extra}]'\n"


def test_a_reader_cannot_write(database: Database):
    note(database, "one")
    with pytest.raises(DatabaseUnavailable, match="readonly"), database.read() as connection:
        connection.execute(sa.text("DELETE FROM notes"))
    note(database, "two")
    assert notes(database) == ["one", "two"]


def test_a_process_that_changes_its_directory_keeps_its_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with Database("fairlead.db") as database:
        database.migrate()
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        note(database, "one")
        database.close()
        assert notes(database) == ["one"]
    assert list(Path().iterdir()) == []


def test_a_table_that_was_dropped_is_told(database: Database):
    with database.write() as connection:
        connection.exec_driver_sql("DROP TABLE fairlead_ledger")
    with pytest.raises(DatabaseUnavailable, match="no such table: fairlead_ledger; Fairlead has made it"):
        Ledger(database).verify()
