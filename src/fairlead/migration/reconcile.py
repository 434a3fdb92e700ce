"""Works off the marks: what one store has and the other has not confirmed.

A mark names a key, not a change, and what is carried is the row as it is now. So a key that was written a hundred times
while a store was down costs one write, the order within a key cannot be wrong, and carrying twice is harmless: several
processes may reconcile at once, and one may die at any point.
"""

from __future__ import annotations

import logging

import msgspec

from fairlead.errors import FairleadError, StoreUnavailable
from fairlead.migration.pair import PARITY, Pair, other
from fairlead.migration.stage import Side
from fairlead.migration.store import Key

__all__ = ["Reconciliation"]

_log = logging.getLogger(__name__)

_PAGE = 500
_GIVES_UP = 10
"""Keys that fail in a row because a store does not answer; the pass ends there, and the next one begins anew."""
_SIDES: tuple[Side, ...] = ("new", "old")  # the new store's first: where both are marked, its row wins


class Reconciliation(msgspec.Struct, frozen=True, kw_only=True):
    """What one pass over the marks did."""

    carried: int = 0
    """Keys whose row the other store took, or had."""
    superseded: int = 0
    """Keys whose row in the other store was newer; both have that now."""
    failed: int = 0
    """Keys that stay marked because a store failed."""
    errors: tuple[str, ...] = ()
    """The first few failures, each once, without the keys."""
    left: int = 0
    """Marks of both stores after the pass, those of writes in flight included."""


async def reconcile(pair: Pair) -> Reconciliation:
    """One pass over all marks of both stores. Raises StoreUnavailable when the marks cannot be read."""
    passing = _Pass(pair)
    for side in _SIDES:
        after: Key | None = None
        while page := await pair[side].marked(after, _PAGE):
            for key in await passing.in_bulk(side, page):
                await passing.singly(side, key)
                if passing.in_a_row >= _GIVES_UP:
                    break
            if passing.in_a_row >= _GIVES_UP:
                break
            after = page[-1]
    left = sum([await pair[side].count_marked() for side in _SIDES])
    return Reconciliation(
        carried=passing.carried,
        superseded=passing.superseded,
        failed=passing.failed,
        errors=tuple(passing.errors),
        left=left,
    )


class _Pass:
    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.carried = self.superseded = self.failed = self.in_a_row = 0
        self.errors: dict[str, None] = {}

    async def in_bulk(self, side: Side, keys: list[Key]) -> list[Key]:
        """Carries the keys that meet nothing newer; returns the others."""
        source, target = self.pair[side], self.pair[other(side)]
        try:
            rows = [row for row in await source.read(keys) if row.version % 2 == PARITY[side]]
            there = await target.apply(rows, spare_marked=True) if rows else []
            arrived = {
                row.key: row.version for row, now in zip(rows, there, strict=True) if now == row.version
            }
            await source.settle(arrived)
        except Exception:  # one row that the store refuses must not keep the others from being carried
            _log.debug("%s: %d keys are carried one by one", self.pair.name, len(keys), exc_info=True)
            return keys
        self.carried += len(arrived)
        return [key for key in keys if key not in arrived]

    async def singly(self, side: Side, key: Key) -> None:
        try:
            if await self.pair.carry(side, key):
                self.carried += 1
            else:
                self.superseded += 1
        except Exception as error:  # recorded, and the key stays marked
            said = str(error) if isinstance(error, FairleadError) else type(error).__name__
            self.failed += 1
            self.in_a_row += isinstance(error, StoreUnavailable | OSError)
            if len(self.errors) < 5 and said not in self.errors:
                _log.warning("%s: a marked key was not carried", self.pair.name, exc_info=True)
                self.errors[said] = None
        else:
            self.in_a_row = 0
