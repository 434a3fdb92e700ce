"""The contract of the ledger on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fairlead.store import Database
from tests.unit.ledger.contract import LedgerContract


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    with Database(postgres_url) as database:
        database.migrate()
        yield database


class TestLedgerOnPostgres(LedgerContract):
    pass
