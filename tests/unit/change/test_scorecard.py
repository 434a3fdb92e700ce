from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.change import scorecard
from fairlead.change.sections import OptionTable
from fairlead.errors import InvalidInput


def option(name: str, **scores: float) -> OptionTable:
    return OptionTable(name=name, kind="build", scores=scores)


ADOPT = option("adopt", time=4, fit=2)
BUILD = option("build", time=2, fit=5)


def test_totals_are_weighted_and_the_best_comes_first() -> None:
    card = scorecard([ADOPT, BUILD], {"fit": 2})
    assert card.weights == pytest.approx((1 / 3, 2 / 3))
    assert card.totals == pytest.approx({"build": 4.0, "adopt": 8 / 3})
    assert card.winner == "build"


def test_the_weight_that_turns_the_choice_is_where_the_totals_meet() -> None:
    # With weight t on fit: adopt 4 − 2t, build 2 + 3t; they meet at 0.4. Time is the other one: 0.6.
    card = scorecard([ADOPT, BUILD], {"fit": 2})
    assert {flip.criterion: (flip.at, flip.winner) for flip in card.flips} == {
        "fit": (pytest.approx(0.4), "adopt"),
        "time": (pytest.approx(0.6), "adopt"),
    }


def test_an_option_that_is_better_in_everything_cannot_be_turned() -> None:
    assert scorecard([option("a", x=5, y=4), option("b", x=4, y=3)], {}).flips == ()


def test_options_that_are_equal_where_one_criterion_is_all_do_not_turn_the_choice() -> None:
    # On x alone both have 4: nobody wins beyond a weight of 1.
    assert [
        flip.criterion for flip in scorecard([option("a", x=4, y=5), option("b", x=4, y=2)], {}).flips
    ] == []


def test_of_two_that_overtake_at_one_weight_the_steeper_wins() -> None:
    # With weight t on x: a 3, b 2 + 2t, c 1 + 4t; all meet at 0.5, and c leads beyond.
    options = [option("a", x=3, y=3), option("b", x=4, y=2), option("c", x=5, y=1)]
    flips = scorecard(options, {"x": 1, "y": 2}).flips
    assert [(flip.criterion, flip.at, flip.winner) for flip in flips] == [
        ("x", pytest.approx(0.5), "c"),
        ("y", pytest.approx(0.5), "c"),
    ]


@pytest.mark.parametrize(
    ("options", "weights", "said"),
    [
        ([], {}, "no option has scores"),
        ([option("a")], {}, "no option has scores"),
        ([option("a", x=1), option("b", y=1)], {}, "option a: no score for y"),
        ([option("a", x=6)], {}, "scores run from 1"),
        ([option("a", x=float("nan"))], {}, "scores run from 1"),
        ([option("a", x=1)], {"x": 0}, "not all of them 0"),
        ([option("a", x=1)], {"x": -1}, "0 or more"),
    ],
)
def test_what_cannot_be_weighed_is_refused(
    options: list[OptionTable], weights: dict[str, float], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        scorecard(options, weights)


grades = st.integers(1, 5)
cards = st.lists(st.fixed_dictionaries({"a": grades, "b": grades, "c": grades}), min_size=2, max_size=4)


@settings(deadline=None, max_examples=200)
@given(cards, st.fixed_dictionaries({"a": st.integers(1, 5), "b": st.integers(1, 5), "c": st.integers(1, 5)}))
def test_every_flip_is_one_and_nothing_nearer_turns_the_choice(
    scores: list[dict[str, int]], weights: dict[str, int]
) -> None:
    options = [option(f"o{index}", **each) for index, each in enumerate(scores)]
    card = scorecard(options, weights)
    whole = sum(weights.values())

    def leader_with(criterion: str, share: float) -> set[str]:
        rest = whole - weights[criterion]
        moved = {name: (1 - share) * weight / rest for name, weight in weights.items()} | {criterion: share}
        totals = {each.name: sum(moved[k] * each.scores[k] for k in moved) for each in options}
        best = max(totals.values())
        return {name for name, total in totals.items() if total > best - 1e-9}

    for flip in card.flips:
        assert 0 < flip.at < 1
        assert {flip.winner, card.winner} <= leader_with(flip.criterion, flip.at)
        beyond = flip.at + (1e-5 if flip.at > flip.now else -1e-5)
        if abs(flip.at - flip.now) > 1e-9:  # at a tie either side may be the one
            assert flip.winner in leader_with(flip.criterion, beyond)
            assert card.winner not in leader_with(flip.criterion, beyond)
    for criterion in "abc":
        flips = [flip for flip in card.flips if flip.criterion == criterion]
        low = max([flip.at for flip in flips if flip.at <= flip.now], default=0.0)
        high = min([flip.at for flip in flips if flip.at >= flip.now], default=1.0)
        for part in (0.01, 0.3, 0.7, 0.99):
            inside = low + part * (high - low)
            assert card.winner in leader_with(criterion, inside)


def test_a_flip_says_where_the_weight_is_now() -> None:
    flip = scorecard([ADOPT, BUILD], {"fit": 2}).flips[0]
    assert dataclasses.astuple(flip)[:2] == ("time", pytest.approx(1 / 3))
