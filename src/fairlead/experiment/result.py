"""What an analysis found, as files and other programs read it.

The schema is versioned: a field changes its meaning only with a new number. A figure that there is not is null with a
caveat, and never NaN, which is no JSON.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from fairlead.errors import BrokenDocument

__all__ = [
    "ANALYSIS_SCHEMA",
    "ArmResult",
    "CheckResult",
    "CupedResult",
    "ExperimentResult",
    "FairnessResult",
    "MarginResult",
    "MetricResult",
    "SampleRatioResult",
    "SegmentResult",
    "SequentialResult",
    "StageResult",
    "StepResult",
    "read_result",
]

ANALYSIS_SCHEMA = "fairlead.experiment.analysis/1"

Interval = tuple[float | None, float | None]
"""Low and high; None is an end that is open or not known."""

Verdict = Literal[
    "better",
    "worse",
    "higher",
    "lower",
    "not_worse",
    "no_difference_shown",
    "inconclusive",
    "not_estimable",
    "void",
]
"""better, worse: a difference, by the metric's own direction. higher, lower: the same for an ad-hoc metric, which has
none. not_worse: within the margin. inconclusive: a guardrail that showed neither. void: the split is broken."""


class ArmResult(msgspec.Struct, frozen=True, kw_only=True):
    n: int
    """Units, in each of the stages in which they count; of a quantile without a unit, events."""
    mean: float | msgspec.UnsetType | None = msgspec.UNSET
    """For kinds that are a mean over units."""
    value: float | msgspec.UnsetType | None = msgspec.UNSET
    """For the others: ratio, formula, quantile."""
    sd: float | None = None
    """Standard deviation of one unit; null for a quantile."""


class CupedResult(msgspec.Struct, frozen=True, kw_only=True):
    covariates: tuple[str, ...]
    theta: tuple[float, ...]
    variance_reduction: float
    """1 − adjusted / unadjusted variance of the effect."""
    unadjusted_effect: float
    unadjusted_p_value: float


class SequentialResult(msgspec.Struct, frozen=True, kw_only=True):
    """The same effect, valid at every look."""

    e_value: float
    always_valid_p: float
    ci: Interval
    relative_ci: Interval
    tuned_for: int
    """Units at which it is tightest."""


class MarginResult(msgspec.Struct, frozen=True, kw_only=True):
    """Beside the margin of a guardrail."""

    by: float
    relative: bool
    p_not_worse: float
    """Small: treatment is not worse by that much."""
    p_worse: float
    """Small: treatment is worse by more than that."""


class MetricResult(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    variant: str
    """The arm that is compared with control."""
    kind: str
    role: str
    definition: str
    unit: str
    better: str
    control: ArmResult
    treatment: ArmResult
    effect: float | None
    effect_ci: Interval | None
    relative_effect: float | None
    relative_effect_ci: Interval | None
    p_value: float | None
    adjusted_p_value: float | None
    """After Holm's adjustment over the metrics of its role; what the verdict is made of."""
    confidence: float
    method: str
    cuped: CupedResult | None
    sequential: SequentialResult | None
    margin: MarginResult | None
    verdict: Verdict
    detectable: float | None
    """The relative effect that this many units find with the plan's power, watched if the plan is; null where it is
    not known."""
    caveats: tuple[str, ...]
    evidence: tuple[str, ...] = ()
    """Ids of entries in a ledger: control's figure, treatment's, the effect, and where they were recorded the relative
    effect and the p-value. Empty where nothing was recorded."""


class SampleRatioResult(msgspec.Struct, frozen=True, kw_only=True):
    expected: dict[str, float]
    """Units that each arm should have."""
    observed: dict[str, int]
    p_value: float
    verdict: Literal["as planned", "mismatch"]
    alpha: float
    method: str


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """One question about the experiment's health."""

    name: str
    verdict: Literal["ok", "warning", "failed"]
    """failed: results are void. warning: read it before believing them."""
    message: str
    p_value: float | None = None


