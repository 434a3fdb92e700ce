"""Who is served treatment: the port that moves traffic, and says where it is.

    want      what the rollout decided                       in the journal
    have      what the target says it serves, read back      `Traffic.read`
    observed  what units really met                          counted from exposures (sample ratio)

A driver sets a `Split` and reads it back; it decides nothing. Two rules protect the target from a controller that was
paused and comes back late: a split of an older epoch never raises a share, and after a rollback (`latched`) nothing
does but a new rollout. A rollback may be late, too: it is always let through to its own rollout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fairlead.calls.bounds import check_number, check_whole
from fairlead.errors import InvalidInput, StaleEpoch

__all__ = ["Split", "Traffic", "check_replacement"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Whom treatment is served to."""

    share: float
    """Of the units, 0–1, in whole slots of 1/10,000: those of the lowest slots."""
    audience: str = ""
    """Whom besides: units whose attribute `audience` says so. Empty: nobody."""
    rollout: str = ""
    """Which rollout set it, such as "home_feed/3"; empty where none ever did."""
    epoch: int = 0
    """Of the controller that set it: a later one has a higher number."""
    latched: bool = False
    """Whether it was rolled back: then this rollout never raises it again."""

    def __post_init__(self) -> None:
        check_number("share", self.share, low=0, high=1)
        check_whole("epoch", self.epoch, low=0, high=2**53)
        if self.latched and (self.share or self.audience):
            raise InvalidInput("split: it is latched, so nobody is served treatment; share must be 0")

    @property
    def slots(self) -> int:
        """The share in slots, 0 to 10,000."""
        return round(self.share * 10_000)

    def serves_as(self, other: Split) -> bool:
        """Whether the same units meet treatment under both."""
        return self.slots == other.slots and self.audience == other.audience


class Traffic(Protocol):
    """Moves one flag's traffic. Safe to call from one task at a time; a call that is cancelled may have happened."""

    name: str
    """How messages call it: "flags at flags.json"."""

    async def set(self, split: Split) -> None:
        """Serves this split from now on, or raises and serves the one before; read back before it returns.

        A rollback (`latched`) does not go back: one that raises has reached all but what it names, and is to be set
        again. Refuses what `check_replacement` refuses. A target that is being reloaded may come back with the split
        before, so whoever must be sure reads again. Raises StaleEpoch, TrafficUnavailable; InvalidInput for names that
        the target cannot carry.
        """
        ...

    async def read(self) -> Split:
        """The split that is served now, as what serves it says. Raises TrafficUnavailable."""
        ...

    async def close(self) -> None:
        """Lets go of connections; what is served stays."""
        ...


def check_replacement(current: Split, wanted: Split, target: str) -> None:
    """Raises StaleEpoch where `wanted` may not replace `current`.

    Every driver calls it with what it read from its target, holding what its write holds.
    """
    same = current.rollout == wanted.rollout
    if wanted.latched and same:
        return
    if current.latched and same:
        raise StaleEpoch(
            f"{target}: {current.rollout} was rolled back, and stays so; start a new rollout to try again"
        )
    if wanted.epoch < current.epoch:
        raise StaleEpoch(
            f"{target}: epoch {wanted.epoch} of {wanted.rollout or 'no rollout'} is older than epoch {current.epoch} "
            f"of {current.rollout or 'no rollout'}; another controller has taken over"
        )
