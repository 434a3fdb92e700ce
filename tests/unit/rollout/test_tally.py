"""What counts, and where: units once, in the stage of their first failure, whatever order events arrive in."""

from __future__ import annotations

import dataclasses
import gc
import math
import random
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.metrics import Metric
from fairlead.rollout import Guardrail, RolloutPlan
from fairlead.rollout.last_minutes import Recent
from fairlead.rollout.tally import ArmSeen, Tally
from tests.unit.rollout.conftest import ERRORS, LATENCY, plan

RAIL = Guardrail(metric=ERRORS, worse_by=0.02, relative=False)
LIMIT = Guardrail(metric=ERRORS, above=0.02)
SLOW = Guardrail(metric=LATENCY, worse_by=0.1)
MEAN = Guardrail(
    metric=dataclasses.replace(LATENCY, name="latency", kind="mean", q=None), worse_by=0.1, relative=True
)
START = 1_000.0


def tally(*guardrails: Guardrail, since: float = 0.0) -> Tally:
    made = Tally(plan(guardrails=guardrails or (RAIL, LIMIT)), since_utc_seconds=since)
    made.begin(START)
    return made


def request(unit: object = "u", arm: object = "treatment", at: object = START + 1, **fields: object):
    fields.setdefault("status", 200)
    return {"at_utc_seconds": at, "targeting_key": unit, "variant": arm, "latency_seconds": 0.1, **fields}


def saw(counts: Tally, *events: dict[str, object]) -> Tally:
    for event in events:
        counts.see("request_finished", event)
    return counts


def figures(counts: Tally, guardrail: Guardrail = RAIL) -> list[tuple[int, int]]:
    return [(arm.units, arm.bad) for arm in counts.arms(guardrail)]


def test_a_thousand_errors_of_one_unit_are_one():
    counts = saw(tally(), *[request("phone", status=500) for _ in range(1_000)], request("other"))
    assert figures(counts) == [(0, 0), (2, 1)]
    assert counts.units() == {"control": 0, "treatment": 2}


def test_a_unit_that_recovers_stays_failed_and_one_that_fails_late_counts():
    counts = saw(tally(), request("a", status=500), request("a"), request("b"), request("b", status=500))
    assert figures(counts) == [(0, 0), (2, 2)]


def test_a_unit_that_failed_in_an_earlier_stage_is_none_of_this_one():
    counts = saw(tally(), request("a", status=500), request("b"))
    counts.begin(START + 100)
    saw(counts, request("a", "control", START + 101, status=500), request("b", at=START + 101))
    assert figures(counts) == [(0, 0), (1, 0)]
    assert counts.units() == {"control": 1, "treatment": 1}  # the split is tested on all who came


def test_a_failure_of_an_earlier_stage_that_is_told_late_takes_the_unit_out():
    late = request("a", at=START - 5, status=500)
    here = request("a", status=500)
    assert figures(saw(tally(), here, late)) == figures(saw(tally(), late, here)) == [(0, 0), (0, 0)]


def test_what_happened_before_the_rollout_does_not_count_at_all():
    counts = saw(tally(since=500.0), request("a", at=499.0, status=500), request("a"))
    assert figures(counts) == [(0, 0), (1, 0)]


def test_a_unit_that_meets_both_arms_stays_where_it_was_first_and_is_told():
    counts = saw(tally(), request("a", "control"), request("a", "treatment", status=500))
    assert figures(counts) == [(1, 1), (0, 0)]
    assert counts.crossed == 1


def test_the_arm_is_the_events_own_or_that_of_the_units_last_exposure():
    counts = tally()
    saw(counts, request("a", ""))
    assert counts.unattributed == 1
    counts.see("exposure", {"flag": "feed", "targeting_key": "a", "variant": "treatment", "reason": "SPLIT"})
    counts.see("exposure", {"flag": "other", "targeting_key": "a", "variant": "control"})
    saw(counts, request("a", ""))
    assert figures(counts) == [(0, 0), (1, 0)]
    counts.see("exposure", {"flag": "feed", "targeting_key": "a", "variant": "off"})
    saw(counts, request("a", ""))
    assert counts.unattributed == 2


def test_who_was_let_in_as_an_audience_is_watched_and_not_compared():
    counts = tally()
    exposed = {"flag": "feed", "targeting_key": "ann", "variant": "treatment", "reason": "TARGETING_MATCH"}
    counts.see("exposure", exposed)
    saw(counts, request("ann", status=500), request("bob"))
    assert figures(counts) == [(0, 0), (1, 0)]
    assert counts.units() == {"control": 0, "treatment": 1}
    assert counts.recent(LIMIT, "treatment", START + 2, 60.0) == Recent(0.5, 2)


