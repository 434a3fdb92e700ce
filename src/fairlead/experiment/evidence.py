"""An analysed metric as evidence: both arms, the effect, and what it is relative to control.

A ledger holds one figure an entry, so that whoever cites "+4 %" cites that and not its neighbour in percentage
points. Each carries the definition, the side, the window and the segment of the metric as it was planned, and every
caveat of the result; what the data did not carry is None with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from fairlead.experiment.result import ExperimentResult, Interval, MetricResult
from fairlead.experiment.wording import stage_rows
from fairlead.ledger import Evidence
from fairlead.metrics import Metric
from fairlead.metrics.metric import Design, Side

__all__ = ["NO_INTERVAL", "Scope", "caveats_of", "metric_evidence"]

NO_INTERVAL = "no interval: one is not defined for this figure, or the data cannot carry it"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scope:
    """What a metric's figures are about, as `Evidence` wants to know it."""

    side: Side
    window: str
    segment: str
    unit_of_analysis: str
    design: Design

    @classmethod
    def of(cls, metric: Metric) -> Scope:
        """As the metric was planned."""
        return cls(
            side=metric.side, window=metric.window, segment=metric.segment,
            unit_of_analysis=metric.unit_of_analysis, design=metric.design,
        )  # fmt: skip


def caveats_of(result: ExperimentResult) -> tuple[str, ...]:
    """What holds of every figure of a result: that it is void, and what its health warns of."""
    void = ("the experiment is void: no effect here is one",) if result.is_void else ()
    checks = tuple(f"{check.name}: {check.message}" for check in result.health if check.verdict != "ok")
    stages = "; ".join(row.text for row in stage_rows(result))
    return (*void, *checks, *([f"counted in the stages {stages}"] if stages else []), *result.caveats)


def metric_evidence(
    found: MetricResult,
    result: ExperimentResult,
    scope: Scope,
    *,
    change: str,
    data_sha256: str,
    measured_at: float,
    caveats: Sequence[str] = (),
) -> Iterator[Evidence]:
    """Control's figure, treatment's, their difference, that relative to control, and its p-value, in this order.

    measured_at: UTC seconds. caveats: beside the metric's own.
    """

    def evidence(
        arm: str,
        statistic: str,
        value: float | None,
        n: int,
        interval: Interval | None,
        unit: str = found.unit,
    ) -> Evidence:
        low, high = interval or (None, None)
        said = [*found.caveats, *([NO_INTERVAL] if None in (value, low, high) else []), *caveats]
        return Evidence(
            change=change,
            metric=found.name,
            definition=found.definition,
            statistic=statistic,
            arm=arm,
            value=value,
            unit=unit,
            side=scope.side,
            window=scope.window,
            segment=scope.segment,
            unit_of_analysis=scope.unit_of_analysis,
            n=n,
            low=low,
            high=high,
            confidence=None if low is None and high is None else found.confidence,
            design=scope.design,
            method=found.method or "none: the data carry no effect",
            query_sha256=result.query_sha256,
            data_sha256=data_sha256,
            measured_at_utc_seconds=measured_at,
            caveats=tuple(dict.fromkeys(said)),
        )

    for arm, figure in ((result.control, found.control), (found.variant, found.treatment)):
        value = figure.mean if figure.mean is not msgspec.UNSET else figure.value
        yield evidence(arm, found.kind, value if isinstance(value, float) else None, figure.n, None)
    n = found.control.n + found.treatment.n
    difference = f"{found.variant} − {result.control}"
    effect = f"effect on the {found.kind}"
    yield evidence(difference, effect, found.effect, n, found.effect_ci)
    yield evidence(
        f"{found.variant} / {result.control} − 1",
        f"relative {effect}",
        found.relative_effect,
        n,
        found.relative_effect_ci,
        "ratio",
    )
    whole = found.adjusted_p_value is not None
    how = "over the metrics of its role (Holm)" if whole else "not adjusted"
    if result.sequential:
        how = f"valid at every look, {how}"
    yield evidence(
        difference,
        f"p-value of the {effect}, {how}",
        found.adjusted_p_value if whole else found.p_value,
        n,
        None,
        "probability",
    )
