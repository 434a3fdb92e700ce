"""One guardrail at one look: what it takes to fail, to pass, and why it does neither."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.rollout import Guardrail, Stage
from fairlead.rollout.entry import Looked, decode_entry, encode_entry
from fairlead.rollout.guardrail import Evaluation, evaluate_beside_control, evaluate_limit, log_wealth
from fairlead.rollout.tally import ArmSeen
from fairlead.statistics.sequential_counts import log_e_value, tuned_strength
from tests.unit.rollout.conftest import ERRORS, LATENCY, plan

SUCCESS = dataclasses.replace(ERRORS, name="success", field="status < 500", better="higher")
MEAN = dataclasses.replace(LATENCY, name="latency", kind="mean", q=None)
ONE = (Stage(share=0.5, bake=60.0),)


def judged(
    guardrail: Guardrail,
    control: ArmSeen,
    treatment: ArmSeen,
    *,
    stages: tuple[Stage, ...] = ONE,
    past: tuple[float, ...] = (),
    share: float = 0.5,
) -> Evaluation:
    return evaluate_beside_control(
        plan(guardrails=(guardrail,), stages=stages), guardrail, control, treatment, share=share, past=past
    )


def bad(units: int, count: int) -> ArmSeen:
    return ArmSeen(units=units, bad=count)


def values(*pairs: tuple[float, int]) -> ArmSeen:
    found = Counter(dict(pairs))
    return ArmSeen(units=found.total(), values=found)


POINTS = Guardrail(metric=ERRORS, worse_by=0.02, relative=False)
SHARE = Guardrail(metric=ERRORS, worse_by=0.5)


# Wealth -------------------------------------------------------------------------------------------------------------


def test_a_stake_divided_among_stages_is_bet_on_with_its_winnings():
    # Two stages: half won 8 and then 3, half is bet at 3 only: 12 + 1.5.
    assert math.exp(log_wealth([math.log(8), math.log(3)], 2, carry=True)) == pytest.approx(13.5)


def test_what_is_not_yet_bet_is_kept():
    assert math.exp(log_wealth([math.log(0.01)], 4, carry=True)) == pytest.approx(0.0025 + 0.75)


@settings(deadline=None)
@given(st.lists(st.floats(-700, 700), min_size=1, max_size=8), st.integers(0, 5))
def test_wealth_is_the_mean_over_the_stages_at_which_betting_began(log_e: list[float], to_come: int):
    stages = len(log_e) + to_come
    parts = [math.fsum(log_e[index:]) for index in range(len(log_e))] + [0.0] * to_come
    top = max(parts)
    expected = top + math.log(math.fsum(math.exp(part - top) for part in parts) / stages)
    assert log_wealth(log_e, stages, carry=True) == pytest.approx(expected, abs=1e-9)


def test_one_worthless_stage_does_not_undo_the_ones_before_and_after():
    assert math.exp(log_wealth([-math.inf, math.log(50)], 2, carry=True)) == pytest.approx(25.0)


def test_alpha_is_shared_by_guardrails_and_needed_is_its_inverse():
    two = plan(guardrails=(POINTS, SHARE), stages=ONE, alpha=0.05)
    found = evaluate_beside_control(two, POINTS, bad(10, 0), bad(10, 0), share=0.5, past=())
    assert math.exp(found.log_needed) == pytest.approx(40.0)


# No harm, exactly ----------------------------------------------------------------------------------------------------


def _chance_of_failing(
    guardrail: Guardrail, events: int, share: float, past: tuple[float, ...], stages: int
) -> float:
    """Over all paths of `events` bad units that fall to treatment with chance `share`: how many ever fail."""
    needed, size = math.log(1 / 0.05), tuned_strength(100)
    direction = "greater" if guardrail.metric.better == "lower" else "less"
    alive, failed = {0: 1.0}, 0.0
    for n in range(1, events + 1):
        following: dict[int, float] = {}
        for treated, chance in alive.items():
            for one, probability in ((1, share), (0, 1 - share)):
                log_e = log_e_value(treated + one, n, share, size, direction)
                if log_wealth([*past, log_e], stages, carry=True) >= needed:
                    failed += chance * probability
                else:
                    following[treated + one] = following.get(treated + one, 0.0) + chance * probability
        alive = following
    return failed


@pytest.mark.parametrize("share", [0.01, 0.05, 0.25, 0.5])
@pytest.mark.parametrize("metric", [ERRORS, SUCCESS], ids=["lower", "higher"])
def test_a_treatment_like_control_fails_with_a_chance_of_alpha_at_most(metric: object, share: float):
    guardrail = dataclasses.replace(SHARE, metric=metric)
    assert _chance_of_failing(guardrail, 60, share, (), 1) <= 0.05


def test_the_chance_over_two_stages_is_alpha_at_most():
    # Every path of the first stage, and behind each the second with what was won.
    guardrail, share, size = SHARE, 0.25, tuned_strength(100)
    needed = math.log(1 / 0.05)
    alive, failed = {0: 1.0}, 0.0
    for n in range(1, 21):
        following: dict[int, float] = {}
        for treated, chance in alive.items():
            for one, probability in ((1, share), (0, 1 - share)):
                now = log_e_value(treated + one, n, share, size, "greater")
                if log_wealth([now], 2, carry=True) >= needed:
                    failed += chance * probability
                else:
                    following[treated + one] = following.get(treated + one, 0.0) + chance * probability
        alive = following
    for treated, chance in alive.items():
        won = log_e_value(treated, 20, share, size, "greater")
        failed += chance * _chance_of_failing(guardrail, 20, 0.5, (won,), 2)
    assert failed <= 0.05


def test_what_is_evaluated_is_what_those_functions_say():
    found = judged(SHARE, bad(500, 5), bad(500, 20))
    assert found.log_e_value == log_e_value(20, 25, 0.5, tuned_strength(100), "greater")
    assert found.log_wealth == pytest.approx(found.log_e_value)


# Failing and passing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guardrail", "control", "treatment", "verdict"),
    [
        (POINTS, bad(5_000, 50), bad(5_000, 50), "PASS"),
        (POINTS, bad(5_000, 50), bad(5_000, 250), "FAIL"),
        (POINTS, bad(5_000, 50), bad(5_000, 145), "INCONCLUSIVE"),  # worse, within the margin
        (SHARE, bad(50_000, 5_000), bad(50_000, 5_000), "PASS"),
        (SHARE, bad(5_000, 50), bad(5_000, 100), "FAIL"),
        (dataclasses.replace(POINTS, metric=SUCCESS), bad(5_000, 4_900), bad(5_000, 4_500), "FAIL"),
        (dataclasses.replace(POINTS, metric=SUCCESS), bad(5_000, 4_500), bad(5_000, 4_900), "PASS"),
        (dataclasses.replace(SHARE, metric=SUCCESS), bad(5_000, 4_000), bad(5_000, 1_000), "FAIL"),
        (dataclasses.replace(SHARE, metric=SUCCESS), bad(5_000, 1_000), bad(5_000, 4_000), "PASS"),
    ],
    ids=["same", "worse", "within", "same share", "double", "fewer", "more", "share fewer", "share more"],
)
def test_both_ends_of_both_margins(guardrail: Guardrail, control: ArmSeen, treatment: ArmSeen, verdict: str):
    assert judged(guardrail, control, treatment).verdict == verdict


def test_a_control_without_a_single_failure_is_nothing_to_be_relative_to():
    assert judged(SHARE, bad(500, 0), bad(500, 0)).verdict == "INCONCLUSIVE"
    found = judged(SHARE, bad(500, 0), bad(500, 20))
    assert (found.verdict, found.effect, found.bound) == ("FAIL", None, None)


def test_better_is_never_harm_however_much_there_is_of_it():
    assert judged(SHARE, bad(500, 500), bad(500, 0)).verdict == "PASS"


def test_one_arm_without_units_is_no_data():
    for control, treatment in ((bad(0, 0), bad(9, 9)), (bad(9, 9), bad(0, 0)), (bad(0, 0), bad(0, 0))):
        found = judged(SHARE, control, treatment)
        assert (found.verdict, found.reason) == ("INCONCLUSIVE", "no_data")


QUANTILE = Guardrail(metric=LATENCY, worse_by=0.1)


def against(control: ArmSeen, treatment: ArmSeen, limit: float) -> tuple[ArmSeen, ArmSeen]:
    """Both arms, with their values above the limit counted as beyond control's quantile."""
    beyond = [sum(n for value, n in arm.values.items() if value > limit) for arm in (control, treatment)]
    return dataclasses.replace(control, bad=beyond[0]), dataclasses.replace(treatment, bad=beyond[1])


