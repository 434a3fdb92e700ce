"""From a change file to the plan of its rollout: every key arrives, and what cannot work is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairlead.change import parse_change
from fairlead.change.incident import add_incident
from fairlead.change.rollout import rollout_plan
from fairlead.errors import InvalidInput
from fairlead.rollout import RolloutPlan

METRIC = """
role = "guardrail"
kind = "{kind}"
event = "request_finished"
field = "{field}"
unit = "{unit}"
unit_of_analysis = "user"
unit_field = "targeting_key"
side = "server"
window = "10m"
segment = "all requests"
better = "lower"
"""
HEAD = (
    '[change]\nname = "feed"\n[metrics.errors]'
    + METRIC.format(kind="proportion", field="status >= 500", unit="ratio")
    + "[metrics.p99]\nq = 0.99"
    + METRIC.format(kind="quantile", field="latency_seconds", unit="seconds")
)
ROLLOUT = """
[rollout]
flag = "feed_path"
alpha = 0.01
advance_on = "no_harm_seen"
look_every = "30s"
stale_after = "2m"
silence = "10m"
patience = "2d"
treatment = "new"
control = "old"
dependencies = ["labels"]
stages = [
    { audience = "internal", bake = "1h" },
    { share = 0.05, bake = "6h", longest = "12h", minimum_units = 100, gate = "manual" },
    { share = 1.0 },
]
"""


def made(rollout: str) -> RolloutPlan:
    return rollout_plan(parse_change((HEAD + rollout).encode()))


def test_every_key_of_the_file_is_in_the_plan() -> None:
    plan = made(
        ROLLOUT + '[[rollout.guardrails]]\nmetric = "errors"\nworse_by = "0.2 pp"\nrunbook = "book"\n'
    )
    assert (plan.name, plan.flag, plan.alpha, plan.advance_on) == ("feed", "feed_path", 0.01, "no_harm_seen")
    assert (plan.look_every, plan.stale_after, plan.silence, plan.patience) == (30.0, 120.0, 600.0, 172_800.0)
    assert (plan.treatment, plan.control, plan.dependencies) == ("new", "old", ("labels",))
    internal, five, everybody = plan.stages
    assert (internal.audience, internal.share, internal.bake, internal.most) == (
        "internal",
        0.0,
        3_600.0,
        10_800.0,
    )
    assert (five.share, five.most, five.minimum_units, five.gate) == (0.05, 43_200.0, 100, "manual")
    assert (everybody.share, everybody.bake) == (1.0, 0.0)
    (rail,) = plan.guardrails
    assert (rail.worse_by, rail.relative, rail.runbook) == (0.002, False, "book")


def test_a_burn_rate_is_a_limit_on_errors() -> None:
    (rail,) = made(
        ROLLOUT + '[[rollout.guardrails]]\nmetric = "errors"\nburn_rate = 14.4\ntarget = 0.999\nfor = "5m"'
    ).guardrails
    assert (rail.above, rail.for_seconds) == (0.0144, 300.0)


def test_a_query_reaches_the_guardrail() -> None:
    (rail,) = made(
        ROLLOUT + '[[rollout.guardrails]]\nmetric = "errors"\nabove = 0.1\nfor = "1m"\nquery = "up"'
    ).guardrails
    assert rail.query == "up"


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("canary", ["errors above 0.003 for 60 s", "p99 worse_by 10 %"]),
        ("latency_budget", ["errors above 0.005 for 600 s", "p99 above 0.15 for 600 s"]),
        ("availability", ["errors above 0.005 for 600 s"]),
        ("sustained_latency", ["p99 worse_by 20 %"]),
    ],
)
def test_a_preset_is_its_guardrails(name: str, limits: list[str]) -> None:
    plan = made(
        ROLLOUT + f'[[rollout.presets]]\nname = "{name}"\nerrors = "errors"\nlatency = "p99"\nrunbook = "b"'
    )
    assert [rail.name for rail in plan.guardrails] == limits
    assert {rail.runbook for rail in plan.guardrails} == {"b"}


@pytest.mark.parametrize(
    ("rollout", "said"),
    [
        ("", r"no \[rollout\]"),
        (ROLLOUT, "give 1 to 50 guardrails"),
        (ROLLOUT + '[[rollout.presets]]\nname = "brave"', "there are canary, latency_budget"),
        (ROLLOUT + '[[rollout.presets]]\nname = "canary"\nerrors = "p99"', "needs errors, the name of a proportion"),
        (ROLLOUT + '[[rollout.presets]]\nname = "canary"\nerrors = "nothing"', "'nothing' is no metric of this file"),
        (ROLLOUT + '[[rollout.guardrails]]\nmetric = "nothing"\nabove = 1.0', "'nothing' is no metric of this file"),
        (ROLLOUT + '[[rollout.guardrails]]\nmetric = "errors"\nburn_rate = 2.0', "burn_rate needs a target"),
        (ROLLOUT.replace("30s", "soon") + '[[rollout.guardrails]]\nmetric = "p99"\nabove = 1.0', "look_every: dur"),
        (ROLLOUT + '[[rollout.guardrails]]\nmetric = "p99"\nworse_by = "1 pp"', "a quantile is compared by its ratio"),
    ],
    ids=["none", "no guardrail", "preset", "kind", "preset metric", "metric", "target", "duration", "points"],
)  # fmt: skip
def test_what_cannot_work_is_named(rollout: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        made(rollout)


def test_an_incident_is_added_and_nothing_else_touched(tmp_path: Path) -> None:
    path = tmp_path / "feed.toml"
    path.write_text(HEAD + ROLLOUT + "# a last word", encoding="utf-8")
    path.chmod(0o640)
    add_incident(path, at="2026-11-27 20:00:00 UTC", what='errors "40 %"\nof treatment\x7f')
    text = path.read_text(encoding="utf-8")
    assert text.startswith(HEAD + ROLLOUT + "# a last word\n")
    (incident,) = parse_change(text.encode()).incidents
    assert (incident.at, incident.what) == ("2026-11-27 20:00:00 UTC", 'errors "40 %" of treatment ')
    assert path.stat().st_mode & 0o777 == 0o640
    add_incident(path, at="2026-11-28", what="again")
    assert len(parse_change(path.read_bytes()).incidents) == 2
