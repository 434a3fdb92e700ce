"""What the walk measures itself, defined once for every system.

Apart from how it is computed (`figures`), so that naming a metric in a target costs no numpy.
"""

from __future__ import annotations

from fairlead.metrics import Metric

__all__ = ["QUANTILES", "load_metrics"]

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


def load_metrics(patience: float, primary: str = "latency_p99") -> tuple[Metric, ...]:
    """Definitions of what the walk measures itself, at the client."""
    failed = f"a failed request counts as at least {patience:g} s, the client's patience"
    latency = [
        Metric(
            name=f"latency_{name}",
            title=f"latency {name}",
            role="primary" if f"latency_{name}" == primary else "secondary",
            kind="quantile",
            event="load_sample",
            field="latency_seconds",
            q=q,
            unit="seconds",
            unit_of_analysis="request",
            side="client",
            measured=f"from the intended send time to the last byte; {failed}",
            window="phase",
            segment="all requests of the arm",
            better="lower",
            design="load_test",
        )
        for name, q in [*QUANTILES.items(), ("p999", 0.999)]
    ]

    def share(name: str, title: str, condition: str, role: str = "guardrail") -> Metric:
        return Metric(
            name=name,
            title=title,
            role="guardrail" if role == "guardrail" else "secondary",
            kind="proportion",
            event="load_sample",
            field=condition,
            unit="ratio",
            unit_of_analysis="request",
            side="client",
            window="phase",
            segment="all requests of the arm",
            better="lower",
            design="load_test",
        )

    return (
        *latency,
        Metric(
            name="goodput",
            title="goodput",
            role="secondary",
            kind="rate",
            event="load_sample",
            unit="answers per second",
            where='ending in ("ok", "degraded")',
            measured="an answer that comes within the client's patience",
            unit_of_analysis="request",
            side="client",
            window="phase",
            segment="all requests of the arm",
            better="higher",
            design="load_test",
        ),
        share("timeouts", "timeouts", 'ending == "timeout"'),
        share("errors", "errors", 'ending in ("error", "refused")'),
        share("degraded", "degraded", 'ending == "degraded"', role="secondary"),
    )
