"""`fairlead change` from the command line: what is printed, and with which code it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fairlead.cli import main
from fairlead.cli.exit_codes import ExitCode
from fairlead.ledger import Ledger
from fairlead.store import Database
from tests.unit.change.test_change_file import GOOD
from tests.unit.ledger.contract import figure

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fairlead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FAIRLEAD_STORE", raising=False)

    def called(*words: str) -> tuple[int, str, str]:
        code = main(["change", *words])
        return code, *capsys.readouterr()

    return called


def test_a_new_file_is_written_once(fairlead: Run) -> None:
    code, out, _ = fairlead("new", "feed_latency")
    assert code == ExitCode.OK
    assert "fairlead change check feed_latency.toml" in out
    Path("feed_latency.toml").write_text("mine")
    code, _, err = fairlead("new", "feed_latency")
    assert code == ExitCode.USAGE
    assert "choose another --out" in err
    assert Path("feed_latency.toml").read_text() == "mine"


def test_a_file_with_faults_is_listed_with_lines_and_ends_with_two(fairlead: Run) -> None:
    Path("a.toml").write_text(GOOD.replace("p99 at most 210 ms", "a lot faster"))
    code, out, _ = fairlead("check", "a.toml")
    assert code == ExitCode.USAGE
    assert out.startswith("a.toml:11: error: 'a lot' is no figure")
    assert out.endswith("1 error, 0 warnings\n")
    code, out, _ = fairlead("check", "a.toml", "--json")
    document = json.loads(out)
    assert (document["schema"], document["ok"]) == ("fairlead.change.check/1", False)
    assert document["findings"][0]["line"] == 11


def test_a_good_file_says_what_it_commits_to(fairlead: Run) -> None:
    Path("a.toml").write_text(GOOD)
    code, out, _ = fairlead("check", "a.toml")
    assert code == ExitCode.OK
    assert "judged by latency p99: 99th percentile of duration_seconds of request_finished events" in out
    assert "from 0.38 to 0.21 seconds" in out
    assert "ready to freeze" in out


def test_a_file_is_frozen_grows_and_is_broken(fairlead: Run) -> None:
    path = Path("a.toml")
    path.write_text(GOOD)
    assert "not frozen" in fairlead("show", "a.toml")[1]
    assert not Path("fairlead.db").exists()  # looking makes no database
    code, out, _ = fairlead("freeze", "a.toml")
    assert code == ExitCode.OK
    assert out.startswith("feed_latency version 1: sha256 ")
    assert "as frozen (version 1" in fairlead("show", "a.toml")[1]
    path.write_text(GOOD + '\n[reflection]\nsurprised = "much"\n')
    assert "grown since" in fairlead("list")[1]
    path.write_text(GOOD.replace("target = 0.21", "target = 0.35"))
    code, out, _ = fairlead("show", "a.toml")
    assert code == ExitCode.UNVERIFIED
    assert "pre-registration broken since version 1" in out
    assert "metrics.latency_p99.target" in out
    assert "-target = 0.21" in fairlead("show", "a.toml", "--diff")[1]
    assert "pre-registration broken" in fairlead("list")[1]


def test_freezing_again_after_a_figure_does_not_wash_the_promise(fairlead: Run) -> None:
    path = Path("a.toml")
    path.write_text(GOOD)
    fairlead("freeze", "a.toml")
    with Database("fairlead.db") as database:
        Ledger(database).record_evidence(figure(change="feed_latency"))
    path.write_text(GOOD.replace("target = 0.21", "target = 0.35"))
    fairlead("freeze", "a.toml")
    out = fairlead("show", "a.toml")[1]
    assert "frozen again (version 2" in out
    assert "after something was measured: metrics.latency_p99.target" in out


def test_a_file_with_errors_is_not_frozen(fairlead: Run) -> None:
    Path("a.toml").write_text(GOOD.replace("p99 at most 210 ms", "a lot faster"))
    code, _, err = fairlead("freeze", "a.toml")
    assert code == ExitCode.USAGE
    assert "fairlead change check" in err


def test_a_choice_is_shown_weighed_and_as_a_decision_record(fairlead: Run) -> None:
    Path("a.toml").write_text(GOOD)
    out = fairlead("show", "a.toml")[1]
    assert "take what exists would win if fit weighed 8% in place of 33%" in out
    assert fairlead("show", "a.toml", "--madr")[1].startswith("---\nstatus: accepted\n")


def test_an_empty_folder_and_other_files_are_no_change_files(fairlead: Run) -> None:
    Path("pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert "fairlead change new NAME makes one" in fairlead("list")[1]
    code, _, err = fairlead("list", "nowhere")
    assert code == ExitCode.USAGE
    assert "no such folder" in err


def test_a_change_with_a_slip_does_not_vanish_from_the_list(fairlead: Run) -> None:
    Path("a.toml").write_text(GOOD.replace("hypothesis = ", "hypothesys = "))
    code, out, _ = fairlead("list")
    assert code == ExitCode.OK
    assert "a.toml" in out
    assert "did you mean 'hypothesis'" in " ".join(out.split())


def test_what_is_printed_is_there_as_json_too(fairlead: Run) -> None:
    path = Path("a.toml")
    path.write_text(GOOD)
    frozen = json.loads(fairlead("freeze", "a.toml", "--json")[1])
    assert (frozen["change"], frozen["version"], len(frozen["sha256"])) == ("feed_latency", 1, 64)
    path.write_text(GOOD.replace("target = 0.21", "target = 0.35"))
    code, out, _ = fairlead("show", "a.toml", "--json")
    shown = json.loads(out)
    assert code == ExitCode.UNVERIFIED
    assert shown["broken"] == ["metrics.latency_p99.target"]
    assert shown["frozen"]["sha256"] == frozen["sha256"]
    assert shown["flips"][0]["criterion"] == "time_to_ship"
    listed = json.loads(fairlead("list", "--json")[1])
    assert [each["broken"] for each in listed["changes"]] == [shown["broken"]]


def test_a_name_cannot_drive_the_terminal(fairlead: Run) -> None:
    Path("a.toml").write_text(GOOD.replace('name = "build it"', 'name = "\\u001b[2Jbuild"'))
    code, out, err = fairlead("show", "a.toml")
    assert "\x1b" not in out + err
    assert code == ExitCode.USAGE
    assert "hidden character" in err
