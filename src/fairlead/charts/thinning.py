"""Fewer points, same picture.

A million points make a file nobody can open, and most fall on the same pixel. Taking every n-th point hides
the very spike a reader looks for. So the line is cut into columns, and each column keeps its first, lowest,
highest and last point and its first gap: every extreme and every break stays, and the result depends on
nothing but the input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fairlead.charts.svg import Point

__all__ = ["runs", "thin"]


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most about `most` of `points`, sorted by x; a NaN in y is a gap."""
    if len(points) <= most:
        return list(points)
    columns = max(1, most // 5)
    left, right = points[0][0], points[-1][0]
    width = (right - left) / columns or 1.0
    kept: list[Point] = []
    begin = 0
    for column in range(columns):
        edge = left + (column + 1) * width
        end = begin
        while end < len(points) and (points[end][0] < edge or column == columns - 1):
            end += 1
        kept.extend(points[index] for index in _telling(points, begin, end))
        begin = end
    return kept


def _telling(points: Sequence[Point], begin: int, end: int) -> list[int]:
    present = [index for index in range(begin, end) if not math.isnan(points[index][1])]
    gap = next((index for index in range(begin, end) if math.isnan(points[index][1])), None)
    chosen = set() if gap is None else {gap}
    if present:
        chosen |= {
            present[0],
            min(present, key=lambda index: points[index][1]),
            max(present, key=lambda index: points[index][1]),
            present[-1],
        }
    return sorted(chosen)


def runs(points: Sequence[Point]) -> list[list[Point]]:
    """The points in unbroken stretches, without the gaps between them."""
    stretches: list[list[Point]] = [[]]
    for point in points:
        if not math.isnan(point[1]):
            stretches[-1].append(point)
        elif stretches[-1]:
            stretches.append([])
    return [stretch for stretch in stretches if stretch]
