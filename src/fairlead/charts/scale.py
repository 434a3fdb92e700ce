"""From values to pixels, and the round values worth naming on the way.

Three scales: linear, logarithmic, and one for the tail of a distribution, where each nine takes as much room
as the one before. A scale proposes sets of ticks from dense to sparse; the axis takes the first whose labels
do not touch. Domains are widened where a float could not tell their ends apart, so that no scale divides by
zero or overflows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from fairlead.charts.units import DisplayUnit, Unit, display_unit, fixed_number, format_value

__all__ = ["LinearScale", "LogScale", "Scale", "TailScale", "Tick"]

_LARGEST = 1e300
_SMALLEST = 1e-300
_TIME_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)


@dataclass(frozen=True, slots=True)
class Tick:
    value: float
    label: str


class Scale(Protocol):
    """Maps a value to a pixel; values beyond the domain land on its edge."""

    def __call__(self, value: float) -> float: ...

    def tick_sets(self) -> Iterator[list[Tick]]:
        """Sets of ticks within the domain, densest first; the last one has at most two."""
        ...


@dataclass(frozen=True, slots=True)
class LinearScale:
    """Equal steps, equal distances. `start` and `end` are the pixels of `low` and `high`."""

    low: float
    high: float
    start: float
    end: float
    unit: Unit = "number"
    is_time: bool = False
    """Ticks fall on whole minutes and hours once the domain is that long; values are seconds."""
    shown: DisplayUnit = field(init=False)

    def __post_init__(self) -> None:
        low, high = max(-_LARGEST, min(self.low, _LARGEST)), max(-_LARGEST, min(self.high, _LARGEST))
        if high - low <= max(abs(low), abs(high)) * 1e-9 or high - low < _SMALLEST:
            room = max(abs(low), abs(high)) * 0.1 if abs(low) > _SMALLEST else 1.0
            low, high = low - (room if low else 0.0), high + room
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)
        object.__setattr__(self, "shown", display_unit([max(abs(low), abs(high))], self.unit))

    @classmethod
    def rounded(cls, low: float, high: float, start: float, end: float, unit: Unit) -> LinearScale:
        """A scale whose ends fall on round values outside `low` and `high`."""
        exact = cls(low, high, start, end, unit)
        step = _round_up((exact.high - exact.low) / exact.shown.factor / 5) * exact.shown.factor
        return cls(
            math.floor(exact.low / step) * step, math.ceil(exact.high / step - 1e-9) * step, start, end, unit
        )

    def __call__(self, value: float) -> float:
        share = (max(self.low, min(value, self.high)) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def tick_sets(self) -> Iterator[list[Tick]]:
        if self.is_time:
            yield from self._time_sets()
            return
        factor = self.shown.factor
        step = _round_up((self.high - self.low) / factor / 7)
        for _ in range(6):
            decimals = max(0, -math.floor(math.log10(step) + 1e-9))
            first, last = (
                math.ceil(self.low / factor / step - 1e-9),
                math.floor(self.high / factor / step + 1e-9),
            )
            yield [
                Tick(n * step * factor, fixed_number(n * step, min(decimals, 12)) + self.shown.suffix)
                for n in range(first, last + 1)
            ]
            step = _round_up(step * 1.5)

    def _time_sets(self) -> Iterator[list[Tick]]:
        span = self.high - self.low
        small = [step for power in range(-9, 0) for step in (10.0**power, 2 * 10.0**power, 5 * 10.0**power)]
        large = [
            86400.0 * days
            for power in range(1, 300)
            for days in (10.0**power, 2 * 10.0**power, 5 * 10.0**power)
        ]
        for step in (*small, *map(float, _TIME_STEPS), *large):
            if not span / 14 <= step <= span * 2:
                continue
            seconds, symbol = next(
                (pair for pair in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")) if step % pair[0] == 0),
                (1.0, "s"),
            )
            decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step < 1 else 0
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            yield [
                Tick(n * step, f"{fixed_number(n * step / seconds, decimals)} {symbol}")
                for n in range(first, last + 1)
            ]


@dataclass(frozen=True, slots=True)
class LogScale:
    """Equal ratios, equal distances. The domain is widened to values of the series 1, 2, 5, 10."""

    low: float
    high: float
    start: float
    end: float
    unit: Unit = "number"

    def __post_init__(self) -> None:
        low = _one_two_five(max(_SMALLEST, min(self.low, _LARGEST)), up=False)
        high = _one_two_five(max(_SMALLEST, min(self.high, _LARGEST)), up=True)
        if high <= low:
            low, high = _one_two_five(max(_SMALLEST, low / 1.5), up=False), _one_two_five(low * 1.5, up=True)
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    def __call__(self, value: float) -> float:
        inside = max(self.low, min(value, self.high))
        # Differences of logarithms: the ratio of the ends may lie beyond the range of floats.
        share = (math.log10(inside) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return self.start + share * (self.end - self.start)

    def tick_sets(self) -> Iterator[list[Tick]]:
        yield self._ticks((1, 2, 5), 1)
        yield self._ticks((1, 3), 1)
        every = 1
        while every <= 1024:
            yield self._ticks((1,), every)
            every += 1 if every < 4 else every
        yield [Tick(end, format_value(end, self.unit)) for end in (self.low, self.high)]

    def minor(self) -> list[float]:
        """The values 1 to 9 of each decade; none where they would be a grey smear."""
        if math.log10(self.high) - math.log10(self.low) > 6:
            return []
        return self._values((1, 2, 3, 4, 5, 6, 7, 8, 9), 1)

    def _ticks(self, digits: tuple[int, ...], every: int) -> list[Tick]:
        return [Tick(value, format_value(value, self.unit)) for value in self._values(digits, every)]

    def _values(self, digits: tuple[int, ...], every: int) -> list[float]:
        first, last = math.floor(math.log10(self.low)) - 1, math.ceil(math.log10(self.high)) + 1
        values = [
            float(f"{digit}e{power}")
            for power in range(first, last)
            if power % every == 0
            for digit in digits
        ]
        return [value for value in values if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]


@dataclass(frozen=True, slots=True)
class TailScale:
    """Shares 0–1 drawn at −log10(1 − share): 0, 90, 99 and 99.9 % are equally far apart."""

    highest: float
    """Largest share below one that has to be shown, 1 − 1/n of the largest sample."""
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + min(1.0, _nines(value) / self._top) * (self.end - self.start)

    @property
    def _top(self) -> float:
        return max(1.0, _nines(self.highest) + 0.05)

    def tick_sets(self) -> Iterator[list[Tick]]:
        most = int(self._top + 1e-9)
        yield self._ticks([0.0, 0.5, *(1 - 10.0**-nines for nines in range(1, most + 1))])
        for every in range(1, most + 1):
            yield self._ticks([0.0, *(1 - 10.0**-nines for nines in range(every, most + 1, every))])

    def _ticks(self, shares: list[float]) -> list[Tick]:
        return [Tick(share, format_value(share, "ratio")) for share in shares]


def _nines(share: float) -> float:
    return -math.log10(max(1e-15, 1.0 - max(0.0, share)))


def _round_up(step: float) -> float:
    """The smallest of 1, 2, 5, 10, … times a power of ten that is at least `step`."""
    return _one_two_five(max(step, _SMALLEST), up=True)


def _one_two_five(value: float, *, up: bool) -> float:
    power = math.floor(math.log10(value))
    steps = [
        float(f"{digit}e{exponent}") for exponent in (power - 1, power, power + 1) for digit in (1, 2, 5)
    ]
    if up:
        return min(step for step in steps if step >= value * (1 - 1e-9))
    return max(step for step in steps if step <= value * (1 + 1e-9))
