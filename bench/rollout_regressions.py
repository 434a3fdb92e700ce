"""One stage with a regression, or without: both arms' minutes as they are drawn, and when the guardrail fails.

Errors are judged by the product's e-value (`watched_log_e`) for all runs at once; so are latencies, whose units beyond
control's p99 of the minutes before are counted here by arrays. Of some runs the product's `Exceedances` has to have
counted the same by every minute, and `evaluate_beside_control` to agree. A disagreement ends the bench.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from bench.rollout_population import watched_metric
from fairlead.rollout import Guardrail, RolloutPlan, Stage
from fairlead.rollout.exceedances import Exceedances
from fairlead.rollout.guardrail import evaluate_beside_control
from fairlead.rollout.tally import ArmSeen
from fairlead.statistics.clusters import FloatArray
from fairlead.statistics.sequential_counts import tuned_strength, watched_log_e

__all__ = ["ALPHA", "EFFECTS", "MINUTES", "SIGMA", "Effect", "Q", "Runs", "draw_runs"]

MINUTES = 120
ALPHA = 0.05
_NEEDED = -math.log(ALPHA)
_NEEDED_IN_PLAN = math.log(3 * 4 / ALPHA)
"""Of one of three guardrails in the first of four stages: alpha is divided among those, the stake among these."""
Q, SIGMA = 0.99, 0.5
"""The quantile that is watched, and the deviation of the logarithm of latencies."""
_EVENTS = tuned_strength(100)
_FEWEST_BEFORE, _ENOUGH_BEFORE = 100, 2_000
"""Of control's values, as `Exceedances` wants them of p99."""


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
    in_plan: list[int] = field(default_factory=list)
    """As one of three guardrails in a plan of four stages."""


def draw_runs(
    effect: Effect,
    share: float,
    rate: float,
    planted: bool,
    runs: int,
    rng: np.random.Generator,
    *,
    drift: float = 0.0,
) -> Runs:
    """So many stages, with the regression planted or not. rate: units a minute; drift: of both arms, a share."""
    drawn = _errors if effect.kind == "proportion" else _latencies
    return drawn(effect, share, rate, planted, runs, rng, drift)


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


def _wave(drift: float) -> FloatArray:
    return np.asarray(1 + drift * np.sin(2 * np.pi * (np.arange(MINUTES) + 0.5) / MINUTES), dtype=np.float64)


def _errors(
    effect: Effect,
    share: float,
    rate: float,
    planted: bool,
    runs: int,
    rng: np.random.Generator,
    drift: float,
) -> Runs:
    wave = _wave(drift)
    chances = effect.before * wave, (effect.after if planted else effect.before) * wave
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
        _first(failed),
        _first((log_e >= _NEEDED_IN_PLAN) & beyond),
    )


def _first(failed: NDArray[np.bool_]) -> list[int]:
    return [int(row.argmax()) + 1 if row.any() else 0 for row in failed]


class _Latencies:
    """One arm of one run: how many of each value by minute, counted in three digits as `Tally` does.

    Only the upper tail is drawn, exactly: of the rest no more than their number matters, so they are counted as
    one value at the tail's foot. The foot is low enough for treatment's to lie below control's p99.
    """

    def __init__(self, rate: float, times: FloatArray, tail: float, rng: np.random.Generator) -> None:
        """times: how many times as long everything takes, by minute."""
        self.n = rng.poisson(rate, MINUTES)
        in_tail = rng.binomial(self.n, tail)
        minute = np.repeat(np.arange(MINUTES), in_tail)
        values = times[minute] * np.exp(SIGMA * -special.ndtri(tail * rng.random(int(in_tail.sum()))))
        cells = np.bincount(minute * (_LAST + 1) + _cell(values), minlength=MINUTES * (_LAST + 1))
        self.by_minute = cells.reshape(MINUTES, _LAST + 1)
        foot = times * math.exp(SIGMA * -float(special.ndtri(tail)))
        self.by_minute[np.arange(MINUTES), _cell(foot)] += self.n - in_tail
        self.below = self.by_minute.cumsum(axis=1)
        self.so_far = self.below.cumsum(axis=0)
        self.n_so_far = self.n.cumsum()

    def p99(self, below: NDArray[np.int64], n: NDArray[np.int64]) -> FloatArray:
        rank = np.maximum(1, np.ceil(n * Q - 1e-9))
        return np.asarray(_GRID[(below >= rank[:, None]).argmax(axis=1)], dtype=np.float64)

    def seen(self, minute: int, beyond: int) -> ArmSeen:
        """All values up to the end of that minute, from 0."""
        return ArmSeen(units=int(self.n_so_far[minute]), bad=beyond, values=_values(self.so_far[minute]))


