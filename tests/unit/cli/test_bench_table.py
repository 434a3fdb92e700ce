from __future__ import annotations

import json

import pytest

from bench.__main__ import document, main, quantity, table
from bench.harness import Bar

MET = Bar(what="hit", value=0.251, limit=0.5, unit="µs", n=15, spread=(0.25, 0.26))
MISSED = Bar(
    what="faster than a peer", value=1.5, limit=2, at_most=False, unit="×", note="the peer does less"
)


def test_table_tells_met_from_missed_and_why():
    lines = table([("cache", MET), ("calls", MISSED)]).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["cache", "hit", "0.251", "µs", "≤", "0.500", "µs", "met", "15", "0.250", "µs", "–", "0.260", "µs"],
        ["calls", "faster", "than", "a", "peer", "1.50", "×", "≥", "2", "×", "MISSED", "1"],
        ["the", "peer", "does", "less"],
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1000, "1,000 x"),
        (0.0, "0.000 x"),
        (14.2, "14.2 x"),
        (2, "2 x"),
        (3.14159, "3.14 x"),
        (float("inf"), "inf x"),
    ],
)
def test_quantity_has_three_digits_and_no_exponent(value: float, text: str):
    assert quantity(value, "x") == text


def test_document_holds_the_verdict_and_the_raw_figures():
    bar = json.loads(document([("cache", MET)], {"cpu": "x"}, quick=True))["bars"][0]
    assert (bar["room"], bar["met"], bar["value"], bar["spread"]) == ("cache", True, 0.251, [0.25, 0.26])


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["--strict"], 3)])
def test_missed_bar_fails_only_when_asked_to(
    arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("bench.cli.bars", lambda quick: [MISSED])
    assert main(["cli", *arguments]) == code
    assert "MISSED" in capsys.readouterr().out
