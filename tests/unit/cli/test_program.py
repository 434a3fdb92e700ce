from __future__ import annotations

import importlib
import inspect

import pytest

from fairlead import __version__
from fairlead.cli import main
from fairlead.cli.exit_codes import MEANINGS
from fairlead.cli.program import COMMANDS, parse
from fairlead.errors import InvalidInput


@pytest.mark.parametrize("name", COMMANDS)
def test_static_help_line_is_that_of_the_command(name: str):
    module, summary = COMMANDS[name]
    found = importlib.import_module(f"fairlead.cli.{module}")
    said = found.app.info.help if hasattr(found, "app") else inspect.getdoc(found.command)
    assert said.splitlines()[0] == summary


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_commands_and_exit_codes(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    words = " ".join(out.split())
    for name, (_, summary) in COMMANDS.items():
        assert f"{name} {summary}" in words
    for code, meaning in MEANINGS.items():
        assert f"{int(code)} {meaning}" in words


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr() == (f"fairlead {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["tri"], "no command named 'tri'; did you mean 'try'?"),
        (["zzz"], "there are: try, diagnose, change, experiment, flags, rollout, slo, audit"),
        (["--wrong"], "(see fairlead --help)"),
        (["try", "--wrong"], "(see fairlead try --help)"),
        (["try", "--seed", "x", "home_feed"], "'--seed'"),
        (["try", "home_feed", "surplus"], "surplus"),
        (["try"], "fairlead try --list"),
        (["try", "--seed", "-1", "home_feed"], "seed -1"),
        (["try", "--rate", "nan", "home_feed"], "rate nan"),
        (["try", "--port", "70000", "home_feed"], "port 70000"),
        (["try", "no_such_system"], "no_such_system"),
        (["events", "chekc"], "'chekc'"),
        (["events", "check"], "(see fairlead events check --help)"),
        (["events", "check", "/no/such/place"], "/no/such/place: no such file or directory"),
        (["events", "schema", "page_painted"], "'page_painted' is not one of exposure, "),
        (["events", "schema", "--schemas", "no_such_module"], "--schemas no_such_module: cannot be imported"),
        (["events", "tail", "/", "--where", "status"], "expected FIELD=VALUE"),
        (["events", "tail", "/", "--where", "colour=red"], "no registered event has a field 'colour'"),
    ],
)
def test_wrong_command_line_is_one_line_and_exit_code_2(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fairlead: ")
    assert err.count("\n") == 1
    assert part in err


def test_missing_parser_is_a_missing_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("fairlead.cli.find_spec", lambda name: None)
    assert main(["--help"]) == 1
    assert capsys.readouterr().err == "fairlead: typer is not installed: pip install 'fairlead[cli]'\n"


def test_parse_runs_nothing_and_refuses_what_run_would(capsys: pytest.CaptureFixture[str]):
    parse(["--traceback", "try", "home_feed", "--quick", "--ablate", "cache", "--ablate", "batching"])
    parse(["doctor", "--json"])
    parse(["events", "check", "somewhere", "--json"])
    assert capsys.readouterr().out == ""
    with pytest.raises(InvalidInput, match="--fast"):
        parse(["try", "home_feed", "--fast"])
    with pytest.raises(InvalidInput, match="--fast"):
        parse(["events", "check", "somewhere", "--fast"])