def test_a_quantile_that_is_worse_fails_and_one_that_is_not_passes():
    usual = values(*[(n / 1_000, 60) for n in range(1, 1_001)])
    twice = values(*[(n / 500, 60) for n in range(1, 1_001)])
    found = judged(QUANTILE, *against(usual, twice, 0.99))
    assert (found.verdict, found.control, found.treatment, found.effect) == ("FAIL", 0.99, 1.98, 1.0)
    assert (found.beyond_control, found.beyond_treatment) == (600, 505 * 60)
    assert judged(QUANTILE, *against(usual, usual, 0.99)).verdict == "PASS"
    higher = Guardrail(metric=dataclasses.replace(LATENCY, q=0.5, better="higher"), worse_by=0.1)
    half = values(*[(n / 2_000, 60) for n in range(1, 1_001)])
    below = dataclasses.replace(usual, bad=499 * 60), dataclasses.replace(half, bad=999 * 60)
    assert judged(higher, *below).verdict == "FAIL"
    assert judged(higher, *below[::-1]).verdict == "PASS"


@pytest.mark.parametrize("share", [0.01, 0.05, 0.25, 0.5])
def test_units_beyond_controls_quantile_are_bet_on_as_failed_ones_are(share: float):
    control, treatment = ArmSeen(units=900, bad=9), ArmSeen(units=100, bad=7)
    for arm in (control, treatment):
        arm.values.update({0.1: arm.units - arm.bad, 0.5: arm.bad})
    found = judged(QUANTILE, control, treatment, share=share)
    assert found.log_e_value == log_e_value(7, 16, share, tuned_strength(100), "greater")
    assert judged(
        dataclasses.replace(QUANTILE, metric=ERRORS), control, treatment, share=share
    ).log_e_value == (found.log_e_value)


