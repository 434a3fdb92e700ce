"""How often a change that changes nothing is rolled back, looked at 480 times on its way through four stages.

Counts, those of units beyond control's p99 of the looks before among them, are judged by the product's own e-value
(`watched_log_e`) for all looks at once. Whatever is a rollback by the quantile was said to be one by
`evaluate_beside_control`, which also estimates how much worse it is. `disagreements` has the product judge looks at
random, and recount whole stages by `Tally`.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bench.rollout_population import (
    LOOKS,
    PLAN,
    SHARES,
    WORLDS,
    Drawn,
    as_tally_counts,
    draw,
    seen_by,
    verdict,
)
from fairlead.statistics.clusters import FloatArray
from fairlead.statistics.sequential_counts import tuned_strength, watched_log_e

__all__ = ["Watched", "disagreements", "false_alarms"]

_EVENTS = tuned_strength(100)
"""What the product tunes for where the plan names no rate."""
_Q, _FEWEST_BEFORE, _ENOUGH_BEFORE = 0.99, 100, 2_000
"""The quantile, and how many of control's values `Exceedances` wants before."""
_NEEDED = -math.log(PLAN.alpha_each)
_MOST = 400
"""Bad units of a stage up to which the e-value is looked up; beyond, it is computed."""
_CHUNK = 50
_QUANTILE = 2
"""Which of the plan's guardrails watches p99."""


@dataclass(slots=True)
class Watched:
    """Rollouts of one world, and what rolled them back."""

    world: str
    rollouts: int = 0
    rolled_back: int = 0
    by: Counter[str] = field(default_factory=Counter)
    """By guardrail; a rollout may be counted under several."""
    by_requests: int = 0
    """Rolled back by errors, had every request been counted in place of a user's first."""
    looks_judged: int = 0
    """By the product, as evidence of a higher p99 was enough."""

    def add(self, other: Watched) -> None:
        """Another part of the same world's rollouts."""
        self.rollouts += other.rollouts
        self.rolled_back += other.rolled_back
        self.by += other.by
        self.by_requests += other.by_requests
        self.looks_judged += other.looks_judged


@dataclass(frozen=True, slots=True)
class _Counts:
    """Of one rollout, by stage and look; shape (stages, looks) each, control and treatment."""

    units: tuple[FloatArray, FloatArray]
    """Those that had not failed in an earlier stage."""
    bad: tuple[FloatArray, FloatArray]
    values: tuple[FloatArray, FloatArray]
    """Units, those that had failed before among them: each has a latency."""
    beyond: tuple[FloatArray, FloatArray]
    """Values beyond control's p99 of the looks before."""


def _counted(drawn: Drawn) -> _Counts:
    found: list[list[FloatArray]] = [[] for _ in range(8)]
    for stage, share in enumerate(SHARES):
        treated = (drawn.slots < share).astype(np.int64)
        seen = drawn.first_seen[stage]
        bad = drawn.first_bad - stage * LOOKS
        inside = (bad >= 0) & (bad < LOOKS)
        met = seen < LOOKS
        beyond = _beyond_before(drawn.values[stage], seen, treated, met)

        def by_look(
            of: NDArray[np.bool_], at: NDArray[np.int64], treated: NDArray[np.int64] = treated
        ) -> FloatArray:
            counts = np.bincount(at[of] + LOOKS * treated[of], minlength=2 * LOOKS)
            return np.asarray(counts.reshape(2, LOOKS).cumsum(axis=1), dtype=np.float64)

        parts = ((met & (bad >= 0), seen), (inside, bad), (met, seen), (beyond, seen))
        for slot, counts in enumerate(by_look(*part) for part in parts):
            found[2 * slot].append(counts[0])
            found[2 * slot + 1].append(counts[1])
    stacked = [np.stack(rows) for rows in found]
    pairs = [(stacked[slot], stacked[slot + 1]) for slot in range(0, 8, 2)]
    return _Counts(units=pairs[0], bad=pairs[1], values=pairs[2], beyond=pairs[3])


