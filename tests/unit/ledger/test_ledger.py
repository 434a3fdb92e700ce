"""The ledger on SQLite; `tests/integration/ledger` runs the same contract on PostgreSQL."""

from __future__ import annotations

import pytest

from fairlead.store import Database
from tests.unit.ledger.contract import LedgerContract


class TestLedgerOnSqlite(LedgerContract):
    pass


@pytest.mark.parametrize(
    "narrowed",
    [
        "number > 5",
        "kind = 'decision' AND number > 5",
        "change = 'a' AND number > 5",
        "change = 'a' AND kind = 'evidence' AND number > 5",
        "change = 'a' AND kind = 'evidence' AND metric = 'm' AND number > 5",
    ],
)
def test_a_page_is_read_in_its_order_and_never_sorted(database: Database, narrowed: str):
    with database.read() as connection:
        query = f"SELECT payload FROM fairlead_ledger WHERE {narrowed} ORDER BY number LIMIT 64"  # noqa: S608 - of these
        plan = " ".join(row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}"))
    assert "SEARCH" in plan
    assert "TEMP B-TREE" not in plan
