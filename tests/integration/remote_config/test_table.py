"""The one table on SQLite and on PostgreSQL, by the same tests: versions, audit, indexes, two writers, a killed one."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from fairlead.errors import InvalidInput
from fairlead.testing import PostgresServer
from fairlead_systems.remote_config.schema import PAGE
from fairlead_systems.remote_config.table import (
    _READ,
    _READ_SHARED,
    _SINCE,
    CONFIG,
    Change,
    ConfigTable,
    Entry,
    TableUnavailable,
)
from fairlead_systems.remote_config.world import World


def theme(value: str) -> list[Change]:
    return [Change(layer="all", name="theme", value=value)]


def check_invariants(table: ConfigTable) -> int:
    """Versions without gaps, one current row per key, a replaced row has a successor; the last version."""
    with table.engine.connect() as connection:
        rows = connection.execute(sa.select(CONFIG).order_by(CONFIG.c.version)).all()
    assert [row.version for row in rows] == list(range(1, len(rows) + 1))
    last: dict[tuple[str, str, str], int] = {}
    replaced_by = {row.version: row.superseded_by for row in rows}
    for row in rows:
        key = (row.layer, row.subject, row.name)
        if key in last:
            assert replaced_by[last[key]] == row.version
        last[key] = row.version
    assert all(replaced_by[version] is None for version in last.values())
    return len(rows)


def test_every_change_has_a_version_and_who_made_it_when_and_why(table: ConfigTable):
    before = time.time()
    assert table.write(theme("dark"), actor="ana", reason="eyes hurt") == 1
    assert table.write(theme("light"), actor="ben") == 2
    assert table.write([Change(layer="all", name="theme", removed=True)], actor="ana") == 3
    history = table.history("all", "", "theme")
    assert [(each.version, each.value, each.actor, each.reason) for each in history] == [
        (3, None, "ana", ""),
        (2, '"light"', "ben", ""),
        (1, '"dark"', "ana", "eyes hurt"),
    ]
    assert all(before <= each.at_utc_seconds <= time.time() for each in history)
    assert table.read("all", "") == []
    assert check_invariants(table) == 3


def test_value_that_stands_already_makes_no_version(table: ConfigTable):
    assert table.write(theme("dark"), actor="ana") == 1
    assert table.write(theme("dark"), actor="ana") == 1
    assert table.write([Change(layer="all", name="banner", removed=True)], actor="ana") == 1
    assert check_invariants(table) == 1


def test_changes_are_made_all_or_none(table: ConfigTable):
    with pytest.raises(InvalidInput, match=r"feed\.page_size"):
        table.write([*theme("dark"), Change(layer="all", name="feed.page_size", value=0)], actor="ana")
    assert table.version() == 0
    assert (
        table.write([*theme("dark"), Change(layer="all", name="feed.page_size", value=9)], actor="ana") == 2
    )


@pytest.mark.parametrize(
    "change",
    [
        Change(layer="all", subject="u", name="theme", value="dark"),
        Change(layer="segment", subject="", name="theme", value="dark"),
        Change(layer="segment", subject="Power", name="theme", value="dark"),
        Change(layer="user", subject="'; DROP TABLE remote_config; --", name="theme", value="dark"),
        Change(layer="user", subject="x" * 65, name="theme", value="dark"),
        Change(layer="segment", subject="power", name="segment", value="casual"),
        Change(layer="all", name="x" * 65, removed=True),
    ],
)
def test_key_that_cannot_be_is_refused(table: ConfigTable, change: Change):
    with pytest.raises(InvalidInput):
        table.write([change], actor="ana")
    assert table.version() == 0


@pytest.mark.parametrize(("actor", "reason"), [("", ""), ("x" * 65, ""), ("a\nb", ""), ("ana", "x" * 201)])
def test_who_and_why_are_bounded(table: ConfigTable, actor: str, reason: str):
    with pytest.raises(InvalidInput):
        table.write(theme("dark"), actor=actor, reason=reason)


def test_number_of_changes_at_once_is_bounded(table: ConfigTable):
    for count in (0, 1_001):
        with pytest.raises(InvalidInput, match="1 to 1000"):
            table.write(theme("dark") * count, actor="ana")


def test_text_of_any_script_comes_back(table: ConfigTable):
    label = "Köp nu 🛒 \u202eשלום'\"\\"
    table.write(
        [Change(layer="user", subject="ana@example.com", name="checkout.label", value=label)], actor="å"
    )
    (entry,) = table.read("user", "ana@example.com")
    assert PAGE.decode(entry.name, entry.value) == label
    assert table.history("user", "ana@example.com", "checkout.label")[0].actor == "å"


def test_what_came_after_a_version_is_found_in_order(table: ConfigTable):
    table.write(theme("dark"), actor="ana")
    table.write([Change(layer="user", subject="u7", name="segment", value="power")], actor="ana")
    table.write(theme("light"), actor="ana")
    latest, changes = table.changed_since(1)
    assert latest == 3
    assert [(each.version, each.layer, each.subject) for each in changes] == [
        (2, "user", "u7"),
        (3, "all", ""),
    ]
    assert table.changed_since(3) == (3, [])


def test_table_is_made_once_whoever_makes_it(url: str):
    def make(number: int) -> None:
        table = ConfigTable(url, PAGE)
        table.create()
        table.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(make, range(4)))
    table = ConfigTable(url, PAGE)
    assert table.version() == 0
    assert table.write(theme("dark"), actor="ana") == 1
    table.close()


def test_full_table_is_not_filled_again(table: ConfigTable):
    written = table.fill(World(1, users=300).changes(), actor="import")
    assert check_invariants(table) == written
    with pytest.raises(InvalidInput, match="not empty"):
        table.fill(World(1, users=300).changes(), actor="import")
    assert table.version() == written


def test_writers_who_write_at_once_take_turns(url: str, table: ConfigTable):
    def write(number: int) -> None:
        own = ConfigTable(url, PAGE, connections=1)
        for turn in range(10):
            own.write(
                [
                    Change(layer="all", name="feed.page_size", value=1 + (number * 10 + turn) % 100),
                    Change(layer="user", subject=f"w{number}", name="trial.days", value=turn),
                ],
                actor=f"writer {number}",
            )
        own.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert check_invariants(table) == table.version() >= 40
    assert {table.read("user", f"w{number}")[0].value for number in range(4)} == {"9"}


def test_who_has_seen_a_version_never_finds_an_older_one_later(url: str, table: ConfigTable):
    """The trap of a sequence: 8 becomes visible before 7, and who asks for what came after 8 never sees 7."""
    seen: list[int] = []

    def write(number: int) -> None:
        own = ConfigTable(url, PAGE, connections=1)
        for turn in range(15):
            own.write([Change(layer="user", subject=f"w{number}", name="trial.days", value=turn)], actor="w")
        own.close()

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, number) for number in range(4)]
        while not all(writer.done() for writer in writers) or table.version() > len(seen):
            _, changes = table.changed_since(seen[-1] if seen else 0)
            seen += [change.version for change in changes]
    assert seen == list(range(1, 61))


def test_look_ups_use_their_index(table: ConfigTable):
    table.fill(World(1, users=3_000).changes(), actor="import")
    with table.engine.connect() as connection:
        if table.is_postgres:
            connection.exec_driver_sql("ANALYZE remote_config")
        for query, values, index in (
            (_READ, {"layer": "user", "subject": "u7"}, "remote_config_current"),
            (_READ_SHARED, {}, "remote_config_current"),
            (_SINCE, {"seen": 2_900}, "remote_config_pkey" if table.is_postgres else "INTEGER PRIMARY KEY"),
        ):
            statement = query.params(values).compile(connection, compile_kwargs={"literal_binds": True})
            explain = "EXPLAIN " if table.is_postgres else "EXPLAIN QUERY PLAN "
            plan = " ".join(str(row) for row in connection.exec_driver_sql(explain + str(statement)))
            assert index in plan, plan


WRITER = """
import sys, itertools
from fairlead_systems.remote_config.schema import PAGE
from fairlead_systems.remote_config.table import Change, ConfigTable
table = ConfigTable(sys.argv[1], PAGE, connections=1)
for number in itertools.count():
    changes = [Change(layer="user", subject=f"u{each}", name="trial.days", value=number % 91) for each in range(5)]
    print(table.write(changes, actor="writer"), flush=True)
