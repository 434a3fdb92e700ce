"""`fairlead experiment` with files: a table, a change file with events, history."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fairlead.cli import main
from fairlead.cli.exit_codes import ExitCode
from fairlead.ledger import Ledger
from fairlead.store import Database

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fairlead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)

    def called(*words: str) -> tuple[int, str, str]:
        code = main(["experiment", *words])
        return code, *capsys.readouterr()

    return called


@pytest.fixture
def players(tmp_path: Path) -> Path:
    rng = np.random.default_rng(17)
    lines = ["player,arm,rounds,before,kept,country"]
    for player in range(6000):
        treated = rng.random() < 0.5
        before = rng.gamma(2.0, 10.0)
        rounds = before * rng.lognormal(0, 0.3) * (1.08 if treated else 1.0)
        kept = rng.random() < (0.15 if treated else 0.19)
        lines.append(
            f"{player},{'gate_40' if treated else 'gate_30'},{rounds:.2f},{before:.2f},{str(kept).upper()},"
            f"{rng.choice(['AT', 'DE'])}"
        )
    path = tmp_path / "players.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


ANALYZE = (
    "analyze", "--data", "players.csv", "--unit", "player", "--variant", "arm", "--control", "gate_30",
    "--metric", "kept:proportion:kept", "--metric", "rounds:mean:rounds", "--covariate", "rounds=before",
    "--segment", "country",
)  # fmt: skip


def test_a_table_is_analysed_in_words_json_and_a_page(fairlead: Run, players: Path) -> None:
    code, out, err = fairlead(*ANALYZE, "--html", "page.html")
    assert (code, err) == (ExitCode.OK, "")
    assert out.startswith("players: kept of gate_40 is lower")
    assert "✓ sample ratio: gate_30" in out
    assert "adjusted by before" in out
    assert "exploratory" in out
    assert "<script" not in Path("page.html").read_text()
    code, out, _ = fairlead(*ANALYZE, "--json")
    document = json.loads(out)
    assert document["schema"] == "fairlead.experiment.analysis/1"
    assert document["data_sha256"] is not None
    assert document["sample_ratio"]["verdict"] == "as planned"
    rounds = document["metrics"][1]
    assert rounds["relative_effect_ci"][0] < 0.08 < rounds["relative_effect_ci"][1]


def test_groups_that_are_treated_too_unequally_end_with_three(fairlead: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    lines = ["arm,seconds,my_group"]
    for unit in range(4000):
        arm, group = ("control", "treatment")[unit % 2], ("a", "b")[unit // 2 % 2]
        lines.append(
            f"{arm},{rng.gamma(2.0, 5.0 if (arm, group) == ('treatment', 'b') else 10.0):.3f},{group}"
        )
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    code, out, _ = fairlead(
        "analyze", "--data", "t.csv", "--variant", "arm", "--metric", "seen:mean:seconds",
        "--fairness", "seen:my_group",
    )  # fmt: skip
    assert code == ExitCode.BREACHED
    assert "Groups are treated too unequally: seen of treatment by my_group." in out
    assert "fairness of seen by my_group: " in out  # the column as it is called


def test_of_several_variants_each_row_names_its_own(fairlead: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    lines = ["arm,seconds,country"]
    lines += [f"{'abc'[k % 3]},{rng.gamma(2.0, 5.0):.3f},{'xy'[k // 3 % 2]}" for k in range(3000)]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    code, out, _ = fairlead(
        "analyze", "--data", "t.csv", "--variant", "arm", "--control", "a", "--metric", "seen:mean:seconds",
        "--segment", "country", "--fairness", "seen:country",
    )  # fmt: skip
    assert code == ExitCode.OK
    segments = out.partition("segments: exploratory")[2]
    for variant in "bc":
        assert f"fairness of seen of {variant} by country" in segments
        assert f"does the effect of {variant} on seen differ" in segments
        assert sum(line.split()[3:4] == [variant] for line in segments.splitlines()) == 2


def test_a_broken_split_ends_with_four(fairlead: Run, players: Path) -> None:
    code, out, _ = fairlead(*ANALYZE, "--share", "gate_30=2", "--share", "gate_40=1")
    assert code == ExitCode.INCONCLUSIVE
    assert "Void: the sample ratio is broken" in out


def test_history_is_sized_and_simulated(fairlead: Run, players: Path) -> None:
    words = (
        "--data",
        "players.csv",
        "--unit",
        "player",
        "--metric",
        "rounds:mean:rounds",
        "--covariate",
        "rounds=before",
    )
    code, out, err = fairlead(
        "design", *words, "--units-per-day", "500", "--mde", "0.05", "--share", "0.05", "--share", "0.5"
    )
    assert (code, err) == (ExitCode.OK, "")
    assert "covariates take out" in out
    assert "days to find 5.00%" in out
    code, out, _ = fairlead("design", *words, "--units-per-day", "500", "--mde", "0.05", "--json")
    assert json.loads(out)["metrics"][0]["stages"][0]["days_needed"] > 0
    code, out, err = fairlead("simulate", *words, "--runs", "100", "--planted", "0.1", "--seed", "5")
    assert (code, err) == (ExitCode.OK, "")
    assert "100 random splits, +10.00% planted in treatment, seed 5" in out
    code, out, _ = fairlead("simulate", *words, "--runs", "60", "--json")
    assert json.loads(out)["metrics"][0]["metric"] == "rounds"


EVENTS = """
from typing import ClassVar

