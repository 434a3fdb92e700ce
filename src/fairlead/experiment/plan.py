"""What an experiment set out to compare, written down before anyone looks.

An analysis that is decided on after the data are in finds what it looks for. So everything that could be chosen
afterwards stands in the plan: the metrics and which of them decides, the arms and the shares they should have, whose
outcomes count and until when, what is taken out beforehand (covariates, caps), how much worse a guardrail may be.
What is not in it is exploratory, and marked so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fairlead.calls.bounds import check_number, check_whole
from fairlead.errors import InvalidInput
from fairlead.metrics import Metric

__all__ = ["ExperimentPlan", "Fairness", "Margin", "Stage", "Trigger"]

VARIANT = "variant"
"""The grouping by which units are compared."""
STEP = "step"
"""The grouping column of time: when a unit entered, in steps from the first."""
_TAKEN = (VARIANT, STEP, "stage")
HISTORY = "history"
"""The variant of units before any experiment."""
MOST_METRICS = 50
MOST_SEGMENTS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Margin:
    """How much worse than control a metric may be and still count as not worse."""

    by: float
    """Above 0: a ratio of control's figure when `relative` (0.02 is 2 %), else in the metric's unit."""
    relative: bool = True
    """Whether `by` is relative to control's figure."""

    def __post_init__(self) -> None:
        check_number("margin", self.by, above=0.0)
        if self.relative and self.by >= 1:
            raise InvalidInput(f"margin {self.by:g} is relative and not below 1; 0.02 means 2 %")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A stretch of the experiment with shares of its own; counts of stages are never pooled."""

    start: float
    """When it began; seconds since 1970, UTC."""
    shares: Mapping[str, float]
    """Expected share by variant, any scale. One without control's has nothing to compare with: it only says who has
    had treatment since."""
    end: float | None = None
    """When it ended; None: where the next one begins, and the last one goes on."""
    settle: float = 0.0
    """Seconds from its start in which some processes may still serve the stage before: who was drawn then counts when
    drawn again."""

    @property
    def opens(self) -> float:
        """From when on units enter."""
        return self.start + self.settle


@dataclass(frozen=True, kw_only=True, slots=True)
class Trigger:
    """The event that shows a unit could have met the difference at all; logged alike in every arm.

    A change of the search page cannot move who never searched. Counting them dilutes the effect and hides it.
    """

    event: str
    """The kind of event."""
    unit_field: str
    """Its field that names the unit."""
    where: str = ""
    """A condition: which of them trigger; empty: all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fairness:
    """A guardrail on how unequally a change treats groups: creators, languages, devices."""

    metric: str
    """The metric whose effect is compared between the groups."""
    group: str
    """The segment column that names the group."""
    limit: float = 1.25
    """Largest ratio between two groups of treatment/control that is tolerated, above 1. 1.25 is the reciprocal of
    the four-fifths rule."""

    def __post_init__(self) -> None:
        check_number("fairness limit", self.limit, above=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentPlan:
    """An experiment as planned. Raises InvalidInput naming what is contradictory.

    >>> from fairlead.metrics import Metric
    >>> plan = ExperimentPlan(name="try", metrics=(Metric.from_column("rounds", "mean", "rounds"),))
    >>> plan.primary.name, plan.shares_of(["control", "treatment"])
    ('rounds', {'control': 1.0, 'treatment': 1.0})
    """

    name: str
    """How results and the ledger call it."""
    metrics: tuple[Metric, ...]
    """What is compared. The one with the role `primary` decides; where all are ad hoc, the first."""
    flag: str = ""
    """The flag whose exposures divide the units; empty for a table that has the variant in a column."""
    control: str = "control"
    """The variant that others are compared with."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Expected share by variant, any scale; empty: equal ones, or as `treatment_share` says."""
    treatment_share: float | None = None
    """Expected share of all variants but control together, 0–1, the same for each of them; None: as `shares` says."""
    stages: tuple[Stage, ...] = ()
    """Where the shares changed while it ran; empty: they did not."""
    alpha: float = 0.05
    """Chance of a false alarm, two-sided, 0–0.5."""
    power: float = 0.8
    """Chance of finding an effect of the size planned for, 0.5–1."""
    mde: float | None = None
    """The relative effect on the primary metric that is worth finding; None: not said."""
    planned_units: int | None = None
    """Units of all arms that it was planned for; the watched intervals are tightest there. None: as many as came, with
    a caveat."""
    sequential: bool = False
    """Whether it is looked at before its end: verdicts then come from the always-valid p-values."""
    conversion_window: float | None = None
    """Seconds after a unit's first exposure in which its outcomes count; None: all there are."""
    pre_period: float | None = None
    """Seconds before a unit's first exposure from which its own past is taken as a covariate; None: none."""
    covariates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By metric: columns that were known of a unit before exposure."""
    caps: Mapping[str, float] = field(default_factory=dict)
    """By metric: the quantile of both arms' units at which values are capped, 0.5 to below 1."""
    segments: tuple[str, ...] = ()
    """Columns by whose values the effects are shown, exploratory."""
    margins: Mapping[str, Margin] = field(default_factory=dict)
    """By metric: how much worse it may be. A guardrail without one can show harm, and never show that there is none."""
    trigger: Trigger | None = None
    """Who could have met the difference; None: everybody who was exposed."""
    fairness: tuple[Fairness, ...] = ()
    """Guardrails on the ratio of effects between groups."""

    def __post_init__(self) -> None:
        names = [metric.name for metric in self.metrics]
        if not names or len(set(names)) != len(names) or len(names) > MOST_METRICS:
            raise InvalidInput(
                f"experiment {self.name[:80]}: give 1 to {MOST_METRICS} metrics, each name once"
            )
        primaries = [metric.name for metric in self.metrics if metric.role == "primary"]
        if len(primaries) > 1:
            raise InvalidInput(
                f"experiment {self.name[:80]}: {', '.join(primaries)} are all primary; one decides"
            )
        check_number("alpha", self.alpha, above=0.0, high=0.5)
        check_number("power", self.power, low=0.5, high=0.9999)
        if self.treatment_share is not None:
            check_number("treatment_share", self.treatment_share, low=0.001, high=0.999)
            if self.shares or self.stages:
                raise InvalidInput(
                    f"experiment {self.name[:80]}: treatment_share beside shares or stages; keep one of them"
                )
        for name in ("mde", "conversion_window", "pre_period"):
            if (value := getattr(self, name)) is not None:
                check_number(name, value, above=0.0)
        if self.planned_units is not None:
            check_whole("planned_units", self.planned_units, low=2, high=10**12)
        for what, keys in (("covariates", self.covariates), ("caps", self.caps), ("margins", self.margins)):
            for key in keys:
                if key not in names:
                    raise InvalidInput(f"{what}: {key[:80]!r} is none of the metrics {', '.join(names)}")
        for key, cap in self.caps.items():
            check_number(f"cap of {key}", cap, low=0.5, high=0.9999)
        for one in self.fairness:
            if one.metric not in names:
                raise InvalidInput(f"fairness: {one.metric[:80]!r} is none of the metrics {', '.join(names)}")
        if len(self.segments) > MOST_SEGMENTS or len(set(self.segments)) != len(self.segments):
            raise InvalidInput(f"segments: at most {MOST_SEGMENTS} columns, each once")
        for name in self.group_columns:
            if name in _TAKEN:
                raise InvalidInput(f"segment {name!r}: units have a grouping of that name; rename the column")
        for stage in self.stages:
            check_number("start of a stage", stage.start, low=-1e15, high=1e15)
            check_number("settle of a stage", stage.settle, low=0.0, high=1e9)
            if stage.end is not None:
                check_number("end of a stage", stage.end, low=-1e15, high=1e15)
        starts = [stage.start for stage in self.stages]
        if starts != sorted(set(starts)):
            raise InvalidInput("stages: give them in the order of their starts, each start once")
        for number, (stage, end) in enumerate(zip(self.stages, self.stage_ends, strict=True), 1):
            if not stage.opens < end <= (*starts, math.inf)[number]:
                raise InvalidInput(
                    f"stage {number}: it opens at {stage.opens:.10g} and ends at {end:.10g}; give one that is longer "
                    "than it takes to settle, and that ends before the next one starts"
                )
        for shares in (self.shares, *(stage.shares for stage in self.stages)):
            for variant, share in shares.items():
                check_number(f"share of {variant}", share, above=0.0)

    @property
    def primary(self) -> Metric:
        """The metric that decides."""
        return next((metric for metric in self.metrics if metric.role == "primary"), self.metrics[0])

    @property
    def stage_ends(self) -> tuple[float, ...]:
        """When each stage ends: as it says, or where the next one begins; infinity for the last."""
        starts = [*(stage.start for stage in self.stages[1:]), math.inf]
        return tuple(
            start if stage.end is None else stage.end
            for stage, start in zip(self.stages, starts[: len(self.stages)], strict=True)
        )

    @property
    def group_columns(self) -> tuple[str, ...]:
        """Columns that units are grouped by: segments, and those of fairness."""
        return tuple(dict.fromkeys((*self.segments, *(one.group for one in self.fairness))))

    def shares_of(self, variants: list[str]) -> dict[str, float]:
        """The expected shares of the variants found. Raises InvalidInput where the plan names others."""
        if self.stages:
            known = {variant for stage in self.stages for variant in stage.shares}
            strangers = sorted(set(variants) - known)
            if strangers:
                raise InvalidInput(
                    f"variants {', '.join(strangers)[:200]} have a share in no stage; there are "
                    f"{', '.join(sorted(known))[:200]}"
                )
        if self.treatment_share is not None:
            others = [variant for variant in variants if variant != self.control] or ["treatment"]
            return {
                self.control: 1 - self.treatment_share,
                **dict.fromkeys(others, self.treatment_share / len(others)),
            }
        if not self.shares:
            return dict.fromkeys(variants, 1.0)
        strangers = sorted(set(variants) - set(self.shares))
        if strangers:
            raise InvalidInput(
                f"variants {', '.join(strangers)[:200]} have no share in the plan; it has {', '.join(self.shares)}"
            )
        return {variant: float(share) for variant, share in self.shares.items()}
