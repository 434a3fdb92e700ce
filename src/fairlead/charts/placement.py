"""Where labels go when several want the same place, and which ticks an axis has room for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from fairlead.charts.scale import Scale, Tick
from fairlead.charts.svg import text_width

__all__ = ["fitting_ticks", "spread"]


def spread(centres: Sequence[float], sizes: Sequence[float], low: float, high: float) -> list[float]:
    """New centres, in the same order along the line, so that intervals of `sizes` neither overlap nor leave
    low..high.

    Moves as little as possible in the sum of squares (pool adjacent violators). When the sizes do not fit,
    they are packed from `low` on.

    >>> spread([10.0, 10.0, 50.0], [10.0, 10.0, 10.0], 0.0, 100.0)
    [5.0, 15.0, 50.0]
    """
    order = sorted(range(len(centres)), key=lambda index: (centres[index], index))
    offsets: list[float] = []
    used = 0.0
    for index in order:
        offsets.append(used + sizes[index] / 2)
        used += sizes[index]
    room = max(low, high - used)
    # Each label wants its block to begin at centre − offset; blocks that disagree share their mean.
    blocks: list[tuple[float, int]] = []
    for index, offset in zip(order, offsets, strict=True):
        total, count = centres[index] - offset, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / count:
            earlier, members = blocks.pop()
            total, count = total + earlier, count + members
        blocks.append((total, count))
    begins = [total / count for total, count in blocks for _ in range(count)]
    placed = [0.0] * len(centres)
    for index, offset, begin in zip(order, offsets, begins, strict=True):
        placed[index] = min(max(begin, low), room) + offset
    return placed


def fitting_ticks(scale: Scale, *, vertical: bool, size: float) -> list[Tick]:
    """The densest set of ticks whose labels keep a gap between each other."""
    ticks: list[Tick] = []
    for ticks in scale.tick_sets():
        places = sorted((scale(tick.value), _extent(tick, vertical, size)) for tick in ticks)
        if len({tick.label for tick in ticks}) == len(ticks) and all(
            right - left >= (before + after) / 2 for (left, before), (right, after) in pairwise(places)
        ):
            return ticks
    return ticks[:1]


def _extent(tick: Tick, vertical: bool, size: float) -> float:
    return size * 1.5 if vertical else text_width(tick.label, size) + size * 1.2
