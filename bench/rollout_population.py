"""Rollouts in which treatment is control: users who return, a day with its peaks, and four stages under guard.

Users are drawn once a rollout. Their good and bad requests are Poisson processes of their own, in the time of the
day's traffic, so that a user's first bad request and the first request in each stage need no request in between:

    first bad request       exponential, at the user's rate of bad ones; once, as it is the first of the rollout
    first good request      exponential, from the beginning of each stage on
    first of the stage      the earlier of both; its latency is the user's one value there

`seen_by` counts what the guardrails see of that; `as_tally_counts` sends the same users' requests, with repetitions,
through the product's `Tally`, which has to count the same; `verdict` has the product judge it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fairlead.metrics import Metric
from fairlead.rollout import Guardrail, RolloutPlan, Stage
from fairlead.rollout.exceedances import Exceedances
from fairlead.rollout.guardrail import Evaluation, evaluate_beside_control
from fairlead.rollout.tally import ArmSeen, Tally
from fairlead.statistics.clusters import FloatArray

__all__ = [
    "LOOKS",
    "PLAN",
    "SECONDS",
    "SHARES",
    "WORLDS",
    "Drawn",
    "World",
    "as_tally_counts",
    "draw",
    "seen_by",
    "three_digits",
    "verdict",
    "watched_metric",
]

SHARES = (0.01, 0.05, 0.25, 0.5)
LOOKS = 120
"""A stage: an hour with a look every 30 seconds; of the day, six hours with one every three minutes."""
SECONDS = 30.0
"""From look to look."""
_NEVER = len(SHARES) * LOOKS
_Q = 0.99


def watched_metric(kind: Literal["proportion", "quantile"]) -> Metric:
    """Errors, or p99, by user."""
    errors = kind == "proportion"
    return Metric(
        name="errors" if errors else "latency_p99",
        title="errors" if errors else "latency, p99",
        role="guardrail",
        kind=kind,
        q=None if errors else _Q,
        event="request_finished",
        field="status >= 500" if errors else "latency_seconds",
        unit="ratio" if errors else "seconds",
        unit_of_analysis="user",
        unit_field="targeting_key",
        side="server",
        window="1h",
        segment="all requests",
        better="lower",
        design="simulated",
    )


PLAN = RolloutPlan(
    name="a_a",
    flag="a_a",
    stages=tuple(Stage(share=share, bake=LOOKS * SECONDS) for share in SHARES),
    guardrails=(
        # The smallest margins that one could write: they spare control's twin the least.
        Guardrail(metric=watched_metric("proportion"), worse_by=0.0001, relative=False),
        Guardrail(metric=watched_metric("proportion"), worse_by=0.01),
        Guardrail(metric=watched_metric("quantile"), worse_by=0.1),
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Who the users are, and what their day is like."""

    name: str
    users: int = 10_000
    requests: float = 2.0
    """A user and stage, on average."""
    activity: float = math.inf
    """Shape of the gamma distribution of users' own activity; infinite: all alike."""
    bad: float = 0.0018
    """Share of requests that fail, of a user whom nothing ails."""
    unevenness: float = math.inf
    """Shape of the gamma distribution of users' own share; infinite: all alike."""
    broken: int = 0
    """Users whose requests nearly all fail."""
    broken_activity: float = 10.0
    """How much more often those come: they try again."""
    level: float = 0.0
    """Deviation of the logarithm of users' own latency; that of a request is 0.5."""
    day: float = 0.0
    """0: traffic is even. 1: it swings between nothing and double, with more errors and latency at its peak."""


WORLDS = (
    World(name="users alike, 0.18 % of requests fail"),
    World(
        name="sticky: 20 broken users of 10,000, own error rates, own latencies",
        activity=0.7,
        unevenness=0.3,
        broken=20,
        level=0.6,
    ),
    World(
        name="the same through a day of peaks",
        activity=0.7,
        unevenness=0.3,
        broken=20,
        level=0.6,
        day=0.9,
    ),
)


@dataclass(frozen=True, slots=True)
class Drawn:
    """One rollout's users: where each stands, and in which look things happen to it first."""

    slots: FloatArray
    """Uniform: a user is in treatment of a stage where it is below the stage's share."""
    first_bad: NDArray[np.int64]
    """Look (0 … 4·120 − 1, counted through) of the first bad request; 480: none."""
    first_seen: NDArray[np.int64]
    """Shape (stages, users): look within the stage of the first request; 120: none."""
    values: FloatArray
    """Shape (stages, users): its latency."""
    bad_rates: FloatArray
    """Shape (2, stages, looks): bad requests to expect of control's and of treatment's users, each request counted."""


