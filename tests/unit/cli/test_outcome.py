from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fairlead.cli.outcome import one_line, report
from fairlead.errors import InvalidInput, RunInvalid


def raising(error: BaseException):
    def run(arguments: object) -> object:
        raise error

    return run


@pytest.fixture(autouse=True)
def _traceback_files_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("FAIRLEAD_TRACEBACK", raising=False)


def test_error_raised_on_purpose_becomes_one_line(capsys: pytest.CaptureFixture[str]):
    assert report(raising(InvalidInput("rate 0: from 1 to 5000")), []) == 2
    assert capsys.readouterr() == ("", "fairlead: rate 0: from 1 to 5000\n")


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("\u202etxt.exe", r"\u202etxt.exe"),
        ("line\u2028end", r"line\u2028end"),
        ("\x9b31m", r"\x9b31m"),
        ("\ud800", r"\ud800"),
        ("größe 3×", "größe 3×"),
    ],
)
def test_messages_cannot_drive_the_terminal(hostile: str, shown: str):
    assert one_line(hostile) == shown


def test_endless_message_is_cut():
    assert len(one_line("x" * 1_000_000)) < 3_000


def test_a_package_that_is_missing_names_the_extra_that_brings_it(capsys: pytest.CaptureFixture[str]):
    missing = ModuleNotFoundError("No module named 'scipy'", name="scipy")
    assert report(raising(missing), []) == 1
    assert capsys.readouterr().err == "fairlead: scipy is not installed: pip install 'fairlead[analysis]'\n"


@pytest.mark.parametrize("name", ["scipy.special", "fairlead.gone", None])
def test_a_module_that_no_extra_brings_is_a_defect(name: str | None, capsys: pytest.CaptureFixture[str]):
    assert report(raising(ModuleNotFoundError("No module", name=name)), []) == 1
    assert "unexpected ModuleNotFoundError" in capsys.readouterr().err


def test_unexpected_error_tells_where_its_traceback_is(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert report(raising(ZeroDivisionError("by zero")), []) == 1
    (kept,) = tmp_path.iterdir()
    message = capsys.readouterr().err
    assert message == f"fairlead: unexpected ZeroDivisionError: by zero (the traceback is in {kept})\n"
    assert "in raising" not in message
    assert "raise error" in kept.read_text()
    assert kept.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("way", ["option", "environment"])
def test_traceback_is_shown_on_request(
    way: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if way == "environment":
        monkeypatch.setenv("FAIRLEAD_TRACEBACK", "1")
    assert report(raising(ZeroDivisionError("by zero")), ["--traceback"] if way == "option" else []) == 1
    assert "raise error" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_traceback_that_cannot_be_kept_is_offered_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert report(raising(ZeroDivisionError("by zero")), []) == 1
    assert "FAIRLEAD_TRACEBACK=1" in capsys.readouterr().err


def test_refusal_of_the_machine_names_the_file(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    def run(arguments: object) -> object:
        return (tmp_path / "missing" / "result.json").write_text("")

    assert report(run, []) == 1
    assert capsys.readouterr().err == f"fairlead: {tmp_path}/missing/result.json: No such file or directory\n"


def test_lone_error_of_nested_task_groups_is_the_one_told(capsys: pytest.CaptureFixture[str]):
    nested = ExceptionGroup("outer", [ExceptionGroup("inner", [RunInvalid("4 % of sends were late")])])
    assert report(raising(nested), []) == 4
    assert capsys.readouterr().err == "fairlead: 4 % of sends were late\n"


def test_error_of_ours_is_told_before_its_consequences(capsys: pytest.CaptureFixture[str]):
    group = ExceptionGroup("two", [ConnectionResetError("reset"), InvalidInput("port 80 is taken")])
    assert report(raising(group), []) == 2
    assert capsys.readouterr().err == "fairlead: port 80 is taken\n"


def test_interrupt_ends_in_130(capsys: pytest.CaptureFixture[str]):
    assert report(raising(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr().err == "fairlead: interrupted\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_unwinds_the_command_once_and_the_handlers_come_back(number: int):
    before = signal.getsignal(number)
    steps = []

    def run(arguments: object) -> object:
        try:
            os.kill(os.getpid(), number)
            steps.append("not reached")
        finally:
            steps.append("clean-up begins")
            os.kill(os.getpid(), number)
            steps.append("clean-up ends")

    assert report(run, []) == 128 + number
    assert steps == ["clean-up begins", "clean-up ends"]
    assert signal.getsignal(number) is before


def test_ignored_hang_up_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert report(lambda arguments: os.kill(os.getpid(), signal.SIGHUP), []) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (3, 3), ("text", 0)])
def test_result_of_the_command_is_the_exit_code(result: object, code: int):
    assert report(lambda arguments: result, []) == code