class SegmentResult(msgspec.Struct, frozen=True, kw_only=True):
    """An effect within one segment; exploratory."""

    segment: str
    value: str
    metric: str
    variant: str
    n_control: int
    n_treatment: int
    effect: float | None
    effect_ci: Interval | None
    relative_effect: float | None
    relative_effect_ci: Interval | None
    p_value: float | None
    adjusted_p_value: float | None
    """After Benjamini and Hochberg's adjustment over all segments."""
    heterogeneity_p_value: float | None
    """Whether the values of this segment differ in their effect at all; the same for all of them."""
    caveats: tuple[str, ...]


class FairnessResult(msgspec.Struct, frozen=True, kw_only=True):
    metric: str
    group: str
    variant: str
    limit: float
    largest_ratio: float | None
    """The largest treatment/control of a group over the smallest."""
    ci: Interval | None
    """Of that ratio, holding for all pairs of groups together."""
    between: tuple[str, ...]
    """The two groups: the better treated by the figure first."""
    verdict: Literal["within", "exceeded", "inconclusive", "not_estimable", "void"]
    caveats: tuple[str, ...]


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """The primary metric with all units that had entered by the end of a step."""

    metric: str
    variant: str
    end_utc_seconds: float
    n: int
    effect: float | None
    ci: Interval | None
    """Of the confidence sequence: the truth lies in all of them together."""


class StageResult(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of the experiment with shares of its own, and who counted in it."""

    start_utc_seconds: float | None
    """From when on units entered; null: from the first."""
    end_utc_seconds: float | None
    """Until when they entered, and outcomes counted; null: it goes on."""
    shares: dict[str, float]
    """By variant, adding up to 1."""
    observed: dict[str, int]
    """Units by variant. One that was control in several stages counts in each."""
    expected: dict[str, float]
    """Units that each arm should have."""
    back: int
    """Those of them that had been control in a stage before."""
    p_value: float | None
    """Of the stage's own split; null where nobody counted."""
    left_out: dict[str, int]
    """Units that were drawn in it and do not count, by reason."""


class ExperimentResult(msgspec.Struct, frozen=True, kw_only=True):
    """An analysed experiment."""

    schema: str = ANALYSIS_SCHEMA
    name: str
    fairlead_version: str
    control: str
    variants: tuple[str, ...]
    alpha: float
    power: float
    sequential: bool
    units: int
    """Each once, however many stages it counts in."""
    sample_ratio: SampleRatioResult
    health: tuple[CheckResult, ...]
    excluded: dict[str, int]
    metrics: tuple[MetricResult, ...]
    segments: tuple[SegmentResult, ...]
    fairness: tuple[FairnessResult, ...]
    steps: tuple[StepResult, ...]
    caveats: tuple[str, ...]
    stages: tuple[StageResult, ...] = ()
    """Where the shares changed, each of them; where one period was looked at, that one. Empty: all there is."""
    query_sha256: str
    """Of the queries that were run."""
    data_sha256: str | None = None
    """Of the files that they read; null where the data are not files."""

    @property
    def is_void(self) -> bool:
        """Whether a failed check makes the results worthless."""
        return any(check.verdict == "failed" for check in self.health)

    def metric(self, name: str, variant: str | None = None) -> MetricResult:
        """The result of one metric; of the first variant, unless told. Raises KeyError."""
        for found in self.metrics:
            if found.name == name and variant in (None, found.variant):
                return found
        raise KeyError(name)

    def to_json(self) -> bytes:
        """Indented JSON with a line end."""
        return msgspec.json.format(msgspec.json.encode(self)) + b"\n"


def read_result(path: Path) -> ExperimentResult:
    """A result as it was written. Raises BrokenDocument."""
    try:
        found = msgspec.json.decode(Path(path).read_bytes(), type=ExperimentResult)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BrokenDocument(f"{path}: no result of an experiment: {error}") from error
    if found.schema != ANALYSIS_SCHEMA:
        raise BrokenDocument(f"{path}: schema {found.schema[:60]!r}, and this reads {ANALYSIS_SCHEMA}")
    return found
