from __future__ import annotations

import numpy as np
import pytest

from fairlead.errors import InvalidInput
from fairlead.lab import Samples
from fairlead.trial import Settings, load_system
from fairlead_systems.remote_config.figures import METRICS, TARGETS, measure
from fairlead_systems.remote_config.mechanisms import MECHANISMS
from fairlead_systems.remote_config.schema import PAGE
from fairlead_systems.remote_config.system import KILLED, front_of, make_plan, services_of
from fairlead_systems.remote_config.table import Change
from fairlead_systems.remote_config.world import SEGMENTS, USERS, World

SYSTEM = load_system("remote_config")


def test_short_run_is_played_within_half_a_minute():
    assert make_plan(Settings(quick=True)).seconds <= 30
    assert make_plan(Settings()).seconds <= 100


def test_every_fault_begins_after_a_calm_as_long_as_the_clients_patience():
    for settings in (Settings(), Settings(quick=True)):
        plan = make_plan(settings)
        by_name = {phase.name: phase for phase in plan.phases}
        for fault in ("hung", *KILLED):
            calm = by_name[f"before_{fault}"]
            assert calm.seconds >= plan.patience
            assert not calm.measured


def test_control_is_three_processes_and_every_other_arm_one():
    control, treatment, ablated = make_plan(Settings(ablate=("cached_response",))).arms
    assert services_of(control) == ("profile-control", "rules-control", "assembly-control")
    assert (services_of(treatment), front_of(treatment)) == (("config-treatment",), "config-treatment")
    assert services_of(ablated) == ("config-without-cached_response",)


def test_all_takes_every_mechanism_in_turn():
    arms = make_plan(Settings(ablate=("all",))).arms
    assert [arm.without for arm in arms[2:]] == [(each.name,) for each in MECHANISMS]


@pytest.mark.parametrize("ablate", [("batching",), ("cached_response", "cached_response"), ("",)])
def test_mechanism_that_it_does_not_have_is_refused(ablate):
    with pytest.raises(InvalidInput):
        SYSTEM.plan(Settings(ablate=ablate))


def test_redis_is_refused_rather_than_ignored():
    with pytest.raises(InvalidInput, match="leave --redis out"):
        SYSTEM.plan(Settings(redis="redis://127.0.0.1:6379/0"))


def test_world_is_a_function_of_the_seed():
    assert list(World(1).changes()) == list(World(1).changes())
    assert list(World(1).changes()) != list(World(2).changes())


def test_world_has_users_with_a_segment_with_settings_of_their_own_and_with_neither():
    known = {user: (segment, own) for user, segment, own in World(1).users()}
    assert 0.55 * USERS < sum(bool(segment) for segment, _ in known.values()) < 0.65 * USERS
    assert 0.03 * USERS < sum(bool(own) for _, own in known.values()) < 0.07 * USERS
    assert len(known) < USERS
    assert {segment for segment, _ in known.values() if segment} == set(SEGMENTS)


def test_world_fits_the_schema():
    for change in World(1, users=500).changes():
        assert isinstance(change, Change)
        PAGE.encode(change.name, change.value)


def test_every_target_is_of_a_metric_and_a_phase_that_there_are():
    names = {metric.name for metric in METRICS} | {"latency_p50", "latency_p99", "errors", "timeouts"}
    phases = {phase.name for phase in make_plan(Settings()).phases if phase.measured} | {"run"}
    for phase, target in TARGETS:
        assert target.metric.name in names
        assert phase in phases


def _samples(n: int, *, age: float = 0.3, staleness: float = 0.0, degraded: float = 0.0) -> Samples:
    zeros = np.zeros(n)
    return Samples(
        offset=np.linspace(0, 1, n),
        lag=zeros,
        latency=zeros + 0.01,
        status=np.full(n, 200, dtype=np.int16),
        ending=np.zeros(n, dtype=np.uint8),
        failure=np.zeros(n, dtype=np.uint8),
        key=np.zeros(n, dtype=np.int64),
        user=np.zeros(n, dtype=np.int64),
        headers={"degraded": zeros + degraded, "staleness": zeros + staleness, "age": zeros + age},
    )


_WINDOW = {"calls": 300.0, "queries": 200.0, "processes": 3.0, "connections": 5.0, "cpu_seconds": 0.25}


def _figures(phase_name: str, samples: Samples) -> dict[str, object]:
    plan = make_plan(Settings())
    phase = next(phase for phase in plan.phases if phase.name == phase_name)
    window = _WINDOW | {"memory_bytes": 1e8}
    found = measure(plan.arms[0], phase, [window], samples, np.zeros(len(samples), dtype=np.int64))
    return {figure.metric: figure.value for figure in found}


def test_figures_are_what_was_observed_per_request():
    figures = _figures("normal", _samples(100))
    assert figures["calls"] == 3.0
    assert figures["queries"] == 2.0
    assert figures["cpu"] == 2.5
    assert figures["staleness_violations"] == 0.0
    assert set(figures) == {metric.name for metric in METRICS}


def test_counters_that_died_with_their_process_make_no_figure():
    for phase in KILLED:
        assert "calls" not in _figures(phase, _samples(100))


def test_stale_answer_beyond_the_bound_counts_unless_it_says_that_it_is_degraded():
    assert _figures("hung", _samples(10, staleness=1.5))["staleness_violations"] == 10.0
    assert _figures("hung", _samples(10, staleness=1.5, degraded=1.0))["staleness_violations"] == 0.0


def test_phase_without_requests_has_figures_with_a_reason_and_no_nan():
    plan = make_plan(Settings())
    for figure in measure(
        plan.arms[0],
        plan.phases[1],
        [_WINDOW | {"memory_bytes": 1e8}],
        _samples(0),
        np.zeros(0, dtype=np.int64),
    ):
        assert figure.value is not None or figure.caveat
