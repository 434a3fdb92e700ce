"""A plan that contradicts itself is refused before there are data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.experiment import ExperimentPlan, Fairness, Margin, Stage, read_calendar
from fairlead.experiment.calendar import confounded
from fairlead.metrics import Metric

ROUNDS = Metric.from_column("rounds", "mean", "rounds")
PLAN = ExperimentPlan(name="p", metrics=(ROUNDS, Metric.from_column("kept", "proportion", "kept")))


def test_the_first_metric_decides_where_all_are_ad_hoc() -> None:
    assert PLAN.primary is ROUNDS


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metrics": ()}, "1 to 50 metrics"),
        ({"metrics": (ROUNDS, ROUNDS)}, "each name once"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 0.6}, "alpha"),
        ({"power": float("nan")}, "power"),
        ({"caps": {"rounds": 1.0}}, "cap of rounds"),
        ({"caps": {"nobody": 0.9}}, "'nobody' is none of the metrics rounds, kept"),
        ({"covariates": {"nobody": ("x",)}}, "covariates"),
        ({"margins": {"nobody": Margin(by=0.1)}}, "margins"),
        ({"fairness": (Fairness(metric="nobody", group="g"),)}, "fairness"),
        ({"segments": ("a", "a")}, "each once"),
        ({"segments": ("variant",)}, "segment 'variant': units have a grouping of that name"),
        ({"fairness": (Fairness(metric="kept", group="stage"),)}, "segment 'stage'"),
        ({"shares": {"control": -1.0}}, "share of control"),
        ({"planned_units": 1}, "planned_units"),
        ({"conversion_window": 0.0}, "conversion_window"),
        ({"stages": (Stage(start=float("nan"), shares={}),)}, "start of a stage"),
        ({"stages": (Stage(start=2.0, shares={}), Stage(start=1.0, shares={}))}, "order of their starts"),
        ({"stages": (Stage(start=1.0, shares={}, end=1.0),)}, "stage 1: it opens at 1 and ends at 1"),
        ({"stages": (Stage(start=1.0, shares={}, end=float("nan")),)}, "end of a stage"),
        ({"stages": (Stage(start=1.0, shares={}, settle=-1.0),)}, "settle of a stage"),
        ({"stages": (Stage(start=1.0, shares={}, end=9.0, settle=8.0),)}, "opens at 9 and ends at 9"),
        (
            {"stages": (Stage(start=1.0, shares={}, end=3.0), Stage(start=2.0, shares={}))},
            "ends before the next one starts",
        ),
        (
            {"stages": (Stage(start=1.0, shares={}, settle=1.0), Stage(start=2.0, shares={}))},
            "stage 1: it opens at 2 and ends at 2",
        ),
    ],
)
def test_a_contradiction_is_named(change: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        dataclasses.replace(PLAN, **change)  # type: ignore[arg-type]  # wrong on purpose


def test_a_variant_that_the_plan_does_not_know_is_refused() -> None:
    plan = dataclasses.replace(PLAN, shares={"control": 9.0, "treatment": 1.0})
    assert plan.shares_of(["control"]) == {"control": 9.0, "treatment": 1.0}
    with pytest.raises(InvalidInput, match="variants typo have no share"):
        plan.shares_of(["control", "typo"])


def test_variants_but_control_share_what_treatment_is_to_have() -> None:
    plan = ExperimentPlan(
        name="p", metrics=(Metric.from_column("v", "mean", "v"),), control="old", treatment_share=0.4
    )
    assert plan.shares_of(["a", "b", "old"]) == {"old": 0.6, "a": 0.2, "b": 0.2}
    with pytest.raises(InvalidInput, match="treatment_share beside shares"):
        dataclasses.replace(plan, shares={"old": 1.0, "a": 1.0})


def test_a_relative_margin_of_one_is_a_slip_of_the_pen() -> None:
    with pytest.raises(InvalidInput, match="not below 1"):
        Margin(by=2.0)
    assert Margin(by=2.0, relative=False).by == 2.0


CALENDAR = """
[[entries]]
kind = "promotion"
what = "black week"
start = 2026-11-23
end = 2026-11-29

[[entries]]
kind = "deploy"
what = "new player in treatment"
start = 2026-11-25T12:00:00Z
variant = "treatment"
"""


def test_calendar_says_what_fell_into_the_experiment(tmp_path: Path) -> None:
    path = tmp_path / "calendar.toml"
    path.write_text(CALENDAR)
    entries = read_calendar(path)
    day = 86400.0
    start = 1763856000.0 + 365 * day  # 2026-11-23, 00:00 UTC
    found = confounded(entries, start + 2 * day, start + 4 * day)
    assert [one.entry.what for one in found] == ["new player in treatment", "black week"]
    assert "concerned treatment alone" in found[0].message
    assert (found[1].share, found[0].share) == (1.0, 0.0)
    assert (
        confounded(entries, start + 7 * day, start + 8 * day) == ()
    )  # the last day is included, the next is not
    assert [one.entry.what for one in confounded(entries, start + 6.9 * day, start + 8 * day)] == [
        "black week"
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[entries]]\nkind = 'party'\nwhat = 'x'\nstart = 2026-01-01\n", "party"),
        (
            "[[entries]]\nkind = 'other'\nwhat = 'x'\nstart = 2026-01-02\nend = 2026-01-01\n",
            "ends before it starts",
        ),
        ("[[entries]]\nkind = 'other'\nwhat = 'x'\nstrat = 2026-01-02\n", "strat|start"),
        ("nonsense", "no calendar"),
        ("x = " + "[" * 5000, "no calendar"),
    ],
)
def test_a_bad_calendar_is_refused_with_its_name(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "calendar.toml"
    path.write_text(text)
    with pytest.raises(BrokenDocument, match=said) as refused:
        read_calendar(path)
    assert str(path) in str(refused.value)


def test_a_calendar_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BrokenDocument, match=r"gone\.toml: cannot be read"):
        read_calendar(tmp_path / "gone.toml")
