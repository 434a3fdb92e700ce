"""What the walk tells the person who waits for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fairlead.trial.system import Arm, Plan

__all__ = ["Live", "NoProgress", "Progress"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Live:
    """Where the run stands; figures are of the stretch of load that is under way and only for looking at."""

    arm: str
    phase: str
    cycle: int
    """From 1."""
    elapsed: float
    """Seconds of load behind us, of `total`."""
    total: float
    due: int
    answered: int
    failed: int


class Progress(Protocol):
    def began(self, plan: Plan) -> None: ...

    def moved(self, live: Live) -> None:
        """Called a few times a second while load runs; must be quick."""
        ...

    def finished(self, arm: Arm, cycle: int, text: str) -> None:
        """One arm has gone through one cycle; `text` sums it up in a line."""
        ...

    def said(self, text: str) -> None:
        """News of what comes after the arms were compared, in a line."""
        ...


class NoProgress:
    """For programs and tests."""

    def began(self, plan: Plan) -> None: ...

    def moved(self, live: Live) -> None: ...

    def finished(self, arm: Arm, cycle: int, text: str) -> None: ...

    def said(self, text: str) -> None: ...