@pytest.mark.parametrize(("times", "verdict"), [(1.05, "PASS"), (1.15, "FAIL")])
def test_harm_that_was_shown_fails_only_where_the_quantile_lies_beyond_the_margin(times: float, verdict: str):
    control = values(*[(n / 1_000, 60) for n in range(1, 1_001)])
    worse = values(*[(n * times / 1_000, 60) for n in range(1, 1_001)])
    found = judged(QUANTILE, *against(control, worse, 0.99))
    assert found.log_wealth > found.log_needed  # it is worse, beyond doubt
    assert (found.verdict, found.effect) == (verdict, pytest.approx(times - 1))


def test_a_treatment_better_in_the_tail_and_worse_in_the_middle_is_not_held_to_be_worse_by_its_p99():
    control = values((0.1, 9_700), (1.0, 300))
    middling = values((0.2, 9_950), (0.9, 50))
    assert judged(QUANTILE, *against(control, middling, 1.0)).verdict == "PASS"


def test_more_units_beyond_a_quantile_that_is_not_worse_are_no_harm():
    # What treatment's quantile is compared with is control's of the whole stage, whatever it was a moment before.
    arms = [values((0.1, 9_700), (1.0, 300)) for _ in range(2)]
    arms[0].bad, arms[1].bad = 10, 300
    found = judged(QUANTILE, arms[0], arms[1])
    assert found.log_wealth > found.log_needed
    assert (found.verdict, found.effect) == ("PASS", 0.0)


def test_requests_that_never_come_back_are_worse_than_any_slow_one():
    usual = values((0.1, 2_000))
    lost = values((0.1, 1_800), (math.inf, 200))
    found = judged(QUANTILE, *against(usual, lost, 0.1))
    assert (found.verdict, found.effect) == ("FAIL", None)
    assert judged(QUANTILE, lost, lost).verdict == "INCONCLUSIVE"
    assert judged(QUANTILE, lost, usual).verdict == "INCONCLUSIVE"
    # Where control's never come back either, nobody knows how much worse it is.
    assert judged(QUANTILE, *against(lost, lost, 0.1)[::-1]).verdict == "INCONCLUSIVE"
    assert judged(QUANTILE, lost, dataclasses.replace(usual, bad=500)).verdict == "INCONCLUSIVE"