def _values(below: NDArray[np.int64]) -> Counter[float]:
    each = np.diff(below, prepend=0)
    return Counter({float(_GRID[cell]): int(each[cell]) for cell in np.flatnonzero(each).tolist()})


def _cell(values: FloatArray) -> NDArray[np.int64]:
    """Where in the grid of three digits each value lies."""
    cells = np.where(values < 10, np.rint(values * 100) - 100, 900 + np.rint(values * 10) - 100)
    return np.clip(cells, 0, _LAST).astype(np.int64)


_GRID = np.concatenate([np.arange(100, 1000) / 100, np.arange(100, 1000) / 10])
_LAST = len(_GRID) - 1


def _latencies(
    effect: Effect,
    share: float,
    rate: float,
    planted: bool,
    runs: int,
    rng: np.random.Generator,
    drift: float,
) -> Runs:
    wave = _wave(drift)
    times = effect.after if planted else 1.0
    tail = 0.1 if effect.after <= 1.2 else 0.25
    shape = (runs, MINUTES)
    n, bad, figure = ((np.empty(shape), np.empty(shape)) for _ in range(3))
    of_five = np.empty((runs, MINUTES // 5))
    ours, in_plan = [], []
    for run in range(runs):
        arms = (
            _Latencies(rate * (1 - share), wave, tail, rng),
            _Latencies(rate * share, times * wave, tail, rng),
        )
        both = arms[0].so_far + arms[1].so_far
        at = (both >= np.ceil(both[:, -1:] * Q - 1e-9)).argmax(axis=1)
        below = [arm.so_far[np.arange(MINUTES), at].astype(np.float64) for arm in arms]
        for each in (0, 1):
            n[each][run] = arms[each].n_so_far
            bad[each][run] = arms[each].n_so_far - below[each]
            figure[each][run] = arms[each].p99(arms[each].below, arms[each].n)
        fives = arms[1].below.reshape(MINUTES // 5, 5, -1).sum(axis=1)
        of_five[run] = arms[1].p99(fives, fives[:, -1])
        log_e, worse = _judged(effect, share, arms, check=run < 3)
        ours += _first(((log_e >= _NEEDED) & worse)[None])
        in_plan += _first(((log_e >= _NEEDED_IN_PLAN) & worse)[None])
    return Runs(n, bad, figure, of_five, ours, in_plan)


def _judged(
    effect: Effect, share: float, arms: tuple[_Latencies, _Latencies], check: bool
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """By minute: the e-value's logarithm, and whether the best estimate lies beyond the margin."""
    beyond = _beyond_before(arms)
    log_e = watched_log_e(beyond[1], beyond[0] + beyond[1], share, _EVENTS, "greater")
    p99 = [arm.p99(arm.so_far, arm.n_so_far) for arm in arms]
    worse = (p99[1] / p99[0] - 1 > effect.worse_by) & (arms[1].n_so_far > 0)
    if check:
        counted = Exceedances(watched_metric("quantile"))
        for minute in range(MINUTES):
            for treated, arm in enumerate(arms):
                for value, times in _values(arm.below[minute]).items():
                    counted.add(60.0 * minute, bool(treated), value, times)
            if (said := counted.counts()) != (beyond[0][minute], beyond[1][minute]):
                raise AssertionError(
                    f"{effect.name} at {share}: {beyond[:, minute]}, and the product says {said}"
                )
            if minute % 20 == 19 and arms[1].n_so_far[minute]:
                seen = arms[0].seen(minute, said[0]), arms[1].seen(minute, said[1])
                _check(
                    effect,
                    share,
                    seen,
                    float(log_e[minute]),
                    bool(log_e[minute] >= _NEEDED and worse[minute]),
                )
    return log_e, worse


def _beyond_before(arms: tuple[_Latencies, _Latencies]) -> FloatArray:
    """Values so far beyond control's p99 of the minutes before; shape (arms, minutes)."""
    so_far, n = arms[0].so_far, np.concatenate(([0], arms[0].n_so_far))
    found = np.zeros((2, MINUTES))
    for minute in range(1, MINUTES):
        # The fewest minutes before that hold enough, or all.
        first = max(0, int(np.searchsorted(n[: minute + 1], n[minute] - _ENOUGH_BEFORE, side="right")) - 1)
        before = so_far[minute - 1] - (so_far[first - 1] if first else 0)
        if before[-1] >= _FEWEST_BEFORE:
            limit = int((before >= math.ceil(before[-1] * Q - 1e-9)).argmax())
            found[:, minute] = [arm.n[minute] - arm.below[minute, limit] for arm in arms]
    return np.asarray(found.cumsum(axis=1), dtype=np.float64)
