"""Refuses a setting outside its bounds, in one line that names the setting, the value and what would do."""

from __future__ import annotations

from math import inf

from fairlead.errors import InvalidInput

__all__ = ["check_number", "check_whole"]


def check_number(
    name: str, value: object, *, above: float | None = None, low: float = -inf, high: float = inf
) -> None:
    """Raises InvalidInput unless value is a finite int or float, > above (if given) and within low..high."""
    fits = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and value not in (inf, -inf)
        and low <= value <= high  # NaN fails here
        and (above is None or value > above)
    )
    if not fits:
        least = f"above {above:g}" if above is not None else f"from {low:g}"
        most = "" if high == inf else f" up to {high:g}"
        raise InvalidInput(f"{name}: {value!r} is not a finite number {least}{most}")


def check_whole(name: str, value: object, *, low: int, high: int) -> None:
    """Raises InvalidInput unless value is an int within low..high; a bool is not an int here."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidInput(f"{name}: {value!r} is not a whole number from {low} to {high}")
