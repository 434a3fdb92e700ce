"""Carries a key's row from one store of a pair to the other, whatever the two have seen of it.

    the other store answers   because                                    then
    the version sent          it took the row, or had it                 the mark is taken away
    a newer one of our kind   a later write of this store overtook us    nothing: that write is there
    a newer one of its kind   a writer of the neighbouring stage, or     our row gets a version above it, and is
                              one that died between its two writes       sent again

The last case is what keeps writers in neighbouring stages, who number their writes in different stores, from losing
each other's: a write is acknowledged only once a store that both stages rely on has it, above all that was there.
"""

from __future__ import annotations

from collections.abc import Sequence

from fairlead.errors import StoreUnavailable
from fairlead.migration.stage import Side
from fairlead.migration.store import Key, MigrationStore, Row, Value

__all__ = ["PARITY", "Pair", "other"]

PARITY: dict[Side, int] = {"old": 0, "new": 1}
_ATTEMPTS = 16
"""Two writers that meet pass each other at once; so many rounds mean that a key is written without a pause."""


def other(side: Side) -> Side:
    return "new" if side == "old" else "old"


class Pair:
    """The two stores of a migration."""

    __slots__ = ("name", "stores")

    def __init__(self, name: str, old: MigrationStore, new: MigrationStore) -> None:
        self.name = name
        self.stores: dict[Side, MigrationStore] = {"old": old, "new": new}

    def __getitem__(self, side: Side) -> MigrationStore:
        return self.stores[side]

    async def write(self, side: Side, key: Key, value: Value | None, *, floor: int = 0) -> int:
        """The version that this store gave the write."""
        return await self.stores[side].write(key, value, parity=PARITY[side], floor=floor)

    async def apply(self, side: Side, row: Row, *, spare_marked: bool = False) -> int:
        """The version that the key has in this store after it was offered the row."""
        (version,) = await self.stores[side].apply((row,), spare_marked=spare_marked)
        return version

    async def follow(self, first: Side, key: Key, value: Value | None, version: int) -> int:
        """Brings a write that the first store numbered to the second; returns the version to settle there, or -1.

        Raises StoreUnavailable when others write the key without a pause.
        """
        second, ours = other(first), PARITY[first]
        for _ in range(_ATTEMPTS):
            there = await self.apply(second, Row(key, value, version))
            if there == version:
                return version
            if there > version and there % 2 == ours:
                return -1
            (here,) = await self.stores[first].read((key,))
            if here.version == version:
                await self.stores[first].touch(key, version=version, parity=ours, floor=there)
                (here,) = await self.stores[first].read((key,))
            if here.version % 2 == ours:
                value, version = here.value, here.version
            elif first == "new":
                return -1  # what came from the old store over our write is of a write that has not ended yet
            else:
                # It came from the new store, perhaps as an older row that a reconciliation numbered anew.
                version = await self.write(first, key, value, floor=there)
        raise self._too_busy(key)

    async def carry(self, source: Side, key: Key) -> bool:
        """Brings what is marked in this store to the other; False where the other store's row won.

        Of two rows that each store gave without the other, the new store's wins: it answers in every stage in which it
        gives numbers, and what the old one then lacks a confirmation for was never acknowledged.
        """
        target, ours = other(source), PARITY[source]
        for _ in range(_ATTEMPTS):
            (row,) = await self.stores[source].read((key,))
            if row.version % 2 != ours:
                return False  # it came from the other store, and took the mark away
            # What a process left that died in live must not go over a write that the new store is still passing on.
            there = await self.apply(target, row, spare_marked=source == "old")
            if there == row.version:
                await self.stores[source].settle({key: there})
                return True
            if there < row.version:
                await self.carry(target, key)
                return False
            if there % 2 == ours:
                continue  # our read was overtaken
            if source == "new":
                await self.stores[source].touch(key, version=row.version, parity=ours, floor=there)
            else:
                (winner,) = await self.stores[target].read((key,))
                await self.apply(source, winner)
                return False
        raise self._too_busy(key)

    def _too_busy(self, key: Key) -> StoreUnavailable:
        return StoreUnavailable(
            f"{self.name}: one key was written {_ATTEMPTS} times while it was carried to the other store; it stays "
            "marked; try again"
        )


def fields_that_differ(one: Value, two: Value) -> Sequence[str]:
    """Fields that only one of them has, or whose values differ; NaN equals itself here."""
    return sorted(
        field
        for field in one.keys() | two.keys()
        if field not in one or field not in two or not _same(one[field], two[field])
    )


def _same(one: object, two: object) -> bool:
    try:
        return bool(one == two) or (one != one and two != two)
    except Exception:  # values are the driver's: aware and naive times refuse to be compared
        return False
