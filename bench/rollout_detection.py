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
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

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
from bench.rollout_population import watched_metric
from fairlead.rollout import Guardrail, RolloutPlan, Stage
from fairlead.rollout.guardrail import evaluate_beside_control
from fairlead.rollout.tally import ArmSeen
from fairlead.statistics import CumulativeCounts, proportion_deviation, quantile_deviation, sample_size
from fairlead.statistics.clusters import FloatArray
from fairlead.statistics.quantiles import binomial_ranks
from fairlead.statistics.sequential_counts import tuned_strength, watched_log_e
from fairlead.statistics.sequential_quantile_effect import EvidenceAbove

__all__ = ["EFFECTS", "MINUTES", "SHARES", "Effect", "Found", "detection", "units_of_formula"]

MINUTES = 120
_DUE = 30
"""Minutes after which the fixed test is due, by the formula."""
SHARES = (0.01, 0.05, 0.25, 0.5)
ALPHA = 0.05
_NEEDED = -math.log(ALPHA)
_Q, _SIGMA = 0.99, 0.5
_VALUES, _EVENTS = tuned_strength(2_000), tuned_strength(100)
_KAYENTA_RUNS, _KAYENTA_EVERY = 100, 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """A regression."""

    name: str
    before: float
    """Error rate; of a latency, 1."""
    after: float
    """Error rate; of a latency, how many times as long everything takes."""
    kind: Literal["proportion", "quantile"] = "proportion"
    worse_by: float = 0.0001
    """The guardrail's margin: points of errors, or a share of p99."""


EFFECTS = (
    Effect(name="errors 0.18 % → 0.30 %", before=0.0018, after=0.0030),
    Effect(name="errors 1 % → 2 %", before=0.01, after=0.02),
    Effect(name="errors 1 % → 5 %", before=0.01, after=0.05),
    Effect(name="p99 +10 %", before=1.0, after=1.1, kind="quantile", worse_by=0.01),
    Effect(name="p99 +50 %", before=1.0, after=1.5, kind="quantile", worse_by=0.01),
)


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
    untuned: float = math.nan
    """False alarms with the rule's own limit, where it has one that does not need the rate before."""


@dataclass(slots=True)
class Runs:
    """Both arms by minute; shape (runs, minutes). `bad`, so far: errors, or values above the p99 of both arms."""

    n: tuple[FloatArray, FloatArray]
    """Units so far."""
    bad: tuple[FloatArray, FloatArray]
    figure: tuple[FloatArray, FloatArray]
    """Of the minute alone: error rate, or p99."""
    of_five: FloatArray
    """Treatment's figure of each five minutes; shape (runs, minutes / 5)."""
    ours: list[int] = field(default_factory=list)
    """Minute at which the guardrail failed; 0: never."""
    by_slow: list[int] = field(default_factory=list)
    """Of latencies: minute at which counting slow units would have shown harm; 0: never."""


def units_of_formula(effect: Effect, share: float) -> int:
    """Units in both arms that a fixed test needs, one-sided 5 %, 80 % power."""
    if effect.kind == "proportion":
        deviations = proportion_deviation(effect.before), proportion_deviation(effect.after)
        difference = effect.after - effect.before
    else:
        z = float(special.ndtri(_Q))
        p99 = math.exp(_SIGMA * z)
        density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi) / (_SIGMA * p99)
        deviation = quantile_deviation(_Q, density=density)
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
    drawn = _errors if effect.kind == "proportion" else _latencies
    rate = units_of_formula(effect, share) / _DUE
    same, worse = (drawn(effect, share, rate, planted, runs, rng) for planted in (False, True))
    found = [_found("ours", np.array(same.ours), np.array(worse.ours))]
    if effect.kind == "quantile":
        found.append(_found("not built: slow units counted", np.array(same.by_slow), np.array(worse.by_slow)))
    for name, checks in (("threshold as Argo Rollouts", ARGO), ("threshold as Flagger", FLAGGER)):
        found.append(_tuned(name, same, worse, partial(_threshold, checks=checks, rng=rng)))
    ranks = _tuned("Mann–Whitney of minutes", same, worse, partial(_ranks, rng=rng))
    found.append(_with(ranks, _kayenta_alarms(same, rng)))
    scores = _tuned("z each minute", same, worse, _z)
    found.append(_with(scores, float((fired(_z(same), float(special.ndtri(1 - ALPHA))) > 0).mean())))
    found.append(_oracle(same, worse))
    return found


