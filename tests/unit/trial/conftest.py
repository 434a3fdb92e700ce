"""Runs that were never driven: samples made by hand, so that each figure is known beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fairlead.lab import Ending, Samples
from fairlead.metrics import Metric, Target
from fairlead.slo import Objective
from fairlead.trial import Arm, Mechanism, Phase, Plan, Settings
from fairlead.trial.definitions import load_metrics
from fairlead.trial.result import Figure
from fairlead.trial.walk import Recorded, Turn

ARMS = (Arm(name="control", variant="control"), Arm(name="treatment", variant="treatment"))
PHASES = (
    Phase(name="lead_in", title="lead-in", seconds=1.0, measured=False),
    Phase(name="calm", title="calm", seconds=2.0),
    Phase(name="storm", title="storm", seconds=2.0),
)
PATIENCE = 1.0


def samples(
    offset: Sequence[float],
    latency: Sequence[float] | float = 0.1,
    ending: Sequence[Ending] | Ending = Ending.OK,
    *,
    lag: float = 0.001,
    degraded: Sequence[float] | float = 0.0,
) -> Samples:
    n = len(offset)
    return Samples(
        offset=np.asarray(offset, dtype=np.float64),
        lag=np.full(n, lag),
        latency=np.broadcast_to(np.asarray(latency, dtype=np.float64), n).copy(),
        status=np.full(n, 200, dtype=np.int16),
        ending=np.broadcast_to(np.asarray(ending, dtype=np.uint8), n).copy(),
        failure=np.zeros(n, dtype=np.uint8),
        key=np.zeros(n, dtype=np.int64),
        user=np.zeros(n, dtype=np.int64),
        headers={
            "degraded": np.broadcast_to(np.asarray(degraded, dtype=np.float64), n).copy(),
            "staleness": np.zeros(n),
            "age": np.zeros(n),
        },
    )


def steady(latency: float = 0.1, **options: Any) -> Samples:
    """One request each 10 ms of a cycle of `PHASES`."""
    return samples(np.arange(0.0, 5.0, 0.01).tolist(), latency, **options)


def recorded(turns: Sequence[tuple[Arm, int, Samples]], arms: tuple[Arm, ...] = ARMS) -> Recorded:
    plan = Plan(
        arms=arms, phases=PHASES, cycles=2, rate=100.0, patience=PATIENCE, workload={"arrivals": "even"}
    )
    made = Recorded(plan=plan, started_at=1_750_000_000.0)
    for arm, cycle, rows in turns:
        observed = {phase.name: {"calls": 1.0} for phase in PHASES}
        made.turns.append(Turn(arm=arm, cycle=cycle, samples=rows, observed=observed))
    return made


CALLS = Metric(
    name="calls",
    title="calls",
    role="secondary",
    kind="count",
    event="origin_window",
    unit="calls",
    unit_of_analysis="phase",
    side="server",
    window="phase",
    segment="all requests of the arm",
    better="lower",
    design="load_test",
)


@dataclass
class PaperSystem:
    """A system that is never started."""

    name: str = "paper"
    title: str = "Paper"
    summary: str = "A system on paper."
    mechanisms: Sequence[Mechanism] = ()
    simulated: Sequence[str] = ("everything",)
    inputs: Sequence[str] = ("flags.json",)
    change: bytes | None = None
    metrics: Sequence[Metric] = (CALLS,)
    targets: Sequence[tuple[str, Target]] = field(default_factory=list)
    objectives: Sequence[Objective] = ()

    def respond(self, *told: object) -> None:
        return None

    def measure(
        self,
        arm: Arm,
        phase: Phase,
        observed: Sequence[Mapping[str, float]],
        samples: Samples,
        slices: np.ndarray,
    ) -> list[Figure]:
        calls = sum(window["calls"] for window in observed)
        return [Figure(metric="calls", arm=arm.name, phase=phase.name, value=calls, n=len(observed))]

    def plan(self, settings: Settings) -> Plan:
        raise AssertionError("a paper system is never played")


def target(limit: float = -0.4, metric: str = "latency_p99", phase: str = "calm") -> tuple[str, Target]:
    by_name = {each.name: each for each in load_metrics(PATIENCE)}
    return phase, Target(
        metric=by_name[metric], statement="faster", relation="relative_change", limit=limit, source="a wish"
    )


def complete() -> Recorded:
    """Two cycles of each arm: control at 100 ms, treatment at 50 ms."""
    control, treatment = ARMS
    return recorded(
        [
            (control, 0, steady(0.1)),
            (treatment, 0, steady(0.05)),
            (treatment, 1, steady(0.05)),
            (control, 1, steady(0.1)),
        ]
    )


@pytest.fixture
def paper() -> SimpleNamespace:
    """The builders of this file: tests are no package, so they cannot import from one another."""
    return SimpleNamespace(
        arms=ARMS,
        phases=PHASES,
        patience=PATIENCE,
        samples=samples,
        steady=steady,
        recorded=recorded,
        complete=complete,
        system=PaperSystem,
        target=target,
    )