def test_a_mean_fails_and_passes_both_ways():
    usual = values((0.1, 2_000), (0.2, 2_000))
    slow = values((0.2, 2_000), (0.4, 2_000))
    rail = Guardrail(metric=MEAN, worse_by=0.1)
    assert [judged(rail, usual, each).verdict for each in (usual, slow)] == ["PASS", "FAIL"]
    up = Guardrail(metric=dataclasses.replace(MEAN, better="higher"), worse_by=0.05, relative=False)
    assert [judged(up, slow, each).verdict for each in (slow, usual)] == ["PASS", "FAIL"]


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([POINTS, SHARE, dataclasses.replace(SHARE, metric=SUCCESS)]),
    st.tuples(st.integers(0, 10**7), st.integers(0, 10**7)),
    st.tuples(st.integers(0, 10**7), st.integers(0, 10**7)),
    st.sampled_from([0.0001, 0.01, 0.5, 0.9999]),
)
def test_whatever_was_counted_an_evaluation_can_be_read_back(
    guardrail: Guardrail, control: tuple[int, int], treatment: tuple[int, int], share: float
):
    found = judged(
        guardrail,
        bad(max(control), min(control)),
        bad(max(treatment), min(treatment)),
        share=share,
    )
    entry = Looked(stage=0, guarded_seconds=1.0, evaluations=(found,))
    assert decode_entry(encode_entry(entry)) == entry


@given(
    st.dictionaries(
        st.floats(-1e3, 1e3) | st.sampled_from([0.0, 5e-324, 1e9, math.inf]),
        st.integers(1, 50),
        min_size=1,
        max_size=6,
    ),
    st.dictionaries(
        st.floats(-1e3, 1e3) | st.sampled_from([0.0, 5e-324, 1e9, math.inf]),
        st.integers(1, 50),
        min_size=1,
        max_size=6,
    ),
)
@settings(max_examples=25, deadline=None)
def test_whatever_values_there_were_a_quantile_can_be_judged_and_read_back(
    control: dict[float, int], treatment: dict[float, int]
):
    found = judged(QUANTILE, values(*control.items()), values(*treatment.items()))
    entry = Looked(stage=0, guarded_seconds=1.0, evaluations=(found,))
    assert decode_entry(encode_entry(entry)) == entry


# Limits --------------------------------------------------------------------------------------------------------------

ABOVE = Guardrail(metric=ERRORS, above=0.1, for_seconds=60.0)
BELOW = Guardrail(metric=SUCCESS, below=0.9, for_seconds=60.0)


@pytest.mark.parametrize(
    ("guardrail", "value", "beyond_since", "verdict", "reason"),
    [
        (ABOVE, 0.1, None, "PASS", ""),  # at the limit is within it
        (ABOVE, 0.2, 100.0, "INCONCLUSIVE", "beyond_limit"),
        (ABOVE, 0.2, 41.0, "INCONCLUSIVE", "beyond_limit"),
        (ABOVE, 0.2, 40.0, "FAIL", "beyond_limit"),
        (ABOVE, math.inf, 40.0, "FAIL", "beyond_limit"),
        (ABOVE, None, 40.0, "INCONCLUSIVE", "no_data"),
        (ABOVE, math.nan, 40.0, "INCONCLUSIVE", "no_data"),
        (ABOVE, -math.inf, 40.0, "INCONCLUSIVE", "no_data"),
        (BELOW, 0.9, None, "PASS", ""),
        (BELOW, 0.5, 40.0, "FAIL", "beyond_limit"),
        (BELOW, 0.5, 99.0, "INCONCLUSIVE", "beyond_limit"),
    ],
)
def test_a_limit_fails_when_it_was_broken_for_its_time(
    guardrail: Guardrail, value: float | None, beyond_since: float | None, verdict: str, reason: str
):
    found = evaluate_limit(
        plan(guardrails=(guardrail,)), guardrail, value, n=100, beyond_since=beyond_since, now=100.0
    )
    assert (found.verdict, found.reason) == (verdict, reason)


