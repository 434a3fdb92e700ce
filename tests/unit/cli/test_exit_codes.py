from __future__ import annotations

import re
from pathlib import Path

import pytest

from fairlead import errors
from fairlead.cli.exit_codes import MEANINGS, ExitCode, exit_code_for

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "exit-codes.md"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidInput("x"), 2),
        (errors.BrokenDocument("x"), 2),
        (errors.UnknownFlag("x"), 2),
        (errors.UnknownSystem("x"), 2),
        (errors.RunInvalid("x"), 4),
        (errors.LedgerBroken("x"), 6),
        (errors.DeadlineExceeded("x"), 7),
        (errors.MissingExtra("p", "e"), 1),
        (errors.PortInUse("x"), 1),
        (errors.NoSpace("x"), 1),
        (errors.ProcessDied("x"), 1),
        (errors.FairleadError("x"), 1),
    ],
)
def test_each_error_ends_in_its_documented_code(error: errors.FairleadError, code: int):
    assert exit_code_for(error) == code


def test_every_code_has_a_meaning():
    assert set(MEANINGS) == set(ExitCode)


def test_page_and_program_give_the_same_meanings():
    rows = re.findall(r"^\| (\d+) \| (.+?) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [(str(int(code)), meaning) for code, meaning in MEANINGS.items()]
