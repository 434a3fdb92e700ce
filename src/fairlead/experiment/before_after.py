"""What to do where nothing could be randomised: the change of those who got it beside the change of those who did not.

A price went up in one country. The country was always different, and the season moves all countries; both cancel in
the difference of differences, if all would have moved in parallel. The periods before the change can contradict that
and never prove it, so each result says what they could have hidden. The design stays `before_after`: it shows no
cause.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fairlead.calls.bounds import check_number, check_whole
from fairlead.errors import InvalidInput, MissingExtra, NotEstimable, TooFewUnits
from fairlead.metrics import Metric
from fairlead.metrics.warehouse_columns import ONE, fields_of, is_finite, pieces_of, seconds_of, text_of
from fairlead.metrics.warehouse_sums import run
from fairlead.statistics import Effect, Moments, ParallelTrends, difference_in_differences, parallel_trends
from fairlead.statistics.clusters import FloatArray

try:
    import ibis
    import ibis.expr.types as ir
except ImportError as missing:
    raise MissingExtra(missing.name or "ibis-framework", "warehouse") from missing

__all__ = ["BeforeAfter", "analyse_before_after"]

_MOST_CELLS = 5_000_000
_UNIT, _GROUP, _PERIOD = "fairlead unit", "fairlead group", "fairlead period"


@dataclass(frozen=True, kw_only=True, slots=True)
class BeforeAfter:
    """A difference in differences, and what speaks against it."""

    effect: Effect
    """Figures of the arms are their changes."""
    trends: ParallelTrends | None
    """Whether the groups moved in parallel before; None with fewer than two periods."""
    series: dict[str, tuple[float, ...]]
    """By group (`control`, `treatment`): the mean of each period, in time order."""
    dropped: int
    """Units without a value in some period, of a mean; totals and counts are zero then."""
    caveats: tuple[str, ...]


def analyse_before_after(
    table: ir.Table,
    metric: Metric,
    *,
    unit: str,
    group: str,
    treated: str,
    time: str,
    changed_at_utc_seconds: float,
    period_seconds: float,
    periods_before: int = 3,
    periods_after: int = 1,
) -> BeforeAfter:
    """Compares the units of group `treated` with all others, before and after a moment.

    metric: a mean, total or count, of each unit in each period. unit, group, time: columns. The unit should be what the
    change was given to (the city, the shop): units of one city are no independent witnesses. Raises InvalidInput,
    TooFewUnits, ZeroVariance.
    """
    if metric.kind not in ("mean", "total", "count"):
        raise InvalidInput(
            f"{metric.name}: a {metric.kind} has no value per unit and period; use a mean, total or count"
        )
    check_number("period_seconds", period_seconds, above=0.0)
    check_whole("periods_before", periods_before, low=1, high=1000)
    check_whole("periods_after", periods_after, low=1, high=1000)
    for column in (unit, group, time, *fields_of(metric)):
        if column not in table.columns:
            raise InvalidInput(f"no column {column[:80]!r}; there are {', '.join(table.columns[:12])}")
    named = table.filter(
        table[unit].notnull(), table[group].notnull(), is_finite(seconds_of(table[time], time))
    )
    (total, whole) = (int(run(each.aggregate(n=each.count()), [])[0]["n"]) for each in (table, named))
    period = (seconds_of(named[time], time) - changed_at_utc_seconds) / period_seconds
    # Before it is rounded: a time that lies ages away has no whole number.
    inside = (period >= -periods_before) & (period < periods_after)
    period = ibis.ifelse(inside, period, ibis.null("float64")).floor()
    named = named.mutate(
        **{
            ONE: ibis.literal(1.0),
            _UNIT: named[unit],
            _GROUP: text_of(named[group]) == ibis.literal(treated),
            _PERIOD: period.cast("int64"),
        }
    )
    named = named.filter(named[_PERIOD].notnull())
    pieces = pieces_of(metric, named, unit)
    names = list(pieces)
    cells = run(
        named.group_by([_UNIT, _GROUP, _PERIOD]).aggregate(
            **{name: value.sum() for name, value in pieces.items()}
        ),
        [],
    )
    if len(cells) > _MOST_CELLS:
        raise InvalidInput(f"{len(cells):,} units and periods; take longer periods, or units that are fewer")
    if len({bool(row[_GROUP]) for row in cells}) < 2:
        raise TooFewUnits(
            f"no units both in {group} {treated!r} and outside it, in these periods; check the name"
        )
    width = periods_before + periods_after
    columns = tuple(f"period {k}" for k in range(-periods_before, periods_after))
    values: dict[tuple[object, bool], FloatArray] = {}
    for row in cells:
        line = values.setdefault((row[_UNIT], bool(row[_GROUP])), np.full(width, np.nan))
        if metric.kind == "mean":
            events = float(row[names[1]] or 0.0)
            value = float(row[names[0]]) / events if events else np.nan
        else:
            value = float(row[names[0]] or 0.0)
        line[int(row[_PERIOD]) + periods_before] = value
    switched = len(values) - len({key for key, _ in values})
    if switched:
        raise InvalidInput(
            f"{switched:,} units are in {group} {treated!r} and outside it; a unit has one group"
        )
    dropped = 0
    arms: dict[bool, list[FloatArray]] = {False: [], True: []}
    for (_, in_treatment), line in values.items():
        if metric.kind != "mean":
            line = np.nan_to_num(line, nan=0.0)
        if np.isnan(line).any():
            dropped += 1
            continue
        arms[in_treatment].append(line)
    control, treatment = (
        Moments.from_rows(columns, np.array(arms[which]).reshape(-1, width)) for which in (False, True)
    )
    effect = difference_in_differences(
        control, treatment, before=columns[:periods_before], after=columns[periods_before:]
    )
    trends, caveats = None, []
    if total > whole:
        caveats.append(f"{total - whole:,} rows without a {unit}, {group} or {time} do not count")
    if periods_before >= 2:
        try:
            trends = parallel_trends(control, treatment, before=columns[:periods_before])
        except NotEstimable as error:
            caveats.append(f"trends before the change could not be compared: {error}")
    else:
        caveats.append("one period before the change: whether the groups moved in parallel is not known")
    if trends is not None and trends.p_value < 0.05:
        caveats.append(
            f"the groups did not move in parallel before the change (p = {trends.p_value:.2g}): do not use this effect"
        )
    elif trends is not None and trends.could_hide > abs(effect.effect) / 2:
        caveats.append(
            f"a drift of {trends.could_hide:.3g} a period would have gone unseen before the change, beside an "
            f"effect of "
            f"{effect.effect:.3g}"
        )
    if min(control.n, treatment.n) < 10:
        caveats.append(f"{control.n} and {treatment.n} units: too few to rely on a normal approximation")
    return BeforeAfter(
        effect=effect,
        trends=trends,
        series={"control": control.means, "treatment": treatment.means},
        dropped=dropped,
        caveats=(*filter(None, (effect.caveat,)), *caveats),
    )
