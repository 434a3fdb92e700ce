"""Ranges that keep a lab from hurting the machine it runs on.

A load test is one typing mistake away from a fork bomb: a rate of 1e9 or a duration of a week asks for more
memory than there is, and NaN compares false with every bound. Each number that enters the lab passes here
once, at the door.
"""

from __future__ import annotations

import math

from fairlead.errors import InvalidInput

__all__ = ["LONGEST_RUN", "MOST_REQUESTS", "number_within", "whole_number_within"]

MOST_REQUESTS = 10_000_000
"""Requests in one schedule: about 0.5 GB of arrays while it is driven."""

LONGEST_RUN = 86_400.0
"""Seconds one schedule may cover: a day."""


def number_within(name: str, value: object, low: float, high: float, *, above: bool = False) -> float:
    """`value` as a finite float in [low, high], or (low, high] with `above`; else raises InvalidInput."""
    bracket = "(" if above else "["
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidInput(f"{name}: {value!r} is not a number in {bracket}{low:g}, {high:g}]")
    if not math.isfinite(value) or value < low or value > high or (above and value == low):
        raise InvalidInput(f"{name}: {value!r} is outside {bracket}{low:g}, {high:g}]")
    return float(value)


def whole_number_within(name: str, value: object, low: int, high: int) -> int:
    """`value` as an int in [low, high]; else, and for a float or a bool, raises InvalidInput."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidInput(f"{name}: {value!r} is not a whole number in [{low}, {high}]")
    return value
