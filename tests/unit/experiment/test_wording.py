"""Figures are written as finely as their interval is worth, and the sentence on top says what was found."""

from __future__ import annotations

import pytest

from fairlead.charts.units import DisplayUnit
from fairlead.experiment.wording import interval_text, p_text

PERCENT, POINTS, PLAIN = DisplayUnit("%", 0.01), DisplayUnit("pp", 0.01), DisplayUnit("", 1.0)


@pytest.mark.parametrize(
    ("value", "interval", "unit", "signed", "text"),
    [
        (-0.0082013, (-0.0132, -0.0031), POINTS, True, "−0.82 pp [−1.32, −0.31]"),
        (0.1902, (0.1866, 0.1938), PERCENT, False, "19.02 % [18.66, 19.38]"),
        (49.456, (48.1, 50.8), PLAIN, False, "49.5 [48.1, 50.8]"),
        (1234567.0, (1234000.0, 1235100.0), PLAIN, False, "1,234,567 [1,234,000, 1,235,100]"),
        (0.0, (-0.1, 0.1), PERCENT, True, "0 % [−10, +10]"),
        (0.5, None, PLAIN, True, "+0.500"),
        (None, None, PLAIN, True, "–"),
        (1.0, (None, 2.0), PLAIN, False, "1.00 [–, 2.00]"),
    ],
)
def test_a_figure_and_its_interval(
    value: float | None,
    interval: tuple[float | None, float | None] | None,
    unit: DisplayUnit,
    signed: bool,
    text: str,
) -> None:
    assert interval_text(value, interval, unit, signed=signed) == text


def test_a_tiny_p_value_is_never_zero() -> None:
    assert p_text(2.2e-308) == "2.2e−308"
    assert p_text(0.00015) == "0.00015"
    assert p_text(0.5) == "0.50"
