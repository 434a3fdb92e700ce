"""What remote configuration measures beside the load, and what it set out to reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fairlead.lab import Samples
from fairlead.metrics import Kind, Metric, Relation, Target
from fairlead.statistics import quantile_interval
from fairlead.trial import Arm, Figure, Phase, load_metrics
from fairlead_systems.remote_config.configuration import STALENESS_BOUND
from fairlead_systems.remote_config.system import (
    FRONT_GONE,
    HUNG,
    INNER_GONE,
    KILLED,
    NORMAL,
    PATIENCE,
    PRIMARY,
)

__all__ = ["METRICS", "TARGETS", "measure"]


def _metric(
    name: str,
    title: str,
    kind: Kind,
    unit: str,
    *,
    measured: str,
    field: str | None = None,
    denominator: str | None = None,
    q: float | None = None,
    where: str = "",
    client: bool = False,
) -> Metric:
    return Metric(
        name=name,
        title=title,
        role="guardrail" if kind == "count" else "secondary",
        kind=kind,
        event="load_sample" if client else "load_window",
        field=field,
        denominator=denominator,
        q=q,
        where=where,
        unit=unit,
        unit_of_analysis="request" if client or kind == "ratio" else "phase",
        side="client" if client else "server",
        measured=measured,
        window="phase",
        segment="all requests of the arm",
        better="lower",
        design="load_test",
    )


_STALENESS = "seconds past its lifetime of the stalest part of the answer"
_AGE = "since the oldest part of the answer was known to be what its database says"
_SAID = "age_seconds is not None"
_FRESH = "degraded == 0 and staleness_seconds is not None"

METRICS: tuple[Metric, ...] = (
    _metric("calls", "service calls / request", "ratio", "calls per request", field="calls", denominator="requests",
            measured="requests that arrived at any process of the arm"),
    _metric("queries", "database queries / request", "ratio", "queries per request", field="queries",
            denominator="requests", measured="by all processes of the arm"),
    _metric("processes", "processes", "maximum", "processes", field="processes",
            measured="that must run for an answer"),
    _metric("connections", "connections", "maximum", "connections", field="connections",
            measured="between the arm's processes and to their databases, when the phase was over"),
    _metric("cpu", "CPU / 1,000 requests", "ratio", "CPU-seconds per 1,000 requests", field="cpu_seconds",
            denominator="thousand requests", measured="of all processes of the arm, user and system, starts included"),
    _metric("memory", "memory", "maximum", "bytes", field="resident bytes",
            measured="of all processes of the arm, when the phase was over"),
    _metric("staleness_max", "staleness max", "maximum", "seconds", field="staleness_seconds", where=_FRESH,
            measured=_STALENESS, client=True),
    _metric("staleness_violations", "answers beyond the bound", "count", "answers", client=True, measured=_STALENESS,
            where=f"degraded == 0 and staleness_seconds > {STALENESS_BOUND:g}"),
    _metric("age_p99", "data age p99", "quantile", "seconds", field="age_seconds", q=0.99, where=_SAID,
            measured=_AGE, client=True),
)  # fmt: skip

_BY_NAME = {metric.name: metric for metric in (*load_metrics(PATIENCE, PRIMARY), *METRICS)}
_OWN = "our own: what one table must do at least to replace three services"


def _promise(
    phase: str, metric: str, statement: str, relation: Relation, limit: float, *, strict: bool = False
) -> tuple[str, Target]:
    target = Target(
        metric=_BY_NAME[metric],
        statement=statement,
        relation=relation,
        limit=limit,
        source=_OWN,
        strict=strict,
    )
    return phase, target


TARGETS: tuple[tuple[str, Target], ...] = (
    _promise(NORMAL, "latency_p50", "median latency at most half", "ratio", 0.5),
    _promise(NORMAL, "latency_p99", "p99 ahead of three services", "relative_change", 0.0, strict=True),
    _promise(NORMAL, "cpu", "at most half the CPU per request", "ratio", 0.5),
    _promise(NORMAL, "calls", "one service call a request", "absolute", 1.0),
    _promise(HUNG, "errors", "no error while the database hangs", "absolute", 0.0),
    _promise(HUNG, "timeouts", "no timeout while the database hangs", "absolute", 0.0),
    _promise(INNER_GONE, "errors", "no inner service whose crash is an error", "absolute", 0.0),
    _promise(INNER_GONE, "timeouts", "no inner service whose crash is a timeout", "absolute", 0.0),
    _promise(FRONT_GONE, "errors", "a crash of the front costs no more errors: at most 5 percentage points",
             "difference", 0.05),
    _promise(NORMAL, "age_p99", "data no older than what three services keep", "relative_change", 0.0),
    _promise("run", "staleness_violations", "no answer beyond the staleness bound, unless marked degraded",
             "absolute", 0.0),
)  # fmt: skip
"""Each promise with the phase in which it is judged."""


def measure(
    arm: Arm,
    phase: Phase,
    observed: Sequence[Mapping[str, float]],
    samples: Samples,
    slices: np.ndarray,
) -> list[Figure]:
    """Figures of METRICS for one arm and phase; `n` counts requests, or cycles where the phase is the unit."""
    requests = len(samples)

    def figure(
        metric: str,
        value: float | None,
        n: int,
        low: float | None = None,
        high: float | None = None,
        caveat: str = "",
        method: str = "",
    ) -> Figure:
        return Figure(
            metric=metric, arm=arm.name, phase=phase.name, value=value, low=low, high=high, n=n,
            caveat=caveat, method=method,
        )  # fmt: skip

    def per_request(metric: str, name: str, scale: float = 1.0) -> Figure:
        if not requests:
            return figure(metric, None, 0, caveat="no requests")
        return figure(metric, scale * sum(window[name] for window in observed) / requests, requests)

    def largest(metric: str, name: str) -> Figure:
        return figure(metric, max((window[name] for window in observed), default=0.0), len(observed))

    figures = [per_request("cpu", "cpu_seconds", 1000.0), largest("processes", "processes")]
    figures += [largest("memory", "memory_bytes"), largest("connections", "connections")]
    if phase.name not in (*KILLED, "run"):  # a process that is killed takes its counters with it
        figures += [per_request("calls", "calls"), per_request("queries", "queries")]
    staleness = samples.headers["staleness"]
    fresh = staleness[np.isfinite(staleness) & ~(samples.headers["degraded"] > 0)]
    violations = float(np.count_nonzero(fresh > STALENESS_BOUND))
    figures.append(figure("staleness_violations", violations, len(fresh)))
    if len(fresh):
        figures.append(figure("staleness_max", float(fresh.max()), len(fresh)))
    else:
        figures.append(figure("staleness_max", None, 0, caveat="no answer said how old it was"))
    age = samples.headers["age"]
    said = np.isfinite(age)
    estimate = quantile_interval(age[said], 0.99, clusters=slices[said])
    figures.append(
        figure(
            "age_p99", estimate.value, estimate.n, estimate.low, estimate.high, estimate.caveat,
            f"{estimate.method}, over half-second slices of the schedule",
        )
    )  # fmt: skip
    return figures
