"""`fairlead audit` on a ledger that is whole, and on one that somebody worked on."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from fairlead.cli.outcome import report
from fairlead.cli.program import run
from fairlead.clock import ManualClock
from fairlead.ledger import Ledger
from fairlead.store import Database
from tests.unit.ledger.contract import decision, figure


def fairlead(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = report(run, ["audit", *words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "fairlead.db"
    with Database(path) as database:
        database.migrate()
        ledger = Ledger(database, clock=ManualClock(utc=1_764_250_000.0))
        id = ledger.record_evidence(figure(caveats=("one run", "two cores")))
        ledger.record_decision(decision(id))
        ledger.freeze("home_feed", b'[change]\nname = "\x1b[31mhome\xff"\n')
        ledger.record_evidence(figure(value=None, low=None, high=None, confidence=None, caveats=("no data",)))
    return path


@pytest.fixture
def store(path: Path) -> tuple[str, str]:
    return ("--store", str(path))


def tamper(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_a_whole_ledger_is_told_with_its_head(
    capsys: pytest.CaptureFixture[str], path: Path, store: tuple[str, str]
):
    code, head, _ = fairlead(capsys, "head", *store)
    assert (code, head[:2]) == (0, "4:")
    code, out, err = fairlead(capsys, "verify", *store)
    assert (code, err) == (0, "")
    assert out == (
        f"{path}: 4 entries\n"
        "whole: no kept head was given (--expect), so a cut at the end may not show\n"
        f"head  {head}"
    )
    code, out, _ = fairlead(capsys, "verify", *store, "--expect", head.strip())
    assert (code, out.splitlines()[1]) == (0, "whole: nothing up to entry 4 was cut off or written anew")


def test_a_broken_ledger_ends_in_code_6(
    capsys: pytest.CaptureFixture[str], path: Path, store: tuple[str, str]
):
    tamper(path, "DELETE FROM fairlead_ledger WHERE number = 2")
    code, out, err = fairlead(capsys, "verify", *store)
    assert (code, err) == (6, "")
    assert out == f"{path}: 3 entries\n  entry 2 is missing\nBROKEN: 1 problem\n"


def test_a_cut_end_is_seen_with_a_kept_head(
    capsys: pytest.CaptureFixture[str], path: Path, store: tuple[str, str]
):
    _, head, _ = fairlead(capsys, "head", *store)
    tamper(
        path,
        "DELETE FROM fairlead_ledger WHERE number > 2",
        "UPDATE fairlead_ledger_head SET (number, hash) = (SELECT number, hash FROM fairlead_ledger WHERE number = 2)",
    )
    assert fairlead(capsys, "verify", *store)[0] == 0
    code, out, _ = fairlead(capsys, "verify", *store, "--expect", head)
    assert (code, out.splitlines()[1:]) == (
        6,
        ["  entry 4: the kept head names it, and it is not here: the end was cut off", "BROKEN: 1 problem"],
    )


def test_findings_are_printed_as_json(capsys: pytest.CaptureFixture[str], path: Path, store: tuple[str, str]):
    _, head, _ = fairlead(capsys, "head", *store)
    code, out, _ = fairlead(capsys, "verify", *store, "--json")
    assert (code, json.loads(out)) == (
        0,
        {
            "schema": "fairlead.audit.verify/1",
            "store": str(path),
            "whole": True,
            "entries": 4,
            "head": head.strip(),
            "expected": None,
            "found": 0,
            "problems": [],
        },
    )
    tamper(path, "UPDATE fairlead_ledger SET change = 'x'")
    code, out, _ = fairlead(capsys, "verify", *store, "--json")
    found = json.loads(out)
    assert (code, found["whole"], found["found"], len(found["problems"])) == (6, False, 4, 4)


def test_entries_are_listed_for_people(capsys: pytest.CaptureFixture[str], store: tuple[str, str]):
    code, out, err = fairlead(capsys, "list", *store)
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()[:-1]) for line in out.splitlines()]
    when = "2025-11-27 13:26:40"
    assert lines == [
        "entry recorded (UTC) kind change what",
        f"1 {when} evidence home_feed feed_p99, treatment: 0.182 seconds [0.171, 0.195], n = 12,000",
        f"2 {when} decision home_feed advance by ana: p99 fell and nothing else moved.",
        f"3 {when} frozen_change home_feed version 1, 29 bytes, sha256 {lines[3][-12:]}",
        f"4 {when} evidence home_feed feed_p99, treatment: – seconds, n = 12,000",
    ]


def test_entries_are_listed_for_programs_and_narrowed(
    capsys: pytest.CaptureFixture[str], store: tuple[str, str]
):
    def numbers(*words: str) -> list[int]:
        return [
            json.loads(line)["number"]
            for line in fairlead(capsys, "list", *store, "--json", *words)[1].splitlines()
        ]

    assert numbers() == [1, 2, 3, 4]
    assert numbers("--last", "2") == [3, 4]
    assert numbers("--kind", "evidence") == [1, 4]
    assert numbers("--kind", "evidence", "--last", "1") == [4]
    assert numbers("--change", "other") == []


def test_an_entry_is_shown_by_number_and_by_the_beginning_of_its_id(
    capsys: pytest.CaptureFixture[str], store: tuple[str, str]
):
    code, out, _ = fairlead(capsys, "show", "1", *store)
    assert code == 0
    shown = {line[:24].strip(): line[25:] for line in out.splitlines() if line[:24].strip()}
    assert (shown["metric"], shown["value"], shown["n"]) == ("feed_p99", "0.182", "12000")
    assert shown["recorded_at_utc_seconds"] == "2025-11-27 13:26:40 (1764250000.0)"
    assert "caveats                  one run\n                         two cores\n" in out
    assert fairlead(capsys, "show", shown["id"][:12], *store)[1] == out


def test_frozen_bytes_are_shown_without_driving_the_terminal(
    capsys: pytest.CaptureFixture[str], store: tuple[str, str]
):
    _, out, _ = fairlead(capsys, "show", "3", *store)
    assert out.endswith('\n\n  [change]\n  name = "\\x1b[31mhome\\xff"\n')
    _, out, _ = fairlead(capsys, "show", "3", *store, "--json")
    assert json.loads(out)["body"]["content"] == "W2NoYW5nZV0KbmFtZSA9ICIbWzMxbWhvbWX/Igo="


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("show", "9"), 2, "the ledger has no entry '9'; see fairlead audit list"),
        (("show", "00000000"), 2, "the ledger has no entry '00000000'"),
        (("show", "zzz"), 2, "entry 'zzz': expected a number, or 8 to 64 digits of an id"),
        (("list", "--kind", "rumour"), 2, "kind: 'rumour' is none of evidence, decision, frozen_change"),
        (("list", "--last", "0"), 2, "'--last'"),
        (("list", "--change", "a\nb"), 2, "change: "),
        (("verify", "--expect", "12"), 2, "head: '12' is not a number, a colon and 64 hexadecimal digits"),
    ],
)
def test_what_cannot_be_answered_is_one_line(
    capsys: pytest.CaptureFixture[str], store: tuple[str, str], words: tuple[str, ...], code: int, said: str
):
    ended, out, err = fairlead(capsys, *words, *store)
    assert (ended, out) == (code, "")
    assert said in err
    assert err.count("\n") == 1


def test_a_file_that_is_missing_is_not_made(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    for words in (("verify",), ("head",), ("list",), ("show", "1")):
        code, out, err = fairlead(capsys, *words, "--store", str(tmp_path / "none.db"))
        assert (code, out) == (1, "")
        assert "there is no such file" in err
    assert list(tmp_path.iterdir()) == []


def test_a_broken_entry_is_not_listed(capsys: pytest.CaptureFixture[str], path: Path, store: tuple[str, str]):
    tamper(path, "UPDATE fairlead_ledger SET hash = 'x' WHERE number = 2")
    code, _, err = fairlead(capsys, "list", *store)
    assert (code, err) == (6, "fairlead: ledger entry 2: it was edited or moved; run fairlead audit verify\n")


def test_a_password_is_never_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAIRLEAD_STORE", "postgresql://ann:secret@127.0.0.1:1/fairlead?password=secret")
    for words in (("verify",), ("verify", "--json"), ("list", "--help"), ("head",)):
        _, out, err = fairlead(capsys, *words)
        assert "secret" not in out + err
