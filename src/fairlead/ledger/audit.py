"""Reads the chain from its first link to its last and says where it is broken.

    found by itself        an edit, a deletion, a swap, an insertion; a cut at the end by somebody who left the ledger's
                           own head where it was
    found by a kept head   a cut at the end with the head moved back; a chain that was computed anew from some entry on

What nothing inside the database can show is the work of somebody who may write all of it: such a chain is as whole as
the first. So the head is to be kept where that person cannot write.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from fairlead.errors import BrokenDocument, MissingExtra
from fairlead.ledger.entry import GENESIS, Head, indexed, open_payload

try:
    import sqlalchemy as sa
except ImportError as missing:
    raise MissingExtra("sqlalchemy", "store") from missing

__all__ = ["AuditReport", "audit"]

_MOST_PROBLEMS = 100
_PAGE = 64
# As text: what SQLAlchemy knows of the columns' types does not hold in a table that somebody edited.
_ROWS = sa.text("SELECT number, hash, payload, id, kind, change, metric FROM fairlead_ledger ORDER BY number")
_HEADS = sa.text("SELECT number, hash FROM fairlead_ledger_head")


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `Ledger.verify` found."""

    entries: int
    """How many there are."""
    head: Head
    """The last one."""
    problems: tuple[str, ...]
    """What is wrong, a sentence each, in the order of the entries; the first 100."""
    found: int
    """How many problems there are, those beyond the first 100 included."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong."""
        return self.found == 0


def audit(connection: sa.Connection, expect: Head | None) -> AuditReport:
    """Checks every entry that this connection sees; memory is bounded by a page of entries."""
    head = Head(0, GENESIS)
    entries = found = 0
    kept: list[str] = []
    expected_seen = expect is None or expect.number == 0

    def tell(problem: str) -> None:
        nonlocal found
        found += 1
        if len(kept) < _MOST_PROBLEMS:
            kept.append(problem)

    for row in connection.execution_options(yield_per=_PAGE).execute(_ROWS):
        entries += 1
        for problem in _problems(row, head):
            tell(problem)
        head = Head(row.number, str(row.hash))
        if expect is not None and row.number == expect.number:
            expected_seen = True
            if row.hash != expect.hash:
                tell(f"entry {row.number}: is not the one that the kept head names: it was written anew")
    for problem in _head_problems(connection, head):
        tell(problem)
    if expect is not None and not expected_seen:
        end = "the end was cut off" if expect.number > head.number else "it was deleted"
        tell(f"entry {expect.number}: the kept head names it, and it is not here: {end}")
    return AuditReport(entries=entries, head=head, problems=tuple(kept), found=found)


def _problems(row: Any, before: Head) -> Iterator[str]:
    number = row.number
    if number == before.number + 2:
        yield f"entry {number - 1} is missing"
    elif number > before.number + 2:
        yield f"entries {before.number + 1} to {number - 1} are missing"
    elif number <= before.number:
        yield f"entry {number}: stands after entry {before.number}"
    try:
        entry = open_payload(row.payload)
    except BrokenDocument as error:
        yield f"entry {number}: {error}"
        return
    if entry.hash != row.hash:
        yield f"entry {number}: its bytes do not have its hash: one of the two was edited"
    if entry.number != number:
        yield f"entry {number}: was written as entry {entry.number}: it was moved"
    if number == before.number + 1 and entry.previous != before.hash:
        yield f"entry {number}: does not follow entry {before.number} as that is now"
    if (row.id, row.kind, row.change, row.metric) != (entry.id, *indexed(entry.body)):
        yield f"entry {number}: what it is looked up by is not what it says: a column was edited"


def _head_problems(connection: sa.Connection, last: Head) -> Iterator[str]:
    heads = connection.execute(_HEADS).all()
    if len(heads) != 1:
        yield f"the ledger's own head: there are {len(heads)}, not one"
        return
    number, hash = heads[0]
    if isinstance(number, int) and number > last.number:
        yield f"the ledger's own head names entry {number!s:.20}, the last one is {last.number}: the end was cut off"
    elif (number, hash) != (last.number, last.hash):
        yield f"the ledger's own head names another entry {number!s:.20} than the one that is last"
