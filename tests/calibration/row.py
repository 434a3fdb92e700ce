"""One line of the calibration table: what an estimator promises, and what it does in simulated experiments.

A rate is measured over `experiments` runs with a seed that is written down, so it is the same on every
machine. It passes when the promise, give or take the tolerance stated for the scenario, is within what that
many runs can tell (an exact binomial interval of 99.9 %): few runs judge mildly, many judge sharply.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

__all__ = ["Row", "Scenario", "measure"]

Quantity = Literal["false positive rate", "coverage", "power", "false discovery rate"]
Side = Literal["both", "at most", "at least"]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Simulated data, an estimator, and its promise."""

    estimator: str
    data: str
    """What is simulated, in the words of the table."""
    quantity: Quantity
    nominal: float
    """The rate that is promised, 0–1."""
    tolerance: float
    """How far the true rate may lie from the promise, 0–1: what the method's source and theory allow."""
    side: Side = "both"
    """at most, at least: exact methods are conservative, which is no failure."""
    seed: int
    run: Callable[[np.random.Generator], float]
    """One experiment: 1 when it counts (a false alarm, a covered truth, a find), 0 when not; or a share."""
    one_in: int = 1
    """Runs only so many of the experiments asked for: those with many looks are slow."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of a scenario."""

    estimator: str
    data: str
    quantity: Quantity
    nominal: float
    tolerance: float
    side: Side
    experiments: int
    measured: float
    low: float
    high: float
    """Exact binomial interval of 99.9 % around `measured`."""
    seed: int

    @property
    def ok(self) -> bool:
        """Whether the promise is within what these experiments can tell."""
        too_low = self.side != "at most" and self.high < self.nominal - self.tolerance
        too_high = self.side != "at least" and self.low > self.nominal + self.tolerance
        return not (too_low or too_high)


def measure(scenario: Scenario, experiments: int) -> Row:
    """Runs a scenario that many times, or the part of it that its `one_in` says."""
    experiments = max(1, experiments // scenario.one_in)
    rng = np.random.default_rng(scenario.seed)
    hits = sum(scenario.run(rng) for _ in range(experiments))
    return row(scenario, hits, experiments)


def row(scenario: Scenario, hits: float, experiments: int) -> Row:
    """The line for `hits` of `experiments`; for scenarios that run many experiments at once."""
    tail = 0.0005
    low = float(special.betaincinv(hits, experiments - hits + 1, tail)) if hits > 0 else 0.0
    high = float(special.betaincinv(hits + 1, experiments - hits, 1 - tail)) if hits < experiments else 1.0
    return Row(
        estimator=scenario.estimator,
        data=scenario.data,
        quantity=scenario.quantity,
        nominal=scenario.nominal,
        tolerance=scenario.tolerance,
        side=scenario.side,
        experiments=experiments,
        measured=hits / experiments,
        low=low,
        high=high,
        seed=scenario.seed,
    )
