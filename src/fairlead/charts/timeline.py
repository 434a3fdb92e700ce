"""What happened when: lines over time, with the phases of the run behind them.

A line drawn across a gap claims something nobody measured, so a missing value breaks it, and a value alone
between two gaps is a dot. An infinite value is drawn at the edge under an arrow. Zero is always on a linear
axis: a line that seems to double has doubled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fairlead.charts.figure import Figure, compose
from fairlead.charts.placement import fitting_ticks
from fairlead.charts.plot import (
    BOLD,
    POINT_BUDGET,
    TICK_SIZE,
    WIDTH,
    Area,
    check_series,
    horizontal_axis,
    labels_right,
    left_margin,
    no_data,
    vertical_axis,
)
from fairlead.charts.scale import LinearScale, LogScale
from fairlead.charts.svg import Point, arrow, line, path, printable, rectangle, shorten, text, text_width
from fairlead.charts.table import Cell, Column, Table
from fairlead.charts.thinning import runs, thin
from fairlead.charts.units import Unit, as_float, format_value
from fairlead.errors import InvalidInput

__all__ = ["Band", "timeline"]

_MOST_BANDS = 40
_MOST_ROWS = 200
_SLICES = 60
_MOST_ARROWS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """A named stretch of time, shaded behind the lines."""

    name: str
    start: float
    """Seconds on the chart's own time axis."""
    end: float
    """Seconds, at least `start`."""

    def __post_init__(self) -> None:
        start, end = as_float(self.start), as_float(self.end)
        if not (math.isfinite(start) and math.isfinite(end) and start <= end):
            raise InvalidInput(
                f"band {self.name!r:.60}: start {start} and end {end} must be finite, start <= end"
            )


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    points: list[Point]
    """Sorted by time; NaN is a gap."""
    untimed: int

    @classmethod
    def of(cls, name: str, points: Iterable[tuple[float, float | None]]) -> _Line:
        numbers = [(as_float(at), as_float(value)) for at, value in points]
        timed = sorted((point for point in numbers if math.isfinite(point[0])), key=lambda point: point[0])
        return cls(name, timed, len(numbers) - len(timed))

    @property
    def present(self) -> list[Point]:
        return [point for point in self.points if not math.isnan(point[1])]


