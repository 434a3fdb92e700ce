"""What a migration asks of a store: its rows by key, and beside them a version and a mark for each key.

Without versions two writers that reach the two stores in different order leave them different for ever, and a backfill
puts back what was deleted a moment ago. So each write gets a number from the store it reaches first, greater than any
that this store has seen of the key; the other store takes it only if it is newer. The old store gives even numbers, the
new one odd ones: two writes never share a number, and both stores end with the row of the greatest. A deleted row
leaves its number behind, and a row from before the migration has 0.

The mark says "the other store may not have this". It is set in the transaction that writes the row and taken away
once the other store has confirmed, so the marks are a reconciliation log that no crash can fall between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

__all__ = ["Key", "MigrationStore", "Row", "Value", "next_version"]

Key = str | int
"""What names a row; one type per store."""
Value = Mapping[str, object]
"""A whole row without its key: value by field."""


class Row(msgspec.Struct, frozen=True):
    """What a store holds of one key at one moment."""

    key: Key
    value: Value | None
    """None: there is no such row; it never was, or it was deleted."""
    version: int = 0
    """0: not written since the migration began."""


class MigrationStore(Protocol):
    """One side of a migration. Every method is atomic, and safe to call from many processes at once.

    A method that fails raises StoreUnavailable when the store did not answer; what it did then is not known, and doing
    it again is safe. Cancelling a call may leave it done. What lies beside the rows the store makes itself, when it is
    first used. `MigrationStoreContract` in `fairlead.testing` says all of this as tests.
    """

    async def read(self, keys: Sequence[Key]) -> list[Row]:
        """One row per key, in order; each row with the version it was written at."""

    async def write(self, key: Key, value: Value | None, *, parity: int, floor: int = 0) -> int:
        """Writes the whole row, or deletes it; marks the key; returns its new version.

        The version is `next_version` of the greater of `floor` and the one the key had.
        """

    async def touch(self, key: Key, *, version: int, parity: int, floor: int = 0) -> None:
        """Gives the key a new version, as `write` does, and a mark; only if its version is still `version`."""

    async def apply(self, rows: Sequence[Row], *, spare_marked: bool = False) -> list[int]:
        """Takes each row that is newer than what is here, and its key's mark away; returns the version each then has.

        Row by row atomic. A row of version 0 is taken only where there is neither row nor version. No key twice.
        spare_marked: a key that is marked here stays as it is.
        """

    async def settle(self, versions: Mapping[Key, int]) -> None:
        """Takes away the marks of keys that still have the version given: the other store has it."""

    async def marked(self, after: Key | None, limit: int) -> list[Key]:
        """The first `limit` marked keys behind `after`, in the store's order."""

    async def count_marked(self) -> int:
        """How many keys are marked."""

    async def scan(self, after: Key | None, limit: int) -> list[Row]:
        """The first `limit` rows that exist behind `after`, in the store's order of keys."""

    async def count(self) -> int:
        """About how many rows exist."""

    async def recall(self, name: str) -> str | None:
        """The note of that name, or None."""

    async def remember(self, name: str, text: str) -> None:
        """Keeps a note durably, in place of the one of that name."""

    async def close(self) -> None:
        """Gives back connections and threads. Safe to repeat."""


def next_version(version: int, parity: int) -> int:
    """The smallest number above `version` that is even (parity 0) or odd (1).

    >>> [next_version(5, 0), next_version(5, 1), next_version(0, 0), next_version(0, 1)]
    [6, 7, 2, 1]
    """
    return version + 1 + (version + 1 + parity) % 2