def _beyond_before(
    values: FloatArray, seen: NDArray[np.int64], treated: NDArray[np.int64], met: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which users' values lie beyond control's p99 of the looks before their own."""
    digits = _three_digits(values)
    control = np.flatnonzero(met & (treated == 0))
    control = control[seen[control].argsort(kind="stable")]
    before = np.searchsorted(
        seen[control], np.arange(LOOKS)
    )  # how many of control's values came before each look
    limits = np.full(LOOKS + 1, np.iinfo(np.int64).max)
    for look in range(LOOKS):
        n = int(before[look])
        # The fewest looks before that hold enough, or all.
        first = max(0, int(np.searchsorted(before[: look + 1], n - _ENOUGH_BEFORE, side="right")) - 1)
        past = digits[control[before[first] : n]]
        if len(past) >= _FEWEST_BEFORE:
            rank = math.ceil(len(past) * _Q - 1e-9) - 1
            limits[look] = np.partition(past, rank)[rank]
    return np.asarray(met & (digits > limits[seen]), dtype=np.bool_)


def _three_digits(values: FloatArray) -> NDArray[np.int64]:
    """A number for each value of three digits, in their order: 900 a decade."""
    decade = np.floor(np.log10(values))
    return (decade * 900 + np.rint(values * 10.0 ** (2 - decade)) - 100).astype(np.int64)


class _CountEvidence:
    """The product's log e-value of bad units; looked up, as the same few counts come again and again."""

    def __init__(self) -> None:
        n = np.arange(_MOST)
        self._tables = [
            watched_log_e(np.minimum(n[:, None], n[None, :]), n[None, :], share, _EVENTS, "greater")
            for share in SHARES
        ]

    def log_e(self, control: FloatArray, treatment: FloatArray) -> FloatArray:
        """Shape (…, stages, looks)."""
        found = np.empty_like(treatment)
        for stage, share in enumerate(SHARES):
            bad, n = treatment[..., stage, :], control[..., stage, :] + treatment[..., stage, :]
            if n.max(initial=0) < _MOST:
                found[..., stage, :] = self._tables[stage][bad.astype(np.int64), n.astype(np.int64)]
            else:
                found[..., stage, :] = watched_log_e(bad, n, share, _EVENTS, "greater")
        return found


def carried(log_e: FloatArray) -> FloatArray:
    """Log wealth of a stake divided among the stages whose winnings are bet again; `log_wealth` for arrays."""
    stages = log_e.shape[-2]
    ends = log_e[..., -1]
    found = np.empty_like(log_e)
    for stage in range(stages):
        total = np.full(log_e[..., stage, :].shape, -np.inf)
        before = np.zeros(ends.shape[:-1])
        for first in range(stage, -1, -1):
            total = np.logaddexp(total, log_e[..., stage, :] + before[..., None] - math.log(stages))
            if first:
                before = before + ends[..., first - 1]
        left = stages - stage - 1
        found[..., stage, :] = np.logaddexp(total, math.log(left / stages)) if left else total
    return found


def _failed_by_counts(counts: list[_Counts], wealth: FloatArray) -> tuple[NDArray[np.bool_], ...]:
    """Looks at which errors in points, and as a ratio, fail; shape (rollouts, stages, looks)."""
    units = [np.stack([each.units[arm] for each in counts]) for arm in (0, 1)]
    bad = [np.stack([each.bad[arm] for each in counts]) for arm in (0, 1)]
    reached = (wealth >= _NEEDED) & (units[0] > 0) & (units[1] > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        control, treatment = bad[0] / units[0], bad[1] / units[1]
        points, ratio = (float(each.worse_by or 0) for each in PLAN.guardrails[:2])
        beyond = treatment - control > points
        times = np.where(control > 0, treatment / control - 1 > ratio, treatment > 0)
    return reached & beyond, reached & times


def false_alarms(world: int, rollouts: int, seed: tuple[int, ...]) -> Watched:
    """That many rollouts of that world, judged at every look."""
    rng = np.random.default_rng([*seed, world])
    evidence = _CountEvidence()
    watched = Watched(WORLDS[world].name, rollouts)
    for start in range(0, rollouts, _CHUNK):
        drawn = [draw(WORLDS[world], rng) for _ in range(min(_CHUNK, rollouts - start))]
        counts = [_counted(each) for each in drawn]
        log_e = evidence.log_e(*(np.stack([each.bad[arm] for each in counts]) for arm in (0, 1)))
        failed = [each.any(axis=(1, 2)) for each in _failed_by_counts(counts, carried(log_e))]
        beyond = evidence.log_e(*(np.stack([each.beyond[arm] for each in counts]) for arm in (0, 1)))
        open_looks = beyond - math.log(len(SHARES)) >= _NEEDED
        failed.append(
            np.array([_fails_by_quantile(*each, watched) for each in zip(drawn, open_looks, strict=True)])
        )
        for guardrail, each in zip(PLAN.guardrails, failed, strict=True):
            watched.by[guardrail.name] += int(each.sum())
        watched.rolled_back += int(np.logical_or.reduce(failed).sum())
        watched.by_requests += int(_by_requests(drawn, evidence, rng).sum())
    return watched


def _fails_by_quantile(drawn: Drawn, open_looks: NDArray[np.bool_], watched: Watched) -> bool:
    for stage, look in np.argwhere(open_looks).tolist():
        watched.looks_judged += 1
        if verdict(drawn, stage, look, _QUANTILE, [0.0] * stage).verdict == "FAIL":
            return True
    return False


def _by_requests(drawn: list[Drawn], evidence: _CountEvidence, rng: np.random.Generator) -> NDArray[np.bool_]:
    requests = rng.poisson(np.stack([each.bad_rates for each in drawn])).cumsum(axis=-1).astype(np.float64)
    control, treatment = requests[:, 0], requests[:, 1]
    odds = np.array([share / (1 - share) for share in SHARES])[:, None]
    beyond = treatment > 1.01 * odds * control
    reached = carried(evidence.log_e(control, treatment)) >= _NEEDED
    return np.asarray((reached & beyond).any(axis=(1, 2)), dtype=np.bool_)


def disagreements(world: int, rollouts: int, seed: tuple[int, ...]) -> tuple[int, int]:
    """How often the counts, or the judgement, differ from the product's; and how many were compared."""
    rng = np.random.default_rng([*seed, world, 1])
    evidence = _CountEvidence()
    same: list[bool] = []
    for _ in range(rollouts):
        drawn = draw(WORLDS[world], rng)
        counts = _counted(drawn)
        log_e = evidence.log_e(*counts.bad)
        wealth, of_p99 = carried(log_e), evidence.log_e(*counts.beyond)
        failing = [each[0] for each in _failed_by_counts([counts], wealth[None])]
        by_tally = as_tally_counts(drawn, rng)
        for stage in range(len(SHARES)):
            past = log_e[:stage, -1].tolist()
            for look in (*rng.integers(LOOKS, size=2).tolist(), LOOKS - 1):
                for arm, seen in enumerate(seen_by(drawn, stage, look, 0)):
                    same.append(
                        (seen.units, seen.bad)
                        == (counts.units[arm][stage, look], counts.bad[arm][stage, look])
                    )
                for number in range(len(PLAN.guardrails)):
                    if look == LOOKS - 1:
                        same.append(seen_by(drawn, stage, look, number) == by_tally[stage][number])
                    said = verdict(drawn, stage, look, number, past)
                    if said.reason == "no_data":
                        units = counts.values if number == _QUANTILE else counts.units
                        same.append(min(arm[stage, look] for arm in units) == 0)
                    elif number == _QUANTILE:
                        at = tuple(arm[stage, look] for arm in counts.beyond)
                        same.append((said.beyond_control, said.beyond_treatment) == at)
                        same.append(abs(said.log_e_value - of_p99[stage, look]) < 1e-9)
                    else:
                        same.append(abs(said.log_wealth - wealth[stage, look]) < 1e-9)
                        same.append((said.verdict == "FAIL") == failing[number][stage, look])
    return same.count(False), len(same)
