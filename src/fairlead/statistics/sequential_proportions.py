"""By how much may a proportion have risen, at most, asked all the time?

A ratio of two counts says nothing while control has no event, and a limit of "0.2 percentage points" needs no ratio. If
control's proportion were p and treatment's p + d, both are coins, and both are bet on; the evidence against d is what
the least favourable p leaves over, as for two quantiles (`sequential_quantile_effect`). Exact, from the first unit on.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize

from fairlead.errors import InvalidInput, TooFewUnits
from fairlead.statistics.clusters import FloatArray
from fairlead.statistics.estimate import checked_confidence
from fairlead.statistics.sequential_counts import tuned_strength, watched_log_e

__all__ = ["sequential_difference_bound"]

_GRID = 33
_ZOOMS = 3
_SMALLEST = 1e-12


def sequential_difference_bound(
    control: tuple[int, int],
    treatment: tuple[int, int],
    *,
    tuned_for: int,
    confidence: float = 0.95,
) -> float:
    """Treatment's proportion is above control's by no more than this, at every look; −1 to 1.

    control, treatment: successes and units, which are independent. tuned_for: units of one arm at which it shall be
    tightest, fixed before. For how far it may lie below, exchange the arms and the sign. Raises TooFewUnits without
    units, InvalidInput.

    Source: Howard and Ramdas 2022, as `sequential_quantile_effect`: the product of two independent e-values, least over
    what both hypotheses share; the end of the interval by test inversion.

    >>> round(sequential_difference_bound((0, 5_000), (0, 5_000), tuned_for=5_000), 5)   # no error in either arm
    0.00087
    >>> sequential_difference_bound((10, 1_000), (40, 1_000), tuned_for=1_000) > 0.03
    True
    """
    level = checked_confidence(confidence)
    for name, (successes, n) in (("control", control), ("treatment", treatment)):
        if not 0 <= successes <= n:
            raise InvalidInput(f"{name}: {successes!r} of {n!r}; give successes and units")
        if n == 0:
            raise TooFewUnits(f"{name} has no units; wait for some")
    strength = tuned_strength(tuned_for)
    goal = -math.log(1 - level)
    rates = control[0] / control[1], treatment[0] / treatment[1]
    seen, most = rates[1] - rates[0], 1 - _SMALLEST

    def lacking(difference: float) -> float:
        return _evidence(control, treatment, difference, strength) - goal

    # From the estimate outwards, by its standard error and twice as far each time, until it is rejected.
    errors = [(p * (1 - p) + 1 / n) / n for p, n in zip(rates, (control[1], treatment[1]), strict=True)]
    low, high = seen, min(most, seen + 3 * math.sqrt(sum(errors)))
    while lacking(high) < 0:
        if high >= most:
            return 1.0
        low, high = high, min(most, seen + 2 * (high - seen))
    return float(optimize.brentq(lacking, low, high, xtol=1e-9, rtol=1e-6))


def _evidence(
    control: tuple[int, int], treatment: tuple[int, int], difference: float, strength: float
) -> float:
    """log e against "treatment's proportion is control's plus at least `difference`": the least over control's."""
    first, last = max(_SMALLEST, _SMALLEST - difference), min(1 - _SMALLEST, 1 - _SMALLEST - difference)
    if first >= last:
        first = last = min(max((first + last) / 2, _SMALLEST), 1 - _SMALLEST)

    # Against: control's is at most p. Against: treatment's is at least p + difference, so its failures are at most the
    # rest. One call for both: it is calls that cost here.
    failures = treatment[1] - treatment[0]
    counts, units = np.array([[control[0]], [failures]]), np.array([[control[1]], [treatment[1]]])

    def both(p: FloatArray) -> FloatArray:
        rest = 1 - np.clip(p + difference, _SMALLEST, 1 - _SMALLEST)
        found: FloatArray = watched_log_e(counts, units, np.stack([p, rest]), strength, "greater").sum(axis=0)
        return found

    # Proportions are small: the grid is even in the logarithm, and then closes in around the least.
    grid = np.exp(np.linspace(math.log(first), math.log(last), _GRID))
    for _ in range(_ZOOMS):
        values = both(grid)
        at = int(values.argmin())
        first, last = float(grid[max(0, at - 1)]), float(grid[min(len(grid) - 1, at + 1)])
        grid = np.linspace(first, last, _GRID)
    return float(both(grid).min())