def _found(name: str, same: NDArray[np.int64], worse: NDArray[np.int64]) -> Found:
    times = np.sort(np.where(worse > 0, worse.astype(np.float64), np.inf))
    n = len(times)

    def quantile(q: float) -> tuple[float, tuple[float, float]]:
        low, high = binomial_ranks(n, q, 0.95)
        ends = float(times[max(low, 1) - 1]), float(times[high - 1]) if high <= n else math.inf
        return float(times[math.ceil(q * n - 1e-9) - 1]), ends

    (half, half_between), (most, most_between) = quantile(0.5), quantile(0.8)
    return Found(
        name, float((same > 0).mean()), half, most, float((worse > 0).mean()), half_between, most_between
    )


def _tuned(name: str, same: Runs, worse: Runs, scores: Callable[[Runs], FloatArray]) -> Found:
    unharmed = scores(same)
    limit = limit_for(unharmed, ALPHA)
    return _found(name, fired(unharmed, limit), fired(scores(worse), limit))


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


def _plan(effect: Effect, share: float) -> RolloutPlan:
    guardrail = Guardrail(
        metric=watched_metric(effect.kind), worse_by=effect.worse_by, relative=effect.kind != "proportion"
    )
    stages = (Stage(share=share, bake=MINUTES * 60.0),)
    return RolloutPlan(name="one", flag="one", stages=stages, guardrails=(guardrail,), alpha=ALPHA)


def _check(effect: Effect, share: float, arms: tuple[ArmSeen, ArmSeen], log_e: float, failed: bool) -> None:
    """Stops the bench where the product would not have said the same."""
    plan = _plan(effect, share)
    said = evaluate_beside_control(plan, plan.guardrails[0], *arms, share=share, past=())
    if abs(said.log_wealth - log_e) > 1e-6 or (said.verdict == "FAIL") != failed:
        raise AssertionError(f"{effect.name} at {share}: {log_e}, {failed}, and the product says {said}")