def test_events_that_name_no_unit_stand_for_themselves():
    counts = saw(tally(), request(None), request("", status=500), request(0))
    assert figures(counts) == [(0, 0), (3, 1)]
    assert counts.units() == {"control": 0, "treatment": 0}


@pytest.mark.parametrize(
    "event",
    [
        request(at=None), request(at="now"), request(at=math.nan), request(at=math.inf), request(arm=7),
        request(arm=["treatment"]), request(arm="off"), request(status=None), request(status="500"), {},
    ],
    ids=["no time", "text", "nan", "inf", "number", "list", "other", "none", "text status", "empty"],
)  # fmt: skip
def test_hostile_events_count_nothing(event: dict[str, object]):
    counts = saw(tally(), event)
    assert figures(counts) == [(0, 0), (0, 0)]


@pytest.mark.parametrize("guardrail", [SLOW, MEAN], ids=["quantile", "mean"])
@pytest.mark.parametrize(
    ("value", "of_quantile", "of_mean"),
    [
        (math.nan, 0, 0), (-math.inf, 0, 0), (math.inf, 1, 0), (10**400, 1, 0), (-(10**400), 0, 0), (True, 0, 0),
        ("0.1", 0, 0), (None, 0, 0), (0.1, 1, 1), (0, 1, 1),
    ],
    ids=["nan", "-inf", "inf", "huge", "-huge", "bool", "text", "none", "float", "whole"],
)  # fmt: skip
def test_only_numbers_are_values(guardrail: Guardrail, value: object, of_quantile: int, of_mean: int):
    counts = saw(tally(guardrail), request(latency_seconds=value))
    wanted = of_quantile if guardrail is SLOW else of_mean
    assert figures(counts, guardrail) == [(0, 0), (wanted, 0)]
    assert counts.arms(guardrail)[1].values.total() == wanted


def test_a_unit_has_one_value_a_stage_and_both_arms_round_alike():
    counts = saw(tally(SLOW), request(latency_seconds=0.12345), request(latency_seconds=9.0))
    assert counts.arms(SLOW)[1] == ArmSeen(units=1, values=counts.arms(SLOW)[1].values)
    assert dict(counts.arms(SLOW)[1].values) == {0.123: 1}
    counts.begin(START + 10)
    saw(counts, request(at=START + 11, latency_seconds=2.0))
    assert dict(counts.arms(SLOW)[1].values) == {2.0: 1}


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcde"),
            st.sampled_from([-20.0, -1.0, 0.0, 1.0, 50.0]),
            st.booleans(),
        ),
        max_size=30,
    ),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_no_order_of_arrival_changes_what_a_proportion_counts(
    told: list[tuple[str, float, bool]], rng: random.Random
):
    # Each unit keeps its arm, as the draw gives it; events are told late, twice, and out of order.
    events = [
        request(unit, "control" if unit in "ab" else "treatment", START + at, status=500 if failed else 200)
        for unit, at, failed in told
    ]
    one = saw(tally(), *events)
    rng.shuffle(events)
    other = saw(tally(), *events, *events[:5])
    assert figures(one) == figures(other)
    assert one.units() == other.units()
    assert all(0 <= bad <= units for units, bad in figures(one))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 60),
            st.sampled_from([-20.0, 0.0, 5.0, 15.0, 50.0]),
            st.sampled_from([0.1, 0.2, 3.0]),
        ),
        min_size=40,
        max_size=200,
    ),
    st.randoms(use_true_random=False),
)
@settings(deadline=None, max_examples=50)
def test_no_order_of_arrival_before_a_look_changes_what_a_quantile_counts(
    told: list[tuple[int, float, float]], rng: random.Random
):
    rail = dataclasses.replace(SLOW, metric=dataclasses.replace(LATENCY, q=0.5))
    events = [
        request(f"u{unit}", "treatment" if unit % 3 else "control", START + at, latency_seconds=value)
        for unit, at, value in told
    ]
    one = saw(tally(rail), *events)
    rng.shuffle(events)
    other = saw(tally(rail), *events, *events[:5])
    assert one.arms(rail) == other.arms(rail)


