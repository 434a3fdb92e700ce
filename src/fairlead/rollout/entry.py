"""What a rollout's journal is made of: everything that was asked for, done and seen, in order.

    started → claimed → wanted → had → looked … → decided → wanted → had → … → ended

Entries are only ever appended; what the rollout's state is, is what they add up to (`state.fold`). A person's wishes
(pause, resume, advance, rollback) are entries like all others, so a controller that starts again finds them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from fairlead.errors import BrokenDocument
from fairlead.rollout.guardrail import Evaluation

__all__ = [
    "Asked",
    "Claimed",
    "Decided",
    "Ended",
    "Entry",
    "Had",
    "Looked",
    "Paged",
    "Started",
    "Wanted",
    "Written",
    "decode_entry",
    "encode_entry",
    "one_line",
]

_LONGEST = 1_000


class _Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind"):
    pass


class Started(_Entry, frozen=True, kw_only=True, tag="started"):
    """A rollout began; nobody is served treatment yet."""

    plan_sha256: str
    """Of the plan, which must be the same whenever a controller goes on."""
    by: str
    """Who started it."""
    places: dict[str, str] = {}
    """Where its traffic and its facts are, for commands that come later: `flags` a file, `events` a folder."""
    target: str = ""
    """What it moves, in words: two rollouts with the same one are never led at a time. Empty: not known."""


class Claimed(_Entry, frozen=True, kw_only=True, tag="claimed"):
    """A controller took the lead: those with a lower epoch write nothing any more."""

    by: str
    """Which process, on which machine."""


class Wanted(_Entry, frozen=True, kw_only=True, tag="wanted"):
    """Traffic is to be moved."""

    stage: int
    """Index of the stage that it belongs to."""
    share: float
    audience: str = ""
    latched: bool = False


class Had(_Entry, frozen=True, kw_only=True, tag="had"):
    """Traffic was moved: what serves it was asked, and said so."""

    stage: int
    share: float
    audience: str = ""
    latched: bool = False


class Looked(_Entry, frozen=True, kw_only=True, tag="looked"):
    """Every guardrail was evaluated once."""

    stage: int
    guarded_seconds: float
    """Of this stage, in which guardrails were evaluated."""
    waited_seconds: float = 0.0
    """In the phase that it was in, while a controller led it."""
    evaluations: tuple[Evaluation, ...]
    units: dict[str, int] = {}
    """Units by arm in this stage."""
    sample_ratio_p: float | None = None
    """Of the split so far, valid at any look; None where nothing was split, or nobody seen."""
    silent: tuple[str, ...] = ()
    """Arms without events for longer than they should be."""


class Decided(_Entry, frozen=True, kw_only=True, tag="decided"):
    """What was concluded from the looks. A hold is written when its reason changes."""

    stage: int
    verdict: Literal["advance", "hold", "rollback"]
    reason: str
    """In a sentence."""
    state: Literal["", "baking", "gate", "frozen"] = ""
    """For a hold: what the rollout is doing meanwhile."""
    ground: Literal["", "pass", "no_harm_seen", "person"] = ""
    """For an advance: what it stood on."""
    by: str = ""
    """Who or what decided."""
    decision: str = ""
    """Its id in the ledger; empty for a hold, or where there is no ledger."""
    evidence: tuple[str, ...] = ()
    """Ids in the ledger."""


class Asked(_Entry, frozen=True, kw_only=True, tag="asked"):
    """A person wishes something."""

    what: Literal["pause", "resume", "advance", "rollback"]
    by: str
    why: str = ""


class Paged(_Entry, frozen=True, kw_only=True, tag="paged"):
    """A person was called."""

    what: str


class Ended(_Entry, frozen=True, kw_only=True, tag="ended"):
    """Nothing follows."""

    outcome: Literal["completed", "rolled_back"]
    reason: str = ""


Entry = Started | Claimed | Wanted | Had | Looked | Decided | Asked | Paged | Ended


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """An entry, where and when it was written."""

    number: int
    """1 for the first of a rollout; without gaps."""
    epoch: int
    """Of the controller that wrote it; a person's wish has the epoch of the controller it is meant for."""
    at_utc_seconds: float
    """By the writer's clock. The order is that of the numbers."""
    entry: Entry


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)


def one_line(text: str) -> str:
    """Somebody else's text as journal and ledger can keep it: printable, in one line, of up to 1,000 characters."""
    kept = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * _LONGEST])
    return " ".join(kept.split())[:_LONGEST]


def encode_entry(entry: Entry) -> bytes:
    """The bytes of an entry."""
    return _encoder.encode(entry)


def decode_entry(data: bytes) -> Entry:
    """The entry of these bytes. Raises BrokenDocument."""
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise BrokenDocument(f"no entry of a rollout: {str(error)[:200]}") from error
