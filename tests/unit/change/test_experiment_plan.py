"""From a change file to the plan of its experiment: what the file leaves open has one meaning."""

from __future__ import annotations

import msgspec
import pytest

from fairlead.change import parse_change
from fairlead.change.experiment import experiment_plan, stages_of, written_spreads
from fairlead.change.rollout import rollout_plan
from fairlead.errors import InvalidInput
from fairlead.experiment import Margin, Spread, Trigger

FILE = """
[change]
name = "player"

[metrics.watch]
role = "primary"
kind = "total"
event = "watched"
field = "seconds"
unit = "seconds"
unit_of_analysis = "user"
unit_field = "user"
side = "client"
window = "7d"
segment = "everybody"
better = "higher"
baseline = 100.0
standard_deviation = 50.0

[metrics.errors]
role = "guardrail"
kind = "proportion"
event = "watched"
field = "failed"
unit = "ratio"
unit_of_analysis = "user"
unit_field = "user"
side = "client"
window = "7d"
segment = "everybody"
better = "lower"
baseline = 0.01

[metrics.likes]
role = "guardrail"
kind = "proportion"
event = "watched"
field = "liked"
unit = "ratio"
unit_of_analysis = "user"
unit_field = "user"
side = "client"
window = "7d"
segment = "everybody"
better = "higher"
baseline = 0.3

[metrics.p99]
role = "secondary"
kind = "quantile"
q = 0.99
event = "load_sample"
field = "latency_seconds"
unit = "seconds"
unit_of_analysis = "request"
side = "client"
window = "phase"
segment = "all requests"
better = "lower"
design = "load_test"

[rollout]
flag = "player_path"
stages = [{ audience = "internal", bake = "1h" }, { share = 0.05, bake = "12h" }, { share = 1.0 }]

[[rollout.guardrails]]
metric = "errors"
worse_by = "0.2 pp"

[[rollout.guardrails]]
metric = "errors"
worse_by = "0.1 pp"

[experiment]
unit = "user"
mde = 0.02
units_per_day = 1000
days = 14
covariate = "last_week"
pre_period = "14d"
conversion_window = "7d"
segments = ["country"]
non_inferiority = 0.03
caps = { watch = 0.999 }
fairness = [{ metric = "likes", group = "language" }]

[experiment.trigger]
event = "opened"
unit_field = "user"
where = 'page == "player"'
"""


def test_the_plan_is_what_the_file_says() -> None:
    plan = experiment_plan(parse_change(FILE.encode()))
    assert [metric.name for metric in plan.metrics] == [
        "watch",
        "errors",
        "likes",
    ]  # a load test is no experiment
    assert plan.primary.name == "watch"
    assert (plan.flag, plan.planned_units, plan.mde) == ("player_path", 14_000, 0.02)
    assert (plan.conversion_window, plan.pre_period) == (7 * 86400.0, 14 * 86400.0)
    assert plan.margins == {"errors": Margin(by=0.001, relative=False), "likes": Margin(by=0.03)}
    assert plan.covariates == dict.fromkeys(("watch", "errors", "likes"), ("last_week",))
    assert plan.caps == {"watch": 0.999}
    assert plan.trigger == Trigger(event="opened", unit_field="user", where='page == "player"')
    assert plan.fairness[0].group == "language"
    assert plan.group_columns == ("country", "language")


def test_flag_and_control_are_those_of_the_rollout() -> None:
    file = parse_change(FILE.replace('flag = "player_path"', 'control = "old"\ntreatment = "new"').encode())
    assert experiment_plan(file).flag == rollout_plan(file).flag == file.change.name
    assert experiment_plan(file).control == rollout_plan(file).control == "old"


def test_another_control_than_the_rollouts_is_refused() -> None:
    text = FILE.replace('unit = "user"\nmde', 'control = "old"\nunit = "user"\nmde')
    with pytest.raises(InvalidInput, match=r"experiment\.control is 'old', and rollout\.control 'control'"):
        experiment_plan(parse_change(text.encode()))
    alone = parse_change(text.encode())
    assert experiment_plan(msgspec.structs.replace(alone, rollout=None)).control == "old"


def test_the_tightest_of_limits_in_percent_and_in_points_is_found_by_the_baseline() -> None:
    mixed = FILE.replace('worse_by = "0.2 pp"', 'worse_by = "5 %"')  # of 1 %: 0.05 pp
    assert experiment_plan(parse_change(mixed.encode())).margins["errors"] == Margin(by=0.05)
    with pytest.raises(
        InvalidInput, match=r"metrics\.errors: limits in points and in percent, and no baseline"
    ):
        experiment_plan(parse_change(mixed.replace("baseline = 0.01\n", "").encode()))


def test_arms_are_to_be_as_large_as_the_split_says() -> None:
    uneven = experiment_plan(
        parse_change(FILE.replace('unit = "user"\nmde', 'split = 0.2\nunit = "user"\nmde').encode())
    )
    assert uneven.shares_of(["control", "new"]) == {"control": 0.8, "new": 0.2}


def test_stages_are_those_with_somebody_to_compare_with() -> None:
    assert stages_of(parse_change(FILE.encode())) == [(0.05, 0.5), (0.5, 14.0)]


def test_spreads_that_were_written_by_hand() -> None:
    spreads = written_spreads(parse_change(FILE.encode()))
    assert spreads["watch"] == Spread(figure=100.0, deviation=50.0)
    errors = spreads["errors"]
    assert isinstance(errors, Spread)
    assert errors.deviation == pytest.approx(0.0995, abs=1e-4)
    assert spreads["p99"] == "no baseline above 0 in the change file; give history by --data"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[experiment]", "[experimen]", "experimen"),
        ('conversion_window = "7d"', 'conversion_window = "a week"', "duration 'a week'"),
        ('metric = "likes", group', 'metric = "hearts", group', "'hearts' is none of the metrics"),
        ("caps = { watch = 0.999 }", "caps = { watch = 99.9 }", "cap of watch"),
        ("caps = { watch = 0.999 }", "caps = { wacth = 0.999 }", "caps: 'wacth' is none of the metrics"),
        (
            'side = "client"\nwindow = "7d"',
            'design = "load_test"\nside = "client"\nwindow = "7d"',
            "no metric has the design",
        ),
    ],
)
def test_what_contradicts_itself_is_named(old: str, new: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        experiment_plan(parse_change(FILE.replace(old, new).encode()))


def test_a_file_without_an_experiment_has_no_plan() -> None:
    change = parse_change(b'[change]\nname = "x"\n')
    with pytest.raises(InvalidInput, match=r"no \[experiment\]"):
        experiment_plan(change)
