"""Was the promise kept? Objectives, their error budgets, and alerts on how fast a budget burns.

An `Objective` says which events count and what share of them must be good, over which period, and who answers for it.
`ErrorBudget` says what is left and what it was spent on. `alerts_of` and `BurnRateMonitor` are the multi-window alerts,
`prometheus_rules` the same for a Prometheus; OpenSLO documents are read by `fairlead.slo.openslo`.
"""

from __future__ import annotations

from fairlead.slo.burn_rate import BurnRateAlert, BurnRateMonitor, alerts_of
from fairlead.slo.error_budget import ErrorBudget, budget_from_events
from fairlead.slo.objective import CalendarPeriod, Counters, LatencyBuckets, Objective, RollingPeriod
from fairlead.slo.parse import objectives_toml, parse_objectives, read_objectives
from fairlead.slo.rules import prometheus_rules

__all__ = [
    "BurnRateAlert",
    "BurnRateMonitor",
    "CalendarPeriod",
    "Counters",
    "ErrorBudget",
    "LatencyBuckets",
    "Objective",
    "RollingPeriod",
    "alerts_of",
    "budget_from_events",
    "objectives_toml",
    "parse_objectives",
    "prometheus_rules",
    "read_objectives",
]
