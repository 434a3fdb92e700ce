"""`fairlead flags`: what a person sees, and the code a script gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairlead.cli import main
from fairlead.telemetry import Exposure, encode_event

BUCKET = {
    "by": "targetingKey",
    "salt": "feed",
    "algo": "xxh32/10000@1",
    "slots": [["on", 0, 500], ["off", 500, 10_000]],
}
FLAG = {
    "state": "ENABLED", "variants": {"on": {"size": 3}, "off": {"size": 1}}, "defaultVariant": "off",
    "targeting": {"if": [{"==": [{"var": "country"}, "DE"]}, "on", {"bucket": BUCKET}]},
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "flags.json"
    path.write_text(json.dumps({"flags": {"feed": FLAG}}), encoding="utf-8")
    return str(path)


def test_check_lists_the_flags_and_refuses_a_broken_document(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["flags", "check", file]) == 0
    assert "feed: object, on, off; default off, targeted" in capsys.readouterr().out
    Path(file).write_text('{"flags": {"feed": {"state": "ON"}}}', encoding="utf-8")
    assert main(["flags", "check", file]) == 2
    assert "flag 'feed', state: 'ON'; write" in capsys.readouterr().err


def test_eval_answers_for_a_key_and_attributes(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flags", "eval", file, "feed", "--key", "user-1"]) == 0
    assert capsys.readouterr().out == 'off {"size":1} SPLIT\n'
    assert main(["flags", "eval", file, "feed", "--attribute", "country=DE", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["variant"], document["value"], document["reason"]) == (
        "on",
        {"size": 3},
        "TARGETING_MATCH",
    )
    assert main(["flags", "eval", file, "fed"]) == 1
    assert "no flag 'fed'" in capsys.readouterr().out


def test_explain_shows_the_rules_in_their_order(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flags", "explain", file, "feed", "--key", "user-1", "--attribute", 'country="FR"']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'does not hold: "FR", "DE"' in lines[0]
    assert "has slot 7214 of 10000, in [500, 10000) of 'off'" in lines[2]
    assert lines[3] == "→ off, SPLIT"
    assert main(["flags", "explain", file, "feed", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"][0]["depth"] == 0


def test_diff_counts_who_moves_and_fails_between_arms(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = {**FLAG, "targeting": {"bucket": BUCKET}}
    paths = []
    for name, slots in (("old", [["on", 0, 500]]), ("grown", [["on", 0, 2_500]])):
        flag = {**plain, "targeting": {"bucket": {**BUCKET, "slots": slots}}}
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps({"flags": {"feed": flag}}), encoding="utf-8")
    assert main(["flags", "diff", *map(str, paths)]) == 0
    assert "  20.00%: off → on\n" in capsys.readouterr().out
    assert main(["flags", "diff", str(paths[0]), str(paths[0])]) == 0
    assert capsys.readouterr().out == "nothing changes\n"
    moved = {**plain, "targeting": {"bucket": {**BUCKET, "salt": "new", "slots": [["on", 0, 500]]}}}
    paths[1].write_text(json.dumps({"flags": {"feed": moved}}), encoding="utf-8")
    assert main(["flags", "diff", *map(str, paths)]) == 3
    assert "no experiment on this flag survives" in capsys.readouterr().out


def test_an_attribute_without_a_value_is_refused(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flags", "eval", file, "feed", "--attribute", "country"]) == 2
    assert "write NAME=VALUE" in capsys.readouterr().err


def test_check_names_what_flagd_lacks_and_what_is_stale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = {**FLAG, "targeting": {"if": [True, "on"]}, "metadata": {"expires": "2020-01-01"}}
    killed = {**FLAG, "metadata": {"fairlead_killed": True}}
    path = tmp_path / "flags.json"
    path.write_text(json.dumps({"flags": {"old": old, "killed": killed}}), encoding="utf-8")
    assert main(["flags", "check", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "killed: object, on, off; default off, targeted, killed\n" in printed
    assert "not for flagd's own readers: killed (bucket, fairlead_killed)\n" in printed
    assert "stale? old expired on 2020-01-01, " in printed
    assert main(["flags", "check", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [stale["why"] for stale in found["stale"]] == ["expired"]
    assert [flag["not_for_flagd"] for flag in found["flags"]] == [[], ["bucket", "fairlead_killed"]]


def test_check_reads_who_was_exposed(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = [
        encode_event(
            Exposure(at_utc_seconds=at, flag="other", variant="on", targeting_key="u", reason="SPLIT")
        )
        for at in (0.0, 864_000.0)
    ]
    (tmp_path / "events.jsonl").write_bytes(
        b"".join(event.rstrip(b"\n") + b"\n" for event in [*events, b"{"])
    )
    assert main(["flags", "check", file, "--events", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "stale? feed was exposed to nobody in 10.0 days of events" in captured.out
    assert "1 line of the events could not be read" in captured.err
    assert main(["flags", "check", file, "--events", str(tmp_path / "none")]) == 2
    assert main(["flags", "check", file, "--stale-after", "long"]) == 2


def test_import_prints_a_document_that_draws_as_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fractional = [{"var": "email"}, ["on", 50], ["off", 50]]
    flag = {**FLAG, "targeting": {"fractional": fractional}}
    path, out = tmp_path / "flagd.json", tmp_path / "flags.json"
    path.write_text(json.dumps({"flags": {"feed": flag}}), encoding="utf-8")
    assert main(["flags", "import", str(path)]) == 2
    assert "say which: v1" in capsys.readouterr().err
    assert main(["flags", "import", str(path), "--fractional", "v2", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "feed: without email the default is served" in captured.err
    assert main(["flags", "check", str(out)]) == 0
    capsys.readouterr()
    assert main(["flags", "import", str(path), "--fractional", "v2"]) == 0
    assert capsys.readouterr().out == out.read_text(encoding="utf-8")
    assert main(["flags", "import", str(path), "--fractional", "v2", "-o", str(tmp_path)]) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_diff_says_where_it_cannot_say_who_moves(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    asked = {**FLAG, "targeting": {"if": [{"==": [{"var": "country"}, "FR"]}, "on", {"bucket": BUCKET}]}}
    other.write_text(json.dumps({"flags": {"feed": asked}}), encoding="utf-8")
    assert main(["flags", "diff", file, str(other)]) == 0
    assert capsys.readouterr().out == "feed: targeting; who moves depends on who comes\n"
