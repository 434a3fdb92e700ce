"""Appends to the chain and reads from it.

    one write transaction:   already there -> its id      else: read the head -> add the entry -> move the head

One writer at a time, so numbers have no gap and become visible in their order. Either the entry and the moved head
are there or neither is, whenever the process dies. An entry's id is the hash of what it says: to record the same thing
twice is to record it once, so after an error that leaves the outcome open it is safe to record again.

Every method blocks; call it in a thread. Any number of processes may use one ledger at once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import BrokenDocument, InvalidInput, LedgerBroken, MissingExtra, UnknownEvidence
from fairlead.ledger.audit import AuditReport, audit
from fairlead.ledger.bounds import checked_hash, checked_name, checked_whole
from fairlead.ledger.decision import Decision
from fairlead.ledger.entry import GENESIS, KINDS, Body, Entry, Head, identified, indexed, open_payload, sealed
from fairlead.ledger.evidence import Evidence
from fairlead.ledger.frozen_change import FrozenChange, checked_content
from fairlead.ledger.table import HEAD, LEDGER
from fairlead.store import Database

try:
    import sqlalchemy as sa
except ImportError as missing:
    raise MissingExtra("sqlalchemy", "store") from missing

__all__ = ["Ledger"]

_PAGE = 64
"""Entries that are in memory at once; the largest has 350 KB."""
_IDS_AT_ONCE = 500
_PREFIX = re.compile(r"[0-9a-f]{8,64}", re.ASCII)
_AUDIT = "run fairlead audit verify"
# The payload untyped: SQLAlchemy would turn what somebody put in its place into bytes.
_ROWS = sa.select(
    LEDGER.c.number, LEDGER.c.hash, sa.type_coerce(LEDGER.c.payload, sa.types.NullType()).label("payload")
)
_KNOWN = sa.select(LEDGER.c.number).where(LEDGER.c.id == sa.bindparam("id"))
_ADD = sa.insert(LEDGER)
_MOVE = sa.update(HEAD).values(number=sa.bindparam("to_number"), hash=sa.bindparam("to_hash"))
_HEAD = sa.select(HEAD.c.number, HEAD.c.hash)
_LAST = sa.select(LEDGER.c.number, LEDGER.c.hash).order_by(LEDGER.c.number.desc()).limit(1)


class Ledger:
    """The ledger in a database that was migrated.

    Methods raise DatabaseUnavailable, and those that write NoSpace; LedgerBroken says that the tables were tampered
    with. In each case nothing was recorded, unless the message says that this is not known.
    """

    def __init__(self, database: Database, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._database = database
        self._clock = clock

    def record_evidence(self, evidence: Evidence) -> str:
        """The id of this evidence, which is recorded unless it was before."""
        return self._record(evidence, Evidence)

    def record_decision(self, decision: Decision) -> str:
        """The id of this decision, which is recorded unless it was before.

        Raises UnknownEvidence when it names evidence that this ledger does not hold.
        """
        return self._record(decision, Decision)

    def freeze(self, name: str, content: bytes) -> FrozenChange:
        """The last version of the change file `name`, which then has these bytes.

        The bytes of the last version again change nothing. Other bytes, those of an older version too, are a new
        version that follows it. At most 256 KiB.
        """
        checked_name("name", name)
        sha256 = hashlib.sha256(checked_content(content)).hexdigest()
        with self._database.write() as connection:
            last = _last_version(connection, name)
            if last is not None and last.sha256 == sha256:
                return last
            change = FrozenChange(
                name=name,
                version=1 if last is None else last.version + 1,
                sha256=sha256,
                follows=None if last is None else last.sha256,
                frozen_at_utc_seconds=self._clock.utc(),
                content=content,
            )
            self._append(connection, change, *identified(change))
        return change

    def frozen(self, name: str) -> FrozenChange | None:
        """The last version of a change file; None if it was never frozen."""
        checked_name("name", name)
        with self._database.read() as connection:
            return _last_version(connection, name)

    def history(self, name: str) -> Iterator[FrozenChange]:
        """Every version of a change file, the first one first."""
        checked_name("name", name)
        entries = self.entries(change=name, kind="frozen_change")
        return (entry.body for entry in entries if isinstance(entry.body, FrozenChange))

    def evidence(self, change: str, metric: str | None = None) -> Iterator[Entry]:
        """Entries of the evidence for a change, or for one metric of it, in their order."""
        of_metric = () if metric is None else (LEDGER.c.metric == checked_name("metric", metric),)
        return self._pages(*of_metric, *_of(checked_name("change", change), "evidence"))

    def evidence_by_ids(self, ids: Iterable[str]) -> dict[str, Evidence]:
        """The evidence with these ids. Raises UnknownEvidence naming the first that there is none of."""
        wanted = list(dict.fromkeys(checked_hash("id", each) for each in ids))
        found: dict[str, Evidence] = {}
        with self._database.read() as connection:
            for start in range(0, len(wanted), _IDS_AT_ONCE):
                part = wanted[start : start + _IDS_AT_ONCE]
                for entry in map(_opened, connection.execute(_ROWS.where(LEDGER.c.id.in_(part)))):
                    if isinstance(entry.body, Evidence):
                        found[entry.id] = entry.body
        for each in wanted:
            if each not in found:
                raise UnknownEvidence(f"evidence {each}: this ledger holds none of that id")
        return {each: found[each] for each in wanted}

    def decisions(self, change: str) -> Iterator[Entry]:
        """Entries of the decisions for a change, in their order."""
        return self._pages(*_of(checked_name("change", change), "decision"))

    def entries(
        self, *, after: int = 0, change: str | None = None, kind: str | None = None
    ) -> Iterator[Entry]:
        """Every entry whose number is above `after`, in order, read page by page; those added meanwhile as well.

        change, kind: only those of a change, or of a kind (evidence, decision, frozen_change). Raises InvalidInput.
        """
        return self._pages(*_of(change, kind), after=checked_whole("after", after))

    def entry(self, which: int | str) -> Entry | None:
        """The entry of that number, or the one whose id begins with these eight or more digits; None for none.

        Raises InvalidInput when several ids begin so.
        """
        if isinstance(which, str):
            if not _PREFIX.fullmatch(which):
                raise InvalidInput(f"entry {which[:80]!r}: expected a number, or 8 to 64 digits of an id")
            # "g" comes after every digit that may follow.
            where: sa.ColumnElement[bool] = LEDGER.c.id.between(which, f"{which}g")
        else:
            where = LEDGER.c.number == checked_whole("number", which)
        with self._database.read() as connection:
            rows = connection.execute(_ROWS.where(where).limit(2)).all()
        if len(rows) > 1:
            raise InvalidInput(f"entry {which}: several ids begin so; add a digit")
        return _opened(rows[0]) if rows else None

    def head(self) -> Head:
        """The end of the chain. Kept elsewhere, it shows later whether the end was cut off or rewritten."""
        with self._database.read() as connection:
            return _head(connection)

    def verify(self, expect: Head | None = None) -> AuditReport:
        """Reads the whole chain, as of one moment, and says what is wrong with it.

        expect: a head that was kept; None leaves a cut at the end unseen by who could move the ledger's own head.
        """
        with self._database.read() as connection:
            return audit(connection, expect)

    def _record(self, body: Evidence | Decision, kind: type[Evidence | Decision]) -> str:
        if not isinstance(body, kind):
            raise InvalidInput(f"expected {kind.__name__}, got {type(body).__name__}")
        id, encoded = identified(body)
        with self._database.write() as connection:
            if connection.scalar(_KNOWN, {"id": id}) is None:
                if isinstance(body, Decision):
                    _check_evidence(connection, body.evidence)
                self._append(connection, body, id, encoded)
        return id

    def _append(self, connection: sa.Connection, body: Body, id: str, encoded: bytes) -> None:
        new, payload = sealed(encoded, _head(connection), self._clock.utc())
        kind, change, metric = indexed(body)
        row = {"number": new.number, "hash": new.hash, "payload": payload, "id": id}
        connection.execute(_ADD, row | {"kind": kind, "change": change, "metric": metric})
        connection.execute(_MOVE, {"to_number": new.number, "to_hash": new.hash})

    def _pages(self, *where: sa.ColumnElement[bool], after: int = 0) -> Iterator[Entry]:
        # A short transaction for each page: who reads slowly keeps no snapshot, and with it no old pages, alive.
        query = _ROWS.where(*where).order_by(LEDGER.c.number).limit(_PAGE)
        while True:
            with self._database.read() as connection:
                rows = connection.execute(query.where(LEDGER.c.number > after)).all()
            for row in rows:
                yield _opened(row)
            if len(rows) < _PAGE:
                return
            after = rows[-1].number


def _opened(row: Any) -> Entry:
    """The entry of a row. Raises LedgerBroken for one that was edited; what it stands on is for `verify`."""
    try:
        entry = open_payload(row.payload)
    except BrokenDocument as error:
        raise LedgerBroken(f"ledger entry {row.number}: {error}; {_AUDIT}") from error
    if (entry.number, entry.hash) != (row.number, row.hash):
        raise LedgerBroken(f"ledger entry {row.number}: it was edited or moved; {_AUDIT}")
    return entry


def _head(connection: sa.Connection) -> Head:
    """The end of the chain. Raises LedgerBroken where the last entry is not the one that the head names."""
    heads = [tuple(row) for row in connection.execute(_HEAD)]
    last = tuple(connection.execute(_LAST).one_or_none() or (0, GENESIS))
    if heads != [last]:
        named = f"entry {heads[0][0]}" if len(heads) == 1 else "no entry"
        raise LedgerBroken(f"ledger: its head names {named}, and the last one is entry {last[0]}; {_AUDIT}")
    return Head(*last)


def _of(change: str | None, kind: str | None) -> list[sa.ColumnElement[bool]]:
    if kind is not None and kind not in KINDS:
        raise InvalidInput(f"kind: {kind!r:.80} is none of {', '.join(KINDS)}")
    of_change = [] if change is None else [LEDGER.c.change == checked_name("change", change)]
    return of_change + ([] if kind is None else [LEDGER.c.kind == kind])


def _last_version(connection: sa.Connection, name: str) -> FrozenChange | None:
    where = (LEDGER.c.change == name, LEDGER.c.kind == "frozen_change")
    row = connection.execute(_ROWS.where(*where).order_by(LEDGER.c.number.desc()).limit(1)).one_or_none()
    body = None if row is None else _opened(row).body
    return body if isinstance(body, FrozenChange) else None


def _check_evidence(connection: sa.Connection, ids: Sequence[str]) -> None:
    known: set[str] = set()
    for start in range(0, len(ids), _IDS_AT_ONCE):
        part = ids[start : start + _IDS_AT_ONCE]
        known.update(
            connection.scalars(
                sa.select(LEDGER.c.id).where(LEDGER.c.id.in_(part), LEDGER.c.kind == "evidence")
            )
        )
    for each in ids:
        if each not in known:
            raise UnknownEvidence(
                f"evidence {each}: this ledger holds none of that id; record it before the decision"
            )
