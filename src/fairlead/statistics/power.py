"""What an experiment of a given size can see, asked before it runs.

An experiment too small to see the effect it was built for ends in "no significant difference", and the
sentence is read as "no difference". Every function here is about the standard deviation of one unit and a
difference; the kinds of metrics differ only in that standard deviation:

    mean          of the metric; times √(1 − variance reduction) with CUPED
    proportion    √(p(1 − p))
    ratio         of (numerator − R · denominator) / mean denominator
    quantile      √(q(1 − q)) / density at the quantile
    count         √mean, for independent events

In equal arms at 5 % and 80 % power, n in each arm is 15.698 · σ²/Δ²: the rule of thumb says 16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import special

from fairlead.errors import InvalidInput
from fairlead.statistics.tails import critical_value, is_number

__all__ = [
    "SampleSize",
    "minimum_detectable_effect",
    "power",
    "proportion_deviation",
    "quantile_deviation",
    "sample_size",
]

_MOST = 10**15


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSize:
    """Units that an experiment needs."""

    control: int
    treatment: int

    @property
    def total(self) -> int:
        """Units in both arms."""
        return self.control + self.treatment


def sample_size(
    *,
    standard_deviation: float,
    effect: float,
    alpha: float = 0.05,
    power: float = 0.8,
    treatment_share: float = 0.5,
    two_sided: bool = True,
    treatment_deviation: float | None = None,
) -> SampleSize:
    """The units at which a difference of `effect` is found with probability `power`.

    standard_deviation: of one unit, above 0. effect: the difference, in the same unit, not 0. alpha, power: 0–1.
    treatment_share: of all units, 0–1. treatment_deviation: of a unit under treatment, where it differs (a
    proportion). By the normal approximation; exact for means is a unit or two more, see `power`. Raises
    InvalidInput.

    Source: (z_{1−α/2} + z_{power})² · (σ_c²/share_c + σ_t²/share_t) / Δ² in all; the other tail is left out.
    The rule 16σ²/Δ²: Lehr, Statistics in Medicine 11, 1992.

    >>> sample_size(standard_deviation=1.0, effect=0.1)    # (1.959964 + 0.841621)² · 2 / 0.01 = 1569.8 an arm
    SampleSize(control=1570, treatment=1570)
    """
    _check_rates(alpha, power, treatment_share)
    deviations = _deviations(standard_deviation, treatment_deviation)
    if not is_number(effect) or effect == 0:
        raise InvalidInput(f"effect {effect!r} is not a finite number other than 0; no size finds no effect")
    shares = (1 - treatment_share, treatment_share)
    z = critical_value(alpha / (2 if two_sided else 1), None) + critical_value(1 - power, None)
    needed = z / effect
    total = needed * needed * sum(d * d / share for d, share in zip(deviations, shares, strict=True))
    if not total <= _MOST:  # not a number where the one overflows and the other underflows
        raise InvalidInput(
            f"effect {effect:g} beside a standard deviation of {standard_deviation:g} needs {total:.3g} units; "
            "no experiment has them"
        )
    control, treatment = (max(2, math.ceil(total * share - 1e-9 * total)) for share in shares)
    return SampleSize(control=control, treatment=treatment)


def minimum_detectable_effect(
    *,
    standard_deviation: float,
    n_control: int,
    n_treatment: int,
    alpha: float = 0.05,
    power: float = 0.8,
    two_sided: bool = True,
) -> float:
    """The smallest difference that n units find with probability `power`, in the unit of the deviation.

    Raises InvalidInput.

    >>> round(minimum_detectable_effect(standard_deviation=1.0, n_control=1570, n_treatment=1570), 4)
    0.1
    """
    _check_rates(alpha, power, 0.5)
    deviation, _ = _deviations(standard_deviation, None)
    _check_units(n_control, n_treatment)
    z = critical_value(alpha / (2 if two_sided else 1), None) + critical_value(1 - power, None)
    return z * deviation * math.sqrt(1 / n_control + 1 / n_treatment)


def power(
    *,
    standard_deviation: float,
    effect: float,
    n_control: int,
    n_treatment: int,
    alpha: float = 0.05,
    two_sided: bool = True,
    exact: bool = True,
) -> float:
    """The probability, 0–1, that n units find a difference of `effect`.

    exact: of Student's t test, from the noncentral t distribution, both tails counted; False: of the z test.
    Raises InvalidInput.

    >>> round(power(standard_deviation=1.0, effect=0.1, n_control=1570, n_treatment=1570), 3)
    0.8
    >>> round(power(standard_deviation=1.0, effect=0.0, n_control=50, n_treatment=50), 3)   # nothing to find: alpha
    0.05
    """
    _check_rates(alpha, 0.8, 0.5)
    deviation, _ = _deviations(standard_deviation, None)
    _check_units(n_control, n_treatment)
    if not is_number(effect):
        raise InvalidInput(f"effect {effect!r} is not a finite number")
    shift = effect / (deviation * math.sqrt(1 / n_control + 1 / n_treatment))
    if two_sided:
        shift = abs(shift)
    tail = alpha / (2 if two_sided else 1)
    degrees = n_control + n_treatment - 2
    # From some thousand units on both agree to four digits, and the noncentral series is slow.
    if not exact or degrees > 5000 or abs(shift) > 30:
        critical = critical_value(tail, None)
        found = float(special.ndtr(shift - critical))
        other = float(special.ndtr(-shift - critical)) if two_sided else 0.0
    else:
        critical = critical_value(tail, degrees)
        found = 1 - float(special.nctdtr(degrees, shift, critical))
        other = float(special.nctdtr(degrees, shift, -critical)) if two_sided else 0.0
    return min(1.0, found + other)


def proportion_deviation(p: float) -> float:
    """The standard deviation of one unit that is a success with probability p, 0 < p < 1.

    >>> proportion_deviation(0.5)
    0.5
    """
    if not is_number(p) or not 0 < p < 1:
        raise InvalidInput(f"p {p!r} is not a number between 0 and 1, both excluded")
    return math.sqrt(p * (1 - p))


def quantile_deviation(q: float, *, density: float) -> float:
    """What stands for one unit's standard deviation where a quantile is compared: √(q(1 − q)) / density.

    density: of the metric at the quantile, per unit of the metric, above 0; the share of values between
    two values near the quantile, over their distance. Source: the asymptotic variance of a sample quantile
    (David and Nagaraja, Order Statistics, 3rd ed. 2003, section 10.2).

    >>> round(quantile_deviation(0.99, density=0.1), 3)
    0.995
    """
    if not is_number(density) or density <= 0:
        raise InvalidInput(f"density {density!r} is not a number above 0")
    if not is_number(q) or not 0 < q < 1:
        raise InvalidInput(f"q {q!r} is not a number between 0 and 1, both excluded")
    return math.sqrt(q * (1 - q)) / density


def _check_rates(alpha: float, power: float, share: float) -> None:
    for name, value in (("alpha", alpha), ("power", power), ("treatment_share", share)):
        if not is_number(value) or not 0 < value < 1:
            raise InvalidInput(f"{name} {value!r} is not a number between 0 and 1, both excluded")


def _check_units(n_control: int, n_treatment: int) -> None:
    for name, n in (("n_control", n_control), ("n_treatment", n_treatment)):
        if isinstance(n, bool) or not isinstance(n, int) or n < 2:
            raise InvalidInput(f"{name} {n!r} is not a number of units of 2 or more")


def _deviations(control: float, treatment: float | None) -> tuple[float, float]:
    both = (control, control if treatment is None else treatment)
    for value in both:
        if not is_number(value) or value <= 0:
            raise InvalidInput(f"standard deviation {value!r} is not a number above 0")
    return both
