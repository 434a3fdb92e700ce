"""Guardrails that are common practice, by name.

    canary               errors above 0.3 %, or p99 10 % above control's
    latency_budget       errors above 0.5 %, or p99 above 150 ms, for 10 minutes
    availability         5xx above 0.5 % for 10 minutes
    sustained_latency    p99 20 % above control's; practice says "for 30 minutes", which here is what it takes to be
    sure

They are a beginning. What is right for a service follows from its objectives.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fairlead.errors import InvalidInput
from fairlead.metrics import Metric
from fairlead.rollout.plan import Guardrail

__all__ = ["PRESETS", "preset_guardrails"]

PRESETS: dict[str, tuple[tuple[str, Callable[..., Guardrail]], ...]] = {
    "canary": (
        ("errors", partial(Guardrail, above=0.003, for_seconds=60.0)),
        ("latency", partial(Guardrail, worse_by=0.10)),
    ),
    "latency_budget": (
        ("errors", partial(Guardrail, above=0.005, for_seconds=600.0)),
        ("latency", partial(Guardrail, above=0.150, for_seconds=600.0)),
    ),
    "availability": (("errors", partial(Guardrail, above=0.005, for_seconds=600.0)),),
    "sustained_latency": (("latency", partial(Guardrail, worse_by=0.20)),),
}
"""By name: which metric, and its limit."""


def preset_guardrails(
    name: str, *, errors: Metric | None = None, latency: Metric | None = None, runbook: str = ""
) -> tuple[Guardrail, ...]:
    """The guardrails of a preset for these metrics. Raises InvalidInput for an unknown name, or a metric it lacks.

    errors: a proportion of failures. latency: a quantile, in seconds.
    """
    if name not in PRESETS:
        raise InvalidInput(f"preset {name!r:.60}: there are {', '.join(PRESETS)}")
    given = {"errors": (errors, "proportion"), "latency": (latency, "quantile")}
    found = []
    for which, limited in PRESETS[name]:
        metric, kind = given[which]
        if metric is None or metric.kind != kind:
            raise InvalidInput(f"preset {name}: it needs {which}, the name of a {kind}")
        if which == "latency" and metric.unit != "seconds":
            raise InvalidInput(f"preset {name}: {metric.name} is in {metric.unit}, and its limit in seconds")
        found.append(limited(metric=metric, runbook=runbook))
    return tuple(found)
