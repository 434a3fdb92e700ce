"""Would this analysis tell the truth on these data? Split them at random, many times, and see.

Nobody knows the true effect of a real experiment. Of a made one everybody does: one's own units, divided at random,
have none (A/A), and an effect that was planted is the one planted. If an analysis raises an alarm in 12 % of A/A
splits, it will do so in production; if it finds a planted 2 % in half of the splits, that is its power, skew and
zeros included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fairlead.calls.bounds import check_number, check_whole
from fairlead.errors import InvalidInput, TooFewUnits
from fairlead.experiment.comparison import Arms, compare_arms
from fairlead.experiment.plan import ExperimentPlan
from fairlead.experiment.units import Units
from fairlead.metrics import Metric
from fairlead.statistics import Estimate, Moments, proportion_interval, quantile_interval
from fairlead.statistics.clusters import FloatArray

__all__ = ["Simulated", "simulate_experiment"]

_FEWEST = 20
_PAGE = 200_000
"""Units in one sum of products; keeps the memory of a split small."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulated:
    """What the analysis of one metric did over many random splits."""

    metric: str
    planted: float
    """Relative effect that was planted; 0: A/A."""
    runs: int
    """Splits in which there was an effect to be computed."""
    refused: int
    """Splits in which the data did not carry one."""
    units: int
    alpha: float
    found: Estimate
    """Share of splits with p < alpha: the false-alarm rate where nothing was planted, the power where something was."""
    watched: Estimate | None
    """The same for the watched p-value at the end; None where the metric has none."""
    covered: Estimate
    """Share of splits whose interval holds the planted effect; 1 − alpha is wanted."""
    mean_effect: float | None
    """Average relative effect that was estimated; None where control's figure was never above zero."""
    true_effect: float
    """The planted effect in the metric's unit: `planted` times the figure of all units."""

    @property
    def is_calibrated(self) -> bool:
        """Whether false alarms (or the coverage of what was planted) are as stated, as far as these runs can tell."""
        if self.planted == 0:
            return self.found.low is not None and self.found.low <= self.alpha
        return self.covered.high is not None and self.covered.high >= 1 - self.alpha


def simulate_experiment(
    plan: ExperimentPlan,
    units: Units,
    *,
    planted: float = 0.0,
    runs: int = 1000,
    seed: int = 1,
    treatment_share: float = 0.5,
) -> tuple[Simulated, ...]:
    """Splits the units at random `runs` times, plants a relative effect in treatment, and analyses each split.

    units: of history, or of an experiment, whose own variants are then ignored. planted: −0.9 to 10; means and totals
    are multiplied, and so are numerators and quantiles; of a share, so many failures become successes at random. A
    formula takes none. Raises InvalidInput, TooFewUnits. Memory: a few columns of the units.
    """
    check_whole("runs", runs, low=_FEWEST, high=100_000)
    check_number("planted", planted, low=-0.9, high=10.0)
    check_number("treatment_share", treatment_share, above=0.0, high=0.999)
    rng = np.random.default_rng(seed)
    return tuple(
        _simulated(plan, units, metric, planted, runs, rng, treatment_share) for metric in units.metrics
    )