def test_a_units_first_value_is_its_earliest_of_those_told_before_a_look():
    counts = saw(
        tally(SLOW), request(at=START + 5, latency_seconds=9.0), request(at=START + 1, latency_seconds=0.2)
    )
    assert dict(counts.arms(SLOW)[1].values) == {0.2: 1}
    saw(counts, request(at=START, latency_seconds=0.3))  # too late: it is counted
    assert dict(counts.arms(SLOW)[1].values) == {0.2: 1}


def test_units_slower_than_controls_p99_of_the_moment_before_are_counted_once_a_stage():
    counts = saw(tally(SLOW), *[request(f"c{n}", "control", latency_seconds=n / 100) for n in range(100)])
    later = [
        request("a", at=START + 11, latency_seconds=5.0),
        request("c", "control", START + 11, latency_seconds=6.0),
    ]
    saw(
        counts,
        *later,
        request("b", at=START + 11, latency_seconds=0.5),
        request("a", at=START + 12, latency_seconds=7.0),
    )
    assert figures(counts, SLOW) == [(101, 1), (2, 1)]
    saw(counts, request("a", at=START + 21, latency_seconds=7.0))
    assert figures(counts, SLOW) == [(101, 1), (2, 1)]
    counts.begin(START + 100)
    saw(counts, request("a", at=START + 120, latency_seconds=5.0))
    assert figures(counts, SLOW) == [(0, 0), (1, 0)]  # a new stage has no past of control's yet


def test_a_limit_that_stands_alone_keeps_no_units():
    rail = Guardrail(metric=LATENCY, above=1.0)
    counts = saw(tally(rail), *[request(f"u{n}") for n in range(100)])
    assert not counts._watched[rail.name].first


# The last minutes ---------------------------------------------------------------------------------------------------


def test_the_last_minutes_count_every_event():
    counts = saw(tally(), *[request("phone", at=START + n, status=500 if n < 5 else 200) for n in range(20)])
    assert counts.recent(LIMIT, "treatment", START + 20, 60.0) == Recent(0.25, 20)
    assert counts.recent(LIMIT, "treatment", START + 20, 10.0) == Recent(0.0, 10)
    assert counts.recent(LIMIT, "control", START + 20, 60.0) == Recent(None, 0)
    assert counts.recent(LIMIT, "treatment", START + 2_000, 60.0) == Recent(None, 0)


def test_old_events_that_arrive_behind_newer_ones_are_not_taken_for_new():
    # A controller that starts again reads one process's segments after the other's.
    counts = saw(tally(), request("new", at=START + 500))
    saw(counts, *[request(f"old-{n}", at=START + 1, status=500) for n in range(100)])
    assert counts.recent(LIMIT, "treatment", START + 501, 60.0) == Recent(0.0, 1)
    assert counts.recent(LIMIT, "treatment", START + 2, 60.0) == Recent(1.0, 100)


def test_sampled_events_count_by_the_probability_they_were_kept_with():
    # Failures are never sampled: one in a hundred successes stands for a hundred.
    counts = saw(tally(), request("a", inclusion_probability=0.01), request("b", status=500))
    found = counts.recent(LIMIT, "treatment", START + 2, 60.0)
    assert found.value == pytest.approx(1 / 101)


def test_what_a_sampled_share_rests_on_is_what_it_would_rest_on_unsampled():
    # 20 failures of some 20,000 requests, of whose successes one in a hundred was kept: far from 220 requests.
    kept = [request(n, inclusion_probability=0.01) for n in range(200)]
    found = saw(tally(), *kept, *[request(n, status=500) for n in range(20)])
    recent = found.recent(LIMIT, "treatment", START + 2, 60.0)
    assert recent.value == pytest.approx(0.001, rel=0.01)
    assert 15_000 < recent.n < 25_000
    assert round(recent.n * (recent.value or 0.0)) in range(17, 21)
    # All kept alike, whatever the share: as many as were kept.
    alike = [request(n, status=500 if n < 20 else 200, inclusion_probability=0.3) for n in range(200)]
    assert saw(tally(), *alike).recent(LIMIT, "treatment", START + 2, 60.0) == Recent(pytest.approx(0.1), 200)
    one = request("a", inclusion_probability=0.01)
    assert saw(tally(), one).recent(LIMIT, "treatment", START + 2, 60.0) == Recent(0.0, 1)


