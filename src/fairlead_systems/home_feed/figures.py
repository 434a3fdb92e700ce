"""What the home feed measures beside the load, and what it set out to reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

import numpy as np

from fairlead.lab import Samples
from fairlead.metrics import Kind, Metric, Relation, Target
from fairlead.slo import Objective, RollingPeriod
from fairlead.statistics import quantile_interval
from fairlead.telemetry import Histogram, HistogramSnapshot
from fairlead.trial import Arm, Figure, Phase, load_metrics
from fairlead_systems.home_feed.control import CANDIDATE_TIMEOUT, USER_TTL
from fairlead_systems.home_feed.system import HOTTEST, PATIENCE, STALENESS_OF
from fairlead_systems.home_feed.treatment import BUDGET, STALENESS_BOUND

__all__ = ["METRICS", "OBJECTIVES", "TARGETS", "measure"]

ACCOUNT = (
    "an account of a short-video home feed, published without the service's name: "
    "p99 380 → 210 ms, timeouts −52 %, hot-key herds −90 %, "
    "2.8 times the load without saturating downstreams, error rate unchanged, staleness bounded at 300–500 ms"
)


def _server(
    name: str,
    title: str,
    kind: Kind,
    unit: str,
    *,
    field: str,
    denominator: str | None = None,
    measured: str,
    q: float | None = None,
    of: str = "",
    guardrail: bool = False,
) -> Metric:
    return Metric(
        name=name,
        title=title,
        role="guardrail" if guardrail else "secondary",
        kind=kind,
        event="load_window",
        field=field,
        denominator=denominator,
        q=q,
        unit=unit,
        unit_of_analysis=of or ("request" if kind == "ratio" else "phase"),
        side="server",
        measured=measured,
        window="phase",
        segment="all requests of the arm",
        better="lower",
        design="load_test",
    )


def _client(
    name: str,
    title: str,
    kind: Kind,
    unit: str,
    *,
    field: str | None,
    q: float | None,
    where: str,
    measured: str,
) -> Metric:
    return Metric(
        name=name,
        title=title,
        role="secondary" if kind == "quantile" else "guardrail",
        kind=kind,
        event="load_sample",
        field=field,
        q=q,
        where=where,
        unit=unit,
        unit_of_analysis="request",
        side="client",
        measured=measured,
        window="phase",
        segment="all requests of the arm",
        better="lower",
        design="load_test",
    )


_STALENESS = "seconds past its lifetime when the cache handed it out, stalest part of the answer"

_FIELD = "for each item of each page, past its lifetime when the cache handed it out; by histogram, at most 1.1 % off"
_AGE = "since the origin began to read the oldest part of the answer"
_ANSWERED = "staleness_seconds is not None"
_DATED = "age_seconds is not None"
_BOTH = "at the candidate sources, the label service and the feature service"
_HOTTEST = "at the trending source, for the most requested topic"

METRICS: tuple[Metric, ...] = (
    _server("origin_calls", "origin calls / request", "ratio", "calls per request",
            field="calls", denominator="requests", measured=_BOTH),
    _server("origin_work", "origin work / 1,000 requests", "ratio", "worker-seconds per 1,000 requests",
            field="busy seconds", denominator="thousand requests", measured=f"{_BOTH}; the service time is simulated"),
    _server("origin_refused", "refused by origins / 1,000 requests", "ratio", "refusals per 1,000 requests",
            field="refusals", denominator="thousand requests", measured=f"{_BOTH}, because a queue was full"),
    _server("busiest", "busiest downstream", "maximum", "ratio",
            field="share of its workers' time", measured="of any downstream, over a whole phase"),
    _server("herd_peak", "peak loads of hottest key", "maximum", "concurrent loads",
            field="loads in flight at once", measured=_HOTTEST),
    _server("herd_loads", "loads per expiry, measured", "ratio", "loads per expiry",
            field="loads", denominator="expiries", of="expiry",
            measured=f"{_HOTTEST}; an expiry begins when it goes from idle to loading"),
    _server("herd_law", "loads per expiry, 1 + λL", "mean", "loads per expiry",
            field="predicted loads", of="expiry",
            measured="as 1 + λL: λ requests per second for the topic, L seconds from an expiry to its first answer"),
    _client("staleness_p99", "staleness p99", "quantile", "seconds",
            field="staleness_seconds", q=0.99, where=_ANSWERED, measured=_STALENESS),
    _client("staleness_max", "staleness max", "maximum", "seconds",
            field="staleness_seconds", q=None, where=_ANSWERED, measured=_STALENESS),
    _client("staleness_violations", "answers beyond the bound", "count", "answers",
            field=None, q=None, where=f"staleness_seconds > {STALENESS_BOUND:g}", measured=_STALENESS),
    _server("safety_staleness_max", "staleness of labels, max", "maximum", "seconds",
            field="staleness_seconds of the field safety", measured=_FIELD, of="item", guardrail=True),
    _server("popularity_staleness_p99", "staleness of popularity p99", "quantile", "seconds",
            field="staleness_seconds of the field popularity", q=0.99, measured=_FIELD, of="item"),
    _client("age_p99", "data age p99", "quantile", "seconds",
            field="age_seconds", q=0.99, where=_DATED, measured=_AGE),
    _client("age_max", "data age max", "maximum", "seconds",
            field="age_seconds", q=None, where=_DATED, measured=_AGE),
    _server("cpu", "CPU / 1,000 requests", "ratio", "CPU-seconds per 1,000 requests",
            field="cpu_seconds", denominator="thousand requests", measured="of the feed process, user and system"),
    _server("memory", "memory", "maximum", "bytes",
            field="resident bytes", measured="of the feed process, when the phase was over"),
)  # fmt: skip

_BY_NAME = {metric.name: metric for metric in (*load_metrics(PATIENCE), *METRICS)}


def _promise(
    phase: str,
    metric: str,
    statement: str,
    relation: Relation,
    limit: float,
    *,
    own: str = "",
    strict: bool = False,
) -> tuple[str, Target]:
    target = Target(
        metric=_BY_NAME[metric],
        statement=statement,
        relation=relation,
        limit=limit,
        source=own or ACCOUNT,
        strict=strict,
    )
    return phase, target


_AHEAD = "our own: a tie is no progress"
_FALLBACK_BUDGET = "our own fallback budget: degraded answers are answers, and must stay the exception"
_OLDEST = USER_TTL + STALENESS_BOUND + CANDIDATE_TIMEOUT + BUDGET

OBJECTIVES = (
    Objective(
        name="feed_in_time",
        title="a page, whole or degraded, within 500 ms",
        target=Decimal("0.99"),
        period=RollingPeriod(seconds=30 * 86400.0),
        event="load_sample",
        good='ending in ("ok", "degraded") and latency_seconds < 0.5',
        cause="ending",
        side="client",
        owner="the maintainers of Fairlead",
        runbook="docs/failures/slow-downstream.md",
    ),
)
"""What the feed would promise its users."""

TARGETS: tuple[tuple[str, Target], ...] = (
    _promise("normal", "latency_p99", "p99 down by 45 % (380 → 210 ms)", "relative_change", -0.447),
    _promise("viral", "latency_p99", "p99 ahead of control when a topic goes viral", "relative_change", 0.0,
             own=_AHEAD, strict=True),
    _promise("stalled", "latency_p99", "p99 ahead of control while features stall", "relative_change", 0.0,
             own=_AHEAD, strict=True),
    _promise("run", "timeouts", "timeouts down by 52 %", "relative_change", -0.52),
    _promise("viral", "herd_peak", "hot-key herds down by 90 %", "relative_change", -0.90),
    _promise("viral", "origin_work", "2.8 times the load for the same downstream work", "ratio", 1 / 2.8),
    _promise("run", "errors", "error rate unchanged: at most 0.1 percentage points more", "difference", 0.001),
    _promise("run", "staleness_violations", "no answer beyond the staleness bound", "absolute", 0.0),
    _promise("run", "safety_staleness_max", "no label used past its lifetime", "absolute", 0.0,
             own="our own: a label is fresh, or its item is not shown"),
    _promise("run", "age_max",
             f"no data older than the longest ttl, bound, one load and one request together ({_OLDEST:g} s)",
             "absolute", _OLDEST, own="our own: the staleness bound, checked by the origin's clock"),
    _promise("normal", "degraded", "degraded answers at most 2 % while nothing is broken", "absolute", 0.02,
             own=_FALLBACK_BUDGET),
    _promise("run", "degraded", "degraded answers at most 2 % of the whole run", "absolute", 0.02,
             own=_FALLBACK_BUDGET),
)  # fmt: skip
"""Each promise with the phase in which it is judged."""


def measure(
    arm: Arm,
    phase: Phase,
    observed: Sequence[Mapping[str, float]],
    samples: Samples,
    slices: np.ndarray,
) -> list[Figure]:
    """Figures of METRICS for one arm and phase; `n` counts the metric's unit of analysis."""
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
        method: str = "",
    ) -> Figure:
        return Figure(
            metric=metric, arm=arm.name, phase=phase.name, value=value, low=low, high=high, n=n,
            caveat=caveat, method=method,
        )  # fmt: skip

    def per_request(metric: str, name: str, scale: float = 1.0) -> Figure:
        if not requests:
            return figure(metric, None, 0, caveat="no requests")
        return figure(metric, scale * total(name) / requests, requests)

    def quantile(metric: str, header: str) -> Figure:
        said = np.isfinite(samples.headers[header])
        estimate = quantile_interval(samples.headers[header][said], 0.99, clusters=slices[said])
        return figure(
            metric, estimate.value, estimate.n, estimate.low, estimate.high, estimate.caveat,
            f"{estimate.method}, over half-second slices of the schedule",
        )  # fmt: skip

    def largest(metric: str, header: str) -> Figure:
        said = samples.headers[header][np.isfinite(samples.headers[header])]
        if not len(said):
            return figure(metric, None, 0, caveat="no answer said how old it was")
        return figure(metric, float(said.max()), len(said))

    staleness = samples.headers["staleness"]
    known = staleness[np.isfinite(staleness)]
    peak = max((window["hot_peak"] for window in observed), default=0.0)
    figures = [
        per_request("origin_calls", "origin_calls"),
        per_request("origin_work", "origin_busy_seconds", 1000.0),
        per_request("origin_refused", "origin_refused", 1000.0),
        figure("busiest", max((window["busiest"] for window in observed), default=0.0), len(observed)),
        figure("herd_peak", peak, len(observed)),
        quantile("staleness_p99", "staleness"),
        largest("staleness_max", "staleness"),
        figure("staleness_violations", float(np.count_nonzero(known > STALENESS_BOUND)), len(known)),
        quantile("age_p99", "age"),
        largest("age_max", "age"),
        per_request("cpu", "cpu_seconds", 1000.0),
        figure("memory", max((window["memory_bytes"] for window in observed), default=0.0), len(observed)),
    ]
    figures += [
        _field_staleness(arm, phase, observed, metric, fields, q)
        for metric, fields, q in (
            ("safety_staleness_max", ("safety", "both"), 1.0),
            ("popularity_staleness_p99", ("popularity",), 0.99),
        )
    ]
    if phase.name in HOTTEST:
        figures += _herd(arm, phase, observed, samples)
    return figures


def _field_staleness(
    arm: Arm,
    phase: Phase,
    observed: Sequence[Mapping[str, float]],
    metric: str,
    fields: Sequence[str],
    q: float,
) -> Figure:
    """A quantile of what the feed's own histogram of a field counted in the phase, over all cycles."""
    merged = Histogram()
    for window in observed:
        for field in fields:
            prefix = f"{STALENESS_OF}{field}:"
            counts = {
                name.removeprefix(prefix): round(count)
                for name, count in window.items()
                if name.startswith(prefix) and count
            }
            fresh = counts.pop("zero", 0)
            merged.merge(
                HistogramSnapshot(
                    zero_count=fresh, buckets={int(bucket): count for bucket, count in counts.items()}
                )
            )
    known = merged.count > 0
    return Figure(
        metric=metric,
        arm=arm.name,
        phase=phase.name,
        value=merged.quantile(q) if known else None,
        n=merged.count,
        caveat="" if known else "this arm keeps no such field",
    )


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
