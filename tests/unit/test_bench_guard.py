"""When the guard calls a ratio worse; the measuring itself has no place in a test."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import guard
from bench.guard import KEPT, ROOMS, TOLERANCE, compare
from bench.harness import Bar


def ratio(value: float, *, at_most: bool, spread: tuple[float, float] | None = None) -> Bar:
    low, high = spread or (value * 0.95, value * 1.05)
    return Bar(what="a", value=value, limit=1.0, at_most=at_most, unit="×", spread=(low, high))


def test_a_ratio_that_should_be_low_is_worse_above_the_tolerance() -> None:
    assert compare([ratio(2.0 * TOLERANCE * 0.99, at_most=True)], {"a": 2.0}) == []
    (worse,) = compare([ratio(2.0 * TOLERANCE * 1.01, at_most=True)], {"a": 2.0})
    assert (worse.what, worse.was) == ("a", 2.0)


def test_a_ratio_that_should_be_high_is_worse_below_the_tolerance() -> None:
    assert compare([ratio(30.0 / TOLERANCE * 1.01, at_most=False)], {"a": 30.0}) == []
    assert len(compare([ratio(30.0 / TOLERANCE * 0.99, at_most=False)], {"a": 30.0})) == 1


def test_a_median_whose_rounds_reach_back_to_what_was_is_noise() -> None:
    assert compare([ratio(10.0, at_most=True, spread=(1.9, 20.0))], {"a": 2.0}) == []
    assert compare([ratio(1.0, at_most=False, spread=(0.5, 31.0))], {"a": 30.0}) == []


def test_better_is_never_worse_and_what_is_not_kept_is_not_compared() -> None:
    assert compare([ratio(0.1, at_most=True), ratio(900.0, at_most=False)], {"a": 30.0}) == []
    assert compare([ratio(99.0, at_most=True)], {}) == []


def test_seconds_are_not_compared() -> None:
    seconds = Bar(what="a", value=9.0, limit=1.0, unit="µs", spread=(9.0, 9.0))
    assert compare([seconds], {"a": 1.0}) == []


def test_what_is_kept_holds_ratios_for_every_guarded_room() -> None:
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    assert tuple(kept) == ROOMS
    assert all(ratios and all(value > 0 for value in ratios.values()) for ratios in kept.values())


def test_a_figure_that_is_no_number_is_worse_than_any() -> None:
    for value in (math.nan, math.inf):
        assert len(compare([ratio(value, at_most=True, spread=(value, value))], {"a": 2.0})) == 1
    assert len(compare([ratio(math.nan, at_most=False, spread=(math.nan, math.nan))], {"a": 2.0})) == 1


def named(what: str, value: float) -> Bar:
    return Bar(what=what, value=value, limit=1.0, unit="×", spread=(value, value))


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Runs the guard over one room that keeps 1 × for `a` and `b`, and measures what it is told, run by run."""

    def run(*measured: list[Bar]) -> int:
        kept = tmp_path / "ratios.json"
        kept.write_text(json.dumps({"cache": {"a": 1.0, "b": 1.0}}), encoding="utf-8")
        turns = iter(measured)
        monkeypatch.setattr(guard, "KEPT", kept)
        monkeypatch.setattr(guard, "ROOMS", ("cache",))
        monkeypatch.setattr(guard, "_measure", lambda room: next(turns))
        return guard.main([])

    return run


def test_what_is_worse_in_both_runs_fails(
    guarded: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded([named("a", 9.0), named("b", 1.0)], [named("a", 8.0), named("b", 1.0)]) == 3
    assert "WORSE  a: was 1 ×, is 8 ×" in capsys.readouterr().out


def test_what_is_worse_in_one_run_alone_passes_whichever_run_that_is(guarded: Callable[..., int]) -> None:
    assert guarded([named("a", 9.0), named("b", 1.0)], [named("a", 1.0), named("b", 9.0)]) == 0


def test_a_room_that_is_not_worse_is_measured_once(guarded: Callable[..., int]) -> None:
    assert guarded([named("a", 1.0), named("b", 1.0)]) == 0


def test_a_ratio_that_is_kept_and_no_longer_measured_is_an_error(guarded: Callable[..., int]) -> None:
    assert guarded([named("a", 1.0)]) == 2


def test_a_ratio_that_nobody_kept_is_named(
    guarded: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded([named("a", 1.0), named("b", 1.0), named("new", 99.0)]) == 0
    assert "'new' is measured and not kept" in capsys.readouterr().err
