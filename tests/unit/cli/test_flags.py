"""`fairlead flags`: what a person sees, and the code a script gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairlead.cli import main

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
