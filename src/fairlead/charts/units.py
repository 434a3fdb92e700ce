"""One way to write a figure, for axes, tables and the terminal.

A report that says 0.38 s in one place and 380 ms in the next makes its reader convert, and one who converts
errs. Values travel in base units (seconds, ratios 0–1, bytes, per second); only this module turns them into
text. Three significant digits, because no run here measures more; counts stay exact, and so do the nines of a
ratio just below one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fairlead.errors import InvalidInput

__all__ = ["DisplayUnit", "Unit", "as_float", "display_unit", "format_value", "unit_of"]

Unit = Literal["seconds", "ratio", "percentage_points", "bytes", "rate", "count", "number"]
"""What a base value measures; `percentage_points` is a difference of two ratios, 0.01 for one point."""

MISSING = "–"


@dataclass(frozen=True, slots=True)
class DisplayUnit:
    """The unit that text shows: `value / factor` followed by `symbol`."""

    symbol: str
    factor: float

    @property
    def suffix(self) -> str:
        return self.symbol if self.symbol in ("", "/s") else f" {self.symbol}"


_DISPLAY: dict[str, tuple[DisplayUnit, ...]] = {
    "seconds": (
        DisplayUnit("ns", 1e-9),
        DisplayUnit("µs", 1e-6),
        DisplayUnit("ms", 1e-3),
        DisplayUnit("s", 1.0),
    ),
    "bytes": tuple(DisplayUnit(name, 1024.0**i) for i, name in enumerate(("B", "KiB", "MiB", "GiB", "TiB"))),
    "ratio": (DisplayUnit("%", 0.01),),
    "percentage_points": (DisplayUnit("pp", 0.01),),
    "rate": (DisplayUnit("/s", 1.0),),
    "count": (DisplayUnit("", 1.0),),
    "number": (DisplayUnit("", 1.0),),
}


_OF_METRICS: dict[str, Unit] = {
    "seconds": "seconds",
    "ratio": "ratio",
    "bytes": "bytes",
    "answers per second": "rate",
}


def unit_of(unit: str) -> Unit:
    """How charts and tables write a metric's unit.

    >>> unit_of("seconds"), unit_of("euros")
    ('seconds', 'number')
    """
    return _OF_METRICS.get(unit, "number")


def as_float(value: float | None) -> float:
    """The value as a float; None is NaN, an integer beyond the range of floats is infinite.

    Raises InvalidInput for anything that is not a number.
    """
    if value is None:
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"{value!r:.40} is not a number: pass float values, or None where there is none"
        ) from error


def display_unit(values: Iterable[float | None], unit: Unit) -> DisplayUnit:
    """The unit that suits most of `values`, for a column or an axis that shows one unit throughout."""
    sizes = sorted(abs(number) for number in map(as_float, values) if math.isfinite(number) and number)
    return (
        _suitable(sizes[(len(sizes) - 1) // 2], unit) if sizes else _units(unit)[-1 if unit != "bytes" else 0]
    )


def format_value(value: float | None, unit: Unit = "number") -> str:
    """The value with its unit, in three significant digits: the smaller the value, the smaller the unit.

    None and NaN give "–", infinity "∞". A ratio just below one keeps its nines.

    >>> [format_value(0.0123, "seconds"), format_value(1.2, "seconds"), format_value(0.99987, "ratio")]
    ['12.3 ms', '1.2 s', '99.987 %']
    >>> [format_value(12345, "count"), format_value(200.0, "rate"), format_value(5 << 20, "bytes")]
    ['12,345', '200/s', '5 MiB']
    """
    number = as_float(value)
    if math.isnan(number):
        _units(unit)
        return MISSING
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    shown = _suitable(abs(number), unit) if number else display_unit((), unit)
    return bare_number(number, unit, shown) + shown.suffix


def bare_number(value: float | None, unit: Unit, shown: DisplayUnit) -> str:
    """The value in `shown`, without the symbol: the cell of a column whose heading carries it."""
    number = as_float(value)
    if not math.isfinite(number):
        return format_value(number)
    if unit == "count" and number.is_integer() and abs(number) < 1e15:
        return _with_minus(f"{number:,.0f}")
    if unit == "ratio" and 0.995 < number < 1.0:
        # Rounded to three digits, an availability of 99.96 % would read as 100 %.
        decimals = min(8, -math.floor(math.log10(1.0 - number)) - 1)
        return _without_trailing_zeros(f"{number * 100:.{decimals}f}")
    return _three_digits(number / shown.factor)


def fixed_number(value: float, decimals: int) -> str:
    """The value with exactly `decimals` decimals and a true minus: the label of a tick."""
    text = f"{value:,.{decimals}f}" if abs(value) < 1e9 else f"{value:.{6 if decimals else 3}g}"
    return _with_minus(text) if float(text.replace(",", "")) else "0"


def _units(unit: str) -> tuple[DisplayUnit, ...]:
    try:
        return _DISPLAY[unit]
    except KeyError:
        raise InvalidInput(f"unit {unit!r:.40} is unknown: use one of {', '.join(_DISPLAY)}") from None


def _suitable(size: float, unit: Unit) -> DisplayUnit:
    units = _units(unit)
    # Rounded first: 0.9996 ms is 1 ms, not 1,000 µs.
    rounded = float(f"{size:.3g}")
    fitting = [shown for shown in units if rounded >= shown.factor * (1 - 1e-12)]
    return fitting[-1] if fitting else units[0]


def _three_digits(number: float) -> str:
    if number == 0:
        return "0"
    if math.isinf(number):  # the division by the display unit left the range of floats
        return format_value(number)
    mantissa, _, power = f"{number:.2e}".partition("e")
    exponent = int(power)
    if not -5 <= exponent < 9:
        return _with_minus(f"{_without_trailing_zeros(mantissa)}e{exponent}")
    return _with_minus(_without_trailing_zeros(f"{float(f'{number:.3g}'):,.{max(0, 2 - exponent)}f}"))


def _without_trailing_zeros(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def _with_minus(text: str) -> str:
    return text.replace("-", "−")
