"""What a metric asks of a table, as Ibis expressions: its columns, one value per event, and its conditions.

The other half of the warehouse driver, and like it the only place that imports Ibis. A condition becomes SQL with the
three values that it has in Python: a missing field, a NaN, or text beside a number is unknown.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from fairlead.errors import InvalidInput, MissingExtra
from fairlead.metrics.condition import All, Comparison, Condition, Either, Membership, Missing, Negation
from fairlead.metrics.metric import Metric

try:
    import ibis
    import ibis.expr.types as ir
except ImportError as missing:
    raise MissingExtra("ibis-framework", "warehouse") from missing

__all__: list[str] = []

WEIGHT = "inclusion_probability"
ONE = "fairlead one"
"""A column that `measure` adds: 1 for every row, to be summed."""
UNKNOWN = ibis.null("boolean")
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def fields_of(metric: Metric) -> list[str]:
    fields = []
    for condition in (metric.condition, metric.success):
        if condition is not None:
            fields += _condition_fields(condition)
    if metric.kind in ("mean", "total", "ratio", "quantile") and metric.field:
        fields.append(metric.field)
    if metric.kind == "ratio" and metric.denominator:
        fields.append(metric.denominator)
    formula = metric.parsed_formula
    return fields + list(formula.names if formula else ())


def _condition_fields(condition: Condition) -> list[str]:
    if isinstance(condition, All | Either):
        return [field for part in condition.parts for field in _condition_fields(part)]
    if isinstance(condition, Negation):
        return _condition_fields(condition.part)
    return [condition.field]


def pieces_of(metric: Metric, events: ir.Table, unit: str | None) -> dict[str, Any]:
    """The metric's columns, one value per event, to be summed per unit; one or two, or one for each name."""
    counts = where_of(metric, events) if metric.where else None
    weight = 1.0 / events[WEIGHT].cast("float64") if WEIGHT in events.columns else None

    def column(value: Any, *there: Any) -> Any:
        """The value where the event counts and has what it needs, else nothing to the sum."""
        for needed in (*there, *(() if counts is None else (counts,))):
            value = ibis.ifelse(needed, value, 0.0)
        return value if weight is None else value * weight

    one = events[ONE]
    name = metric.name
    if metric.kind in ("mean", "proportion"):
        if metric.kind == "mean":
            value = _number(events[metric.field])
        else:
            success = metric.success
            assert success is not None  # noqa: S101 - a proportion has one
            value = _truth(_expression(success, events))
        # A row that is a unit of its own, and counts always, is a plain mean; anything else is a ratio of sums.
        if unit is None and counts is None and weight is None:
            return {name: value}
        there = is_finite(value)
        return {name: column(value, there), f"{name} events": column(one, there)}
    if metric.kind == "total":
        value = _number(events[metric.field])
        return {name: column(value, is_finite(value))}
    if metric.kind == "ratio":
        above, below = (_number(events[field]) for field in (metric.field, metric.denominator))
        there = is_finite(above) & is_finite(below)
        return {name: column(above, there), f"{name} below": column(below, there)}
    formula = metric.parsed_formula
    if formula is not None:
        # An event has some of the counts; those that it has not are none.
        return {
            f"{name} of {field}": column(_number(events[field]).fill_null(0.0)) for field in formula.names
        }
    return {name: column(one)}  # count, rate


def where_of(metric: Metric, events: ir.Table) -> Any:
    condition = metric.condition
    return ibis.literal(True) if condition is None else _expression(condition, events).fill_null(False)


def _expression(condition: Condition, events: ir.Table) -> Any:
    """The condition as an expression, unknown where a field is missing."""
    match condition:
        case All(parts=parts):
            return _joined([_expression(part, events) for part in parts], "and")
        case Either(parts=parts):
            return _joined([_expression(part, events) for part in parts], "or")
        case Negation(part=part):
            return ~_expression(part, events)
        case Missing(field=field):
            return events[field].isnull()
        case Membership(field=field, values=values):
            column = _comparable(events[field], values[0])
            return UNKNOWN if column is None else column.isin([_plain(value) for value in values])
        case Comparison(field=field, operator=name, value=value):
            column = _comparable(events[field], value)
            return UNKNOWN if column is None else _COMPARE[name](column, _plain(value))
    raise InvalidInput(f"condition {condition!r:.80} has no expression")


def _joined(parts: Sequence[Any], word: str) -> Any:
    whole = parts[0]
    for part in parts[1:]:
        whole = whole & part if word == "and" else whole | part
    return whole


def _comparable(column: Any, value: object) -> Any:
    """The column as text or as numbers, like the value; None where one is text and the other is not."""
    if column.type().is_string() != isinstance(value, str):
        return None
    if isinstance(value, str):
        return column
    number = _number(column)
    if not column.type().is_floating():
        return number
    is_number = is_finite(number) | (number == float("inf")) | (number == float("-inf"))
    return ibis.ifelse(is_number, number, ibis.null("float64"))


def values_of(metric: Metric, events: ir.Table) -> list[Any]:
    """The values of an event without which it does not count."""
    names = [metric.field] if metric.kind in ("mean", "total") else []
    if metric.kind == "ratio":
        names = [metric.field, metric.denominator]
    return [_number(events[name]) for name in names]


def text_of(column: Any) -> Any:
    """The values of a grouping column, as text; "" where it is missing."""
    return column.cast("string").fill_null("")


def seconds_of(column: Any, name: str) -> Any:
    """A column of times as seconds since 1970, UTC. Raises InvalidInput for what is no time."""
    if column.type().is_timestamp():
        # With a zone they are UTC already, without one they are taken as UTC.
        whole = (
            column.epoch_seconds()
            if column.type().timezone is None
            else column.cast("timestamp('UTC')").epoch_seconds()
        )
        return whole.cast("float64") + column.millisecond().cast("float64") / 1000
    if column.type().is_date():
        return column.cast("timestamp").epoch_seconds().cast("float64")
    if not column.type().is_numeric():
        raise InvalidInput(
            f"column {name!r} is {column.type()}; a window needs a time stamp, or seconds since 1970"
        )
    return column.cast("float64")


def is_finite(value: Any) -> Any:
    """Whether a number is there and finite; unknown where it is missing.

    Not by isnan: DuckDB (1.5) takes a Parquet file's least and largest value for the whole truth, and finds no NaN in a
    column that has some. A NaN or an infinity less itself is NaN on every engine, and never 0.
    """
    return (value - value) == 0.0


def _number(column: Any) -> Any:
    # In two steps: not every engine casts truth to doubles.
    return column.cast("int8").cast("float64") if column.type().is_boolean() else column.cast("float64")


def _plain(value: object) -> object:
    return value if isinstance(value, str) else float(value)  # type: ignore[arg-type]  # a number or a truth value


def _truth(condition: Any) -> Any:
    """1 where it holds, else 0; a field that is missing is no success."""
    return ibis.ifelse(condition.fill_null(False), 1.0, 0.0)