def _day(world: World) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Traffic, errors a request and latency, by look, relative to their middle."""
    wave = np.sin(2 * np.pi * (np.arange(_NEVER) + 0.5) / _NEVER - 1.0)
    return 1 + world.day * wave, np.exp(world.day * 1.2 * wave), np.exp(world.day * 0.3 * wave)


def draw(world: World, rng: np.random.Generator) -> Drawn:
    """One rollout."""
    n = world.users
    activity = np.ones(n) if math.isinf(world.activity) else rng.gamma(world.activity, 1 / world.activity, n)
    bad = np.full(n, world.bad)
    if not math.isinf(world.unevenness):
        bad = np.minimum(0.5, rng.gamma(world.unevenness, world.bad / world.unevenness, n))
    bad[: world.broken] = 0.95
    activity[: world.broken] *= world.broken_activity
    rate = np.maximum(1e-12, activity * world.requests / LOOKS)
    traffic, errors, latency = _day(world)
    passed = np.concatenate(([0.0], traffic.cumsum()))
    failing = np.concatenate(([0.0], (traffic * errors).cumsum()))
    bad_rate, good_rate = np.maximum(1e-15, rate * bad), rate * (1 - bad)
    slots = rng.random(n)
    first_bad = failing[1:].searchsorted(rng.exponential(size=n) / bad_rate)
    seen = np.empty((len(SHARES), n), dtype=np.int64)
    values = np.empty((len(SHARES), n))
    own = np.exp(world.level * rng.standard_normal(n)) if world.level else np.ones(n)
    expected = np.empty((2, len(SHARES), LOOKS))
    for stage, share in enumerate(SHARES):
        start, end = stage * LOOKS, (stage + 1) * LOOKS
        good = passed[start + 1 : end + 1].searchsorted(passed[start] + rng.exponential(size=n) / good_rate)
        first = first_bad - start
        gone = np.flatnonzero(first < 0)  # who failed in an earlier stage may fail again, and is seen so
        again = failing[start] + rng.exponential(size=len(gone)) / bad_rate[gone]
        first[gone] = failing[start + 1 : end + 1].searchsorted(again)
        seen[stage] = np.minimum(LOOKS, np.minimum(good, first))
        at = np.minimum(start + seen[stage], _NEVER - 1)
        values[stage] = 0.1 * own * np.exp(0.5 * rng.standard_normal(n)) * latency[at]
        treated = float(bad_rate[slots < share].sum())
        by_look = (traffic * errors)[start:end]
        expected[:, stage] = np.outer([float(bad_rate.sum()) - treated, treated], by_look)
    return Drawn(slots, first_bad, seen, values, expected)


def seen_by(drawn: Drawn, stage: int, look: int, number: int) -> tuple[ArmSeen, ArmSeen]:
    """Control and treatment as they are counted for that guardrail up to the end of that look."""
    treated = drawn.slots < SHARES[stage]
    at = drawn.first_bad - stage * LOOKS
    met = drawn.first_seen[stage] <= look
    if PLAN.guardrails[number].metric.kind == "quantile":
        return _values_seen(drawn, stage, met, treated, number)
    # Who failed in an earlier stage is none of this one's.
    inside = [arm & met & (at >= 0) for arm in (~treated, treated)]
    control, treatment = (
        ArmSeen(units=int(each.sum()), bad=int((each & (at <= look)).sum())) for each in inside
    )
    return control, treatment


def _values_seen(
    drawn: Drawn, stage: int, met: NDArray[np.bool_], treated: NDArray[np.bool_], number: int
) -> tuple[ArmSeen, ArmSeen]:
    arms = ArmSeen(), ArmSeen()
    counted = Exceedances(PLAN.guardrails[number].metric)
    for user in np.flatnonzero(met).tolist():
        value, arm = three_digits(float(drawn.values[stage, user])), int(treated[user])
        arms[arm].units += 1
        arms[arm].values[value] += 1
        counted.add(SECONDS * float(drawn.first_seen[stage, user]), bool(arm), value)
    arms[0].bad, arms[1].bad = counted.counts()
    return arms


def three_digits(value: float) -> float:
    """A value as `Tally` counts it."""
    return float(f"{value:.2e}")


def verdict(drawn: Drawn, stage: int, look: int, number: int, past: list[float]) -> Evaluation:
    """What the product says of that guardrail at the end of that look."""
    arms = seen_by(drawn, stage, look, number)
    return evaluate_beside_control(PLAN, PLAN.guardrails[number], *arms, share=SHARES[stage], past=past)


def as_tally_counts(drawn: Drawn, rng: np.random.Generator) -> list[list[tuple[ArmSeen, ArmSeen]]]:
    """The same users' requests through the product's `Tally`: both arms' counts by stage and guardrail.

    After its first request a user comes again, and one that has failed fails again: neither may count.
    """
    tally = Tally(PLAN)
    found = []
    for stage, share in enumerate(SHARES):
        tally.begin(SECONDS * stage * LOOKS)
        variants = np.where(drawn.slots < share, PLAN.treatment, PLAN.control)
        rows = []
        for user in np.flatnonzero(drawn.first_seen[stage] < LOOKS).tolist():
            at, bad = int(drawn.first_seen[stage, user]), int(drawn.first_bad[user]) - stage * LOOKS
            value, failed = float(drawn.values[stage, user]), bad <= at
            rows.append((at + 0.1, user, failed, value))
            if 0 <= bad < LOOKS and not failed:
                rows.append((bad + 0.2, user, True, value * 2))
            later = max(at, bad if bad < LOOKS else 0) + 0.3
            rows += [(min(later + extra, LOOKS - 0.01), user, bad < LOOKS, value * 3) for extra in (0.1, 0.2)]
        order = rng.permutation(len(rows)).tolist()
        order.sort(key=lambda row: math.floor(rows[row][0] * 10))
        for row in order:
            at, user, failed, value = rows[row]
            tally.see(
                "request_finished",
                {
                    "at_utc_seconds": SECONDS * (stage * LOOKS + at),
                    "targeting_key": f"u{user}",
                    "variant": str(variants[user]),
                    "status": 500 if failed else 200,
                    "latency_seconds": value,
                },
            )
        found.append([tally.arms(guardrail) for guardrail in PLAN.guardrails])
    return found
