"""Where a line goes in a broker: its kind and its id, read from the line itself.

A writer gets encoded lines, since spools and files hold nothing else; the kind makes the subject or topic, and
the id the message's. A line without a kind has no address, now or ever, and that must not be mistaken for a
broker that is away: it would be sent again until the spool is full.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from fairlead.errors import InvalidInput

__all__ = ["Addressed", "addressed", "check_names"]

_KIND = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


class Addressed(msgspec.Struct, frozen=True):
    """One line and what a message needs to know of it."""

    line: bytes
    kind: str
    """As `exposure`: lower case letters, digits and _."""
    identity: str
    """Its `event_id`, "" when it has none."""


class _Envelope(msgspec.Struct):
    event: str = ""
    event_id: str = ""


_decoder = msgspec.json.Decoder(_Envelope)


def addressed(lines: Sequence[bytes]) -> list[Addressed]:
    """The lines up to the first without an address. Raises InvalidInput when that is the first of all."""
    found = []
    for line in lines:
        try:
            envelope = _decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            break
        if not _KIND.fullmatch(envelope.event):
            break
        found.append(Addressed(line, envelope.event, envelope.event_id))
    if not found:
        raise InvalidInput(f"no event, so it has no address: {lines[0][:80]!r}")
    return found


def check_names(**names: str) -> None:
    """Raises InvalidInput for a name that is more than one token to a broker."""
    for name, value in names.items():
        if not _NAME.fullmatch(value):
            raise InvalidInput(f"{name} = {value!r}: use 1 to 64 letters, digits, '_' and '-'")
