"""Slow queries of a real SQLite and a real PostgreSQL: kept without values, explained without being run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine

from fairlead.diagnosis import SlowQueries
from fairlead.diagnosis.sqlalchemy import explain
from fairlead.errors import InvalidInput
from fairlead.telemetry import MetricRegistry
from fairlead.telemetry.sqlalchemy import export_engine
from fairlead.testing import PostgresServer

TABLES = (
    "CREATE TABLE customers (id integer PRIMARY KEY, mail text, region text)",
    "CREATE TABLE orders (id integer PRIMARY KEY, customer integer, note text, placed integer)",
    "CREATE INDEX orders_by_customer ON orders (customer)",
    "CREATE TABLE few (id integer PRIMARY KEY, word text)",
    "INSERT INTO few VALUES (1, 'a'), (2, 'b')",
)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Engine]:
    with PostgresServer() as server:
        engine = create_engine(server.url.replace("postgresql://", "postgresql+psycopg://"))
        with engine.begin() as connection:
            for statement in TABLES:
                connection.execute(text(statement))
            connection.execute(
                text(
                    "INSERT INTO customers "
                    "SELECT n, 'm' || n || '@x.org', 'r' || (n % 5) FROM generate_series(1, 5000) n"
                )
            )
            connection.execute(
                text(
                    "INSERT INTO orders SELECT n, n % 5000, 'note ' || n, n FROM generate_series(1, 20000) n"
                )
            )
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ANALYZE customers"))
            connection.execute(text("ANALYZE orders"))
        yield engine
        engine.dispose()


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'shop.db'}")
    with engine.begin() as connection:
        for statement in TABLES:
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql(
            "INSERT INTO customers WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 5000) "
            "SELECT n, 'm' || n || '@x.org', 'r' || (n % 5) FROM s"
        )
        connection.exec_driver_sql(
            "INSERT INTO orders WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 20000) "
            "SELECT n, n % 5000, 'note ' || n, n FROM s"
        )
    yield engine
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.getfixturevalue(request.param)
    return found


def summary(engine: Engine, statement: str) -> str:
    with engine.connect() as connection:
        return explain(connection, statement).summary


def test_slow_statements_are_kept_once_and_without_what_was_asked_for(engine: Engine) -> None:
    slow = SlowQueries(slower_than=1e-9)
    watched = create_engine(engine.url)
    export_engine(watched, MetricRegistry(), on_query=slow.add)
    with watched.connect() as connection:
        for mail in ("ann@x.org", "bob@x.org"):
            connection.execute(
                text("SELECT id FROM customers WHERE mail = :mail AND region = 'secret'"), {"mail": mail}
            )
        with pytest.raises(Exception, match="nowhere"):
            connection.execute(text("SELECT 'secret' FROM nowhere"))
        connection.rollback()
        kept = {query.statement: query.slow_runs for query in slow.slowest()}
    watched.dispose()
    [runs] = [
        runs
        for statement, runs in kept.items()
        if statement.startswith("SELECT id FROM customers WHERE mail = $1")
    ]
    assert runs == 2
    assert "SELECT $1 FROM nowhere" in kept
    assert not any(word in str(slow.slowest()) for word in ("ann", "bob", "secret"))


def test_every_kept_statement_can_be_explained(engine: Engine) -> None:
    slow = SlowQueries(slower_than=1e-9)
    watched = create_engine(engine.url)
    export_engine(watched, MetricRegistry(), on_query=slow.add)
    with watched.connect() as connection:
        connection.execute(
            text("SELECT count(*) FROM orders WHERE note LIKE 'note 1%' AND placed IN (1, -2, 3)")
        )
        connection.execute(text("SELECT region, count(*) FROM customers GROUP BY 1 ORDER BY 2 DESC LIMIT 3"))
        connection.execute(
            text("SELECT * FROM orders WHERE customer = :who ORDER BY id LIMIT :n"), {"who": 5, "n": 2}
        )
        connection.rollback()
        for query in slow.slowest():
            if query.statement.lower().startswith("select") and "pg_catalog" not in query.statement:
                assert explain(connection, query.statement).plan
    watched.dispose()


def test_full_scan_names_the_table_and_its_rows(engine: Engine) -> None:
    said = summary(engine, "SELECT * FROM orders o WHERE o.note = $1")
    assert said.startswith("full scan of table ")
    assert "orders of about 20,000 rows" in said


def test_an_index_that_serves_leaves_nothing_to_say(engine: Engine) -> None:
    assert "nothing in the plan is wrong" in summary(engine, "SELECT * FROM orders WHERE customer = $1")


def test_small_table_may_be_read_from_end_to_end(engine: Engine) -> None:
    assert "nothing in the plan is wrong" in summary(engine, "SELECT * FROM few WHERE word = $1")


def test_sort_without_an_index_is_said(engine: Engine) -> None:
    with engine.connect() as connection:
        plan = explain(connection, "SELECT * FROM orders ORDER BY note")
    assert any("without an index" in said for said in plan.troubles)


def test_table_that_is_scanned_for_each_row_of_another_comes_first(engine: Engine) -> None:
    said = summary(
        engine, "SELECT *, (SELECT count(*) FROM orders o WHERE o.note < c.mail) FROM customers c, few f"
    )
    assert "orders of about 20,000 rows" in said
    assert "each" in said


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("DELETE FROM orders", "only SELECT"),
        ("WITH gone AS (DELETE FROM orders RETURNING id) SELECT * FROM gone", "DELETE"),
        ("SELECT * INTO copied FROM orders", "INTO"),
        ("SELECT 1; DROP TABLE orders", "second statement"),
        ("SELECT * FROM orders WHERE note = 'x'", "holds a value"),
        ("SELECT * FROM nowhere", "nowhere"),
        ("", "only SELECT"),
    ],
)
def test_what_is_no_reading_statement_is_refused_and_the_connection_stays_good(
    engine: Engine, statement: str, why: str
) -> None:
    with engine.connect() as connection:
        for _ in range(2):
            with pytest.raises(InvalidInput, match=why):
                explain(connection, statement)
        assert explain(connection, "SELECT id FROM few").plan
        assert connection.execute(text("SELECT count(*) FROM few")).scalar() == 2


def test_connection_in_a_transaction_is_left_alone(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("UPDATE few SET word = 'changed' WHERE id = 1"))
        with pytest.raises(InvalidInput, match="in a transaction"):
            explain(connection, "SELECT id FROM few")
        assert connection.execute(text("SELECT word FROM few WHERE id = 1")).scalar() == "changed"
        connection.rollback()


def test_connection_can_write_again_afterwards(engine: Engine) -> None:
    with engine.connect() as connection:
        explain(connection, "SELECT id FROM few")
        assert connection.execute(text("UPDATE few SET word = 'changed' WHERE id = 1")).rowcount == 1
        assert connection.execute(text("SELECT word FROM few WHERE id = 1")).scalar() == "changed"
        connection.rollback()


def said_to(engine: Engine, statement: str) -> list[str]:
    sent: list[str] = []

    def note(connection: Connection, cursor: object, words: str, *rest: object) -> None:
        sent.append(words)

    event.listen(engine, "before_cursor_execute", note)
    try:
        with engine.connect() as connection:
            explain(connection, statement)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return sent


def test_nothing_is_analysed_and_postgres_is_read_only_with_a_time_limit(engine: Engine) -> None:
    sent = " | ".join(said_to(engine, "SELECT id FROM few WHERE word = $1"))
    assert "ANALYZE" not in sent
    if engine.dialect.name == "postgresql":
        assert sent.index("READ ONLY") < sent.index("statement_timeout = 2000") < sent.index("PREPARE")
        assert "DEALLOCATE" in sent
    else:
        assert (
            sent.index("query_only = ON") < sent.index("EXPLAIN QUERY PLAN") < sent.index("query_only = OFF")
        )


def test_postgres_function_in_a_statement_is_not_called(postgres: Engine) -> None:
    with postgres.begin() as connection:
        connection.execute(text("CREATE SEQUENCE IF NOT EXISTS called"))
    assert summary(postgres, "SELECT nextval($1), pg_sleep($2) FROM orders FOR UPDATE") is not None
    with postgres.connect() as connection:
        assert connection.execute(text("SELECT is_called FROM called")).scalar() is False


def test_postgres_waits_no_longer_than_the_timeout_for_a_table_that_is_locked(postgres: Engine) -> None:
    with postgres.connect() as holder, postgres.connect() as connection:
        holder.execute(text("LOCK TABLE few IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(InvalidInput, match="timeout"):
            explain(connection, "SELECT id FROM few", timeout=0.2)
        holder.rollback()
        assert explain(connection, "SELECT id FROM few").plan


def test_postgres_connection_in_autocommit_is_refused_since_nothing_could_be_rolled_back(
    postgres: Engine,
) -> None:
    with postgres.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        with pytest.raises(InvalidInput, match="autocommit"):
            explain(connection, "SELECT id FROM few")
        assert connection.execute(text("SHOW plan_cache_mode")).scalar() == "auto"


def test_postgres_table_that_was_never_analysed_is_said_to_be(postgres: Engine) -> None:
    with postgres.connect() as connection:
        plan = explain(connection, "SELECT id FROM few")
    assert "never analysed: public.few" in plan.caveats[1]
    assert "generic plan" in plan.caveats[0]


async def test_async_engine_is_explained_through_run_sync(postgres: Engine) -> None:
    engine = create_async_engine(postgres.url)
    async with engine.connect() as connection:
        plan = await connection.run_sync(explain, "SELECT * FROM orders WHERE note = $1")
    await engine.dispose()
    assert "full scan of table public.orders" in plan.summary
