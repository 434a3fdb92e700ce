"""The paper a chart is drawn on: axes, grid, label columns, and the figure without data.

Axis names stand level above and below the plot, so that nobody has to tilt their head; grid lines follow the
ticks of the value axis only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fairlead.charts.figure import Figure, compose
from fairlead.charts.placement import spread
from fairlead.charts.scale import LogScale, Scale, Tick
from fairlead.charts.style import MOST_SERIES
from fairlead.charts.svg import Point, line, marker, path, shorten, text, text_width
from fairlead.charts.table import Table
from fairlead.errors import InvalidInput

__all__ = ["Area", "check_series"]

WIDTH: Final = 720.0
TICK_SIZE: Final = 11.0
BOLD: Final = 1.1
"""Width of semibold text over that of regular text."""
POINT_BUDGET: Final = 3000
"""Points all lines of a chart may hold together: about 36 kB of coordinates, so that a chart stays under 60
kB."""


@dataclass(frozen=True, slots=True)
class Area:
    """The rectangle that data may touch, in pixels; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float


def check_series(names: Sequence[str]) -> None:
    if len(names) > MOST_SERIES:
        raise InvalidInput(
            f"{len(names)} series in one chart, at most {MOST_SERIES} can be told apart: draw several"
        )


def left_margin(ticks: Sequence[Tick]) -> float:
    return max([text_width(tick.label, TICK_SIZE) for tick in ticks], default=0.0) + 14


def horizontal_axis(
    area: Area, scale: Scale, ticks: Sequence[Tick], name: str, *, grid: bool = True
) -> list[str]:
    drawn: list[str] = []
    if grid:
        drawn += [line(scale(tick.value), area.top, scale(tick.value), area.bottom, "grid") for tick in ticks]
    drawn.append(line(area.left, area.bottom, area.right, area.bottom, "axis"))
    if isinstance(scale, LogScale):
        drawn += [line(scale(at), area.bottom, scale(at), area.bottom + 3, "axis") for at in scale.minor()]
    for tick in ticks:
        at = scale(tick.value)
        drawn.append(line(at, area.bottom, at, area.bottom + 5, "axis"))
        drawn.append(text(at, area.bottom + 18, tick.label, "muted", anchor="middle", size=TICK_SIZE))
    if name:
        fitted = shorten(name, area.right - area.left)
        middle = (area.left + area.right) / 2
        drawn.append(text(middle, area.bottom + 37, fitted, "muted", anchor="middle", whole=name))
    return drawn


def vertical_axis(area: Area, scale: Scale, ticks: Sequence[Tick], name: str, name_at: float) -> list[str]:
    """The axis, with its name level above it at `name_at`."""
    drawn = [line(area.left, scale(tick.value), area.right, scale(tick.value), "grid") for tick in ticks]
    drawn += [
        text(area.left - 8, scale(tick.value) + 4, tick.label, "muted", anchor="end", size=TICK_SIZE)
        for tick in ticks
    ]
    if name:
        drawn.append(text(2, name_at, shorten(name, WIDTH - 4), "muted", whole=name))
    return drawn


def labels_right(area: Area, ends: Mapping[int, Point], names: Sequence[str]) -> list[str]:
    """Names of lines in the right margin, each as near to its line's end as the others allow."""
    numbers = list(ends)
    places = spread(
        [ends[number][1] for number in numbers], [17.0] * len(numbers), area.top - 8, area.bottom + 8
    )
    drawn: list[str] = []
    for number, place in zip(numbers, places, strict=True):
        x, y = ends[number]
        drawn.append(marker(number, x, y, f"f{number + 1} halo"))
        if abs(place - y) > 3 or area.right - x > 12:
            drawn.append(
                path([[(min(x + 5, area.right), y), (area.right + 3, y), (area.right + 10, place)]], "leader")
            )
        fitted = shorten(names[number], (WIDTH - area.right - 14) / BOLD)
        drawn.append(text(area.right + 12, place + 4, fitted, f"label f{number + 1}", whole=names[number]))
    return drawn


def labels_above(area: Area, ends: Mapping[int, Point], names: Sequence[str], baseline: float) -> list[str]:
    """Names of lines in a row above the plot, each as near to its line's end as the others allow."""
    numbers = list(ends)
    share = (WIDTH - area.left) / max(1, len(numbers)) - 14
    fitted = [shorten(names[number], share / BOLD) for number in numbers]
    widths = [text_width(name) * BOLD + 14 for name in fitted]
    places = spread([ends[number][0] for number in numbers], widths, area.left - 7, WIDTH)
    drawn: list[str] = []
    for number, name, place in zip(numbers, fitted, places, strict=True):
        x, y = ends[number]
        drawn.append(path([[(place, baseline + 4), (x, min(area.top, baseline + 14)), (x, y)]], "leader"))
        drawn.append(
            text(place, baseline, name, f"label f{number + 1}", anchor="middle", whole=names[number])
        )
    return drawn


def no_data(*, title: str, description: str, table: Table, figure_id: str | None) -> Figure:
    """A figure that says in words that there is nothing to draw."""
    area = Area(8, 8, WIDTH - 8, 112)
    body = [
        line(area.left, area.bottom, area.right, area.bottom, "axis"),
        text(WIDTH / 2, 66, "no data", "muted", anchor="middle", size=14),
    ]
    told = f"{description} No data.".strip()
    return compose(
        body, width=WIDTH, height=120, title=title, description=told, table=table, figure_id=figure_id
    )
