"""From samples to figures, by definitions that every system shares.

A request that failed, was refused or timed out has no latency a user would accept, yet leaving it out would
reward a service for failing fast. It counts as slow as the client's patience. Neighbours in a queue are
slow together, so intervals are taken over half-second slices of the schedule, not over single requests.
"""

from __future__ import annotations

import numpy as np

from fairlead.lab.samples import Ending, Samples
from fairlead.metrics import Metric
from fairlead.statistics import Estimate, proportion_interval, quantile_interval
from fairlead.trial.definitions import QUANTILES
from fairlead.trial.result import Figure, MetricRecord
from fairlead.trial.system import Arm, Phase
from fairlead.trial.walk import Recorded

__all__ = [
    "WHOLE_RUN",
    "PhaseSamples",
    "latencies",
    "load_figures",
    "metric_record",
    "of_phase",
]

P999_NEEDS = 200_000
"""Requests an arm below which a p99.9 says nothing."""
WHOLE_RUN = Phase(name="run", title="whole run", seconds=0.0)
"""All measured phases together."""
_SLICE = 0.5  # seconds


def metric_record(metric: Metric) -> MetricRecord:
    return MetricRecord(
        name=metric.name,
        title=metric.title,
        role=metric.role,
        kind=metric.kind,
        unit=metric.unit,
        side=metric.side,
        better=metric.better,
        definition=metric.definition(),
        definition_sha256=metric.sha256,
    )


class PhaseSamples:
    """The rows of one arm in one phase, over all cycles, and the slice of time each belongs to."""

    def __init__(self, samples: Samples, slices: np.ndarray, seconds: float) -> None:
        self.samples = samples
        self.slices = slices
        self.seconds = seconds
        """Seconds of load behind the rows."""


def of_phase(recorded: Recorded, arm: Arm, phase: Phase) -> PhaseSamples | None:
    """The rows of one phase, or of all measured phases for `WHOLE_RUN`; None when no turn of this arm is
    complete.
    """
    parts: list[Samples] = []
    slices: list[np.ndarray] = []
    seconds = 0.0
    for turn in recorded.of_arm(arm):
        offset = turn.samples.offset
        rows = np.zeros(len(offset), dtype=bool)
        for each, start, end in recorded.phase_bounds():
            if each.name == phase.name or (phase is WHOLE_RUN and each.measured):
                # What is due at the very end belongs to the last phase, or to none.
                rows |= (offset >= start) & ((offset < end) | (each is recorded.plan.phases[-1]))
                seconds += each.seconds
        parts.append(turn.samples.select(rows))
        slices.append(turn.cycle * 1_000_000 + np.floor(offset[rows] / _SLICE).astype(np.int64))
    if not parts:
        return None
    return PhaseSamples(Samples.concatenate(parts), np.concatenate(slices), seconds)


def latencies(samples: Samples, patience: float) -> np.ndarray:
    """Seconds per request, shape (n,), with failures at the client's patience."""
    answered = samples.ending == Ending.OK
    return np.where(answered, samples.latency, np.maximum(samples.latency, patience))


def load_figures(arm: Arm, phase: Phase, part: PhaseSamples, patience: float) -> list[Figure]:
    """The figures of `load_metrics` for one arm and phase."""
    samples = part.samples
    values = latencies(samples, patience)
    figures = []
    quantiles = dict(QUANTILES)
    if len(samples) >= P999_NEEDS:
        quantiles["p999"] = 0.999
    for name, q in quantiles.items():
        estimate = quantile_interval(values, q, clusters=part.slices)
        figures.append(_figure(f"latency_{name}", arm, phase, estimate))
    answered = samples.ending == Ending.OK
    degraded = answered & (samples.headers["degraded"] > 0)
    goodput = float(np.count_nonzero(answered)) / part.seconds
    figures.append(
        Figure(
            metric="goodput", arm=arm.name, phase=phase.name, value=goodput, n=int(np.count_nonzero(answered))
        )
    )
    failed = (samples.ending == Ending.ERROR) | (samples.ending == Ending.REFUSED)
    for name, hits in (
        ("timeouts", samples.ending == Ending.TIMEOUT),
        ("errors", failed),
        ("degraded", degraded),
    ):
        figures.append(_figure(name, arm, phase, _share(hits, part.slices)))
    return figures


def _share(hits: np.ndarray, slices: np.ndarray) -> Estimate:
    _, index = np.unique(slices, return_inverse=True)
    totals = np.bincount(index).astype(np.int64)
    counts = np.bincount(index, weights=hits).astype(np.int64)
    return proportion_interval(counts, totals)


def _figure(metric: str, arm: Arm, phase: Phase, estimate: Estimate) -> Figure:
    return Figure(
        metric=metric,
        arm=arm.name,
        phase=phase.name,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        n=estimate.n,
        caveat=estimate.caveat,
        method=f"{estimate.method}, over half-second slices of the schedule",
    )
