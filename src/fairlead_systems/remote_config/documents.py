"""From entries to the JSON that a page reads: layer upon layer, and the bytes kept for all who get the same.

Defaults from the code, then `all`, then the user's segment, then the user's own entries: the later one wins. Most users
have no entry of their own, so there is one document per segment, made once per version of the shared layers. The ETag
is a hash of the bytes: a change that does not touch a document does not send it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
import xxhash

from fairlead.errors import InvalidInput
from fairlead_systems.remote_config.schema import SEGMENT, Schema
from fairlead_systems.remote_config.table import Entry

__all__ = ["Document", "OwnEntries", "SharedLayers", "make_document", "matches"]

_MOST_KEPT = 1_000  # documents of one version: users may name segments of which nothing else is known


class Document(msgspec.Struct, frozen=True):
    """What a page gets."""

    body: bytes
    etag: str
    """With its quotes, as HTTP writes it."""


class OwnEntries(msgspec.Struct, frozen=True):
    """What the table says of one user."""

    segment: str = ""
    values: tuple[tuple[str, str], ...] = ()
    """Names with their JSON."""

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> OwnEntries | None:
        """None for a user of whom the table says nothing."""
        segment, values = "", []
        for entry in entries:
            if entry.name == SEGMENT:
                segment = _text(entry.value)
            else:
                values.append((entry.name, entry.value))
        return cls(segment, tuple(values)) if segment or values else None


def make_document(segment: str, values: Mapping[str, object]) -> Document:
    """The same bytes for the same values, whoever makes them."""
    body = msgspec.json.encode({"segment": segment or None, "values": values})
    return Document(body, f'"{xxhash.xxh3_128_hexdigest(body)}"')


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether a conditional request already has this (RFC 9110, 13.1.2: weak comparison, a list, or *)."""
    if not if_none_match:
        return False
    held = [tag.strip() for tag in if_none_match.split(",")]
    return "*" in held or etag in (tag.removeprefix("W/") for tag in held)


class SharedLayers:
    """The layers that users share, checked against the schema. Immutable; documents are made when first asked for."""

    def __init__(self, schema: Schema, version: int, entries: Iterable[Entry] = ()) -> None:
        self.version = version
        self.entries = tuple(entries)
        self.misfits: list[str] = []
        """Entries that the schema does not allow, and why; their defaults stand."""
        self._schema = schema
        self._all = dict(schema.defaults)
        self._segments: dict[str, dict[str, object]] = {}
        self._documents: dict[str, Document] = {}
        for entry in self.entries:
            layer = self._all if entry.layer == "all" else self._segments.setdefault(entry.subject, {})
            self._put(layer, entry.name, entry.value)

    def document(self, own: OwnEntries | None) -> Document:
        """What a user with these entries gets. Costs a few microseconds where the user has values of his own."""
        segment = own.segment if own is not None else ""
        if own is None or not own.values:
            known = self._documents.get(segment)
            if known is None:
                known = make_document(segment, self._layered(segment))
                if len(self._documents) < _MOST_KEPT:
                    self._documents[segment] = known
            return known
        values = self._layered(segment)
        for name, text in own.values:
            self._put(values, name, text)
        return make_document(segment, values)

    def _layered(self, segment: str) -> dict[str, object]:
        return self._all | self._segments.get(segment, {})

    def _put(self, values: dict[str, object], name: str, text: str) -> None:
        try:
            values[name] = self._schema.decode(name, text)
        except InvalidInput as error:
            if len(self.misfits) < 100:
                self.misfits.append(str(error))


def _text(value: str) -> str:
    try:
        return msgspec.json.decode(value, type=str)
    except (msgspec.MsgspecError, UnicodeError):
        return ""
