from __future__ import annotations

import math

import pytest

from fairlead.charts import format_value
from fairlead.charts.units import bare_number, display_unit
from fairlead.errors import InvalidInput


@pytest.mark.parametrize(
    ("value", "unit", "written"),
    [
        (0.005, "seconds", "5 ms"),
        (1.2, "seconds", "1.2 s"),
        (0.000_012_34, "seconds", "12.3 µs"),
        (0.000_999_6, "seconds", "1 ms"),
        (0.0, "seconds", "0 s"),
        (1234.5, "seconds", "1,230 s"),
        (-0.38, "seconds", "−380 ms"),
        (200.0, "rate", "200/s"),
        (0.12, "ratio", "12 %"),
        (1.0, "ratio", "100 %"),
        (0.99987, "ratio", "99.987 %"),
        (0.00001, "ratio", "0.001 %"),
        (0.0005, "percentage_points", "0.05 pp"),
        (5 * 2**20, "bytes", "5 MiB"),
        (0, "bytes", "0 B"),
        (12345, "count", "12,345"),
        (1e18, "count", "1e18"),
        (1e-300, "number", "1e-300".replace("-", "−")),
        (1e300, "seconds", "1e300 s"),
        (10**400, "count", "∞"),
    ],
)
def test_a_value_is_written_in_three_digits_of_the_unit_that_suits_it(
    value: float, unit: str, written: str
) -> None:
    assert format_value(value, unit) == written  # type: ignore[arg-type]  # parametrized strings are not literals


@pytest.mark.parametrize("unit", ["seconds", "ratio", "bytes", "rate", "count", "number"])
def test_what_is_no_number_is_written_as_a_sign(unit: str) -> None:
    shown = [format_value(value, unit) for value in (None, math.nan, math.inf, -math.inf)]  # type: ignore[arg-type]  # as above

    assert shown == ["–", "–", "∞", "−∞"]


def test_an_unknown_unit_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match=r"'parsec' is unknown.*seconds"):
        format_value(1.0, "parsec")  # type: ignore[arg-type]  # the wrong unit is the point


def test_text_in_place_of_a_number_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'fast' is not a number"):
        format_value("fast", "seconds")  # type: ignore[arg-type]  # the wrong type is the point


def test_a_column_is_written_in_one_unit() -> None:
    values = [0.0005, 0.02, 1.5, None]
    shown = display_unit(values, "seconds")

    assert shown.symbol == "ms"
    assert [bare_number(value, "seconds", shown) for value in values] == ["0.5", "20", "1,500", "–"]
