"""What both arms hand back: a ranked page and the facts about how it came about."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Answer", "NoAnswer", "rank", "request_features"]


class NoAnswer(Exception):
    """The page could not be made; the status is what the client gets."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    items: list[int]
    """Item ids, best first."""
    model: str
    """Version of the model that ranked them, or of the heuristic."""
    degraded_by: str = ""
    """Why a lesser ranking took the model's place: the error's class or the scheduler's reason; empty when it did
    not.
    """
    missing: tuple[str, ...] = ()
    """Which sources, fields and inputs it had to do without."""
    more: bool = False
    """True when there are candidates behind this page."""
    staleness: float | None
    """Seconds the stalest part was past its lifetime when it was read; 0 when all was fresh."""
    age: float | None
    """Seconds since the origin began to read the oldest part."""
    hit: bool
    """True when no candidate and no feature had to be waited for."""

    @property
    def degraded(self) -> bool:
        return bool(self.degraded_by)


def rank(items: Sequence[int], scores: Sequence[float]) -> list[int]:
    """Items by falling score; equal scores keep the source's order."""
    order = sorted(range(len(items)), key=lambda index: -scores[index])
    return [items[index] for index in order]


def request_features(user: str, items: Sequence[int]) -> list[tuple[float, ...]]:
    """The ranker's columns that belong to this user and these items, in the model's order.

    A stand-in for a profile store: a pure function of user and item, so that the same user is always ranked
    the same way.
    """
    digest = hashlib.blake2b(user.encode(), digest_size=16).digest()
    hour = digest[0] / 256 * 2 * math.pi
    hour_sin, hour_cos = math.sin(hour), math.cos(hour)
    last = max(1, len(items) - 1)
    rows: list[tuple[float, ...]] = []
    for position, item in enumerate(items):
        taste, interest, seen = digest[1 + item % 5], digest[6 + item % 5], digest[11 + item % 4]
        follows = 1.0 if (item ^ digest[15]) % 17 == 0 else 0.0
        rows.append((taste / 255, interest / 255, follows, seen / 255, hour_sin, hour_cos, position / last))
    return rows
