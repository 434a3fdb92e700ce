"""When requests arrive, decided before the first is sent.

Users do not wait for each other. A generator that sends the next request when the last is answered slows down
exactly when the service does, and so hides the slowness it was built to find. Here the moments are drawn
first, from a Poisson process (independent users), and nothing that happens later can move them.

A viral event is extra Poisson traffic laid over the first (a superposition of Poisson processes is one),
thinned to a ramp at both ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.errors import InvalidInput, MissingExtra
from fairlead.lab.limits import LONGEST_RUN, MOST_REQUESTS, number_within, whole_number_within

try:
    import numpy as np
    from numpy.typing import NDArray
except ImportError as missing:
    raise MissingExtra("numpy", "lab") from missing

__all__ = ["FloatArray", "Surge", "poisson_arrivals", "surge_arrivals"]

FloatArray = NDArray[np.float64]

_FASTEST = 1_000_000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Surge:
    """A viral event: `factor` times the base rate from `start` to `end`, the excess aimed at a few keys."""

    start: float
    """Seconds after the schedule begins."""
    end: float
    """Seconds after the schedule begins; later than `start`."""
    factor: float
    """Total rate at the height of the surge over the base rate, 1–100."""
    ramp: float = 0.0
    """Seconds in which the excess rises after `start`, and falls before `end`. 0: a step."""
    hot_keys: tuple[int, ...] = (0,)
    """Keys that the excess asks for, each equally often. 0 is the most popular key of a Zipf."""

    def __post_init__(self) -> None:
        start = number_within("start", self.start, 0.0, LONGEST_RUN)
        end = number_within("end", self.end, start, LONGEST_RUN, above=True)
        number_within("factor", self.factor, 1.0, 100.0)
        number_within("ramp", self.ramp, 0.0, (end - start) / 2)
        if not self.hot_keys:
            raise InvalidInput("hot_keys: name at least one key for the excess traffic")
        for key in self.hot_keys:
            whole_number_within("hot_keys", key, 0, 2**62)


def _check_volume(rate: float, duration: float) -> tuple[float, float]:
    rate = number_within("rate", rate, 0.0, _FASTEST, above=True)
    duration = number_within("duration", duration, 0.0, LONGEST_RUN, above=True)
    if rate * duration > MOST_REQUESTS:
        raise InvalidInput(
            f"rate × duration: {rate:g}/s for {duration:g} s is {rate * duration:.3g} requests, more than "
            f"the {MOST_REQUESTS:,} one schedule may hold: lower one of them"
        )
    return rate, duration


def poisson_arrivals(rate: float, duration: float, rng: np.random.Generator) -> FloatArray:
    """Arrival moments of a Poisson process: float64, shape (n,), seconds in [0, duration), sorted.

    rate: requests per second in (0, 1e6]; duration: seconds in (0, 86400]; at most ten million requests
    expected. n itself is random, with mean and variance rate × duration.

    >>> offsets = poisson_arrivals(100.0, 10.0, np.random.default_rng(1))
    >>> len(offsets), bool(offsets[0] >= 0), bool(offsets[-1] < 10)
    (1001, True, True)
    """
    rate, duration = _check_volume(rate, duration)
    # Given their number, the arrivals of a Poisson process are independent and uniform.
    offsets = rng.random(int(rng.poisson(rate * duration))) * duration
    offsets.sort()
    return offsets


def surge_arrivals(base_rate: float, surge: Surge, rng: np.random.Generator) -> FloatArray:
    """Moments of the excess traffic of `surge` alone: float64, shape (n,), seconds in [start, end], sorted.

    Source: thinning, Lewis & Shedler 1979: arrivals at the peak rate, kept with probability rate(t) / peak.
    """
    length = surge.end - surge.start
    if surge.factor == 1.0:
        return np.empty(0, dtype=np.float64)
    candidates = poisson_arrivals(base_rate * (surge.factor - 1.0), length, rng)
    if surge.ramp > 0:
        from_edge = np.minimum(candidates, length - candidates)
        candidates = candidates[rng.random(len(candidates)) * surge.ramp < from_edge]
    return np.minimum(candidates + surge.start, surge.end)  # a sum of doubles may round past the end
