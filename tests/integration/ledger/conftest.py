"""The ledger of a database on each engine."""

from __future__ import annotations

import pytest

from fairlead.ledger import Ledger
from fairlead.store import Database


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)