def _simulated(
    plan: ExperimentPlan,
    units: Units,
    metric: Metric,
    planted: float,
    runs: int,
    rng: np.random.Generator,
    share: float,
) -> Simulated:
    if planted and metric.kind == "formula":
        raise InvalidInput(
            f"{metric.name}: nothing can be planted in a formula; simulate it without an effect"
        )
    names, data = _columns(units, metric)
    n = len(data)
    if n < 4:
        raise TooFewUnits(f"{metric.name}: {n} units with a value; nothing to split")
    outcomes = len(units.columns.get(metric.name, names))
    # So many that no order of rows is repeated: the warehouse may give them in another one each time.
    data = data[np.lexsort(data.T)]
    truth = planted * (_figure(metric, data, outcomes) or 0.0)
    alarms = watched = watchable = covered = refused = 0
    relatives: list[float] = []
    for _ in range(runs):
        treated = rng.random(n) < share
        control, treatment = data[~treated], data[treated].copy()
        if planted:
            _plant(treatment[:, 0], metric, planted, rng)
        arms = _arms(metric, names, outcomes, control, treatment, 1 - plan.alpha)
        found = compare_arms(arms, alpha=plan.alpha, tuned_for=plan.planned_units)
        effect = found.effect
        if effect is None or effect.low is None or effect.high is None:
            refused += 1
            continue
        alarms += effect.p_value < plan.alpha
        covered += effect.low <= truth <= effect.high
        if effect.relative_effect is not None:
            relatives.append(effect.relative_effect)
        if found.sequential is not None:
            watchable += 1
            watched += found.sequential.effect.p_value < plan.alpha
    done = runs - refused
    if done < _FEWEST:
        raise TooFewUnits(f"{metric.name}: {refused} of {runs} splits carry no effect; bring more units")
    return Simulated(
        metric=metric.name,
        planted=planted,
        runs=done,
        refused=refused,
        units=n,
        alpha=plan.alpha,
        found=proportion_interval(alarms, done),
        watched=proportion_interval(watched, watchable) if watchable >= _FEWEST else None,
        covered=proportion_interval(covered, done),
        mean_effect=float(np.mean(relatives)) if relatives else None,
        true_effect=truth,
    )


def _columns(units: Units, metric: Metric) -> tuple[tuple[str, ...], FloatArray]:
    if metric.kind == "quantile":
        if metric.unit_field is not None:
            raise InvalidInput(
                f"{metric.name}: a quantile of units with many rows each is not simulated; give one row per unit"
            )
        assert metric.field is not None  # noqa: S101 - a quantile has one
        table = units.events[metric.name]
        values = table.select(value=table[metric.field].cast("float64")).to_pyarrow()["value"]
        column = np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)
        return (metric.field,), column[~np.isnan(column)][:, None]
    names = (*units.columns[metric.name], *units.covariates.get(metric.name, ()))
    data = units.values(names)
    return names, data[np.isfinite(data).all(axis=1)]


def _plant(values: FloatArray, metric: Metric, planted: float, rng: np.random.Generator) -> None:
    """Changes treatment's values in place; of zeros and ones as many as the effect asks for."""
    if metric.kind != "proportion" or not set(np.unique(values)) <= {0.0, 1.0}:
        values *= 1 + planted
        return
    successes, others = np.flatnonzero(values == 1.0), np.flatnonzero(values == 0.0)
    moved = round(abs(planted) * len(successes))
    if planted > 0 and moved > len(others):
        raise InvalidInput(f"{metric.name}: {planted:+.0%} of a share of {np.mean(values):.1%} is above 1")
    values[rng.choice(others if planted > 0 else successes, moved, replace=False)] = (
        1.0 if planted > 0 else 0.0
    )


def _figure(metric: Metric, data: FloatArray, outcomes: int) -> float | None:
    """The metric over all units; None for a formula, in which nothing is planted."""
    if metric.kind == "formula":
        return None
    if metric.kind == "quantile":
        assert metric.q is not None  # noqa: S101 - a quantile has one
        return float(np.quantile(data[:, 0], metric.q, method="inverted_cdf"))
    if outcomes == 2:
        below = float(data[:, 1].sum())
        return float(data[:, 0].sum()) / below if below else None
    return float(data[:, 0].mean())


def _arms(
    metric: Metric,
    names: tuple[str, ...],
    outcomes: int,
    control: FloatArray,
    treatment: FloatArray,
    confidence: float,
) -> Arms:
    if metric.kind == "quantile":
        assert metric.q is not None  # noqa: S101 - a quantile has one
        estimates = [
            quantile_interval(arm[:, 0], metric.q, confidence=confidence) for arm in (control, treatment)
        ]
        return Arms(metric=metric, control_quantile=estimates[0], treatment_quantile=estimates[1])
    both = []
    for arm in (control, treatment):
        parts = [Moments.from_rows(names, arm[at : at + _PAGE]) for at in range(0, max(1, len(arm)), _PAGE)]
        whole = parts[0]
        for part in parts[1:]:
            whole = whole + part
        both.append(whole)
    return Arms(metric=metric, columns=names[:outcomes], control=both[0], treatment=both[1])
