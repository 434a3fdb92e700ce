"""Every estimator keeps its promise in simulated experiments: 1,000 of each here, 20,000 in `make soak`.

Scenarios, seeds and tolerances lie in tests/calibration; docs/reference/calibration.md prints the long runs.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tests.calibration.row import Row, row
from tests.calibration.scenarios import SCENARIOS, measured

EXPERIMENTS = 1_000


@pytest.fixture(scope="module")
def rows() -> dict[int, Row]:
    """Every scenario, measured by as many processes as there are cores."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        found = pool.map(measured, range(len(SCENARIOS)), [EXPERIMENTS] * len(SCENARIOS))
        return dict(enumerate(found))


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "number", range(len(SCENARIOS)), ids=lambda n: f"{SCENARIOS[n].estimator}: {SCENARIOS[n].data}"
)
def test_the_promise_is_kept(number: int, rows: dict[int, Row]) -> None:
    found = rows[number]
    assert found.ok, f"{found.measured:.3f} ({found.low:.3f} to {found.high:.3f}) for {found.nominal:.3f}"


def test_a_broken_promise_is_seen() -> None:
    scenario = SCENARIOS[0]
    assert row(scenario, 50, EXPERIMENTS).ok
    assert not row(scenario, 100, EXPERIMENTS).ok  # 10 % false alarms at 5 %
    assert not row(scenario, 20, EXPERIMENTS).ok


def test_seeds_are_not_shared() -> None:
    assert len({scenario.seed for scenario in SCENARIOS}) == len(SCENARIOS)
