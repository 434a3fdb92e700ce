from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fairlead.migration.sqlalchemy import TableStore
from fairlead.testing import MigrationStoreContract
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
