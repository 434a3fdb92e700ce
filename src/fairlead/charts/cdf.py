"""Latency as a distribution: how large a share was faster than x, down to the last request.

A mean hides the tail and a histogram squeezes it flat. Here x is logarithmic and each further nine of the
share takes the same height, so p50, p99 and p99.9 can all be read off one line. The line is the sample's own
steps, no smoothing; it ends at 1 − 1/n, because a sample of n says nothing beyond. Values that never came
(infinite) count in n: their line leaves the plot at the right below the top.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fairlead.charts.figure import Figure, compose
from fairlead.charts.placement import fitting_ticks
from fairlead.charts.plot import (
    POINT_BUDGET,
    TICK_SIZE,
    WIDTH,
    Area,
    check_series,
    horizontal_axis,
    labels_above,
    left_margin,
    no_data,
    vertical_axis,
)
from fairlead.charts.scale import LogScale, TailScale
from fairlead.charts.svg import Point, arrow, marker, path, printable
from fairlead.charts.table import Cell, Column, Table
from fairlead.charts.units import Unit, as_float, format_value

__all__ = ["cdf"]

_SHARES = (0.5, 0.9, 0.95, 0.99, 0.999)


@dataclass(frozen=True, slots=True)
class _Sample:
    name: str
    values: list[float]
    """Sorted, without NaN; infinite values at the end."""
    missing: int

    @classmethod
    def of(cls, name: str, values: Iterable[float | None]) -> _Sample:
        numbers = [as_float(value) for value in values]
        present = sorted(number for number in numbers if not math.isnan(number))
        return cls(name, present, len(numbers) - len(present))

    @property
    def finite(self) -> int:
        return bisect_left(self.values, math.inf)

    @property
    def not_positive(self) -> int:
        return bisect_right(self.values, 0.0)

    def quantile(self, share: float) -> float | None:
        """Smallest value that at least `share` of the sample does not exceed; None where the sample is too
        small."""
        n = len(self.values)
        if n * (1 - share) < 1 - 1e-9:
            return None
        return self.values[max(0, math.ceil(share * n - 1e-9) - 1)]


def cdf(
    series: Mapping[str, Iterable[float | None]],
    *,
    title: str,
    description: str = "",
    unit: Unit = "seconds",
    x_name: str = "Latency",
    figure_id: str | None = None,
) -> Figure:
    """The cumulative distribution of each series, in the order given, with its quantiles as a table.

    Zero and negative values cannot stand on a logarithmic axis: they are drawn at its left edge, counted and
    told in the description, as are missing (None, NaN) and infinite ones. Raises InvalidInput for more than 8
    series. Cost: one sort per series.
    """
    samples = [_Sample.of(name, values) for name, values in series.items()]
    check_series([sample.name for sample in samples])
    table = _table(samples, unit)
    drawable = [sample for sample in samples if sample.values]
    if not drawable:
        return no_data(title=title, description=description, table=table, figure_id=figure_id)
    height, baseline = 400.0, 36.0
    top, bottom = 56.0, height - 48
    y = TailScale(1 - 1 / max(len(sample.values) for sample in drawable), bottom, top)
    y_ticks = fitting_ticks(y, vertical=True, size=TICK_SIZE)
    area = Area(left_margin(y_ticks), top, WIDTH - 36, bottom)
    positive = [
        value
        for sample in drawable
        if sample.not_positive < sample.finite
        for value in (sample.values[sample.not_positive], sample.values[sample.finite - 1])
    ]
    x = LogScale(min(positive, default=0.001), max(positive, default=1.0), area.left, area.right, unit)
    body = vertical_axis(area, y, y_ticks, "Share faster than x", 14)
    body += horizontal_axis(area, x, fitting_ticks(x, vertical=False, size=TICK_SIZE), x_name)
    ends: dict[int, Point] = {}
    for number, sample in enumerate(samples):
        if not sample.values:
            continue
        points = _steps(sample, x, y, POINT_BUDGET // len(samples))
        end = points[-1]
        if sample.finite < len(sample.values):
            level = y(sample.finite / len(sample.values))
            points += [(points[-1][0], level), (area.right, level)]
            body.append(arrow(area.right + 7, level, "right", f"f{number + 1}"))
            end = (area.right + 3, level - 5)
        else:
            body.append(marker(number, *end, f"f{number + 1} halo"))
        body.append(path([points], f"line s{number + 1}"))
        ends[number] = end
    names = [
        sample.name
        if len(samples) > 3
        else f"{sample.name} (n = {format_value(len(sample.values), 'count')})"
        for sample in samples
    ]
    body += labels_above(area, ends, names, baseline)
    told = " ".join(filter(None, [description, *map(_notes, samples)]))
    return compose(
        body,
        width=WIDTH,
        height=height,
        title=title,
        description=told,
        summary=_summary(drawable, unit),
        table=table,
        figure_id=figure_id,
    )


def _steps(sample: _Sample, x: LogScale, y: TailScale, budget: int) -> list[Point]:
    """The staircase of the sample; where steps are finer than the picture, points half a pixel apart stand
    for them."""
    n, finite = len(sample.values), sample.finite
    if not finite:
        return [(x.start, y(0.0))]
    chosen = _ranks(n, finite, budget)
    points: list[Point] = []
    for rank, following in zip(chosen, [*chosen[1:], None], strict=True):
        place = x(sample.values[rank])
        points.append((place, y(rank / n)))
        if following == rank + 1:
            points.append((place, y(following / n)))
    return points


def _ranks(n: int, finite: int, budget: int) -> list[int]:
    if finite <= budget // 2:
        return list(range(finite))
    tail, steps = budget // 6, budget // 3
    nines = math.log10(n)
    spaced = {min(finite - 1, int(n * (1 - 10 ** (-nines * step / steps)))) for step in range(steps + 1)}
    return sorted(spaced | set(range(max(0, finite - tail), finite)) | {0})


def _table(samples: list[_Sample], unit: Unit) -> Table:
    columns = [Column("Series"), Column("n", "count"), Column("min", unit)]
    columns += [Column(f"p{share * 100:g}", unit) for share in _SHARES]
    columns += [Column("max", unit), Column("zero or less", "count"), Column("infinite", "count")]
    rows: list[tuple[Cell, ...]] = []
    for sample in samples:
        values = sample.values
        rows.append(
            (
                sample.name,
                len(values),
                values[0] if values else None,
                *map(sample.quantile, _SHARES),
                values[-1] if values else None,
                sample.not_positive,
                len(values) - sample.finite,
            )
        )
    return Table(tuple(columns), tuple(rows))


def _summary(samples: list[_Sample], unit: Unit) -> str:
    told = [
        f"{printable(sample.name, 80)}: "
        + ", ".join(
            f"p{share * 100:g} {format_value(quantile, unit)}"
            for share in (0.5, 0.99)
            if (quantile := sample.quantile(share)) is not None
        )
        for sample in samples
        if len(sample.values) > 1
    ]
    return "; ".join(told) + "." if told else ""


def _notes(sample: _Sample) -> str:
    counted = (
        (sample.not_positive, "zero or less, drawn at the left edge"),
        (len(sample.values) - sample.finite, "infinite, beyond the right edge"),
        (sample.missing, "missing, left out"),
    )
    facts = [f"{format_value(count, 'count')} {what}" for count, what in counted if count]
    if not sample.values:
        facts.insert(0, "no data")
    return f"{printable(sample.name, 80)}: {'; '.join(facts)}." if facts else ""