def timeline(
    lines: Mapping[str, Iterable[tuple[float, float | None]]],
    *,
    title: str,
    unit: Unit,
    y_name: str,
    description: str = "",
    x_name: str = "Time since start",
    bands: Sequence[Band] = (),
    y_scale: Literal["linear", "log"] = "linear",
    figure_id: str | None = None,
) -> Figure:
    """Values over time, `(seconds, value)` in any order; the table lists them, or extremes per slice of a
    long run.

    On a logarithmic axis zero and negative values are drawn at the lower edge, counted and told in the
    description. Raises InvalidInput for more than 8 lines or 40 bands.
    """
    data = [_Line.of(name, points) for name, points in lines.items()]
    check_series([one.name for one in data])
    if len(bands) > _MOST_BANDS:
        raise InvalidInput(f"bands: {len(bands)} given, at most {_MOST_BANDS} can be read")
    table = _table(data, unit)
    values = [value for one in data for _, value in one.present]
    if not values:
        return no_data(title=title, description=description, table=table, figure_id=figure_id)
    height = 340.0
    top, bottom = (60.0 if bands else 30.0), height - 48
    y = _value_scale(values, bottom, top, unit, y_scale)
    y_ticks = fitting_ticks(y, vertical=True, size=TICK_SIZE)
    right = WIDTH - 24 - min(170.0, max(text_width(printable(one.name)) * BOLD for one in data))
    area = Area(left_margin(y_ticks), top, right, bottom)
    moments = [at for one in data for at, _ in one.points] + [
        at for band in bands for at in (band.start, band.end)
    ]
    x = LinearScale(min(moments), max(moments), area.left, area.right, "seconds", is_time=True)
    body = _bands(area, x, bands)
    body += vertical_axis(area, y, y_ticks, y_name, 14)
    body += horizontal_axis(area, x, fitting_ticks(x, vertical=False, size=TICK_SIZE), x_name, grid=False)
    ends: dict[int, Point] = {}
    for number, one in enumerate(data):
        if not one.present:
            continue
        kept = thin(one.points, POINT_BUDGET // len(data))
        places = [(x(at), math.nan if math.isnan(value) else y(value)) for at, value in kept]
        body.append(path(runs(places), f"line s{number + 1}"))
        body += _arrows(
            area, [(x(at), value) for at, value in kept], f"f{number + 1}", _MOST_ARROWS // len(data)
        )
        last_at, last = one.present[-1]
        ends[number] = (x(last_at), y(last))
    body += labels_right(area, ends, [one.name for one in data])
    told = " ".join(filter(None, [description, *(_notes(one, y_scale) for one in data)]))
    return compose(
        body,
        width=WIDTH,
        height=height,
        title=title,
        description=told,
        summary=" ".join(filter(None, [_phases(bands), *(_extent(one, unit) for one in data)])),
        table=table,
        figure_id=figure_id,
    )


def _value_scale(
    values: list[float], start: float, end: float, unit: Unit, kind: str
) -> LinearScale | LogScale:
    finite = [value for value in values if math.isfinite(value)]
    if kind == "log":
        positive = [value for value in finite if value > 0]
        return LogScale(min(positive, default=1.0), max(positive, default=10.0), start, end, unit)
    return LinearScale.rounded(min([0.0, *finite]), max([0.0, *finite]), start, end, unit)


def _bands(area: Area, x: LinearScale, bands: Sequence[Band]) -> list[str]:
    drawn: list[str] = []
    reached = 0.0
    for number, band in enumerate(sorted(bands, key=lambda band: (band.start, band.end))):
        left, right = x(band.start), x(band.end)
        if number % 2 == 0:
            drawn.append(rectangle(left, area.top - 36, right - left, area.bottom - area.top + 36, "band"))
        drawn.append(line(left, area.top - 36, left, area.bottom, "grid"))
        begin = max(left, reached)
        for row, part in enumerate(_wrapped(band.name, right - begin - 8)):
            drawn.append(
                text(begin + 5, area.top - 22 + 14 * row, part, "muted", size=TICK_SIZE, whole=band.name)
            )
        reached = max(reached, right)
    return drawn


def _wrapped(name: str, width: float) -> list[str]:
    """The name on one line or two, shortened where it must be."""
    name = printable(name)
    if text_width(name, TICK_SIZE) > width:
        words = name.split(" ")
        for cut in range(len(words) - 1, 0, -1):
            first, second = " ".join(words[:cut]), " ".join(words[cut:])
            if max(text_width(first, TICK_SIZE), text_width(second, TICK_SIZE)) <= width:
                return [first, second]
    fitted = shorten(name, width, TICK_SIZE)
    return [fitted] if fitted else []


def _arrows(area: Area, points: Sequence[Point], kind: str, most: int) -> list[str]:
    """An arrow at the edge for each infinite value; those closer than their own width share one."""
    drawn: list[str] = []
    apart = max(8.0, (area.right - area.left) / max(1, most))
    last = {math.inf: -math.inf, -math.inf: -math.inf}
    for at, value in points:
        if math.isinf(value) and at - last[value] >= apart:
            last[value] = at
            drawn.append(
                arrow(at, area.top - 5, "up", kind) if value > 0 else arrow(at, area.bottom + 5, "down", kind)
            )
    return drawn


def _table(data: Sequence[_Line], unit: Unit) -> Table:
    moments = sorted({at for one in data for at, _ in one.points})
    if len(moments) <= _MOST_ROWS:
        columns = (Column("Time", "seconds"), *(Column(one.name, unit) for one in data))
        values = [{at: None if math.isnan(value) else value for at, value in one.points} for one in data]
        return Table(columns, tuple((at, *(known.get(at) for known in values)) for at in moments))
    width = (moments[-1] - moments[0]) / _SLICES
    slices: list[dict[int, list[float]]] = [{} for _ in data]
    for known, one in zip(slices, data, strict=True):
        for at, value in one.present:
            known.setdefault(min(_SLICES - 1, int((at - moments[0]) / width)), []).append(value)
    columns = (
        Column("Time from", "seconds"),
        *(Column(f"{one.name} {end}", unit) for one in data for end in ("lowest", "highest")),
    )
    rows: list[tuple[Cell, ...]] = []
    for number in range(_SLICES):
        found = [known.get(number) for known in slices]
        extremes = [
            cell for values in found for cell in ((min(values), max(values)) if values else (None, None))
        ]
        rows.append((moments[0] + number * width, *extremes))
    return Table(columns, tuple(rows))


def _phases(bands: Sequence[Band]) -> str:
    if not bands:
        return ""
    named: list[str] = []
    for band in sorted(bands, key=lambda band: (band.start, band.end)):
        start, end = format_value(band.start, "seconds"), format_value(band.end, "seconds")
        named.append(f"{printable(band.name, 60)} {start} to {end}")
    return f"Phases: {'; '.join(named)}."


def _extent(one: _Line, unit: Unit) -> str:
    finite = [value for _, value in one.points if math.isfinite(value)]
    if not finite:
        return ""
    return (
        f"{printable(one.name, 80)}: {format_value(min(finite), unit)} to {format_value(max(finite), unit)}."
    )


def _notes(one: _Line, y_scale: str) -> str:
    values = [value for _, value in one.points]
    flat = sum(-math.inf < value <= 0 for value in values) if y_scale == "log" else 0
    counted = (
        (sum(map(math.isnan, values)), "missing, the line is broken there"),
        (values.count(math.inf), "infinite, under an arrow at the upper edge"),
        (values.count(-math.inf), "infinite below, at the lower edge"),
        (flat, "zero or less, drawn at the lower edge"),
        (one.untimed, "without a time, left out"),
    )
    facts = [f"{format_value(count, 'count')} {what}" for count, what in counted if count]
    if not one.present:
        facts.insert(0, "no data")
    return f"{printable(one.name, 80)}: {'; '.join(facts)}." if facts else ""
