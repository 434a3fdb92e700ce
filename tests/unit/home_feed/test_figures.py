"""The home feed's own figures, from counters and rows that can be summed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fairlead.lab import Ending, Samples
from fairlead.trial import Arm, Phase
from fairlead.trial.result import Figure
from fairlead_systems.home_feed import figures as figures_module
from fairlead_systems.home_feed import treatment as treatment_module
from fairlead_systems.home_feed.figures import METRICS, measure

ARM = Arm(name="treatment", variant="treatment")
NORMAL = Phase(name="normal", title="normal", seconds=2.0)
WINDOW = {
    "origin_calls": 10.0,
    "origin_busy_seconds": 0.5,
    "origin_refused": 0.0,
    "busiest": 0.4,
    "hot_calls": 6.0,
    "hot_peak": 3.0,
    "hot_episodes": 2.0,
    "hot_first_seconds": 0.2,
    "cpu_seconds": 0.04,
    "memory_bytes": 1e8,
    "staleness:safety:zero": 12.0,
    "staleness:popularity:zero": 11.0,
    "staleness:popularity:-64": 1.0,
}


def rows(n: int, staleness: list[float] | float = 0.0) -> Samples:
    return Samples(
        offset=np.linspace(0.0, 1.9, n) if n else np.empty(0),
        lag=np.zeros(n),
        latency=np.full(n, 0.1),
        status=np.full(n, 200, dtype=np.int16),
        ending=np.full(n, Ending.OK, dtype=np.uint8),
        failure=np.zeros(n, dtype=np.uint8),
        key=np.zeros(n, dtype=np.int64),
        user=np.zeros(n, dtype=np.int64),
        headers={
            "degraded": np.zeros(n),
            "staleness": np.broadcast_to(np.asarray(staleness, dtype=np.float64), n).copy(),
            "age": np.full(n, 0.5),
        },
    )


def measured(samples: Samples, *windows: dict[str, float], phase: Phase = NORMAL) -> dict[str, Figure]:
    return {
        figure.metric: figure for figure in measure(ARM, phase, windows, samples, np.arange(len(samples)))
    }


def test_costs_are_summed_over_cycles_and_divided_by_requests():
    found = measured(rows(200), WINDOW, WINDOW)
    assert found["origin_calls"].value == pytest.approx(20 / 200)
    assert found["origin_work"].value == pytest.approx(1000 * 1.0 / 200)
    assert found["cpu"].value == pytest.approx(1000 * 0.08 / 200)
    assert found["memory"].value == 1e8
    assert found["herd_peak"].value == 3.0


def test_herd_is_set_beside_its_law():
    found = measured(rows(200), WINDOW, WINDOW)
    assert found["herd_loads"].value == pytest.approx(3.0)
    # λ = 200 requests in 2 cycles of 2 s, L = 0.1 s
    assert found["herd_law"].value == pytest.approx(1 + 50.0 * 0.1)


def test_topic_that_never_expired_has_no_herd_and_says_so():
    found = measured(rows(10), WINDOW | {"hot_episodes": 0.0})
    assert found["herd_loads"].value is None
    assert found["herd_law"].caveat == "the topic never expired"


def test_answers_beyond_the_bound_are_counted_and_the_bound_itself_is_allowed():
    found = measured(rows(4, [0.0, 0.4, 0.400001, 2.0]), WINDOW)
    assert found["staleness_violations"].value == 2.0
    assert found["staleness_max"].value == 2.0


def test_answers_that_do_not_say_how_stale_they_are_are_left_out():
    found = measured(rows(3, [float("nan"), 0.1, 0.2]), WINDOW)
    assert (found["staleness_max"].value, found["staleness_max"].n) == (0.2, 2)
    nothing = measured(rows(2, float("nan")), WINDOW)
    assert nothing["staleness_max"].value is None
    assert nothing["staleness_p99"].value is None


def test_phase_without_requests_has_figures_that_say_so():
    found = measured(rows(0), WINDOW)
    assert found["origin_calls"].value is None
    assert all(figure.caveat for figure in found.values() if figure.value is None)


def test_every_figure_has_its_definition():
    assert set(measured(rows(10), WINDOW)) == {metric.name for metric in METRICS}


def test_bound_that_is_promised_is_the_one_that_is_kept():
    assert figures_module.STALENESS_BOUND == treatment_module.STALENESS_BOUND


def test_staleness_of_a_field_is_the_feeds_own_histogram_over_all_cycles():
    found = measured(rows(10), WINDOW, WINDOW)
    assert (found["safety_staleness_max"].value, found["safety_staleness_max"].n) == (0.0, 24)
    assert found["popularity_staleness_p99"].value == pytest.approx(
        0.25, rel=0.03
    )  # bucket -64 ends at 2 ** -2


def test_arm_that_keeps_no_fields_says_so():
    control = {name: value for name, value in WINDOW.items() if not name.startswith("staleness:")}
    found = measured(rows(10), control)
    assert found["safety_staleness_max"].value is None
    assert found["safety_staleness_max"].caveat == "this arm keeps no such field"


@pytest.mark.parametrize(
    ("metric", "unit", "n"),
    [
        ("safety_staleness_max", "item", 24),
        ("popularity_staleness_p99", "item", 24),
        ("herd_loads", "expiry", 4),
        ("herd_law", "expiry", 4),
        ("herd_peak", "phase", 2),
        ("cpu", "request", 200),
    ],
)
def test_n_counts_what_the_definition_calls_an_observation(metric: str, unit: str, n: int):
    defined = {each.name: each for each in METRICS}[metric]
    assert defined.unit_of_analysis == unit
    assert measured(rows(200), WINDOW, WINDOW)[metric].n == n


def test_a_quantile_is_called_one():
    defined = {each.name: each for each in METRICS}["popularity_staleness_p99"]
    assert (defined.kind, defined.q) == ("quantile", 0.99)
