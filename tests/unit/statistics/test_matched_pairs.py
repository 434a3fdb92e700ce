"""Discordant pairs by question, against binomial tails worked out by hand and by SciPy."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from fairlead.errors import InvalidInput
from fairlead.statistics import discordant_pairs


@pytest.mark.parametrize(("control", "treatment"), [(0, 5), (3, 9), (9, 3), (0, 0), (40, 70), (1_000, 1_200)])
def test_the_p_value_is_the_exact_binomial_tail(control: int, treatment: int):
    found = discordant_pairs({"a": (control, treatment)})["a"]
    expected = (
        stats.binomtest(treatment, control + treatment, 0.5, alternative="greater").pvalue
        if control + treatment
        else 1.0
    )
    assert found.p_value == pytest.approx(expected, rel=1e-9)


def test_five_for_none_is_the_least_that_can_be_shown_at_five_percent():
    assert discordant_pairs({"a": (0, 5)})["a"].verdict == "more"
    assert discordant_pairs({"a": (0, 4)})["a"].verdict == "too few"
    assert discordant_pairs({"a": (1, 4)})["a"].verdict == "not shown"


def test_questions_that_could_not_be_answered_do_not_cost_the_others():
    silent = {f"field {n}": (0, 1) for n in range(100)}
    found = discordant_pairs({"a": (0, 6), **silent})
    assert found["a"].adjusted_p_value == pytest.approx(1 / 64)
    assert {found[name].verdict for name in silent} == {"too few"}


def test_questions_that_could_be_answered_share_alpha_by_holm():
    found = discordant_pairs({"a": (0, 8), "b": (0, 6), "c": (10, 10)})
    assert found["a"].adjusted_p_value == pytest.approx(3 / 256)
    assert found["b"].adjusted_p_value == pytest.approx(2 / 64)
    assert found["c"].verdict == "not shown"


def test_a_candidate_that_differs_less_than_control_from_itself_is_not_more():
    assert discordant_pairs({"a": (50, 2)})["a"].verdict == "not shown"
    assert discordant_pairs({"a": (50, 2)}, family=1)["a"].verdict == "not shown"


def test_at_any_look_the_whole_family_counts_and_more_is_needed():
    once, small, large = (
        discordant_pairs({"a": (0, 12)}, family=family)["a"].adjusted_p_value for family in (None, 1, 200)
    )
    assert once < small < large
    assert large == pytest.approx(200 * small)
    assert discordant_pairs({"a": (0, 40)}, family=200)["a"].verdict == "more"


def test_large_counts_stay_above_zero():
    found = discordant_pairs({"a": (0, 10**6)})["a"]
    assert 0 < found.p_value < 1e-300
    assert math.isfinite(found.adjusted_p_value)


def test_no_question_has_no_answer():
    assert discordant_pairs({}) == {}
    assert discordant_pairs({}, family=5) == {}


@pytest.mark.parametrize(
    "arguments",
    [
        {"counts": {"a": (1, -1)}},
        {"counts": {"a": (1.0, 2)}},
        {"counts": {"a": (True, 2)}},
        {"counts": {"a": (1, 2, 3)}},
        {"counts": {"a": (1, 2)}, "alpha": 0.0},
        {"counts": {"a": (1, 2)}, "alpha": float("nan")},
        {"counts": {"a": (1, 2)}, "family": 0},
        {"counts": {"a": (1, 2)}, "family": 1.5},
        {"counts": {"a": (1, 2)}, "family": True},
    ],
    ids=str,
)
def test_what_is_no_count_is_refused(arguments: dict[str, object]):
    with pytest.raises(InvalidInput):
        discordant_pairs(**arguments)
