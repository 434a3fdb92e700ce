from __future__ import annotations

from fairlead.clock import ManualClock
from fairlead.inference.cost import CostWindow


def test_median_and_p99_are_of_the_window() -> None:
    clock = ManualClock()
    costs = CostWindow(clock)
    for number in range(1, 101):
        costs.observe(number / 1000)
        clock.advance(0.001)
    clock.advance(2.0)
    costs.observe(0.101)
    assert (costs.median, costs.p99) == (0.051, 0.1)


def test_figures_older_than_the_horizon_are_forgotten_at_the_next_one() -> None:
    clock = ManualClock()
    costs = CostWindow(clock)
    for _ in range(50):
        costs.observe(0.5)
    clock.advance(10.5)
    assert costs.age() == 10.5
    costs.observe(0.001)
    assert (costs.median, costs.p99) == (0.001, 0.001)
