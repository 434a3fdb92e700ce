"""Hundreds of made rollouts that grow: days that differ, users who return through all stages, some whom a change drives
away. What the analysis says of them beside what was planted, and beside what simpler analyses say.

Whom each stage counts is asked of `drawn_in_stages` itself, all rollouts in one table; a unit's outcome in a stage is
made here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import ibis
import numpy as np
import pyarrow as pa
import pytest

from fairlead.experiment import ExperimentPlan, Stage
from fairlead.experiment.comparison import Arms, Compared, compare_arms
from fairlead.experiment.ramp import drawn_in_stages
from fairlead.experiment.stages import stage_weights, stratified
from fairlead.metrics import Metric
from fairlead.statistics import Moments, sequential_sample_ratio

SHARES = (0.01, 0.05, 0.25, 0.5)
DAYS = (1.0, 1.6, 0.7, 1.3)
"""What a user does on the day of each stage, whatever it is shown."""
ROLLOUTS = 300
USERS = 3000
ALPHA = 0.05
WATCH = Metric.from_column("watch", "mean", "watch")
PLAN = ExperimentPlan(
    name="p",
    metrics=(WATCH,),
    stages=tuple(
        Stage(start=float(day), shares={"control": 1 - share, "treatment": share})
        for day, share in enumerate(SHARES)
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """Of each rollout."""

    staged: list[Compared]
    everybody: list[Compared]
    """As if each stage were an experiment of all whom it drew, those who have had treatment for long among them."""
    pooled: list[float]
    """The relative effect over all that was drawn, without stages."""
    split_p: list[float]
    crossed: float
    """The share of the units that were drawn for both arms over time."""


def _compared(stage: np.ndarray, treated: np.ndarray, value: np.ndarray) -> Compared:
    parts: dict[tuple[str, str], Moments] = {}
    for label in np.unique(stage):
        for arm, mask in (("control", ~treated), ("treatment", treated)):
            chosen = value[(stage == label) & mask]
            if len(chosen):
                parts[arm, str(label)] = Moments.from_rows(("watch",), chosen[:, None])
    weights = stage_weights({key: part.n for key, part in parts.items()}, ("control", "treatment"))
    control, treatment = ({label: parts[arm, label] for label in weights} for arm in ("control", "treatment"))
    arms = Arms(
        metric=WATCH,
        columns=("watch",),
        control=stratified(control, weights),
        treatment=stratified(treatment, weights),
        stages=tuple(
            Arms(metric=WATCH, columns=("watch",), control=control[label], treatment=treatment[label])
            for label in weights
        ),
    )
    return compare_arms(arms, alpha=ALPHA, tuned_for=None)


@cache
def rollouts(effect: float, leaving: float = 0.0) -> Said:
    """leaving: the chance that a light user whom treatment was shown never comes back."""
    rng = np.random.default_rng(197)
    n = ROLLOUTS * USERS
    slot, level, loyalty = rng.random(n), rng.gamma(4.0, 2.5, n), rng.beta(3.0, 1.5, n)
    gone = np.zeros(n, dtype=bool)
    drawn: list[dict[str, np.ndarray]] = []
    watch = np.zeros((len(SHARES), n))
    for day, (share, busy) in enumerate(zip(SHARES, DAYS, strict=True)):
        treated = slot < share
        here = (rng.random(n) < loyalty) & ~gone
        watch[day] = level * busy * rng.lognormal(0.0, 0.5, n) * np.where(treated, 1 + effect, 1.0)
        units = np.flatnonzero(here)
        drawn.append({"unit": units, "day": np.full(len(units), day), "treated": treated[units]})
        gone |= here & treated & (level < 10.0) & (rng.random(n) < leaving)
    unit, day, treated = (np.concatenate([one[name] for one in drawn]) for name in ("unit", "day", "treated"))
    exposures = ibis.memtable(
        pa.table(
            {
                "targeting_key": unit,
                "at_utc_seconds": day + 0.5,
                "variant": np.where(treated, "treatment", "control"),
            }
        )
    )
    found = drawn_in_stages(exposures, PLAN, [])
    rows = found.rows.to_pyarrow()
    mine = rows["fairlead unit"].to_numpy()
    stage = rows["group stage"].to_numpy(zero_copy_only=False).astype(str)
    arm = rows["group variant"].to_numpy(zero_copy_only=False) == "treatment"
    value = watch[rows["fairlead stage"].to_numpy() - 1, mine]
    staged, everybody, pooled, split_p = [], [], [], []
    order = np.argsort(mine // USERS, kind="stable")
    for chosen in np.split(order, np.searchsorted((mine // USERS)[order], np.arange(1, ROLLOUTS))):
        staged.append(_compared(stage[chosen], arm[chosen], value[chosen]))
        counts = [
            (
                {
                    "control": int(((stage[chosen] == label) & ~arm[chosen]).sum()),
                    "treatment": int(((stage[chosen] == label) & arm[chosen]).sum()),
                },
                stratum.shares,
            )
            for label, stratum in found.strata.items()
        ]
        split_p.append(sequential_sample_ratio(counts, tuned_for=len(chosen)).p_value)
    seen = watch[day, unit]
    for number in range(ROLLOUTS):
        chosen = np.flatnonzero(unit // USERS == number)
        everybody.append(_compared(day[chosen], treated[chosen], seen[chosen]))
        in_arm, values = treated[chosen], seen[chosen]
        pooled.append(float(values[in_arm].mean() / values[~in_arm].mean() - 1))
    both = np.bincount(unit[treated], minlength=n) * np.bincount(unit[~treated], minlength=n)
    return Said(
        staged=staged,
        everybody=everybody,
        pooled=pooled,
        split_p=split_p,
        crossed=float((both > 0).sum() / len(np.unique(unit))),
    )


def covered(found: list[Compared], truth: float) -> float:
    """The share of intervals that hold what was planted."""
    inside = 0
    for one in found:
        assert one.effect is not None
        assert one.effect.relative_low is not None
        assert one.effect.relative_high is not None
        inside += one.effect.relative_low <= truth <= one.effect.relative_high
    return inside / len(found)


def mean_of(found: list[Compared]) -> float:
    return float(np.mean([one.effect.relative_effect for one in found if one.effect]))  # type: ignore[misc]  # there is one


def error_of(found: list[Compared]) -> float:
    return float(np.std([one.effect.relative_effect for one in found if one.effect]))  # type: ignore[arg-type]  # there is one


TOLERANCE = 3 * math.sqrt(ALPHA * (1 - ALPHA) / ROLLOUTS)


@pytest.mark.parametrize("planted", [0.0, 0.1])
def test_an_effect_is_recovered_with_its_stated_coverage(planted: float) -> None:
    said = rollouts(planted)
    assert said.crossed > 0.3  # a third of all users: as one experiment they are in no arm
    assert covered(said.staged, planted) == pytest.approx(1 - ALPHA, abs=TOLERANCE)
    # Beside the error of a mean over all rollouts.
    assert mean_of(said.staged) == pytest.approx(
        planted, abs=3.5 * error_of(said.staged) / math.sqrt(ROLLOUTS)
    )


def test_without_an_effect_alarms_are_as_rare_as_stated_at_one_look_and_at_all() -> None:
    said = rollouts(0.0)
    alarms = np.mean([one.effect is not None and one.effect.p_value < ALPHA for one in said.staged])
    assert alarms == pytest.approx(ALPHA, abs=TOLERANCE)
    watched = np.mean(
        [one.sequential is not None and one.sequential.effect.p_value < ALPHA for one in said.staged]
    )
    assert watched <= ALPHA
    assert np.mean([p_value < 0.05 for p_value in said.split_p]) <= 0.05


def test_pooled_over_its_stages_the_days_become_an_effect() -> None:
    said = rollouts(0.0)
    bias = float(np.mean(said.pooled))
    assert abs(bias) > 5 * float(np.std(said.pooled)) / math.sqrt(ROLLOUTS)
    assert abs(bias) > 0.015


def test_whom_treatment_drives_away_does_not_make_it_look_better() -> None:
    said = rollouts(0.0, 0.5)
    assert covered(said.staged, 0.0) == pytest.approx(1 - ALPHA, abs=TOLERANCE)
    # Those who stayed are the heavy users: counted again in each stage, they are an effect that is none.
    assert mean_of(said.everybody) > 0.02
    assert covered(said.everybody, 0.0) < 0.8
    assert np.mean([p_value < 0.001 for p_value in said.split_p]) == 0.0


def test_counting_less_costs_little() -> None:
    said = rollouts(0.1)
    assert error_of(said.staged) < 1.1 * error_of(said.everybody)