@pytest.mark.parametrize(
    ("bad", "n", "verdict", "reason"),
    [
        (1, 1, "INCONCLUSIVE", "waiting"),  # one user, one error: 100 %, and no figure
        (1, 49, "INCONCLUSIVE", "waiting"),
        (1, 50, "PASS", ""),  # at the limit is within it
        (2, 49, "INCONCLUSIVE", "waiting"),  # 26 looks of a hundred at the limit have as many
        (4, 49, "INCONCLUSIVE", "waiting"),  # 1.7 of a hundred
        (5, 49, "FAIL", "beyond_limit"),  # 0.3
        (2, 2, "FAIL", "beyond_limit"),
        (6, 250, "FAIL", "beyond_limit"),  # five are allowed: the figure stands as it is
        (0, 1, "PASS", ""),
    ],
)
def test_a_few_events_break_no_limit_on_a_share_by_chance(bad: int, n: int, verdict: str, reason: str):
    for limit, value in (({"above": 0.02}, bad / n), ({"below": 0.98}, 1 - bad / n)):
        guardrail = Guardrail(metric=ERRORS, for_seconds=10.0, **limit)
        since = 0.0 if verdict == "FAIL" else None
        found = evaluate_limit(plan(), guardrail, value, n=n, beyond_since=since, now=100.0)
        assert (found.verdict, found.reason) == (verdict, reason), limit
    reading = Guardrail(metric=ERRORS, above=0.02, for_seconds=10.0)
    assert (
        evaluate_limit(plan(), reading, 0.5, beyond_since=0.0, now=100.0).verdict == "FAIL"
    )  # n is not known


def test_a_limit_that_was_shown_to_be_broken_stays_so_while_chance_may_be_all_there_is():
    guardrail = Guardrail(metric=ERRORS, above=0.02, for_seconds=60.0)
    found = evaluate_limit(plan(), guardrail, 2 / 49, n=49, beyond_since=0.0, now=100.0)
    assert (found.verdict, found.reason, found.beyond_seconds) == ("INCONCLUSIVE", "beyond_limit", 100.0)
    assert "of 49 events by chance as well" in found.detail


@pytest.mark.parametrize(
    ("bad", "n", "allowed", "verdict"),
    [
        (1_000, 2_000, 0.001, "FAIL"),  # of so many, combinations are no floats any more
        (1_000_000, 1_000_000, 1e-6, "FAIL"),
        (4, 1_000_000, 1e-6, "INCONCLUSIVE"),  # 1.9 of a hundred
        (5, 1_000_000, 1e-6, "FAIL"),  # 0.4
        (1, 1_000_000, 0.0, "FAIL"),  # none is allowed, and chance brings none about
        (4, 4, 0.99, "INCONCLUSIVE"),  # 96
        (10**15, 10**15, 1e-15, "FAIL"),
    ],
)
def test_a_limit_judges_any_number_of_events_at_once(bad: int, n: int, allowed: float, verdict: str):
    guardrail = Guardrail(metric=ERRORS, above=allowed, for_seconds=10.0)
    found = evaluate_limit(plan(), guardrail, bad / n, n=n, beyond_since=0.0, now=100.0)
    assert found.verdict == verdict


def test_a_control_beyond_the_limit_is_named_and_does_not_save_treatment():
    found = evaluate_limit(
        plan(guardrails=(ABOVE,)), ABOVE, 0.2, control=0.3, n_control=90, beyond_since=90.0, now=100.0
    )
    assert (found.verdict, found.reason) == ("INCONCLUSIVE", "control_unhealthy")
    found = evaluate_limit(
        plan(guardrails=(ABOVE,)), ABOVE, 0.2, control=0.3, n_control=90, beyond_since=0.0, now=100.0
    )
    assert (found.verdict, found.detail) == ("FAIL", "control is beyond the limit too")


@pytest.mark.parametrize("reason", ["query_error", "stale", "no_data"])
def test_why_there_is_no_figure_is_kept(reason: str):
    found = evaluate_limit(
        plan(guardrails=(ABOVE,)), ABOVE, None, beyond_since=None, now=1.0,
        problem=reason, detail="said so",  # type: ignore[arg-type]
    )  # fmt: skip
    assert (found.reason, found.detail) == (reason, "said so")
