"""The change files that ship with the two systems: good by their own check, and one with what a run computes."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest

from fairlead.change import check_change, parse_change
from fairlead.change.sections import ChangeFile
from fairlead.metrics import Metric, Target
from fairlead.trial import Settings, load_metrics, load_system

ROOT = Path(__file__).resolve().parents[3]
SYSTEMS = ("home_feed", "remote_config")

pytestmark = pytest.mark.parametrize("system", SYSTEMS)


def content(system: str) -> bytes:
    return files(f"fairlead_systems.{system}").joinpath("change.toml").read_bytes()


def change(system: str) -> ChangeFile:
    return parse_change(content(system))


def targets(system: str) -> list[tuple[str, Target]]:
    return list(import_module(f"fairlead_systems.{system}.figures").TARGETS)


def watched(system: str) -> set[str]:
    """Metrics of the rollout, which has no load engine beside it."""
    rollout = change(system).rollout
    return {guardrail.metric for guardrail in rollout.guardrails} if rollout else set()


def test_nothing_is_left_to_mend(system: str) -> None:
    assert check_change(content(system)) == ()
    assert change(system).change.name == system


def test_a_metric_is_the_one_that_a_run_computes(system: str) -> None:
    played = load_system(system)
    plan = played.plan(Settings())
    computed: dict[str, Metric] = {
        metric.name: metric for metric in (*load_metrics(plan.patience, plan.primary), *played.metrics)
    }
    for metric in change(system).definitions():
        if metric.name not in watched(system):
            assert replace(metric, baseline=None, target=None) == computed[metric.name]


def test_what_a_run_is_judged_by_is_what_is_promised(system: str) -> None:
    judged = {target.metric.name for _, target in targets(system)}
    assert judged | watched(system) == set(change(system).metrics)


def test_the_primary_promise_is_the_same_in_both_places(system: str) -> None:
    primary = next(metric for metric in change(system).definitions() if metric.role == "primary")
    promise = next(
        target for phase, target in targets(system) if (phase, target.metric.name) == ("normal", primary.name)
    )
    assert primary.baseline is not None
    asked = primary.baseline * (promise.limit + (promise.relation == "relative_change"))
    assert primary.target == pytest.approx(asked, abs=0.0005)


def test_a_runbook_is_a_page_that_exists(system: str) -> None:
    rollout = change(system).rollout
    for guardrail in rollout.guardrails if rollout else ():
        assert (ROOT / guardrail.runbook).is_file()
