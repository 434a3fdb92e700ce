"""The long run behind docs/reference/calibration.md: 20,000 simulated experiments of every scenario."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

from tests.calibration.scenarios import SCENARIOS, measured

EXPERIMENTS = 20_000


def test_every_estimator_keeps_its_promise() -> None:
    with ProcessPoolExecutor() as pool:
        rows = list(pool.map(measured, range(len(SCENARIOS)), [EXPERIMENTS] * len(SCENARIOS)))
    assert [row for row in rows if not row.ok] == []
