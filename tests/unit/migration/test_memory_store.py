from __future__ import annotations

import pytest

from fairlead.testing import MigrationStoreContract
from tests.unit.migration.memory import MemoryStore, Rows


class TestTheStoreOfTheOtherTests(MigrationStoreContract):
    @pytest.fixture
    async def stores(self) -> tuple[MemoryStore, MemoryStore]:
        shared = Rows()
        return MemoryStore(shared), MemoryStore(shared)
