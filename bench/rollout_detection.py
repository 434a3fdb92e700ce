"""How soon a regression is found, beside what others would have needed at the same rate of false alarms.

One stage, one guardrail, a look each minute. Traffic is such that a fixed test of one-sided 5 % and 80 % power, by the
formula of `statistics.sample_size`, is due after half an hour; a stage lasts four times as long. Units are fresh,
arrive by a Poisson process and nothing drifts: this is the best case of a rule with an absolute limit, which
is given the exact rate before the change.

Each peer's limit is tuned on runs without a regression until 5 % of them alarm within the stage. Ours is not tuned: its
e-value needs 20. The oracle looks once, at the first minute at which such a look, tuned likewise, finds 80 % of the
regressions. A quantile's single look is at how many of treatment's values lie above the p99 of both arms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import special

from bench.rollout_peers import (
    ARGO,
    FLAGGER,
    FewChecks,
    fired,
    kayenta_high,
    limit_for,
    nth_worst,
    rank_scores,
    repeated_z,
)
from bench.rollout_regressions import ALPHA, EFFECTS, MINUTES, SIGMA, Effect, Q, Runs, draw_runs
from fairlead.statistics import proportion_deviation, quantile_deviation, sample_size
from fairlead.statistics.clusters import FloatArray
from fairlead.statistics.quantiles import binomial_ranks

__all__ = ["DUE", "SHARES", "Found", "detection", "units_of_formula"]

DUE = 30
"""Minutes after which the fixed test is due, by the formula."""
SHARES = (0.01, 0.05, 0.25, 0.5)
_KAYENTA_RUNS, _KAYENTA_EVERY = 100, 10
_DRIFTING_RUNS = 300
_DRIFT = {"proportion": 0.3, "quantile": 0.1}
"""By how much errors and latencies of both arms rise and fall again over the stage."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one way of watching did with the runs of one regression."""

    name: str
    false_alarms: float
    """Share of the runs without a regression."""
    half: float
    """Minutes until half of the runs were found; infinite where the stage ended before."""
    most: float
    """Minutes until 80 % were."""
    within: float
    """Share found before the stage ended."""
    half_between: tuple[float, float] = (math.nan, math.nan)
    most_between: tuple[float, float] = (math.nan, math.nan)
    """95 % intervals of both, by ranks."""
    drifting: float = math.nan
    """False alarms with the same limit where both arms drift alike over the stage."""
    untuned: float = math.nan
    """False alarms with the rule's own limit, where it has one that does not need the rate before."""


def units_of_formula(effect: Effect, share: float) -> int:
    """Units in both arms that a fixed test needs, one-sided 5 %, 80 % power."""
    if effect.kind == "proportion":
        deviations = proportion_deviation(effect.before), proportion_deviation(effect.after)
        difference = effect.after - effect.before
    else:
        z = float(special.ndtri(Q))
        p99 = math.exp(SIGMA * z)
        density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi) / (SIGMA * p99)
        deviation = quantile_deviation(Q, density=density)
        deviations = deviation, deviation * effect.after
        difference = p99 * (effect.after - 1)
    return sample_size(
        standard_deviation=deviations[0],
        treatment_deviation=deviations[1],
        effect=difference,
        alpha=ALPHA,
        treatment_share=share,
        two_sided=False,
    ).total


def detection(effect: Effect, share: float, runs: int, seed: tuple[int, ...]) -> list[Found]:
    """Ours first, then the peers, and the oracle last."""
    rng = np.random.default_rng([*seed, EFFECTS.index(effect), round(share * 10_000)])
    rate = units_of_formula(effect, share) / DUE
    same, worse = (draw_runs(effect, share, rate, planted, runs, rng) for planted in (False, True))
    drifts = np.random.default_rng([*seed, EFFECTS.index(effect), round(share * 10_000), 1])
    drifting = draw_runs(
        effect, share, rate, False, min(runs, _DRIFTING_RUNS), drifts, drift=_DRIFT[effect.kind]
    )
    both = same, worse, drifting
    found = [_found("ours", *(np.array(each.ours) for each in both))]
    found.append(_found("ours, one of 3 guardrails and 4 stages", *(np.array(each.in_plan) for each in both)))
    for name, checks in (("threshold as Argo Rollouts", ARGO), ("threshold as Flagger", FLAGGER)):
        found.append(_tuned(name, both, partial(_threshold, checks=checks, rng=rng)))
    ranks = _tuned("Mann–Whitney of minutes", both, partial(_ranks, rng=rng))
    found.append(_with(ranks, _kayenta_alarms(same, rng)))
    scores = _tuned("z each minute", both, _z)
    found.append(_with(scores, float((fired(_z(same), float(special.ndtri(1 - ALPHA))) > 0).mean())))
    found.append(_oracle(same, worse))
    return found


