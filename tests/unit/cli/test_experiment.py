"""`fairlead experiment` from the command line: words that are wrong are named, with what to write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fairlead.cli import main
from fairlead.cli.exit_codes import ExitCode
from fairlead.cli.experiment_options import metric_of

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fairlead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)

    def called(*words: str) -> tuple[int, str, str]:
        code = main(["experiment", *words])
        return code, *capsys.readouterr()

    return called


@pytest.mark.parametrize(
    ("spec", "kind", "column", "more"),
    [
        ("rounds:mean:sum_gamerounds", "mean", "sum_gamerounds", {}),
        ("kept:proportion:retention_7", "proportion", "retention_7", {}),
        (
            "paid:proportion:amount > 0 and country == 'AT'",
            "proportion",
            "amount > 0 and country == 'AT'",
            {},
        ),
        ("ctr:ratio:clicks/views", "ratio", "clicks", {"denominator": "views"}),
        ("p99:quantile:latency@0.99", "quantile", "latency", {"q": 0.99}),
        ("ok:formula:a / (b - c)", "formula", None, {"formula": "a / (b - c)"}),
        ("n:count", "count", None, {}),
        ("sum:total:amount", "total", "amount", {}),
    ],
)
def test_a_metric_is_read_from_its_words(
    spec: str, kind: str, column: str | None, more: dict[str, object]
) -> None:
    found = metric_of(spec)
    assert (found.kind, found.field) == (kind, column)
    assert found.ad_hoc
    for name, value in more.items():
        assert getattr(found, name) == value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give a change file with --events DIR, or --data FILE"),
        (("a.toml", "--data", "a.csv"), "not both"),
        (
            ("a.toml", "--metric", "x:mean:y"),
            "--metric is for --data: with a change file, [experiment] says it",
        ),
        (("a.toml", "--events", "e", "--alpha", "0.05"), "--alpha is for --data"),
        (("a.toml", "--events", "e", "--planned-units", "9"), "--planned-units is for --data"),
        (("a.toml", "--events", "e", "--sequential"), "--sequential is for --data"),
        (("--data", "a.csv", "--variant", "arm", "--events", "e"), "--events is for a change file"),
        (("--data", "a.csv", "--variant", "arm", "--about", "e.csv"), "--about is for a change file"),
        (("--data", "a.csv", "--variant", "arm", "--since", "2026-11-27"), "--since is for a change file"),
        (("--data", "a.csv", "--variant", "arm", "--until", "2026-11-27"), "--until is for a change file"),
        (("--data", "a.csv"), "--variant COL and at least one --metric"),
        (
            ("--data", "a.csv", "--variant", "arm", "--metric", "rounds"),
            "write name:kind[:column[/denominator]][@q]",
        ),
        (
            ("--data", "a.csv", "--variant", "arm", "--metric", "r:average:x"),
            "'average' is none of quantile, proportion",
        ),
        (("--data", "a.csv", "--variant", "arm", "--metric", "r:quantile:x"), "a quantile needs its q"),
        (("--data", "a.csv", "--variant", "arm", "--metric", "r:quantile:x@p99"), "'p99' is not a number"),
        (("--data", "a.csv", "--variant", "arm", "--metric", "r:ratio:x"), "a ratio needs its denominator"),
        (("--data", "a.csv", "--variant", "arm", "--metric", "R:mean:x"), "lower case"),
        (
            ("--data", "a.csv", "--variant", "arm", "--metric", "r:mean:x", "--cap", "r"),
            "--cap 'r': write NAME=VALUE",
        ),
        (
            ("--data", "a.csv", "--variant", "arm", "--metric", "r:mean:x", "--cap", "q=0.9"),
            "'q' is none of the metrics r",
        ),
        (("--data", "a.csv", "--variant", "arm", "--metric", "r:mean:x", "--fairness", "r"), "METRIC:COL"),
        (("--data", "gone.csv", "--variant", "arm", "--metric", "r:mean:x"), "gone.csv: no such file"),
    ],
)
def test_wrong_words_are_named_and_end_with_two(fairlead: Run, words: tuple[str, ...], said: str) -> None:
    code, _, err = fairlead("analyze", *words)
    assert code == ExitCode.USAGE
    assert said in err


def test_a_design_without_history_or_traffic_is_refused(fairlead: Run) -> None:
    code, _, err = fairlead("design")
    assert (code, "give a change file, or history" in err) == (ExitCode.USAGE, True)
    Path("a.toml").write_text('[change]\nname = "a"\n')
    code, _, err = fairlead("design", "a.toml", "--power", "0.9")
    assert (code, "--power is for --data" in err) == (ExitCode.USAGE, True)
    code, _, err = fairlead("simulate")
    assert (code, "--data FILE and at least one --metric" in err) == (ExitCode.USAGE, True)
