"""What the home feed measures beside the load, and what it set out to reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from fairlead.lab import Samples
from fairlead.metrics import Metric, Target
from fairlead.statistics import quantile_interval
from fairlead.trial import Arm, Figure, Phase, load_metrics
from fairlead_systems.home_feed.system import HOTTEST, PATIENCE

__all__ = ["METRICS", "TARGETS", "measure"]

STALENESS_BOUND = 0.4
"""Seconds; that of treatment.STALENESS_BOUND, stated here again because a promise is checked against itself
otherwise.
"""

ACCOUNT = (
    "published account of a short-video home feed: p99 380 → 210 ms, timeouts −52 %, hot-key herds −90 %, "
    "2.8 times the load without saturating downstreams, error rate unchanged, staleness bounded at 300–500 ms"
)


def _server(
    name: str,
    title: str,
    kind: str,
    unit: str,
    *,
    field: str | None = None,
    denominator: str | None = None,
    event: str = "origin_window",
    measured: str = "",
    role: str = "secondary",
) -> Metric:
    return Metric(
        name=name,
        title=title,
        role="guardrail" if role == "guardrail" else "secondary",
        kind="ratio" if kind == "ratio" else "count" if kind == "count" else "mean",
        event=event,
        field=field,
        denominator=denominator,
        unit=unit,
        unit_of_analysis="request" if kind == "ratio" else "phase",
        side="server",
        measured=measured,
        window="phase",
        segment="all requests of the arm",
        better="lower",
        design="load_test",
    )


_STALENESS = "seconds past its lifetime when the cache handed it out, stalest part of the answer"

METRICS: tuple[Metric, ...] = (
    _server(
        "origin_calls",
        "origin calls / request",
        "ratio",
        "calls per request",
        field="calls",
        denominator="requests",
        measured="at the candidate source and the feature service",
    ),
    _server(
        "origin_work",
        "origin work / 1,000 requests",
        "ratio",
        "worker-seconds per 1,000 requests",
        field="busy_seconds",
        denominator="thousand requests",
        measured="at the candidate source and the feature service; simulated service time",
    ),
    _server(
        "herd_peak",
        "peak loads of hottest key",
        "count",
        "concurrent loads",
        event="candidate load",
        measured="largest number in flight at once for the most requested topic, at the candidate source",
    ),
    _server(
        "herd_loads",
        "loads per expiry, measured",
        "ratio",
        "loads per expiry",
        event="candidate load",
        field="loads",
        denominator="expiries",
        measured="at the candidate source for the most requested topic; an expiry begins when it goes from idle to "
        "loading",
    ),
    _server(
        "herd_law",
        "loads per expiry, 1 + λL",
        "mean",
        "loads per expiry",
        event="candidate load",
        field="1 + λL",
        measured="λ: requests per second for the topic, L: mean seconds of the load that opened an "
        "expiry; coalescing saves 1 − 1/(1 + λL)",
    ),
    *(
        Metric(
            name=name,
            title=title,
            role="guardrail" if kind == "count" else "secondary",
            kind="count" if kind == "count" else "quantile",
            event="load_sample",
            field=None if kind == "count" else field,
            q=q,
            where=f"staleness above {STALENESS_BOUND:g} s"
            if kind == "count"
            else "outcome is ok or degraded",
            unit=unit,
            unit_of_analysis="request",
            side="client",
            measured=measured,
            window="phase",
            segment="all requests of the arm",
            better="lower",
            design="load_test",
        )
        for name, title, kind, field, q, unit, measured in (
            ("staleness_p99", "staleness p99", "quantile", "staleness_seconds", 0.99, "seconds", _STALENESS),
            ("staleness_violations", "answers beyond the bound", "count", "", None, "answers", _STALENESS),
            (
                "age_p99",
                "data age p99",
                "quantile",
                "age_seconds",
                0.99,
                "seconds",
                "since the origin began to read the oldest part of the answer",
            ),
        )
    ),
    Metric(
        name="staleness_max",
        title="staleness max",
        role="guardrail",
        kind="mean",
        event="load_sample",
        field="largest staleness_seconds",
        unit="seconds",
        unit_of_analysis="phase",
        side="client",
        measured=_STALENESS,
        window="phase",
        segment="all requests of the arm",
        better="lower",
        design="load_test",
    ),
    _server(
        "cpu",
        "CPU / 1,000 requests",
        "ratio",
        "CPU-seconds per 1,000 requests",
        event="process",
        field="cpu_seconds",
        denominator="thousand requests",
        measured="of the feed process, user and system",
    ),
    _server(
        "memory",
        "memory",
        "mean",
        "bytes",
        event="process",
        field="resident set size",
        measured="of the feed process when the phase was over, largest of all cycles",
    ),
)

_BY_NAME = {metric.name: metric for metric in (*load_metrics(PATIENCE), *METRICS)}

_PROMISES: tuple[
    tuple[str, str, str, Literal["relative_change", "ratio", "difference", "absolute"], float], ...
] = (
    ("normal", "latency_p99", "p99 down by 45 % (380 → 210 ms)", "relative_change", -0.447),
    ("viral", "latency_p99", "p99 ahead of control when a topic goes viral", "relative_change", 0.0),
    ("stalled", "latency_p99", "p99 ahead of control while features stall", "relative_change", 0.0),
    ("stalled", "timeouts", "timeouts down by 52 %", "relative_change", -0.52),
    ("viral", "herd_peak", "hot-key herds down by 90 %", "relative_change", -0.90),
    ("viral", "origin_work", "2.8 times the load for the same downstream work", "ratio", 1 / 2.8),
    ("normal", "errors", "error rate unchanged: at most 0.1 percentage points more", "difference", 0.001),
    ("run", "staleness_violations", "no answer beyond the staleness bound", "absolute", 0.0),
)

TARGETS: tuple[tuple[str, Target], ...] = tuple(
    (
        phase,
        Target(metric=_BY_NAME[name], statement=statement, relation=relation, limit=limit, source=ACCOUNT),
    )
    for phase, name, statement, relation, limit in _PROMISES
)
"""Each promise with the phase in which it is judged."""


def measure(
    arm: Arm, phase: Phase, observed: Sequence[Mapping[str, float]], samples: Samples
) -> list[Figure]:
    """Figures of METRICS for one arm and phase; `n` counts requests, or cycles where the phase is the unit."""
    requests = len(samples)

    def total(name: str) -> float:
        return sum(window[name] for window in observed)

    def figure(
        metric: str,
        value: float | None,
        n: int,
        low: float | None = None,
        high: float | None = None,
        caveat: str = "",
    ) -> Figure:
        return Figure(
            metric=metric, arm=arm.name, phase=phase.name, value=value, low=low, high=high, n=n, caveat=caveat
        )

    def per_request(metric: str, name: str, scale: float = 1.0) -> Figure:
        if not requests:
            return figure(metric, None, 0, caveat="no requests")
        return figure(metric, scale * total(name) / requests, requests)

    def quantile(metric: str, header: str) -> Figure:
        values = samples.headers[header]
        estimate = quantile_interval(values[np.isfinite(values)], 0.99)
        caveat = estimate.caveat or "interval takes answers as independent"
        return figure(metric, estimate.value, estimate.n, estimate.low, estimate.high, caveat)

    staleness = samples.headers["staleness"]
    known = staleness[np.isfinite(staleness)]
    peak = max((window["hot_peak"] for window in observed), default=0.0)
    figures = [
        per_request("origin_calls", "origin_calls"),
        per_request("origin_work", "origin_busy_seconds", 1000.0),
        figure("herd_peak", peak, len(observed)),
        quantile("staleness_p99", "staleness"),
        figure(
            "staleness_max",
            float(known.max()) if len(known) else None,
            len(known),
            caveat="" if len(known) else "no answer said how stale it was",
        ),
        figure("staleness_violations", float(np.count_nonzero(known > STALENESS_BOUND)), len(known)),
        quantile("age_p99", "age"),
        per_request("cpu", "cpu_seconds", 1000.0),
        figure("memory", max((window["memory_bytes"] for window in observed), default=0.0), len(observed)),
    ]
    if phase.name in HOTTEST:
        figures += _herd(arm, phase, observed, samples)
    return figures


def _herd(arm: Arm, phase: Phase, observed: Sequence[Mapping[str, float]], samples: Samples) -> list[Figure]:
    """Loads per expiry of the phase's hottest topic, as measured and as the law predicts them without
    coalescing.
    """
    episodes = int(sum(window["hot_episodes"] for window in observed))
    if not episodes:
        return [
            Figure(
                metric=metric,
                arm=arm.name,
                phase=phase.name,
                value=None,
                n=0,
                caveat="the topic never expired",
            )
            for metric in ("herd_loads", "herd_law")
        ]
    loads = sum(window["hot_calls"] for window in observed) / episodes
    load_seconds = sum(window["hot_first_seconds"] for window in observed) / episodes
    rate = float(np.count_nonzero(samples.key == HOTTEST[phase.name])) / (phase.seconds * len(observed))
    return [
        Figure(metric="herd_loads", arm=arm.name, phase=phase.name, value=loads, n=episodes),
        Figure(metric="herd_law", arm=arm.name, phase=phase.name, value=1 + rate * load_seconds, n=episodes),
    ]
