"""Rules of others, as the rollout bench applies them, are what textbooks say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from bench.rollout_detection import units_of_formula
from bench.rollout_false_alarms import carried
from bench.rollout_peers import fired, kayenta_high, limit_for, nth_worst, rank_scores, repeated_z
from bench.rollout_regressions import EFFECTS
from fairlead.rollout.guardrail import log_wealth

# Ages of two groups; by hand, treatment is higher in 7 of 25 pairs.
FIRST = np.array([[19.0, 22, 16, 29, 24]])
SECOND = np.array([[20.0, 11, 17, 12, 26]])


def test_the_rank_score_is_that_of_mann_and_whitney() -> None:
    found = stats.mannwhitneyu(
        SECOND[0], FIRST[0], alternative="greater", method="asymptotic", use_continuity=False
    )
    assert found.statistic == 7
    assert stats.norm.sf(rank_scores(FIRST, SECOND)[0, -1]) == pytest.approx(found.pvalue)


def test_each_minutes_rank_score_is_that_of_the_minutes_so_far() -> None:
    rng = np.random.default_rng(1)
    control, treatment = rng.normal(size=(2, 3, 30))
    scores = rank_scores(control, treatment)
    assert (scores[:, :4] == -np.inf).all()
    for end in (5, 17, 30):
        for run in range(3):
            expected = stats.mannwhitneyu(
                treatment[run, :end], control[run, :end], method="asymptotic", use_continuity=False
            )
            middle, spread = end * end / 2, math.sqrt(end * end * (2 * end + 1) / 12)
            assert scores[run, end - 1] == pytest.approx((expected.statistic - middle) / spread)


def test_ties_count_one_half() -> None:
    same = np.array([[1.0, 1, 1, 1, 1]])
    assert rank_scores(same, same)[0, -1] == 0


def test_kayentas_judge_needs_a_shift_clear_of_a_quarter_of_its_estimate() -> None:
    rng = np.random.default_rng(2)
    control = rng.normal(100, 10, 60)
    assert not kayenta_high(control, control)
    assert not kayenta_high(control, rng.normal(90, 10, 60))
    assert kayenta_high(control, rng.normal(115, 10, 60))
    # The interval of five minutes each is as wide as all differences: nothing can be high.
    assert not kayenta_high(control[:3], control[:3] + 1000)


def test_the_z_test_is_the_square_root_of_the_table_of_four() -> None:
    table = np.array([[30, 70], [45, 55]])
    found = stats.chi2_contingency(table, correction=False)
    z = repeated_z(np.array(30.0), np.array(100.0), np.array(45.0), np.array(100.0))
    assert z**2 == pytest.approx(found.statistic)


def test_a_z_test_of_nothing_is_zero() -> None:
    nothing = np.zeros(2)
    assert_allclose(repeated_z(nothing, np.array([0.0, 5.0]), nothing, np.array([0.0, 5.0])), 0)


def test_flaggers_tenth_failed_check_is_the_one_that_rolls_back() -> None:
    figures = np.array([[1.0, 0.0] * 12])  # every other check is beyond a limit of 0.5
    assert fired(nth_worst(figures, 10), 0.5).tolist() == [19]
    assert fired(nth_worst(figures, 13), 0.5).tolist() == [0]


def test_a_tuned_limit_lets_as_many_alarm_as_it_was_told() -> None:
    scores = np.random.default_rng(3).normal(size=(1_000, 20)).cumsum(axis=1)
    assert (fired(scores, limit_for(scores, 0.05)) > 0).mean() == 0.05


def test_the_formulas_size_is_that_of_a_test_with_80_percent_power() -> None:
    errors = EFFECTS[1]  # 1 % → 2 %
    n = units_of_formula(errors, 0.5) / 2
    error = math.sqrt(0.01 * 0.99 / n + 0.02 * 0.98 / n)
    assert stats.norm.sf(1.6449 - 0.01 / error) == pytest.approx(0.8, abs=0.001)


def test_a_stake_carried_for_arrays_is_the_products() -> None:
    log_e = np.random.default_rng(4).normal(size=(4, 3))
    for stage in range(4):
        for look in range(3):
            so_far = [*log_e[:stage, -1].tolist(), float(log_e[stage, look])]
            assert carried(log_e)[stage, look] == pytest.approx(log_wealth(so_far, 4, carry=True))
