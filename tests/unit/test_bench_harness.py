from __future__ import annotations

import gc
import math

import pytest

from bench import harness
from bench.harness import Bar, Timing, interleave, interleave_async, ratio


class Stopwatch:
    """Stands for `time`: arms move it by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _collect_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "collect", lambda: 0)  # tens of milliseconds a turn


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    watch = Stopwatch()
    monkeypatch.setattr(harness, "time", watch)
    return watch


def timing(*rounds: float) -> Timing:
    return Timing(name="arm", rounds=rounds, per_round=1)


def run(kind: str, arms: dict, **options: int) -> dict[str, Timing]:
    if kind == "sync":
        return interleave(arms, **options)

    def awaited(arm):
        async def call(n: int) -> None:
            arm(n)

        return call

    return interleave_async({name: awaited(arm) for name, arm in arms.items()}, **options)


KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


@KINDS
def test_arms_take_turns_and_the_warm_up_round_is_not_counted(kind: str, watch: Stopwatch):
    turns: list[str] = []

    def arm(name: str, seconds: float):
        def work(n: int) -> None:
            watch.now += n * seconds * (1000 if turns.count(name) == 0 else 1)
            turns.append(name)

        return work

    timings = run(kind, {"slow": arm("slow", 4.0), "fast": arm("fast", 2.0)}, n=8, rounds=5)
    assert {name: each.rounds for name, each in timings.items()} == {"slow": (4.0,) * 5, "fast": (2.0,) * 5}
    rounds = [set(turns[i : i + 2]) for i in range(0, len(turns), 2)]
    assert rounds == [{"slow", "fast"}] * 6
    assert ratio(timings["slow"], timings["fast"]) == (2.0, (2.0, 2.0))


@KINDS
def test_order_within_a_round_changes_and_a_seed_repeats_it(kind: str):
    def order(seed: int) -> str:
        turns: list[str] = []
        run(kind, {name: lambda n, name=name: turns.append(name) for name in "abc"}, n=1, rounds=8, seed=seed)
        return "".join(turns)

    assert order(1) == order(1)
    assert len({order(1)[i : i + 3] for i in range(0, 27, 3)}) > 1


@KINDS
@pytest.mark.parametrize("collecting", [True, False])
def test_collector_rests_while_an_arm_works_and_is_left_as_it_was(kind: str, collecting: bool):
    seen: list[bool] = []

    def broken(n: int) -> None:
        seen.append(gc.isenabled())
        raise ZeroDivisionError

    was = gc.isenabled()
    try:
        (gc.enable if collecting else gc.disable)()
        with pytest.raises(ZeroDivisionError):
            run(kind, {"broken": broken}, n=1, rounds=1)
        assert (seen, gc.isenabled()) == ([False], collecting)
    finally:
        (gc.enable if was else gc.disable)()


@KINDS
@pytest.mark.parametrize("options", [{"n": 0}, {"n": -1}, {"n": 1, "rounds": 0}])
def test_measurement_of_nothing_is_refused(kind: str, options: dict[str, int]):
    with pytest.raises(ValueError, match="at least 1"):
        run(kind, {"arm": lambda n: None}, **options)


@pytest.mark.parametrize("rounds", [(1.0,), (1.0, 3.0), (1.0, 2.0, 9.0)])
def test_quartiles_of_few_rounds_lie_within_what_was_measured(rounds: tuple[float, ...]):
    low, high = timing(*rounds).spread
    assert min(rounds) <= low <= timing(*rounds).median <= high <= max(rounds)
    value, (low, high) = ratio(timing(*rounds), timing(*[1.0] * len(rounds)))
    assert min(rounds) <= low <= value <= high <= max(rounds)


def test_ratio_is_the_median_of_each_rounds_own_ratio():
    # Round by round 2, 2, 2, although the machine slowed down tenfold; the medians alone would say so by luck only.
    assert ratio(timing(2.0, 20.0, 200.0), timing(1.0, 10.0, 100.0)) == (2.0, (2.0, 2.0))
    assert ratio(timing(2.0, 1.0, 4.0), timing(1.0, 1.0, 1.0))[0] == 2.0


def test_ratio_needs_rounds_that_belong_together():
    with pytest.raises(ValueError, match="zip"):
        ratio(timing(1.0, 2.0), timing(1.0))


@pytest.mark.parametrize(
    ("value", "at_most", "met"),
    [
        *((1.0, True, True), (1.0, False, True), (1.1, True, False), (0.9, False, False)),
        *((math.nan, True, False), (math.nan, False, False), (math.inf, True, False)),
    ],
)
def test_bar_is_met_on_its_side_of_the_limit_and_never_by_nan(value: float, at_most: bool, met: bool):
    assert Bar(what="x", value=value, limit=1.0, at_most=at_most).met is met
