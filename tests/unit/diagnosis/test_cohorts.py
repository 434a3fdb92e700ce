"""Cohorts: who is hit more than the rest, and how seldom chance is taken for it."""

from __future__ import annotations

import numpy as np

from fairlead.diagnosis.cohorts import Compared, compare_cohorts


def compared(bad: np.ndarray, slices: np.ndarray, **dimensions: np.ndarray) -> Compared:
    named = {name: [str(value) for value in values] for name, values in dimensions.items()}
    return compare_cohorts("bad", bad, slices, named)


def test_cohort_that_is_hit_comes_first_with_what_it_costs():
    rng = np.random.default_rng(1)
    n = 4_000
    slices = np.arange(n) // 50
    region = rng.integers(0, 4, n)
    bad = rng.random(n) < np.where(region == 2, 0.20, 0.02)
    found = compared(bad, slices, region=region, noise=rng.integers(0, 5, n))
    first = found.cohorts[0]
    assert [(each.dimension, each.value) for each in found.worse] == [("region", "2")]
    assert abs(first.share - 0.20) < 0.03
    assert abs(first.rest_share - 0.02) < 0.01
    assert abs(first.excess - 0.18 * first.n) < 25
    assert first.low <= first.difference <= first.high


def test_heavier_cohort_comes_before_a_worse_one_that_is_small():
    rng = np.random.default_rng(2)
    n = 6_000
    kind = np.where(np.arange(n) % 60 == 0, "few", np.where(np.arange(n) % 2 == 0, "many", "rest"))
    bad = rng.random(n) < np.select([kind == "few", kind == "many"], [0.9, 0.3], 0.01)
    found = compared(bad, np.arange(n) // 60, kind=kind)
    assert [each.value for each in found.worse] == ["many", "few"]


def test_chance_is_taken_for_a_cause_in_at_most_one_run_of_twenty_however_many_cohorts_there_are():
    rng = np.random.default_rng(3)
    wrong = 0
    runs = 100
    for _ in range(runs):
        # Whole slices go bad together, and ten dimensions of four values are looked at.
        slices = np.repeat(np.arange(40), 20)
        bad = rng.random(800) < rng.beta(0.5, 6.0, 40)[slices]
        found = compared(bad, slices, **{f"d{number}": rng.integers(0, 4, 800) for number in range(10)})
        assert found.comparisons == 40
        wrong += bool(found.worse)
    # 5 are expected at most; 13 would be almost four standard deviations more.
    assert wrong <= 13


def test_phase_that_shares_no_slice_with_the_rest_is_compared_by_its_own_slices():
    slices = np.repeat(np.arange(40), 25)
    phase = np.where(slices < 20, "calm", "storm")
    rng = np.random.default_rng(4)
    storm = compared(rng.random(1_000) < np.where(phase == "storm", 0.4, 0.02), slices, phase=phase)
    assert [each.value for each in storm.worse] == ["storm"]
    # One terrible slice in a phase is one event, and not a phase that is worse.
    once = compared(slices == 30, slices, phase=phase)
    assert once.worse == ()


def test_too_few_requests_or_slices_are_refused_by_name():
    slices = np.arange(400) // 10
    bad = np.arange(400) % 7 == 0
    rare = np.where(np.arange(400) < 20, "rare", np.where(np.arange(400) % 2, "a", "b"))
    early = np.where(np.arange(400) < 390, "no", "yes")
    burst = np.where(
        (np.arange(400) >= 100) & (np.arange(400) < 130), "burst", np.where(np.arange(400) % 2, "a", "b")
    )
    found = compared(bad, slices, rare=rare, early=early, burst=burst)
    said = " | ".join(found.refused)
    assert "rare = rare: 20 requests on one side, 30 are needed" in said
    assert "burst = burst: 3 half seconds on one side" in said
    assert said.count("early") == 1


def test_two_values_are_one_comparison_named_by_the_worse_and_one_value_is_none():
    rng = np.random.default_rng(5)
    side = rng.integers(0, 2, 2_000)
    bad = rng.random(2_000) < np.where(side == 1, 0.3, 0.1)
    found = compared(bad, np.arange(2_000) // 20, side=side, same=np.zeros(2_000))
    assert [(each.dimension, each.value) for each in found.cohorts] == [("side", "1")]
    assert found.comparisons == 1


def test_everybody_bad_or_nobody_is_no_finding_and_no_error():
    for bad in (np.zeros(400, dtype=bool), np.ones(400, dtype=bool)):
        found = compared(bad, np.arange(400) // 10, half=np.arange(400) % 2)
        assert found.worse == ()


def test_ids_are_not_looked_at_one_by_one():
    found = compared(np.zeros(5_000, dtype=bool), np.arange(5_000) // 50, user=np.arange(5_000) % 100)
    assert found.comparisons == 30
    assert any("70 rarer values were not looked at" in said for said in found.refused)