@pytest.mark.parametrize(
    ("kind", "q", "wanted"),
    [("quantile", 0.5, 2.0), ("quantile", 0.99, 100.0), ("maximum", None, 100.0), ("mean", None, 26.75)],
    ids=["median", "p99", "maximum", "mean"],
)
def test_figures_of_the_last_minutes(kind: str, q: float | None, wanted: float):
    metric = dataclasses.replace(LATENCY, kind=kind, q=q)
    rail = Guardrail(metric=metric, above=1.0)
    counts = saw(tally(rail), *[request(n, latency_seconds=n) for n in (2, 1, 100, 4)])
    assert counts.recent(rail, "treatment", START + 2, 60.0).value == wanted


@pytest.mark.parametrize(("kind", "wanted"), [("rate", 0.05), ("count", 3.0)])
def test_how_many_there_were(kind: str, wanted: float):
    metric = dataclasses.replace(
        LATENCY, kind=kind, q=None, field=None, unit="events per second" if kind == "rate" else "events"
    )
    rail = Guardrail(metric=metric, above=1.0)
    counts = saw(tally(rail), *[request(n) for n in range(3)])
    assert counts.recent(rail, "treatment", START + 2, 60.0).value == wanted


@pytest.mark.parametrize("kind", ["rate", "count"])
@pytest.mark.parametrize(
    "event", ["request_finished", "crashed"], ids=["of all requests", "events of their own"]
)
def test_an_arm_that_reports_and_has_none_of_them_has_none(kind: str, event: str):
    """Nothing that is counted happens in a healthy service, so nothing would ever be within its limit."""
    metric = dataclasses.replace(
        ERRORS, name="crashes", kind=kind, event=event, field=None, where="status >= 500",
        unit="events per second" if kind == "rate" else "events",
    )  # fmt: skip
    rail = Guardrail(metric=metric, above=1.0)
    counts = saw(tally(rail, RAIL), request("a"), request("b", at=START + 30))
    assert counts.recent(rail, "treatment", START + 32, 60.0) == Recent(0.0, 0)
    assert counts.recent(rail, "control", START + 32, 60.0) == Recent(None, 0)
    assert counts.recent(rail, "treatment", START + 200, 60.0) == Recent(None, 0)


def test_a_total_of_users_is_no_figure_of_single_events():
    metric: Metric = dataclasses.replace(LATENCY, kind="total", q=None)
    rail = Guardrail(metric=metric, above=1.0)
    assert saw(tally(rail), request()).recent(rail, "treatment", START + 2, 60.0) == Recent(None, 0)


def test_clocks_that_are_far_ahead_do_not_keep_the_right_events_out():
    counts = tally()
    saw(counts, *[request(f"ahead-{n}", at=START + 1e6 + n, status=500) for n in range(20_000)])
    counts.recent(LIMIT, "treatment", START + 10, 60.0)
    saw(counts, request("a", at=START + 11))
    assert counts.recent(LIMIT, "treatment", START + 12, 60.0) == Recent(0.0, 1)


def test_a_clock_that_is_set_back_takes_the_beginnings_along():
    counts = tally(since=START - 100)
    saw(counts, request("a", at=START - 3_000, status=500))
    counts.set_back(3_600.0)
    saw(counts, request("b", at=START - 3_000, status=500))
    assert figures(counts) == [(0, 0), (1, 1)]


def _bytes_for(work: Callable[[], object]) -> int:
    gc.collect()
    tracemalloc.start()
    kept = work()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return size


def test_memory_is_that_of_units_and_not_of_events():
    def seen(units: int, times: int) -> Tally:
        counts = tally()
        for turn in range(times):
            for unit in range(units):
                counts.see("request_finished", request(f"{unit:06d}", at=START + turn * 5, status=500))
        return counts

    once, often = _bytes_for(lambda: seen(2_000, 1)), _bytes_for(lambda: seen(2_000, 5))
    assert often < 1.3 * once
    assert once / 2_000 < 600  # a unit of the stage that has failed, with its own name of 55 bytes


def test_seconds_are_not_kept_for_ever(make_plan: Callable[..., RolloutPlan]):
    rate = dataclasses.replace(ERRORS, name="rate", kind="rate", field=None, unit="events per second")
    rails = (LIMIT, Guardrail(metric=rate, above=1.0))
    counts = saw(tally(*rails), *[request("a", at=START + n) for n in range(0, 40_000, 2)])
    for rail in rails:
        kept = counts._watched[rail.name].recent["treatment"]
        assert 100 < len(kept._seconds) <= 4 * 3600
        assert len(kept._reported) <= 4 * 3600
