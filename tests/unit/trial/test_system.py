"""How a system is found, and which plans and settings are refused."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest

from fairlead.errors import InvalidInput, UnknownSystem
from fairlead.trial import Arm, Phase, Plan, Settings, find_systems, load_system
from fairlead.trial import system as system_module


def test_installed_systems_are_found_without_being_imported():
    points = find_systems()
    assert "home_feed" in points
    assert all(isinstance(point, EntryPoint) for point in points.values())


def test_system_is_loaded_by_name():
    system = load_system("home_feed")
    assert system.name == "home_feed"
    assert system.title == "Home feed"


@pytest.mark.parametrize("name", ["home-feed", "home_fed", "HOME_FEED"])
def test_near_miss_gets_the_name_that_was_meant(name: str):
    try:
        load_system(name)
    except UnknownSystem as error:
        message = str(error)
    else:
        pytest.fail("was found")
    assert repr(name) in message
    if name != "HOME_FEED":  # too far off to be guessed
        assert "did you mean 'home_feed'?" in message
    assert "home_feed" in message
    assert "fairlead try --list" in message


def test_name_unlike_any_gets_the_list_and_a_long_one_is_cut():
    with pytest.raises(UnknownSystem, match="installed: home_feed") as caught:
        load_system("x" * 10_000)
    assert len(str(caught.value)) < 200


def test_machine_without_systems_says_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(system_module, "entry_points", lambda group: ())
    with pytest.raises(UnknownSystem, match="installed: none"):
        load_system("home_feed")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("seed", 2**32),
        ("seed", True),
        ("seed", 1.5),
        ("rate", float("nan")),
        ("rate", float("inf")),
        ("rate", 0),
        ("rate", -5.0),
        ("rate", 5001),
        ("rate", True),
        ("port", -1),
        ("port", 65536),
        ("cycles", 0),
        ("cycles", 10_001),
        ("cycles", True),
    ],
)
def test_setting_out_of_range_is_refused_by_name(field: str, value: object):
    with pytest.raises(InvalidInput, match=f"^{field} "):
        Settings(**{field: value})  # type: ignore[arg-type]  # the wrong value is the point


PLAN = Plan(
    arms=(Arm(name="control", variant="control"), Arm(name="treatment", variant="treatment")),
    phases=(
        Phase(name="lead_in", title="lead-in", seconds=0.5, measured=False),
        Phase(name="calm", title="calm", seconds=1.5),
    ),
    cycles=3,
    rate=100.0,
    patience=1.0,
)


def test_plan_knows_how_long_it_takes():
    assert PLAN.cycle_seconds == 2.0
    assert PLAN.seconds == 12.0


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"arms": PLAN.arms[:1]}, "arms"),
        ({"arms": PLAN.arms[:1] * 2}, "arms"),
        ({"phases": ()}, "phases"),
        ({"phases": PLAN.phases[:1]}, "phases"),
        ({"phases": PLAN.phases[1:] * 2}, "phases"),
        ({"phases": (Phase(name="run", title="run", seconds=1.0),)}, "phases"),
        ({"phases": (Phase(name="calm", title="calm", seconds=float("nan")),)}, "seconds of phase calm"),
        ({"phases": (Phase(name="calm", title="calm", seconds=0.0),)}, "seconds of phase calm"),
        ({"cycles": 0}, "cycles"),
        ({"rate": 0.0}, "rate"),
        ({"rate": float("inf")}, "rate"),
        ({"patience": -1.0}, "patience"),
        ({"primary": "errors"}, "primary"),
        ({"primary": "latency_p42"}, "primary"),
    ],
)
def test_plan_that_cannot_be_played_is_refused_by_name(wrong: dict[str, object], named: str):
    with pytest.raises(InvalidInput, match=f"^{named}"):
        replace(PLAN, **wrong)  # type: ignore[arg-type]  # the wrong value is the point
