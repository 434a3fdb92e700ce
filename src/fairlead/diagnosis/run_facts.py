"""What a diagnosis of a run is made from, and what it says, as plain data.

`RunFacts` is the part of a run's result that a diagnosis reads; this room knows no trial, so whoever does hands it
over. `RunDiagnosis` is the ladder, rung by rung: reproduce, logs and traces, cohorts, what the change did, hypotheses,
and what to run next, each changing one thing.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from fairlead.diagnosis.bottleneck import Bottleneck
from fairlead.diagnosis.cohorts import Compared

__all__ = [
    "ArmFacts",
    "Change",
    "FigureFacts",
    "FolderFindings",
    "Hypothesis",
    "Journal",
    "MetricFacts",
    "NextStep",
    "Page",
    "PhaseBottleneck",
    "PhaseFacts",
    "RunDiagnosis",
    "RunFacts",
    "SlowRequest",
    "Standing",
    "ValidityFacts",
]

SCHEMA = "fairlead.diagnosis/1"


class ValidityFacts(msgspec.Struct, frozen=True):
    valid: bool
    reasons: tuple[str, ...]
    left_out: tuple[str, ...]
    send_lag_p99_seconds: float
    requests: int


class ArmFacts(msgspec.Struct, frozen=True):
    name: str
    without: tuple[str, ...]


class PhaseFacts(msgspec.Struct, frozen=True):
    name: str
    title: str
    seconds: float
    measured: bool


class MetricFacts(msgspec.Struct, frozen=True):
    name: str
    title: str
    unit: str
    better: str


class FigureFacts(msgspec.Struct, frozen=True):
    metric: str
    arm: str
    phase: str
    value: float | None
    low: float | None
    high: float | None
    n: int


class TargetFacts(msgspec.Struct, frozen=True):
    metric: str
    phase: str
    statement: str
    met: bool | None


class RunFacts(msgspec.Struct, frozen=True):
    """A run's result, as far as a diagnosis reads it; `msgspec.convert(result, RunFacts, from_attributes=True)`."""

    id: str
    system: str
    seed: int
    quick: bool
    command: tuple[str, ...]
    rate_per_second: float
    cycles: int
    patience_seconds: float
    validity: ValidityFacts
    workload: dict[str, str]
    arms: tuple[ArmFacts, ...]
    phases: tuple[PhaseFacts, ...]
    metrics: tuple[MetricFacts, ...]
    figures: tuple[FigureFacts, ...]
    targets: tuple[TargetFacts, ...]

    def figure(self, metric: str, arm: str, phase: str) -> FigureFacts | None:
        return next(
            (each for each in self.figures if (each.metric, each.arm, each.phase) == (metric, arm, phase)),
            None,
        )

    def title(self, phase: str) -> str:
        return next((each.title for each in self.phases if each.name == phase), phase)

    @property
    def measured(self) -> tuple[PhaseFacts, ...]:
        return tuple(each for each in self.phases if each.measured)

    @property
    def words(self) -> tuple[str, ...]:
        """The command that repeats it; for a run of an older version, as far as its result says."""
        if self.command:
            return self.command
        words = ["fairlead", "try", self.system, "--seed", str(self.seed), *["--quick"] * self.quick]
        for arm in self.arms:
            for mechanism in arm.without:
                words += ["--ablate", mechanism]
        return (*words, "--rate", f"{self.rate_per_second:g}")


class Page(Protocol):
    """What an arm's /metrics said at one moment."""

    @property
    def arm(self) -> str: ...
    @property
    def cycle(self) -> int: ...
    @property
    def phase(self) -> str: ...
    @property
    def at_utc_seconds(self) -> float: ...
    @property
    def text(self) -> str: ...


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How one arm did in one phase."""

    arm: str
    phase: str
    n: int
    p99_seconds: float | None
    p99_low: float | None
    p99_high: float | None
    failed_share: float
    degraded_share: float
    bad_share: float
    """Slow or failed."""
    times_calmest: float | None
    """Its p99 over that of the arm's calmest phase."""


class SlowRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One of the slowest, as client or server saw it."""

    request_id: str
    arm: str
    phase: str
    seconds: float
    said: str
    """Ending, key, status and whatever else the event says."""


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    """Rung two: what the events, logs and traces of the run say by themselves."""

    events: dict[str, int]
    """By folder."""
    truncated: int
    duplicates: int
    endings: dict[str, int]
    """How the requests of the arm ended, as clients saw it."""
    states: tuple[str, ...]
    """Changes of state in the order of time, or their counts where there are many."""
    actions: tuple[str, ...]
    """What policies did, the most frequent first."""
    slowest: tuple[SlowRequest, ...]
    slowest_at_server: tuple[SlowRequest, ...]
    dead_letters: tuple[str, ...]
    log_lines: tuple[str, ...]
    traces: tuple[str, ...]
    """What the slowest traces say; a sentence that there are none, where there are none."""


class FolderFindings(msgspec.Struct, frozen=True, kw_only=True):
    """What lies in the run's folder beside its events."""

    dead_letters: tuple[str, ...] = ()
    log_lines: tuple[str, ...] = ()
    traces: tuple[str, ...] = ()


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One metric in one phase, with and without a change."""

    what: str
    """`treatment instead of control`, `without hedge`."""
    metric: str
    phase: str
    unit: str
    before: float
    after: float
    verdict: str
    """`better`, `worse`, or `not told apart`, by the intervals."""


class PhaseBottleneck(msgspec.Struct, frozen=True, kw_only=True):
    """What the gauges say of one arm in one phase."""

    arm: str
    phase: str
    cycles: int
    agreeing: int
    """Of those cycles, with this verdict."""
    found: Bottleneck
    downstream: str | None


class Hypothesis(msgspec.Struct, frozen=True, kw_only=True):
    """One explanation, to be tried next or given up."""

    claim: str
    strength: float
    """0–1: share of the trouble that it would account for, times how well it is supported. Not a probability."""
    evidence: tuple[str, ...]
    against: tuple[str, ...] = ()
    disproved_by: str


class NextStep(msgspec.Struct, frozen=True, kw_only=True):
    """A command that differs from the run in one thing."""

    command: str
    changes: str
    tells: str
    """What either outcome means."""


class RunDiagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """The ladder."""

    schema: str = SCHEMA
    run: str
    arm: str
    """The arm that is looked into."""
    summary: str
    valid: bool
    reasons: tuple[str, ...]
    seed: int
    command: str
    titles: dict[str, str]
    """Of the phases, by name."""
    slow_seconds: float
    """An answer slower than this counts as slow."""
    standings: tuple[Standing, ...]
    missed_targets: tuple[str, ...]
    journal: Journal
    compared: tuple[Compared, ...]
    changes: tuple[Change, ...]
    bottlenecks: tuple[PhaseBottleneck, ...]
    bottlenecks_missing: str
    """Why there are none; empty where there are."""
    hypotheses: tuple[Hypothesis, ...]
    ruled_out: tuple[str, ...]
    next_steps: tuple[NextStep, ...]
