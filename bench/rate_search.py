"""The highest rate that each of several arms carries.

The interval between the highest rate carried and the lowest that was not is halved, on a scale of ratios, until the two
lie within a tolerance. Arms take turns, rate by rate, so that a slow minute of the machine meets all of them.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

__all__ = ["Judged", "Search", "search_in_turns"]


class Judged(Protocol):
    """What a rate was found to be."""

    @property
    def rate(self) -> float: ...

    @property
    def carried(self) -> bool: ...

    @property
    def limit(self) -> str:
        """What stood in the way of a rate that was not carried."""
        ...


_J = TypeVar("_J", bound=Judged)


@dataclass(kw_only=True)
class Search(Generic[_J]):
    """Of one arm. `carried` and `refused`: requests a second, between which the answer lies."""

    carried: float
    refused: float
    tolerance: float
    tried: list[_J] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.refused / self.carried <= self.tolerance

    @property
    def rate(self) -> float:
        """To be tried next."""
        return math.sqrt(self.carried * self.refused)

    def learn(self, tried: _J) -> None:
        self.tried.append(tried)
        if tried.carried:
            self.carried = tried.rate
        else:
            self.refused = tried.rate

    @property
    def why(self) -> str:
        """What limits the arm."""
        over = [tried for tried in self.tried if not tried.carried]
        return min(over, key=lambda tried: tried.rate).limit if over else f"none up to {self.refused:g}/s"


async def search_in_turns(
    arms: Iterable[str],
    judge: Callable[[str, float, int], Awaitable[_J]],
    *,
    lowest: float,
    highest: float,
    tolerance: float,
) -> dict[str, Search[_J]]:
    """The finished search of each arm. judge: tries an arm at a rate; the number is that of the try, for its seed."""
    found: dict[str, Search[_J]] = {
        arm: Search(carried=lowest, refused=highest, tolerance=tolerance) for arm in arms
    }
    number = 0
    while any(not each.done for each in found.values()):
        for arm, each in found.items():
            if not each.done:
                number += 1
                each.learn(await judge(arm, each.rate, number))
    return found
