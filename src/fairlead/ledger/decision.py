"""What was decided, by whom, why, and on what evidence.

The evidence is named by id and must lie in the same ledger already, so that no decision can be given its ground
afterwards.
"""

from __future__ import annotations

import re

import msgspec
from msgspec.structs import force_setattr

from fairlead.errors import InvalidInput
from fairlead.ledger.bounds import checked_finite, checked_hash, checked_many, checked_name, checked_prose

__all__ = ["Decision"]

_WORD = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)
_MOST_EVIDENCE = 1_000


class Decision(msgspec.Struct, frozen=True, kw_only=True, tag="decision", tag_field="kind"):
    """One decision. Raises InvalidInput naming the field that is missing or wrong."""

    change: str
    """Name of the change that it was taken for."""
    decided_by: str
    """Who or what: a person, or a program with its version."""
    verdict: str
    """One word of the room that decides: advance, hold or rollback; pass, fail or inconclusive."""
    reason: str
    """Why, in sentences."""
    decided_at_utc_seconds: float
    """When; seconds since 1970, UTC."""
    evidence: tuple[str, ...] = ()
    """Ids that `record_evidence` returned, at most 1,000, none twice; empty for a decision that stands on none."""

    def __post_init__(self) -> None:
        for name in ("change", "decided_by", "verdict"):
            force_setattr(self, name, checked_name(name, getattr(self, name)))
        force_setattr(self, "reason", checked_prose("reason", self.reason))
        if not _WORD.fullmatch(self.verdict):
            raise InvalidInput(
                f"verdict: {self.verdict!r:.80} is not one word in lower case, such as advance"
            )
        force_setattr(
            self,
            "decided_at_utc_seconds",
            checked_finite("decided_at_utc_seconds", self.decided_at_utc_seconds),
        )
        ids = tuple(
            checked_hash("evidence", each) for each in checked_many("evidence", self.evidence, _MOST_EVIDENCE)
        )
        if len(set(ids)) != len(ids):
            raise InvalidInput("evidence: an id is named twice; name it once")
        force_setattr(self, "evidence", ids)
