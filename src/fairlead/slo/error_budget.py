"""How much may still go wrong: the budget of a period, what was spent of it, and on what.

A budget is counted in events: 0.1 % of those that were valid. Minutes are how people think of it, and say how long a
full outage would have spent as much. Without events nothing was spent, and nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fairlead.errors import InvalidInput
from fairlead.metrics import Window
from fairlead.metrics.source import Source
from fairlead.slo.objective import Objective

__all__ = ["ErrorBudget", "budget_from_events"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorBudget:
    """The budget of one objective over the events of a span.

    >>> from decimal import Decimal
    >>> from fairlead.slo.objective import RollingPeriod
    >>> feed = Objective(name="feed", title="Feed", target=Decimal("0.999"), period=RollingPeriod(seconds=30 * 86400.0),
    ...                  event="request_finished", good="status < 500", owner="feed", runbook="https://runbooks/feed")
    >>> budget = ErrorBudget(objective=feed, valid=1_000_000, bad=250, causes={"timeout": 200, "error": 50})
    >>> budget.spent, budget.remaining, round(budget.remaining_minutes, 1)
    (0.25, 0.75, 32.4)
    """

    objective: Objective
    valid: float
    """Valid events in the span."""
    bad: float
    """Of these, those that were not good."""
    causes: Mapping[str, float] = field(default_factory=dict)
    """Bad events by cause; they add up to `bad`."""
    window: Window | None = None
    """The span; None: not said."""
    caveats: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("valid", "bad"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InvalidInput(f"{self.objective.name}: {name} {value!r} is not a count of events")
        if self.bad > self.valid * (1 + 1e-9):
            raise InvalidInput(f"{self.objective.name}: {self.bad:g} bad of {self.valid:g} valid events")

    @property
    def observed(self) -> float | None:
        """The share of good events, 0–1; None without events."""
        return 1 - self.bad / self.valid if self.valid else None

    @property
    def allowed(self) -> float:
        """Events that may be bad among those there were."""
        return float(self.objective.budget) * self.valid

    @property
    def spent(self) -> float | None:
        """Of the budget, as a ratio; above 1 it is overdrawn. None without events."""
        return self.bad / self.allowed if self.allowed else None

    @property
    def remaining(self) -> float | None:
        """1 − spent."""
        return None if self.spent is None else 1 - self.spent

    @property
    def remaining_minutes(self) -> float | None:
        """Minutes of a full outage that are left in a period."""
        return None if self.remaining is None else self.remaining * self.objective.budget_minutes

    def spent_by(self) -> dict[str, float]:
        """Of the budget, by cause, the largest first; ratios that add up to `spent`."""
        if not self.allowed:
            return {}
        return {
            cause: count / self.allowed
            for cause, count in sorted(self.causes.items(), key=lambda one: -one[1])
            if count
        }


def budget_from_events(objective: Objective, source: Source, *, now: float) -> ErrorBudget:
    """The budget at a moment, from the events of a source such as a `Warehouse`. Blocks; raises what it raises."""
    window = objective.period.window(now)
    by = [objective.cause] if objective.cause else []
    metric = objective.metric()
    family = source.measure([metric], by=by, window=window)
    valid, bad = 0.0, 0.0
    causes: dict[str, float] = {}
    ratio = family.ratio(metric.name)
    for group, moments in family.moments[metric.name].items():
        if not moments.n:
            continue
        if ratio is None:
            events = float(moments.n)
            good = moments.mean(family.columns[metric.name][0]) * moments.n
        else:  # with a condition on what is valid, or with weights: sums of both
            good, events = (moments.mean(column) * moments.n for column in ratio)
        valid += events
        missed = max(0.0, events - good)
        bad += missed
        if by:
            causes[group[0] or "(none)"] = causes.get(group[0] or "(none)", 0.0) + missed
    caveats = (*family.caveats.get(metric.name, ()), *family.caveats.get("", ()))
    return ErrorBudget(
        objective=objective, valid=valid, bad=min(bad, valid), causes=causes, window=window, caveats=caveats
    )
