"""The error budget of each arm, from the run's own events: what the change would leave of it.

A run lasts minutes and a budget a month, so what is said is how fast the arm burned it: 1 spends it exactly in its
period. A run has more faults a minute than a month has, on purpose: the arms are compared with each other, and not
with the target.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fairlead.slo import ErrorBudget, budget_from_events
from fairlead.slo.rules import decimal_text

if TYPE_CHECKING:
    from fairlead.trial.system import System
    from fairlead.trial.walk import Recorded

__all__ = ["BudgetRecord", "budgets_of"]


class BudgetRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How one arm fared by one objective."""

    name: str
    """Of the objective."""
    objective: str
    """What was promised, in words."""
    definition: str
    """Of the share of good events, whole."""
    target: str
    """The share of good events that must be; exact, as it was written."""
    arm: str
    valid: int
    bad: int
    burn_rate: float | None
    """How many times too fast the budget burned; None without requests."""
    spent_by: dict[str, float]
    """The burn rate by how requests ended; adds up to it."""
    period: str
    evidence: str = ""
    """Id of the entry in the run's ledger that holds the burn rate."""


def budgets_of(system: System, recorded: Recorded, directory: Path) -> tuple[BudgetRecord, ...]:
    """Both arms by every objective of the system. Blocks."""
    objectives = system.objectives
    if not objectives or not recorded.turns:
        return ()
    from fairlead.metrics.warehouse import Warehouse

    measured = [phase.name for phase in recorded.plan.phases if phase.measured]
    listed = ", ".join(f'"{name}"' for name in measured)
    counted = f"phase in ({listed},)"
    # Those left out are few, and a condition has an end: it must not name all that were kept.
    left_out = sorted(set(range(recorded.plan.cycles)) - {turn.cycle for turn in recorded.turns})
    if left_out:
        counted += f" and not (cycle in ({', '.join(map(str, left_out))},))"
    source = Warehouse.of_events(directory / "events" / "load", "load_sample")
    records = []
    for objective in objectives:
        for arm in recorded.plan.arms[:2]:
            where = f'arm == "{arm.name}" and {counted}'
            if objective.where:
                where = f"({objective.where}) and {where}"
            one = replace(objective, where=where)
            # All there is, whatever the clock says: the run is the span.
            budget = budget_from_events(one, source, now=recorded.started_at + 86400.0)
            records.append(_record(budget, arm.name))
    return tuple(records)


def _record(budget: ErrorBudget, arm: str) -> BudgetRecord:
    objective = budget.objective
    return BudgetRecord(
        name=objective.name,
        objective=objective.title,
        definition=objective.metric().definition(),
        target=decimal_text(objective.target),
        arm=arm,
        valid=round(budget.valid),
        bad=round(budget.bad),
        burn_rate=budget.spent,
        spent_by=budget.spent_by(),
        period=str(objective.period),
    )