"""


def test_writer_that_is_killed_leaves_whole_writes_only_and_all_it_acknowledged(url: str, table: ConfigTable):
    rng = random.Random(4)
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        acknowledged = int(writer.stdout.readline())
        time.sleep(rng.uniform(0.0, 0.05))
        writer.send_signal(signal.SIGKILL)
        for line in writer.stdout:
            if line.endswith("\n"):
                acknowledged = int(line)
        writer.wait()
        writer.stdout.close()
        last = check_invariants(table)
        assert last >= acknowledged
        assert last % 5 == 0, "half a write is visible"
    table.write(theme("dark"), actor="ana")  # the writer's place is free
    assert table.read("all", "") == [Entry("all", "", "theme", '"dark"')]


def test_sqlite_file_that_is_gone_is_a_failure_and_no_empty_configuration(tmp_path: Path):
    table = ConfigTable(f"sqlite:///{tmp_path / 'gone'}.db", PAGE)
    with pytest.raises(TableUnavailable, match="unable to open"):
        table.version()
    assert list(tmp_path.iterdir()) == []
    table.close()


def test_readers_do_not_wait_for_a_writer(url: str, table: ConfigTable):
    table.write(theme("dark"), actor="ana")
    other = ConfigTable(url, PAGE, connections=1)
    from fairlead_systems.remote_config.database import begin_write

    with other.engine.connect() as writing:
        begin_write(writing)
        writing.execute(sa.update(CONFIG).values(value='"light"'))
        began = time.monotonic()
        assert table.read("all", "")[0].value == '"dark"'
        assert time.monotonic() - began < 1.0
        writing.rollback()
    other.close()


def test_postgres_that_comes_back_is_read_again(postgres: PostgresServer, postgres_url: str):
    table = ConfigTable(postgres_url, PAGE)
    table.create()
    table.write(theme("dark"), actor="ana")
    postgres.kill()
    with pytest.raises(TableUnavailable):
        table.version()
    postgres.restart()
    answers = []
    for _ in range(3):  # a connection that died is found out by use, and takes the others with it
        with contextlib.suppress(TableUnavailable):
            answers.append(table.version())
    assert answers[-2:] == [1, 1]
    table.close()


@pytest.mark.parametrize(
    "url", ["", "nonsense", "mysql://x/y", "sqlite://", "sqlite:///:memory:x?", "postgresql://[::1"]
)
def test_url_that_is_no_database_is_refused(url: str):
    with pytest.raises((InvalidInput, TableUnavailable)):
        ConfigTable(url, PAGE).version()
