"""Every estimator keeps its promise in simulated experiments: 1,000 of each here, 20,000 in `make soak`.

Scenarios, seeds and tolerances lie in tests/calibration; docs/reference/calibration.md prints the long runs.
"""

from __future__ import annotations

import pytest

from tests.calibration.row import Scenario, measure, row
from tests.calibration.scenarios import SCENARIOS

EXPERIMENTS = 1_000


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: f"{s.estimator}: {s.data}: {s.quantity}")
def test_the_promise_is_kept(scenario: Scenario) -> None:
    found = measure(scenario, EXPERIMENTS)
    assert found.ok, f"{found.measured:.3f} ({found.low:.3f} to {found.high:.3f}) for {found.nominal:.3f}"


def test_a_broken_promise_is_seen() -> None:
    scenario = SCENARIOS[0]
    assert row(scenario, 50, EXPERIMENTS).ok
    assert not row(scenario, 100, EXPERIMENTS).ok  # 10 % false alarms at 5 %
    assert not row(scenario, 20, EXPERIMENTS).ok


def test_seeds_are_not_shared() -> None:
    assert len({scenario.seed for scenario in SCENARIOS}) == len(SCENARIOS)
