"""The ledger on SQLite; `tests/integration/ledger` runs the same contract on PostgreSQL."""

from __future__ import annotations

from tests.unit.ledger.contract import LedgerContract


class TestLedgerOnSqlite(LedgerContract):
    pass