def _errors(
    effect: Effect, share: float, rate: float, planted: bool, runs: int, rng: np.random.Generator
) -> Runs:
    chances = effect.before, effect.after if planted else effect.before
    each = [rng.poisson(rate * part, (runs, MINUTES)) for part in (1 - share, share)]
    bad = [rng.binomial(n, p) for n, p in zip(each, chances, strict=True)]
    n = [np.asarray(arm.cumsum(axis=1), dtype=np.float64) for arm in each]
    so_far = [np.asarray(arm.cumsum(axis=1), dtype=np.float64) for arm in bad]
    log_e = watched_log_e(so_far[1], so_far[0] + so_far[1], share, _EVENTS, "greater")
    with np.errstate(divide="ignore", invalid="ignore"):
        beyond = so_far[1] / n[1] - so_far[0] / n[0] > effect.worse_by
    failed = (log_e >= _NEEDED) & beyond
    for run, minute in zip(
        range(min(runs, 12)), rng.integers(MINUTES // 4, MINUTES, 12).tolist(), strict=False
    ):
        arms = [ArmSeen(units=int(n[a][run, minute]), bad=int(so_far[a][run, minute])) for a in (0, 1)]
        if arms[1].units:
            at = float(log_e[run, minute])
            _check(effect, share, (arms[0], arms[1]), at, bool(failed[run, minute]))
    figures = [arm / np.maximum(1, units) for arm, units in zip(bad, each, strict=True)]
    fives = [arm[1].reshape(runs, MINUTES // 5, 5).sum(axis=2) for arm in (bad, each)]
    return Runs(
        (n[0], n[1]),
        (so_far[0], so_far[1]),
        (figures[0], figures[1]),
        fives[0] / np.maximum(1, fives[1]),
        np.where(failed.any(axis=1), failed.argmax(axis=1) + 1, 0).tolist(),
    )


class _Latencies:
    """One arm of one run: how many of each value by minute, counted in three digits as `Tally` does.

    Only the upper tail is drawn, exactly: of the rest no more than their number matters, so they are counted as
    one value at the tail's foot. The foot is low enough for treatment's to lie below control's p99.
    """

    def __init__(self, rate: float, times: float, tail: float, rng: np.random.Generator) -> None:
        self.n = rng.poisson(rate, MINUTES)
        in_tail = rng.binomial(self.n, tail)
        values = times * np.exp(_SIGMA * -special.ndtri(tail * rng.random(int(in_tail.sum()))))
        digits = np.clip(
            np.where(values < 10, np.rint(values * 100) - 100, 900 + np.rint(values * 10) - 100), 0, _LAST
        )
        minute = np.repeat(np.arange(MINUTES), in_tail)
        cells = np.bincount(minute * (_LAST + 1) + digits.astype(np.int64), minlength=MINUTES * (_LAST + 1))
        self.by_minute = cells.reshape(MINUTES, _LAST + 1)
        foot = times * math.exp(_SIGMA * -float(special.ndtri(tail)))
        self.by_minute[:, max(0, round(foot * 100) - 100)] += self.n - in_tail
        self.below = self.by_minute.cumsum(axis=1)
        self.so_far = self.below.cumsum(axis=0)
        self.n_so_far = self.n.cumsum()

    def p99(self, below: NDArray[np.int64], n: NDArray[np.int64]) -> FloatArray:
        rank = np.maximum(1, np.ceil(n * _Q - 1e-9))
        return np.asarray(_GRID[(below >= rank[:, None]).argmax(axis=1)], dtype=np.float64)

    def counts(self, minute: int) -> CumulativeCounts:
        """All values up to the end of that minute, from 0."""
        at = self.so_far[minute]
        some = np.flatnonzero(np.diff(at, prepend=0))
        return CumulativeCounts(edges=_GRID[some], at_or_below=at[some], exact=True)

    def seen(self, minute: int) -> ArmSeen:
        found = ArmSeen(units=int(self.n_so_far[minute]))
        each = np.diff(self.so_far[minute], prepend=0)
        found.values.update({float(_GRID[cell]): int(each[cell]) for cell in np.flatnonzero(each).tolist()})
        return found


_GRID = np.concatenate([np.arange(100, 1000) / 100, np.arange(100, 1000) / 10])
_LAST = len(_GRID) - 1


def _latencies(
    effect: Effect, share: float, rate: float, planted: bool, runs: int, rng: np.random.Generator
) -> Runs:
    times = effect.after if planted else 1.0
    tail = 0.1 if effect.after <= 1.2 else 0.25
    shape = (runs, MINUTES)
    n, bad, figure = ((np.empty(shape), np.empty(shape)) for _ in range(3))
    of_five = np.empty((runs, MINUTES // 5))
    ours, by_slow = [], []
    for run in range(runs):
        arms = _Latencies(rate * (1 - share), 1.0, tail, rng), _Latencies(rate * share, times, tail, rng)
        both = arms[0].so_far + arms[1].so_far
        at = (both >= np.ceil(both[:, -1:] * _Q - 1e-9)).argmax(axis=1)
        below = [arm.so_far[np.arange(MINUTES), at].astype(np.float64) for arm in arms]
        for each in (0, 1):
            n[each][run] = arms[each].n_so_far
            bad[each][run] = arms[each].n_so_far - below[each]
            figure[each][run] = arms[each].p99(arms[each].below, arms[each].n)
        fives = arms[1].below.reshape(MINUTES // 5, 5, -1).sum(axis=1)
        of_five[run] = arms[1].p99(fives, fives[:, -1])
        ours.append(_first_failure(effect, share, arms, below, check=run < 2))
        by_slow.append(_shown_by_slow_units(arms, share))
    return Runs(n, bad, figure, of_five, ours, by_slow)


def _shown_by_slow_units(arms: tuple[_Latencies, _Latencies], share: float) -> int:
    """What the guardrail does not do: count units above control's p99 up to the minute before, as errors are counted.

    Which arm a unit is in was drawn whatever its latency, so the next slow one is treatment's with the chance of its
    share; evidence of that is the evidence of harm (ADR 0193).
    """
    at = (arms[0].so_far >= np.ceil(arms[0].n_so_far * _Q - 1e-9)[:, None]).argmax(axis=1)[:-1]
    slow = [arm.n[1:] - arm.below[np.arange(1, MINUTES), at] for arm in arms]
    control, treatment = (np.asarray(each.cumsum(), dtype=np.float64) for each in slow)
    shown = watched_log_e(treatment, control + treatment, share, _EVENTS, "greater") >= _NEEDED
    return int(shown.argmax()) + 2 if shown.any() else 0


def _first_failure(
    effect: Effect, share: float, arms: tuple[_Latencies, _Latencies], below: list[FloatArray], check: bool
) -> int:
    n = [np.maximum(1, arm.n_so_far).astype(np.float64) for arm in arms]
    # Evidence at one value bounds the evidence, which is the least over all values.
    bound = watched_log_e(below[0], n[0], _Q, _VALUES, "greater") + watched_log_e(
        below[1], n[1], _Q, _VALUES, "less"
    )
    p99 = [arm.p99(arm.so_far, arm.n_so_far) for arm in arms]
    beyond = p99[1] / p99[0] - 1 > effect.worse_by
    some = arms[1].n_so_far > 0
    for minute in np.flatnonzero((bound >= _NEEDED) & beyond & some).tolist():
        log_e = EvidenceAbove(arms[0].counts(minute), arms[1].counts(minute), _Q, _VALUES).log_e(1.0, 0.0)
        if check or log_e >= _NEEDED:
            if check:
                seen = arms[0].seen(minute), arms[1].seen(minute)
                _check(effect, share, seen, log_e, log_e >= _NEEDED)
            if log_e >= _NEEDED:
                return minute + 1
    return 0
