"""What only a server can do: hang, die, come back, say no, and be set up otherwise."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy as sa

from fairlead.errors import DatabaseUnavailable
from fairlead.ledger import Ledger
from fairlead.store import Database
from fairlead.store import postgres as driver
from fairlead.testing import PostgresServer
from tests.unit.ledger.contract import figure
from tests.unit.store.test_migrations import differences


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    with Database(postgres_url, timeout=1.0) as database:
        database.migrate()
        yield database


def test_migrated_tables_are_those_that_the_rooms_use(database: Database):
    with database.read() as connection:
        assert differences(connection) == []


def test_a_server_that_hangs_is_given_up_and_used_again(
    database: Database, ledger: Ledger, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(driver, "_HUNG", 0.0)
    database.close()  # what was opened before has the usual patience
    ledger.record_evidence(figure(n=1))
    postgres.pause()
    try:
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match=r"^postgresql://postgres@127\.0\.0\.1:\d+/\w+: .+"):
            ledger.record_evidence(figure(n=2))
        assert time.monotonic() - began < 8  # the answer, and one new connection
    finally:
        postgres.resume()
    ledger.record_evidence(figure(n=3))
    assert [entry.body.n for entry in ledger.entries()] == [1, 3]


def test_a_server_that_died_and_came_back_is_used_without_an_error(ledger: Ledger, postgres: PostgresServer):
    ledger.record_evidence(figure(n=1))
    postgres.kill()
    with pytest.raises(DatabaseUnavailable):
        ledger.record_evidence(figure(n=2))
    postgres.restart()
    ledger.record_evidence(figure(n=3))
    postgres.restart()
    ledger.record_evidence(figure(n=4))  # the connections that died in the pool are replaced
    assert ledger.verify().problems == ()


def test_a_commit_whose_answer_is_lost_says_that_the_outcome_is_open_and_may_be_repeated(
    database: Database, ledger: Ledger, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
):
    commit = sa.Connection.commit

    def cut(connection: sa.Connection) -> None:
        commit(connection)
        raise sa.exc.OperationalError("COMMIT", {}, psycopg.OperationalError("server closed the connection"))

    monkeypatch.setattr(sa.Connection, "commit", cut)
    with pytest.raises(DatabaseUnavailable, match="look at the server; whether it was written is not known"):
        ledger.record_evidence(figure())
    monkeypatch.undo()
    ledger.record_evidence(figure())
    assert ledger.verify().entries == 1


def test_a_wrong_user_or_database_is_told_without_the_password(postgres: PostgresServer):
    for url in (
        f"postgresql://nobody:secret@127.0.0.1:{postgres.port}/postgres",
        f"postgresql://postgres:secret@127.0.0.1:{postgres.port}/nowhere",
        "postgresql://postgres:secret@127.0.0.1:1/postgres?password=secret",
    ):
        with pytest.raises(DatabaseUnavailable, match=r"^postgresql://") as refused:
            Database(url, timeout=2.0).migrate()
        cause: BaseException | None = refused.value
        while cause is not None:
            assert "secret" not in str(cause)
            cause = cause.__cause__


def test_a_user_who_may_not_write_is_told(database: Database, postgres_url: str, postgres: PostgresServer):
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS reader")
        connection.execute("CREATE ROLE reader LOGIN")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    with Database(postgres_url.replace("postgres@", "reader@")) as other:
        ledger = Ledger(other)
        assert ledger.verify().is_whole
        with pytest.raises(
            DatabaseUnavailable, match=r"permission denied .*; use the primary, and a user that may"
        ):
            ledger.record_evidence(figure())


def test_a_database_that_cannot_hold_every_name_is_refused(postgres: PostgresServer):
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS latin")
        connection.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    database = Database(f"{postgres.url.rpartition('/')[0]}/latin")
    with pytest.raises(DatabaseUnavailable, match="its encoding is LATIN1"):
        database.migrate()
    database.close()


def test_what_a_server_would_forget_in_a_crash_is_kept(postgres_url: str, database: Database):
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    database.close()
    with database.write() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
        assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == "read committed"
    with database.read() as connection:
        assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == "repeatable read"
        assert connection.exec_driver_sql("SHOW transaction_read_only").scalar() == "on"


def test_a_writer_that_stops_in_the_middle_is_thrown_out(
    database: Database, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(driver, "_ABANDONED", 0.1)

    def stop_in_the_middle() -> None:
        with database.write() as connection:
            connection.exec_driver_sql(
                "INSERT INTO fairlead_ledger VALUES (1, 'h', '', 'i', 'evidence', '', '')"
            )
            time.sleep(0.3)

    with pytest.raises(DatabaseUnavailable, match=r"the writer did nothing for 0\.1 s"):
        stop_in_the_middle()
    ledger.record_evidence(figure())
    assert ledger.verify().entries == 1


def test_triggers_refuse_also_who_calls_itself_a_replica(database: Database, ledger: Ledger):
    ledger.record_evidence(figure())
    for statement in (
        "DELETE FROM fairlead_ledger",
        "TRUNCATE fairlead_ledger",
        "TRUNCATE fairlead_ledger_head",
    ):
        with database.write() as connection:
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
            with pytest.raises(sa.exc.DBAPIError, match="append-only"):
                connection.exec_driver_sql(statement)
            connection.rollback()
    assert ledger.verify().entries == 1
