"""Estimates side by side: dots with intervals per group, and bars of contribution.

A difference drawn without its uncertainty invites a decision that the data does not carry. So each estimate
is drawn with its interval, each arm in a lane of its own, and its figure stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fairlead.charts.figure import Figure, compose
from fairlead.charts.placement import fitting_ticks
from fairlead.charts.plot import BOLD, TICK_SIZE, WIDTH, Area, check_series, horizontal_axis, no_data
from fairlead.charts.scale import LinearScale, LogScale
from fairlead.charts.svg import arrow, line, marker, printable, rectangle, shorten, text, text_width
from fairlead.charts.table import Column, Table
from fairlead.charts.units import Unit, as_float, format_value
from fairlead.errors import InvalidInput

__all__ = ["Interval", "bars", "dot_interval"]

_MOST_ESTIMATES = 80
_LANE = 17.0
_HALO = 6.0


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the bounds of its interval; a bound of None was not computed."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    """Observations behind the estimate."""

    def __post_init__(self) -> None:
        value, low, high = map(as_float, (self.value, self.low, self.high))
        if low > high or low > value or high < value:
            raise InvalidInput(f"interval {low} to {high} around {value}: needs low <= value <= high")

    @property
    def known(self) -> list[float]:
        """The figures to be drawn: value and bounds, where there are any."""
        if math.isnan(as_float(self.value)):
            return []
        return [
            number for number in map(as_float, (self.value, self.low, self.high)) if not math.isnan(number)
        ]


def dot_interval(
    groups: Mapping[str, Mapping[str, Interval]],
    *,
    title: str,
    unit: Unit,
    x_name: str,
    description: str = "",
    x_scale: Literal["linear", "log"] = "linear",
    figure_id: str | None = None,
) -> Figure:
    """Per group (phase, segment) one dot per arm, with its interval; `groups` maps group to arm to estimate.

    Groups may lack arms. Two arms of a group are joined, as a dumbbell. On a logarithmic axis zero and
    negative figures are drawn at the left edge and told in the description. Raises InvalidInput for more than
    8 arms or 80 estimates.
    """
    arms = list(dict.fromkeys(arm for estimates in groups.values() for arm in estimates))
    check_series(arms)
    _check_number(len(groups) * max(1, len(arms)))
    table = _group_table(groups, unit)
    known = [number for estimates in groups.values() for one in estimates.values() for number in one.known]
    if not known:
        return no_data(title=title, description=description, table=table, figure_id=figure_id)
    row_height = max(34.0, _LANE * len(arms) + 16)
    top = 10.0
    bottom = top + row_height * len(groups)
    named = _first_named(groups, arms)
    values = {
        (
            group,
            arm,
        ): f"{format_value(one.value, unit)}{' · ' + printable(arm) if (group, arm) in named else ''}"
        for group, estimates in groups.items()
        for arm, one in estimates.items()
    }
    after = min(240.0, max(map(text_width, values.values())) * BOLD + 14)
    area = Area(_name_column(groups), top, WIDTH - after, bottom)
    x = _scale(known, area, unit, x_scale)
    body = horizontal_axis(area, x, fitting_ticks(x, vertical=False, size=TICK_SIZE), x_name)
    for number, (group, estimates) in enumerate(groups.items()):
        middle = top + row_height * (number + 0.5)
        if number:
            body.append(line(0, middle - row_height / 2, area.right, middle - row_height / 2, "grid"))
        body.append(text(2, middle + 4, shorten(group, area.left - 16), "", whole=group))
        lanes = {arm: middle + _LANE * (lane - (len(arms) - 1) / 2) for lane, arm in enumerate(arms)}
        dots = [
            (x(as_float(estimates[arm].value)), lanes[arm])
            for arm in arms
            if arm in estimates and estimates[arm].known
        ]
        if len(dots) == 2:
            body.append(line(*dots[0], *dots[1], "leader"))
        for index, arm in enumerate(arms):
            if arm in estimates and estimates[arm].known:
                reached = _estimate(body, area, x, estimates[arm], lanes[arm], index)
                fitted = shorten(values[group, arm], (WIDTH - reached - 12) / BOLD)
                body.append(text(reached + 9, lanes[arm] + 4, fitted, f"label f{index + 1}", whole=arm))
            elif arm in estimates:
                body.append(text(area.left + 6, lanes[arm] + 4, f"{printable(arm, 40)}: no data", "muted"))
    summary = "; ".join(
        f"{printable(group, 60)}: "
        + ", ".join(f"{printable(arm, 60)} {format_value(one.value, unit)}" for arm, one in estimates.items())
        for group, estimates in groups.items()
    )
    return compose(
        body,
        width=WIDTH,
        height=bottom + 48,
        title=title,
        description=" ".join(filter(None, [description, _edges(known, x_scale)])),
        summary=f"{summary}.",
        table=table,
        figure_id=figure_id,
    )


def bars(
    contributions: Mapping[str, float | Interval | None],
    *,
    title: str,
    unit: Unit,
    x_name: str,
    description: str = "",
    figure_id: str | None = None,
) -> Figure:
    """One horizontal bar per name, from zero, in the order given, with the interval where there is one.

    For ablations: what each mechanism contributes. Infinite values end in an arrow at the edge. Raises
    InvalidInput for more than 80 bars.
    """
    _check_number(len(contributions))
    estimates = {
        name: one if isinstance(one, Interval) else Interval(one) for name, one in contributions.items()
    }
    table = Table(
        (
            Column("Name"),
            Column("Value", unit),
            Column("low", unit),
            Column("high", unit),
            Column("n", "count"),
        ),
        tuple((name, one.value, one.low, one.high, one.n) for name, one in estimates.items()),
    )
    known = [number for one in estimates.values() for number in one.known]
    if not known:
        return no_data(title=title, description=description, table=table, figure_id=figure_id)
    row_height, top = 28.0, 10.0
    bottom = top + row_height * len(estimates)
    labels = {name: format_value(one.value, unit) for name, one in estimates.items() if one.known}
    room = max(map(text_width, labels.values())) * BOLD + 14
    before = room if min(known) < 0 else 0.0
    area = Area(_name_column(estimates) + before, top, WIDTH - max(room, 36.0), bottom)
    x = _scale([0.0, *known], area, unit, "linear")
    body = horizontal_axis(area, x, fitting_ticks(x, vertical=False, size=TICK_SIZE), x_name)
    for number, (name, one) in enumerate(estimates.items()):
        middle = top + row_height * (number + 0.5)
        body.append(text(2, middle + 4, shorten(name, area.left - before - 16), "", whole=name))
        if not one.known:
            body.append(text(x(0.0) + 6, middle + 4, "no data", "muted"))
            continue
        value = as_float(one.value)
        begin, end = sorted((x(0.0), x(value)))
        body.append(rectangle(begin, middle - 8, max(end - begin, 1.0), 16, "f1"))
        whisker = [x(number) for number in one.known]
        if len(whisker) > 1:
            ends = (min(whisker), max(whisker))
            for kind in ("casing", "whisker"):  # the casing lifts the whisker off its own bar
                body.append(line(ends[0], middle, ends[1], middle, kind))
                body += [line(at, middle - 4, at, middle + 4, kind) for at in ends]
        _edge_arrows(body, area, one, middle, "f1")
        if value < 0:
            body.append(text(min(whisker) - 9, middle + 4, labels[name], "label", anchor="end"))
        else:
            body.append(text(max(*whisker, x(0.0)) + 9, middle + 4, labels[name], "label"))
    body.append(line(x(0.0), area.top - 4, x(0.0), area.bottom, "axis"))
    figures = [f"{printable(name, 60)} {format_value(one.value, unit)}" for name, one in estimates.items()]
    return compose(
        body,
        width=WIDTH,
        height=bottom + 48,
        title=title,
        description=" ".join(filter(None, [description, _edges(known, "linear")])),
        summary=f"{'; '.join(figures)}.",
        table=table,
        figure_id=figure_id,
    )


def _estimate(
    body: list[str], area: Area, x: LinearScale | LogScale, one: Interval, lane: float, index: int
) -> float:
    """Draws interval and dot; returns the rightmost pixel they reach."""
    places = [x(number) for number in one.known]
    if len(places) > 1:
        body.append(line(min(places), lane, max(places), lane, f"interval s{index + 1}"))
        body += [
            line(at, lane - 3.5, at, lane + 3.5, f"interval s{index + 1}")
            for at in (min(places), max(places))
        ]
    _edge_arrows(body, area, one, lane, f"f{index + 1}")
    body.append(marker(index, x(as_float(one.value)), lane, f"f{index + 1} halo", 4.4))
    return max(places)


def _edge_arrows(body: list[str], area: Area, one: Interval, lane: float, kind: str) -> None:
    if math.inf in one.known:
        body.append(arrow(area.right + _HALO, lane, "right", kind))
    if -math.inf in one.known:
        body.append(arrow(area.left - _HALO, lane, "left", kind))


def _scale(known: list[float], area: Area, unit: Unit, kind: str) -> LinearScale | LogScale:
    finite = [number for number in known if math.isfinite(number)]
    if kind == "log":
        positive = [number for number in finite if number > 0]
        return LogScale(min(positive, default=1.0), max(positive, default=10.0), area.left, area.right, unit)
    return LinearScale.rounded(min([0.0, *finite]), max([0.0, *finite]), area.left, area.right, unit)


def _name_column(names: Mapping[str, object]) -> float:
    return min(200.0, max(text_width(printable(name)) for name in names)) + 18


def _first_named(groups: Mapping[str, Mapping[str, Interval]], arms: list[str]) -> set[tuple[str, str]]:
    """Where each arm appears first: there its name is written beside its dot."""
    return {
        next((group, arm) for group, estimates in groups.items() if arm in estimates and estimates[arm].known)
        for arm in arms
        if any(arm in estimates and estimates[arm].known for estimates in groups.values())
    }


def _group_table(groups: Mapping[str, Mapping[str, Interval]], unit: Unit) -> Table:
    columns = (
        Column("Group"),
        Column("Arm"),
        Column("Estimate", unit),
        Column("low", unit),
        Column("high", unit),
        Column("n", "count"),
    )
    rows = tuple(
        (group, arm, one.value, one.low, one.high, one.n)
        for group, estimates in groups.items()
        for arm, one in estimates.items()
    )
    return Table(columns, rows)


def _edges(known: list[float], kind: str) -> str:
    infinite = sum(map(math.isinf, known))
    flat = sum(number <= 0 for number in known) if kind == "log" else 0
    facts = [f"{infinite} infinite, under an arrow at the edge"] if infinite else []
    if flat:
        facts.append(f"{flat} zero or less, drawn at the left edge")
    return f"Figures beyond the axis: {'; '.join(facts)}." if facts else ""


def _check_number(estimates: int) -> None:
    if estimates > _MOST_ESTIMATES:
        raise InvalidInput(
            f"{estimates} estimates in one chart, at most {_MOST_ESTIMATES} can be read: draw several"
        )