def _found(
    name: str, same: NDArray[np.int64], worse: NDArray[np.int64], drifting: NDArray[np.int64]
) -> Found:
    times = np.sort(np.where(worse > 0, worse.astype(np.float64), np.inf))
    n = len(times)

    def quantile(q: float) -> tuple[float, tuple[float, float]]:
        low, high = binomial_ranks(n, q, 0.95)
        ends = float(times[max(low, 1) - 1]), float(times[high - 1]) if high <= n else math.inf
        return float(times[math.ceil(q * n - 1e-9) - 1]), ends

    (half, half_between), (most, most_between) = quantile(0.5), quantile(0.8)
    return Found(
        name,
        float((same > 0).mean()),
        half,
        most,
        float((worse > 0).mean()),
        half_between,
        most_between,
        float((drifting > 0).mean()),
    )


def _tuned(name: str, each: tuple[Runs, Runs, Runs], scores: Callable[[Runs], FloatArray]) -> Found:
    same, worse, drifting = (scores(runs) for runs in each)
    limit = limit_for(same, ALPHA)
    return _found(name, *(fired(one, limit) for one in (same, worse, drifting)))


def _with(found: Found, untuned: float) -> Found:
    return replace(found, untuned=untuned)


def _jittered(figures: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Ties broken by lot: a limit between two counts could not be tuned to 5 %, to the peer's harm."""
    return figures + rng.uniform(0, 1e-9, figures.shape) * np.maximum(1e-6, np.abs(figures))


def _threshold(runs: Runs, checks: FewChecks, rng: np.random.Generator) -> FloatArray:
    every, failures = checks
    figures = runs.of_five if every == 5 else runs.figure[1]
    worst = nth_worst(_jittered(figures, rng), failures)
    # Between two checks nothing new is known.
    scores = np.full((len(worst), MINUTES), -np.inf)
    for check in range(worst.shape[1]):
        scores[:, (check + 1) * every - 1 :] = worst[:, check, None]
    return scores


def _ranks(runs: Runs, rng: np.random.Generator) -> FloatArray:
    return rank_scores(_jittered(runs.figure[0], rng), _jittered(runs.figure[1], rng))


def _z(runs: Runs) -> FloatArray:
    return repeated_z(runs.bad[0], runs.n[0], runs.bad[1], runs.n[1])


def _kayenta_alarms(same: Runs, rng: np.random.Generator) -> float:
    """Of Kayenta's own settings, judged every ten minutes from the first fifty on, as its guide recommends."""
    control, treatment = (each[:_KAYENTA_RUNS] for each in same.figure)
    ends = range(50, MINUTES + 1, _KAYENTA_EVERY)
    alarms = [
        any(kayenta_high(c[:end], t[:end]) for end in ends) for c, t in zip(control, treatment, strict=True)
    ]
    return float(np.mean(alarms))


def _oracle(same: Runs, worse: Runs) -> Found:
    rows = zip(_z(same).T, _z(worse).T, strict=True)
    power = [float((harmed > limit_for(spared[:, None], ALPHA)).mean()) for spared, harmed in rows]

    def first(wanted: float) -> float:
        # Smoothed, as each minute's power is itself an estimate.
        smooth = np.convolve(np.pad(power, 2, mode="edge"), np.ones(5) / 5, mode="valid")
        return next((minute + 1.0 for minute, each in enumerate(smooth) if each >= wanted), math.inf)

    return Found("oracle: one look", ALPHA, first(0.5), first(0.8), power[-1])
