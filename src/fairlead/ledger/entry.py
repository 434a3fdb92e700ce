"""One link of the chain: bytes that say what they follow, and their hash.

    payload   {"schema":"fairlead.ledger/1","number":8,"previous":"<hash of entry 7>",
               "recorded_at_utc_seconds":1764250000.5,"body":{"kind":"evidence", …}}
    hash      SHA-256 of the payload
    id        SHA-256 of the body: the same evidence has the same id wherever it stands

The payload is kept byte by byte as it was hashed, so no later version need write it in the same way, and a stranger can
check the chain with `sha256sum` and a JSON reader. The first entry follows 64 zeros.
"""

from __future__ import annotations

import hashlib
import re
from typing import Self

import msgspec

from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.ledger.decision import Decision
from fairlead.ledger.evidence import Evidence
from fairlead.ledger.frozen_change import FrozenChange

__all__ = ["GENESIS", "KINDS", "Body", "Entry", "Head", "identified", "indexed", "open_payload", "sealed"]

GENESIS = "0" * 64
SCHEMA = "fairlead.ledger/1"
Body = Evidence | Decision | FrozenChange
KINDS = ("evidence", "decision", "frozen_change")


class Head(msgspec.Struct, frozen=True):
    """The end of the chain at some moment: keep it elsewhere, and a later cut or rewriting shows.

    >>> str(Head.parse("2:" + "ab" * 32))[:10]
    '2:abababab'
    """

    number: int
    """Of the last entry, which is how many there are; 0 for an empty ledger."""
    hash: str
    """Of the last entry; 64 zeros for an empty ledger."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads what `str(head)` wrote. Raises InvalidInput."""
        match = re.fullmatch(r"(0|[1-9]\d{0,17}):([0-9a-f]{64})", text.strip(), re.ASCII)
        if match is None or (match[1] == "0") != (match[2] == GENESIS):
            raise InvalidInput(f"head: {text[:80]!r} is not a number, a colon and 64 hexadecimal digits")
        return cls(int(match[1]), match[2])

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry, as it was read."""

    number: int
    """1 for the first; without gaps, in the order in which they became visible."""
    id: str
    """SHA-256 of the body."""
    hash: str
    """SHA-256 of the whole entry; the next one names it."""
    previous: str
    """Hash of the entry before it."""
    recorded_at_utc_seconds: float
    """By the clock of who recorded it. Clocks go wrong; the order is that of the numbers."""
    body: Body


class _Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    schema: str
    number: int
    previous: str
    recorded_at_utc_seconds: float
    body: msgspec.Raw


_envelopes = msgspec.json.Decoder(_Envelope)
_bodies = msgspec.json.Decoder(Body)


def identified(body: Body) -> tuple[str, bytes]:
    """Id and canonical bytes of a body."""
    encoded = msgspec.json.encode(body)
    return hashlib.sha256(encoded).hexdigest(), encoded


def sealed(body: bytes, after: Head, recorded_at_utc_seconds: float) -> tuple[Head, bytes]:
    """The payload that follows `after`, and the head that it makes."""
    payload = msgspec.json.encode(
        _Envelope(
            schema=SCHEMA,
            number=after.number + 1,
            previous=after.hash,
            recorded_at_utc_seconds=recorded_at_utc_seconds,
            body=msgspec.Raw(body),
        )
    )
    return Head(after.number + 1, hashlib.sha256(payload).hexdigest()), payload


def open_payload(payload: object) -> Entry:
    """The entry that the bytes hold. Raises BrokenDocument for bytes that were never written by a ledger."""
    if not isinstance(payload, bytes):  # SQLite takes anything in any column
        raise BrokenDocument(f"no entry of a ledger: {type(payload).__name__} in the place of bytes")
    try:
        envelope = _envelopes.decode(payload)
        if envelope.schema != SCHEMA:
            raise BrokenDocument(f"an entry of the kind {envelope.schema[:64]!r}, not {SCHEMA}")
        return Entry(
            number=envelope.number,
            id=hashlib.sha256(envelope.body).hexdigest(),
            hash=hashlib.sha256(payload).hexdigest(),
            previous=envelope.previous,
            recorded_at_utc_seconds=envelope.recorded_at_utc_seconds,
            body=_bodies.decode(envelope.body),
        )
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BrokenDocument(f"no entry of a ledger: {error}") from error


def indexed(body: Body) -> tuple[str, str, str]:
    """Kind, change and metric: what entries are looked up by."""
    kind = str(body.__struct_config__.tag)
    if isinstance(body, FrozenChange):
        return kind, body.name, ""
    return kind, body.change, body.metric if isinstance(body, Evidence) else ""
