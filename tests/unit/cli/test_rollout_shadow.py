"""`shadow = true` in a change file: what was found is said, and nothing begins where nothing was compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairlead.change.sections import RolloutTable
from fairlead.cli.rollout_shadow import say_shadow
from fairlead.errors import InvalidInput
from fairlead.telemetry import BufferedSink, JsonLinesSegments, ShadowCompared

CHANGE = Path("feed.toml")
PROMISED = RolloutTable(shadow=True)


def compared(folder: Path, *events: ShadowCompared) -> str:
    with BufferedSink(JsonLinesSegments(folder)) as sink:
        for event in events:
            sink.emit(event)
    return str(folder)


def comparison(mirror: str = "feed_path", *differing: str, again: bool = True) -> ShadowCompared:
    return ShadowCompared(
        at_utc_seconds=1.0,
        mirror=mirror,
        outcome="different" if differing else "same",
        differing=list(differing),
        again=again,
    )


@pytest.mark.parametrize("rollout", [None, RolloutTable()], ids=["no rollout", "no shadow"])
def test_what_was_not_promised_is_not_asked_for(
    rollout: RolloutTable | None, capsys: pytest.CaptureFixture[str]
):
    say_shadow(rollout, "feed_path", None, CHANGE)
    assert capsys.readouterr().out == ""


def test_without_a_comparison_nothing_begins(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"feed.toml: it says shadow = true.*--events DIR"):
        say_shadow(PROMISED, "feed_path", None, CHANGE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="no comparison of a mirror named feed_path"):
        say_shadow(PROMISED, "feed_path", str(tmp_path / "empty"), CHANGE)
    other = compared(tmp_path / "other", comparison("ranker"))
    with pytest.raises(InvalidInput, match="comparisons of ranker only; name the mirror like the flag"):
        say_shadow(PROMISED, "feed_path", other, CHANGE)


def test_what_differs_beyond_noise_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    events = [comparison("feed_path", "order[]") for _ in range(20)] + [comparison("ranker", "x")]
    say_shadow(PROMISED, "feed_path", compared(tmp_path / "a", *events), CHANGE)
    assert capsys.readouterr().out == (
        "unseen so far: 20 requests compared (20 different); beyond control's own noise differ: order[]\n"
    )
    say_shadow(PROMISED, "feed_path", compared(tmp_path / "b", comparison(), comparison()), CHANGE)
    assert "no field differs beyond control's own noise" in capsys.readouterr().out
    say_shadow(PROMISED, "feed_path", compared(tmp_path / "c", comparison(again=False)), CHANGE)
    assert "control was never asked twice" in capsys.readouterr().out
