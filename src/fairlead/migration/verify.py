"""Compares every row of the two stores, and says exactly how many differ, in what, and which.

Rows are compared here, not by a hash that each store makes: two engines write one value in two ways, and a hash of both
says only that. Ranges are those of the store that is read, and the other one is asked for the same keys, so it does not
matter that the two sort text differently; a second walk, over the other store, finds rows that only it has.

Users go on writing meanwhile. A row that differs is read again, in both stores, until nothing moves: only what stays
the same on both sides and still differs is a difference. What never stands still is counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

import msgspec

from fairlead.calls.bounds import check_number, check_whole
from fairlead.migration.dual_write import Migration
from fairlead.migration.notes import Notes, VerificationNote
from fairlead.migration.pair import PARITY, fields_that_differ, other
from fairlead.migration.stage import Side
from fairlead.migration.store import Key, Row

__all__ = ["Difference", "Verification", "verify"]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One row that differs, without its values: they may be personal."""

    key: Key
    kind: Literal["missing", "extra", "different"]
    """`missing`: only the authority has it. `extra`: only the other store has it."""
    fields: tuple[str, ...] = ()
    """The fields that differ."""
    shapes: tuple[str, ...] = ()
    """For each of them, what the authority has and what the other store has, such as `int, str of 5`."""
    marked: bool = False
    """Whether the versions differ, so that a reconciliation is due to repair it."""


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What a comparison of all rows found."""

    authority: Side
    """The store whose rows were taken for right: the one that was read."""
    compared: int
    """Rows of the authority, and rows that only the other store has."""
    differences: int
    """Rows that differ, and go on differing while nothing is written to them."""
    missing: int
    extra: int
    different: int
    unsettled: int
    """Rows that differed at each look, each time otherwise: they were being written."""
    fields: dict[str, int]
    """How many rows differ in each field."""
    examples: tuple[Difference, ...]
    """The first differences."""
    repaired: int
    """Differences that were marked at the authority, for a reconciliation to send."""


async def verify(
    migration: Migration,
    *,
    batch: int = 500,
    rechecks: int = 5,
    recheck_after: float = 0.2,
    examples: int = 20,
    repair: bool = False,
) -> Verification:
    """Compares all rows of both stores; zero `differences` is what a step to live asks for.

    batch: rows read at once, 1 to 10,000.
    rechecks: looks at a row that differs, 2 to 100, `recheck_after` seconds apart.
    examples: differences that are kept whole, 0 to 10,000.
    repair: whether each difference is marked at the authority; call `Migration.reconcile` afterwards.

    Reads each store once from end to end, and one batch at a time. Raises StoreUnavailable.
    """
    check_whole("verify.batch", batch, low=1, high=10_000)
    check_whole("verify.rechecks", rechecks, low=2, high=100)
    check_number("verify.recheck_after", recheck_after, low=0.0, high=60.0)
    check_whole("verify.examples", examples, low=0, high=10_000)
    began = migration.clock.utc()
    walk = _Walk(migration, rechecks, recheck_after, examples, repair)
    await walk.over(walk.authority, batch)
    await walk.over(other(walk.authority), batch)
    found = walk.result()
    await Notes(migration.pair["old"], migration.name).keep_verification(
        VerificationNote(compared=found.compared, differences=found.differences, at=began)
    )
    return found


class _Walk:
    def __init__(
        self, migration: Migration, rechecks: int, recheck_after: float, examples: int, repair: bool
    ) -> None:
        self.authority: Side = migration.stage.plan.reads
        self._migration = migration
        self._pair = migration.pair
        self._rechecks, self._recheck_after = rechecks, recheck_after
        self._most, self._repair = examples, repair
        self._kinds: Counter[str] = Counter()
        self._fields: Counter[str] = Counter()
        self._examples: list[Difference] = []
        self._compared = self._unsettled = self._repaired = 0

    async def over(self, side: Side, batch: int) -> None:
        """Compares the rows of one store with the other's; on the second walk, only those that the first cannot see."""
        after: Key | None = None
        while rows := await self._pair[side].scan(after, batch):
            after = rows[-1].key
            theirs = await self._pair[other(side)].read([row.key for row in rows])
            pairs = zip(rows, theirs, strict=True)
            if side == self.authority:
                self._compared += len(rows)
                suspects = [mine.key for mine, their in pairs if not _equal(mine, their)]
            else:
                suspects = [mine.key for mine, their in pairs if their.value is None]
                self._compared += len(suspects)
            await self._judge(suspects)

    async def _judge(self, keys: list[Key]) -> None:
        before: dict[Key, tuple[Row, Row]] = {}
        for look in range(self._rechecks):
            if not keys:
                return
            if look:
                await self._migration.clock.sleep(self._recheck_after)
            ours = await self._pair[self.authority].read(keys)
            theirs = await self._pair[other(self.authority)].read(keys)
            now = {
                mine.key: (mine, their)
                for mine, their in zip(ours, theirs, strict=True)
                if not _equal(mine, their)
            }
            # Versions that differ are of a write on its way, or of one that is marked: it gets all the looks there are.
            stands = [
                key
                for key, (mine, their) in now.items()
                if before.get(key) == (mine, their)
                and (mine.version == their.version or look == self._rechecks - 1)
            ]
            await self._record(now[key] for key in stands)
            keys = [key for key in now if key not in set(stands)]
            before = now
        self._unsettled += len(keys)

    async def _record(self, pairs: Iterable[tuple[Row, Row]]) -> None:
        for mine, their in pairs:
            kind: Literal["missing", "extra", "different"] = "different"
            fields: list[str] = []
            if mine.value is None or their.value is None:
                kind = "missing" if their.value is None else "extra"
            else:
                fields = list(fields_that_differ(mine.value, their.value))
            self._kinds[kind] += 1
            self._fields.update(fields)
            if len(self._examples) < self._most:
                self._examples.append(
                    Difference(
                        key=mine.key,
                        kind=kind,
                        fields=tuple(fields),
                        shapes=tuple(
                            f"{_shape((mine.value or {}).get(each))}, {_shape((their.value or {}).get(each))}"
                            for each in fields
                        ),
                        marked=mine.version != their.version,
                    )
                )
            if self._repair:
                await self._pair[self.authority].touch(
                    mine.key, version=mine.version, parity=PARITY[self.authority], floor=their.version
                )
                self._repaired += 1

    def result(self) -> Verification:
        return Verification(
            authority=self.authority,
            compared=self._compared,
            differences=self._kinds.total(),
            missing=self._kinds["missing"],
            extra=self._kinds["extra"],
            different=self._kinds["different"],
            unsettled=self._unsettled,
            fields=dict(self._fields),
            examples=tuple(self._examples),
            repaired=self._repaired,
        )


def _equal(mine: Row, their: Row) -> bool:
    if mine.value is None or their.value is None:
        return mine.value is None and their.value is None
    return not fields_that_differ(mine.value, their.value)


def _shape(value: object) -> str:
    """What a value is, without what it says."""
    kind = type(value).__name__
    return f"{kind} of {len(value)}" if isinstance(value, str | bytes) else kind
