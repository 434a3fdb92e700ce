"""Which share was served when, by a journal: rolled back, paused, taken over, ended at once, with a clock moved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from fairlead.rollout import SteadyPeriod, steady_periods
from fairlead.rollout.entry import (
    Asked,
    Claimed,
    Decided,
    Ended,
    Entry,
    Had,
    Looked,
    Started,
    Wanted,
    Written,
)
from tests.unit.rollout.test_controller import played
from tests.unit.rollout.test_state import ENTRIES

if TYPE_CHECKING:
    from tests.unit.rollout.conftest import World


class Kept:
    """A journal that was written before."""

    blocks = False

    def __init__(self, *entries: tuple[float, Entry], rollout: str = "feed/1") -> None:
        self.rollout = rollout
        self._entries = [
            Written(number=number, epoch=1, at_utc_seconds=at, entry=entry)
            for number, (at, entry) in enumerate(entries, 1)
        ]

    def read(self, after: int = 0) -> list[Written]:
        return self._entries[after:]

    def claim(self, by: str) -> int:
        raise AssertionError("nobody leads what is only read")

    def append(self, entries: Sequence[Entry], epoch: int) -> list[Written]:
        raise AssertionError("nobody writes what is only read")

    def ask(self, wish: Asked) -> Written:
        raise AssertionError("nobody writes what is only read")


def begun() -> list[tuple[float, Entry]]:
    return [(0.0, Started(plan_sha256="", by="ann")), (1.0, Claimed(by="p"))]


def moved(
    stage: int, share: float, wanted: float, had: float | None = None, **more: Any
) -> list[tuple[float, Entry]]:
    return [
        (wanted, Wanted(stage=stage, share=share, **more)),
        (wanted + 1 if had is None else had, Had(stage=stage, share=share, **more)),
    ]


def looked(stage: int, at: float) -> tuple[float, Entry]:
    return at, Looked(stage=stage, guarded_seconds=1.0, evaluations=())


def rolled_back(at: float) -> list[tuple[float, Entry]]:
    return [
        (at, Decided(stage=1, verdict="rollback", reason="harm")),
        (at + 1, Wanted(stage=1, share=0.0, latched=True)),
        (at + 2, Had(stage=1, share=0.0, latched=True)),
        (at + 3, Ended(outcome="rolled_back")),
    ]


def spans(*journals: Kept) -> list[tuple[float, float, float | None]]:
    return [(each.share, each.began_utc_seconds, each.ended_utc_seconds) for each in steady_periods(journals)]


def test_a_stage_is_steady_from_when_it_is_served_until_the_next_is_wanted() -> None:
    found = spans(Kept(*begun(), *moved(0, 0.01, 10.0, 12.0), *moved(1, 0.05, 100.0, 103.0)))
    assert found == [(0.01, 12.0, 100.0), (0.05, 103.0, None)]


def test_a_stage_that_is_never_served_is_none() -> None:
    assert spans(Kept(*begun(), (10.0, Wanted(stage=0, share=0.01)))) == []
    assert spans() == []


def test_a_rollback_ends_the_period_when_it_is_decided_and_nothing_follows() -> None:
    found = spans(Kept(*begun(), *moved(0, 0.01, 10.0), *moved(1, 0.05, 100.0), *rolled_back(200.0)))
    assert found == [(0.01, 11.0, 100.0), (0.05, 101.0, 200.0)]


def test_a_pause_and_its_end_move_nobody() -> None:
    pause, resume = Asked(what="pause", by="ann"), Asked(what="resume", by="ann")
    found = spans(
        Kept(*begun(), *moved(0, 0.01, 10.0), (20.0, pause), (90.0, resume), *moved(1, 0.05, 100.0))
    )
    assert found == [(0.01, 11.0, 100.0), (0.05, 101.0, None)]


def test_a_controller_that_takes_over_sets_what_is_served_already() -> None:
    found = spans(
        Kept(*begun(), *moved(0, 0.01, 10.0), (50.0, Claimed(by="q")), *moved(0, 0.01, 51.0), looked(0, 60.0))
    )
    assert found == [(0.01, 11.0, None)]


def test_another_audience_is_another_period() -> None:
    found = spans(Kept(*begun(), *moved(0, 0.0, 10.0, audience="internal"), *moved(1, 0.01, 20.0)))
    assert found == [(0.0, 11.0, 20.0), (0.01, 21.0, None)]


def test_what_a_completed_rollout_left_is_served_until_the_next_one_moves_it() -> None:
    first = Kept(*begun(), *moved(0, 0.5, 10.0), (90.0, Ended(outcome="completed")))
    assert spans(first) == [(0.5, 11.0, None)]
    second = Kept((200.0, Started(plan_sha256="", by="ann")), *moved(0, 0.01, 300.0), rollout="feed/2")
    assert spans(first, second) == [(0.5, 11.0, 300.0), (0.01, 301.0, None)]
    same = Kept((200.0, Started(plan_sha256="", by="ann")), *moved(0, 0.5, 300.0), rollout="feed/2")
    assert spans(first, same) == [(0.5, 11.0, 301.0), (0.5, 301.0, None)]


def test_what_two_stages_claim_after_the_clock_was_moved_back_is_of_neither() -> None:
    # At 100 by its clock the second stage begins; at 130 the clock goes back to 70, and runs on.
    found = steady_periods(
        [
            Kept(
                *begun(), *moved(0, 0.01, 10.0), looked(0, 99.0), *moved(1, 0.05, 100.0), looked(1, 130.0),
                looked(1, 70.0), looked(1, 200.0),
            )
        ]
    )  # fmt: skip
    first, second = found
    assert (first.began_utc_seconds, first.ended_utc_seconds) == (11.0, 70.0)
    assert (second.began_utc_seconds, second.ended_utc_seconds) == (101.0, None)
    assert first.cut_seconds == 30.0
    assert second.cut_seconds == 0.0


def test_a_stage_that_the_clock_swallows_has_no_length_left() -> None:
    found = steady_periods([Kept(*begun(), *moved(0, 0.01, 500.0), *moved(1, 0.05, 100.0), looked(1, 900.0))])
    first, second = found
    assert first.ended_utc_seconds is not None
    assert first.ended_utc_seconds <= first.began_utc_seconds
    assert second.began_utc_seconds >= 501.0


def test_a_wish_from_a_laptop_whose_clock_is_wrong_cuts_nothing() -> None:
    wish = Asked(what="advance", by="ann")
    found = steady_periods([Kept(*begun(), *moved(0, 0.01, 500.0), *moved(1, 0.05, 900.0), (0.5, wish))])
    assert [each.cut_seconds for each in found] == [0.0, 0.0]
    assert found[0].ended_utc_seconds == 900.0


async def test_the_periods_of_a_controller_are_those_that_its_traffic_served(
    make_world: Callable[..., World],
) -> None:
    world = make_world(rate=14.0)
    state = await played(world, 20_000)
    assert state.phase == "completed"
    found = steady_periods([world.journal])
    assert [(each.stage, each.began_utc_seconds) for each in found] == list(state.stages_began)
    assert [each.share for each in found] == [split.share for split in world.traffic.sets]
    assert found[-1].ended_utc_seconds is None


async def test_a_period_ends_when_its_controller_decides_to_roll_back(
    make_world: Callable[..., World],
) -> None:
    harmful = make_world(treatment_errors=0.3)
    await played(harmful, 2_000)
    last = steady_periods([harmful.journal])[-1]
    decided = [each for each in harmful.journal.read() if isinstance(each.entry, Decided)][-1]
    assert last.ended_utc_seconds == decided.at_utc_seconds


@given(entries=st.lists(st.tuples(st.floats(0, 1e4), ENTRIES), max_size=40))
def test_of_any_journal_no_moment_is_in_two_periods(entries: list[tuple[float, Entry]]) -> None:
    found: tuple[SteadyPeriod, ...] = steady_periods([Kept(*entries)])
    whole = [
        (each.began_utc_seconds, each.ended_utc_seconds)
        for each in found
        if each.ended_utc_seconds is None or each.ended_utc_seconds > each.began_utc_seconds
    ]
    for (_, end), (start, _) in pairwise(whole):
        assert end is not None
        assert end <= start
    assert all(each.ended_utc_seconds is not None for each in found[:-1])
    assert all(each.cut_seconds >= 0 for each in found)
