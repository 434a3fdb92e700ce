"""Are the arms as large as they should be? Asked first: if not, nothing after it counts.

A split of 50/50 that comes out 50.5/49.5 over a million users was not random: a crash, a redirect, a bot filter took
users out of one arm, and not the average ones. The effect that is then measured is that of their absence. No other
check finds so many broken experiments for so little.

    sample_ratio                    once, at the end
    sequential_sample_ratio         at every look; stages with shares of their own, counts never pooled
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from fairlead.errors import InvalidInput, TooFewUnits
from fairlead.statistics.clusters import FloatArray
from fairlead.statistics.sequential_counts import multinomial_log_e_value
from fairlead.statistics.tails import LEAST, chi_square_tail, is_number

__all__ = ["SampleRatio", "sample_ratio", "sequential_sample_ratio"]

_LISTED = 100_000
"""Outcomes that are listed one by one for an exact test of three arms or more."""
_LARGEST = 700.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRatio:
    """Units by arm beside what was expected."""

    expected: dict[str, float]
    """Units that each arm should have."""
    observed: dict[str, int]
    """Units that each arm has."""
    p_value: float
    """The chance of such a split, or a worse one, if it was as planned; above 0."""
    verdict: Literal["as planned", "mismatch"]
    """mismatch: p_value below alpha; the results of this split are void."""
    alpha: float
    method: str
    log_e_value: float | None = None
    """For the sequential form: log of the e-value over all stages."""


def sample_ratio(
    observed: Mapping[str, int], expected: Mapping[str, float], *, alpha: float = 0.001
) -> SampleRatio:
    """Whether units fell to the arms as planned, for one look.

    observed: units by arm. expected: shares by arm, above 0, in any scale (1 and 1; 0.95 and 0.05). alpha: 0.001, as
    every experiment is checked and a false alarm voids a good one. Exact for two arms, and for more while their
    outcomes can be listed (three arms: 400 units); else Pearson's chi-square. Raises InvalidInput, TooFewUnits.

    Source: Fabijan et al., "Diagnosing sample ratio mismatch in online controlled experiments", KDD 2019. Two arms:
    twice the smaller binomial tail. More: the probability of all outcomes no likelier than this one.

    >>> found = sample_ratio({"control": 821_588, "treatment": 815_482}, {"control": 1, "treatment": 1})
    >>> found.verdict, f"{found.p_value:.1e}"     # 50.2 % to 49.8 %: χ² = 6,106² / 1,637,070 = 22.77
    ('mismatch', '1.8e-06')
    """
    counts, shares = _checked(observed, expected, alpha)
    n = sum(counts.values())
    if n == 0:
        raise TooFewUnits("no units in any arm; wait for data")
    wanted = {arm: n * share for arm, share in shares.items()}
    if len(counts) == 2:
        first = next(iter(counts))
        k, p = counts[first], shares[first]
        above = 1.0 if k == 0 else float(special.betainc(k, n - k + 1, p))
        below = 1.0 if k == n else float(special.betainc(n - k, k + 1, 1 - p))
        p_value, method = 2 * min(above, below), "exact binomial"
    elif math.comb(n + len(counts) - 1, len(counts) - 1) <= _LISTED:
        p_value, method = _no_likelier(list(counts.values()), list(shares.values())), "exact multinomial"
    else:
        statistic = sum((counts[arm] - wanted[arm]) ** 2 / wanted[arm] for arm in counts)
        p_value, method = chi_square_tail(statistic, len(counts) - 1), "chi-square"
    p_value = min(1.0, max(LEAST, p_value))
    return _result(wanted, counts, p_value, alpha, method, None)


def sequential_sample_ratio(
    stages: Sequence[tuple[Mapping[str, int], Mapping[str, float]]], *, tuned_for: int, alpha: float = 0.001
) -> SampleRatio:
    """The same at every look: the chance of ever calling a good split a mismatch is at most alpha.

    stages: for each stage the units that *entered in it*, and its shares. tuned_for: units at which a stage shall be
    most sensitive. Raises InvalidInput; no units at all are as planned.

    Source: Lindon and Malek, NeurIPS 2022; the e-values of stages with different shares multiply.

    >>> one = ({"control": 950, "treatment": 50}, {"control": 0.95, "treatment": 0.05})
    >>> two = ({"control": 560, "treatment": 440}, {"control": 0.5, "treatment": 0.5})
    >>> sequential_sample_ratio([one], tuned_for=1000).verdict
    'as planned'
    >>> sequential_sample_ratio([one, two], tuned_for=1000, alpha=0.05).verdict
    'mismatch'
    """
    if not stages:
        raise InvalidInput("stages: give the counts and shares of at least one stage")
    log_e = 0.0
    wanted: dict[str, float] = {}
    seen: dict[str, int] = {}
    for observed, expected in stages:
        counts, shares = _checked(observed, expected, alpha)
        arms = list(counts)
        log_e += multinomial_log_e_value(
            [counts[arm] for arm in arms], [shares[arm] for arm in arms], tuned_for=tuned_for
        )
        n = sum(counts.values())
        for arm in arms:
            wanted[arm] = wanted.get(arm, 0.0) + n * shares[arm]
            seen[arm] = seen.get(arm, 0) + counts[arm]
    p_value = min(1.0, max(LEAST, math.exp(-max(0.0, min(_LARGEST, log_e)))))
    return _result(wanted, seen, p_value, alpha, "multinomial e-process", log_e)


def _no_likelier(counts: list[int], shares: list[float]) -> float:
    """The probability of all outcomes of a multinomial that are no likelier than this one."""
    outcomes = _outcomes(sum(counts), len(counts))
    logs = outcomes @ np.log(shares) - special.gammaln(outcomes + 1).sum(axis=1)
    own = float(np.dot(counts, np.log(shares)) - special.gammaln(np.add(counts, 1.0)).sum())
    # Outcomes that mirror each other are equally likely but for the last digits.
    no_likelier = logs[logs <= own + 1e-9 * max(1.0, abs(own))]
    return math.exp(float(special.logsumexp(no_likelier)) + math.lgamma(sum(counts) + 1))


def _outcomes(n: int, arms: int) -> FloatArray:
    """All ways in which n units fall to the arms, shape (ways, arms)."""
    if arms == 1:
        return np.array([[float(n)]])
    rest = [_outcomes(n - first, arms - 1) for first in range(n + 1)]
    return np.concatenate([np.insert(part, 0, first, axis=1) for first, part in enumerate(rest)])


def _result(
    expected: dict[str, float],
    observed: dict[str, int],
    p_value: float,
    alpha: float,
    method: str,
    log_e: float | None,
) -> SampleRatio:
    return SampleRatio(
        expected=expected,
        observed=observed,
        p_value=p_value,
        verdict="mismatch" if p_value < alpha else "as planned",
        alpha=alpha,
        method=method,
        log_e_value=log_e,
    )


def _checked(
    observed: Mapping[str, int], expected: Mapping[str, float], alpha: float
) -> tuple[dict[str, int], dict[str, float]]:
    if not is_number(alpha) or not 0 < alpha < 1:
        raise InvalidInput(f"alpha {alpha!r} is not a number between 0 and 1, both excluded")
    if len(expected) < 2 or set(observed) - set(expected):
        strangers = sorted(set(observed) - set(expected))[:5]
        raise InvalidInput(f"expected: give a share to each of two arms or more; without one: {strangers}")
    for arm, share in expected.items():
        if not is_number(share) or share <= 0:
            raise InvalidInput(f"share of {arm}: {share!r} is not a number above 0")
    for arm, count in observed.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise InvalidInput(f"units of {arm}: {count!r} is not a count")
    total = math.fsum(expected.values())
    return {arm: observed.get(arm, 0) for arm in expected}, {
        arm: share / total for arm, share in expected.items()
    }