from fairlead.telemetry import EVENTS, Event, EventSchema, Internal, Personal


@EVENTS.register
class PlayerDay(Event, frozen=True, kw_only=True, tag="player_day"):
    schema: ClassVar[EventSchema] = EventSchema(role="outcome")
    player: Personal[str]
    seconds: Internal[float] = 0.0
    failed: Internal[bool] = False
"""
CHANGE = """
[change]
name = "player"

[metrics.watch]
role = "primary"
kind = "total"
event = "player_day"
field = "seconds"
unit = "seconds"
unit_of_analysis = "user"
unit_field = "player"
side = "client"
window = "7d"
segment = "everybody"
better = "higher"
baseline = 100.0
standard_deviation = 60.0

[metrics.failures]
role = "guardrail"
kind = "proportion"
event = "player_day"
field = "failed"
unit = "ratio"
unit_of_analysis = "user"
unit_field = "player"
side = "client"
window = "7d"
segment = "everybody"
better = "lower"
baseline = 0.02

[rollout]
flag = "player_path"
stages = [{ share = 0.05, bake = "12h" }, { share = 1.0 }]

[[rollout.guardrails]]
metric = "failures"
worse_by = "2 pp"

[experiment]
unit = "user"
mde = 0.05
units_per_day = 1000
days = 14
pre_period = "7d"
conversion_window = "7d"
"""


def written(tmp_path: Path) -> tuple[str, ...]:
    """A change file and a folder of events, and the words that analyse them."""
    Path("player_events.py").write_text(EVENTS)
    Path("player.toml").write_text(CHANGE)
    rng = np.random.default_rng(30)
    day, start = 86400.0, 1_700_000_000.0
    lines = []
    for number in range(3000):
        treated = rng.random() < 0.5
        level = rng.lognormal(4.0, 0.8)
        at = start + rng.random() * 3 * day
        lines.append(
            {
                "event": "exposure", "at_utc_seconds": at, "flag": "player_path", "reason": "SPLIT",
                "variant": "treatment" if treated else "control", "targeting_key": f"u{number}",
            }
        )  # fmt: skip
        for moment, gain in ((at - day, 1.0), (at + day, 1.1 if treated else 1.0), (at + 30 * day, 9.0)):
            lines.append(
                {
                    "event": "player_day", "at_utc_seconds": moment, "player": f"u{number}",
                    "seconds": level * rng.lognormal(0, 0.3) * gain, "failed": bool(rng.random() < 0.02),
                }
            )  # fmt: skip
    folder = tmp_path / "events"
    folder.mkdir()
    (folder / "events-1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ("player.toml", "--events", "events", "--schemas", "player_events")


def test_a_change_file_and_events_become_a_verdict(fairlead: Run, tmp_path: Path) -> None:
    words = written(tmp_path)
    code, out, err = fairlead("analyze", *words)
    assert (code, err) == (ExitCode.OK, "")
    assert out.startswith("player: watch of treatment is better: +")
    code, out, _ = fairlead("analyze", *words, "--json")
    watch, failures = json.loads(out)["metrics"]
    assert watch["relative_effect_ci"][0] < 0.1 < watch["relative_effect_ci"][1]
    assert watch["relative_effect"] < 0.5  # what came after the window is no outcome
    assert watch["cuped"]["variance_reduction"] > 0.5
    assert failures["verdict"] == "not_worse"
    code, out, _ = fairlead("design", "player.toml")
    assert code == ExitCode.OK
    assert "days to find 5.00%" in out
    code, _, err = fairlead("analyze", "player.toml", "--events", "nowhere")
    assert (code, "nowhere: no such folder" in err) == (ExitCode.USAGE, True)


def freeze(name: str) -> None:
    """As the command does, but for the prose that it asks a whole change for."""
    with Database("ledger.db") as database:
        database.migrate()
        Ledger(database).freeze(name, Path(f"{name}.toml").read_bytes())


def test_figures_of_a_frozen_change_become_evidence(fairlead: Run, tmp_path: Path) -> None:
    words = written(tmp_path)
    freeze("player")
    code, _, err = fairlead("analyze", *words, "--json")
    assert (code, err) == (ExitCode.OK, "")
    with Database("ledger.db") as database:
        assert list(Ledger(database).evidence("player")) == []  # without --store nothing is written
    code, out, err = fairlead("analyze", *words, "--store", "ledger.db", "--json")
    assert (code, err) == (ExitCode.OK, "")
    document = json.loads(out)
    with Database("ledger.db") as database:
        ledger = Ledger(database)
        assert ledger.verify().is_whole
        for found in document["metrics"]:
            control, treatment, effect, relative, p_value = ledger.evidence_by_ids(found["evidence"]).values()
            assert (control.arm, treatment.arm) == ("control", "treatment")
            assert control.value == found["control"].get("mean", found["control"].get("value"))
            assert (effect.value, [effect.low, effect.high]) == (found["effect"], found["effect_ci"])
            assert (relative.value, relative.unit) == (found["relative_effect"], "ratio")
            assert [relative.low, relative.high] == found["relative_effect_ci"]
            assert p_value.value == found["adjusted_p_value"]
            assert {each.design for each in (control, treatment, effect, relative, p_value)} == {"controlled"}
            assert effect.data_sha256 == document["data_sha256"]
            assert (effect.side, effect.window, effect.segment) == ("client", "7d", "everybody")
            # These events are from 2023.
            assert any("after the first unit had entered" in caveat for caveat in effect.caveats)


def test_nothing_is_recorded_for_a_change_that_is_not_frozen_as_it_is(fairlead: Run, tmp_path: Path) -> None:
    words = (*written(tmp_path), "--store", "ledger.db")
    code, _, err = fairlead("analyze", *words)
    assert (code, "ledger.db: no such ledger; fairlead change freeze player.toml" in err) == (
        ExitCode.USAGE,
        True,
    )
    assert not Path("ledger.db").exists()
    Path("other.toml").write_text(CHANGE.replace('name = "player"', 'name = "other"'))
    freeze("other")
    code, _, err = fairlead("analyze", *words)
    assert (code, "player.toml: not frozen in" in err) == (ExitCode.USAGE, True)
    freeze("player")
    Path("player.toml").write_text(CHANGE.replace("mde = 0.05", "mde = 0.06"))
    code, _, err = fairlead("analyze", *words)
    assert (code, "not the file that is frozen" in err) == (ExitCode.USAGE, True)
    with Database("ledger.db") as database:
        assert list(Ledger(database).evidence("player")) == []
