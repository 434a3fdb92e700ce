from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from fairlead.errors import InvalidInput, StoreUnavailable
from fairlead.migration import Migration, Row, Stage
from fairlead.migration.sqlalchemy import TableStore
from fairlead.testing import MigrationStoreContract, PostgresServer
from tests.integration.migration.tables import ROWS, create


class TestSqlite(MigrationStoreContract):
    @pytest.fixture
    async def stores(self, tmp_path: Path) -> AsyncIterator[tuple[TableStore, TableStore]]:
        url = f"sqlite:///{tmp_path}/rows.db"
        create(url, ROWS)
        stores = TableStore(url, "rows"), TableStore(url, ROWS)
        yield stores
        for store in stores:
            await store.close()


class TestPostgres(MigrationStoreContract):
    @pytest.fixture
    async def stores(self, postgres_url: str) -> AsyncIterator[tuple[TableStore, TableStore]]:
        create(postgres_url, ROWS)
        stores = TableStore(postgres_url, "rows"), TableStore(postgres_url, ROWS)
        yield stores
        for store in stores:
            await store.close()


@pytest.fixture(params=["sqlite", "postgres"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TableStore]:
    url = (
        f"sqlite:///{tmp_path}/rows.db"
        if request.param == "sqlite"
        else request.getfixturevalue("postgres_url")
    )
    create(url, ROWS)
    store = TableStore(url, "rows")
    yield store
    await store.close()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"text": "a"}, "'amount' is missing"),
        ({"text": "a", "amount": 1, "colour": "red"}, "'colour' is no column"),
        ({"text": None, "amount": 1}, "the row is refused"),
        ({"text": "a", "amount": 10**30}, "the row is refused"),
        ({"text": "\ud800", "amount": 1}, "the row is refused"),
        ({"text": object(), "amount": 1}, "the row is refused"),
    ],
    ids=["a field less", "a field more", "null", "a huge number", "half a character", "no value at all"],
)
async def test_a_row_that_cannot_be_stored_is_refused_whole(
    store: TableStore, value: dict[str, object], says: str
):
    await store.write("k", {"text": "before", "amount": 1}, parity=0)
    with pytest.raises(InvalidInput, match=says):
        await store.write("k", value, parity=0)
    with pytest.raises(InvalidInput, match=says):
        await store.apply([Row("j", {"text": "fine", "amount": 1}, 2), Row("k", value, 8)])
    assert await store.read(["k", "j"]) == [Row("k", {"text": "before", "amount": 1}, 2), Row("j", None, 0)]


async def test_keys_of_any_text_come_back_as_they_are(store: TableStore):
    keys = ["", " ", "é", "ß", "Z", "a", "'; DROP TABLE rows; --", "%s", ":key", "x" * 2000, "\n"]
    for number, key in enumerate(keys):
        await store.write(key, {"text": key, "amount": number}, parity=0)
    assert [row.value and row.value["text"] for row in await store.read(keys)] == keys
    found: list[Row] = []
    while page := await store.scan(found[-1].key if found else None, 2):
        found += page
    assert sorted(str(row.key) for row in found) == sorted(keys)


async def test_a_table_that_is_not_there_is_named(tmp_path: Path):
    other = TableStore(f"sqlite:///{tmp_path}/rows.db", "row")
    with pytest.raises(InvalidInput, match="row: there is no such table"):
        await other.count()
    await other.close()


@pytest.mark.parametrize(
    "url",
    ["orders.db", "sqlite://", "sqlite:///:memory:", "mysql://localhost/x", "postgresql://a:b@host:port/x"],
    ids=str,
)
def test_a_url_that_names_no_database_of_ours_is_refused_without_its_password(url: str):
    with pytest.raises(InvalidInput, match="TableStore") as refused:
        TableStore(url, "rows")
    assert "a:b" not in str(refused.value)


async def test_a_table_with_a_key_of_two_columns_is_refused(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/rows.db"
    table = sa.Table(
        "pairs",
        sa.MetaData(),
        sa.Column("a", sa.Integer, primary_key=True),
        sa.Column("b", sa.Integer, primary_key=True),
    )
    create(url, table)
    store = TableStore(url, "pairs")
    with pytest.raises(InvalidInput, match="primary key of one column"):
        await store.count()
    await store.close()


async def test_a_server_that_hangs_is_given_up_and_used_again_when_it_answers(
    postgres: PostgresServer, postgres_url: str
):
    create(postgres_url, ROWS)
    store = TableStore(postgres_url, "rows", timeout=1.0, threads=2)
    await store.write("k", {"text": "a", "amount": 1}, parity=0)
    postgres.pause()
    try:
        began = time.monotonic()
        answers = await asyncio.gather(*(store.read(["k"]) for _ in range(2)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [StoreUnavailable] * 2
        assert time.monotonic() - began < 5.0
    finally:
        postgres.resume()
    assert (await store.read(["k"]))[0].version == 2
    await store.close()


async def test_a_server_that_was_killed_is_used_again_when_it_is_back(
    postgres: PostgresServer, postgres_url: str
):
    create(postgres_url, ROWS)
    store = TableStore(postgres_url, "rows", timeout=2.0)
    await store.write("k", {"text": "a", "amount": 1}, parity=0)
    postgres.kill()
    with pytest.raises(StoreUnavailable):
        await store.write("k", {"text": "b", "amount": 2}, parity=0)
    postgres.restart()
    assert await store.write("k", {"text": "c", "amount": 3}, parity=0) == 4
    await store.close()


async def test_while_the_new_store_hangs_writes_go_on_and_arrive_later(
    tmp_path: Path, postgres: PostgresServer, postgres_url: str
):
    old_url = f"sqlite:///{tmp_path}/rows.db"
    for url in (old_url, postgres_url):
        create(url, ROWS)
    old, new = TableStore(old_url, ROWS), TableStore(postgres_url, ROWS, timeout=1.0)
    stage = Stage.OFF
    async with Migration("rows", old=old, new=new, stage=lambda: stage, second_timeout=0.2) as migration:
        stage = Stage.DUAL_WRITE
        await migration.write("first", {"text": "a", "amount": 1})
        postgres.pause()
        try:
            began = time.monotonic()
            for number in range(40):
                await migration.write(f"k{number}", {"text": "a", "amount": number})
            assert time.monotonic() - began < 4.0
        finally:
            postgres.resume()
        assert await old.count_marked() >= 40
        assert (await migration.reconcile()).left == 0
        assert await new.count() == 41
    await old.close()
    await new.close()
