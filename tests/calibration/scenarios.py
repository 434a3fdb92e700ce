"""All scenarios, in the order of the table."""

from __future__ import annotations

from tests.calibration import fixed, sequential
from tests.calibration.row import Row, Scenario, measure

SCENARIOS: tuple[Scenario, ...] = (*fixed.SCENARIOS, *sequential.SCENARIOS)


def measured(number: int, experiments: int) -> Row:
    """The row of one scenario, by number: scenarios hold closures, and cannot travel to another process."""
    return measure(SCENARIOS[number], experiments)
