"""What holds a process up: each cause by its marks, and what would fool a reader of one mark alone."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.diagnosis import Bottleneck, Measured, Suspect, find_bottleneck
from fairlead.errors import InvalidInput

IDLE = Measured(
    seconds=10.0,
    processes=1,
    requests_ended=500.0,
    request_seconds=0.2,
    in_flight=10.0,
    cpu_share=0.1,
    cpu_wait_share=0.0,
    gc_share=0.01,
    loop_late_share=0.01,
    loop_lag_p99_seconds=0.002,
    loop_stalled_seconds=0.0,
    downstream_share=0.05,
    downstream="prices",
    downstream_call_seconds=0.01,
    queue_share=0.0,
    limit_use=0.1,
    lock_waiters=0.0,
    io_waiters=0.0,
    loop_blocked_share=0.0,
)


def found(**facts: object) -> Bottleneck:
    return find_bottleneck(msgspec.structs.replace(IDLE, **facts))


def suspect(bottleneck: Bottleneck, cause: str) -> Suspect:
    return next(each for each in bottleneck.suspects if each.cause == cause)


class TestOneCause:
    @pytest.mark.parametrize(
        ("facts", "verdict"),
        [
            ({"cpu_share": 0.97, "loop_lag_p99_seconds": 0.2, "loop_late_share": 0.5}, "cpu"),
            ({"cpu_share": 0.3, "cpu_wait_share": 0.6, "loop_lag_p99_seconds": 0.2}, "cpu"),
            ({"loop_lag_p99_seconds": 0.3, "loop_late_share": 0.2}, "loop"),
            ({"lock_waiters": 9.0}, "lock"),
            ({"queue_share": 0.7}, "lock"),
            ({"io_waiters": 6.0}, "io"),
            ({"downstream_share": 0.8, "downstream_call_seconds": 0.15}, "downstream"),
        ],
    )
    def test_is_named_with_its_evidence(self, facts: dict[str, object], verdict: str) -> None:
        bottleneck = found(**facts)
        assert bottleneck.verdict == verdict
        assert bottleneck.suspects[0].cause == verdict
        assert all(
            "from" in said or "a call" in said or "on time" in said
            for said in bottleneck.suspects[0].evidence
        )

    def test_nothing_near_a_threshold_is_inconclusive_and_says_how_much_is_unaccounted_for(self) -> None:
        bottleneck = found()
        assert bottleneck.verdict == "inconclusive"
        assert "94 % of the requests' time went by in nothing that was measured" in bottleneck.reason


class TestWhatWouldFoolAReaderOfOneMark:
    def test_a_late_loop_of_a_saturated_process_is_no_blocking_call(self) -> None:
        bottleneck = found(cpu_share=1.0, loop_lag_p99_seconds=0.5, loop_late_share=0.6)
        assert bottleneck.verdict == "cpu"
        assert "makes its loop late" in suspect(bottleneck, "loop").against[-1]

    def test_one_long_stall_that_no_p99_sees_is_seen_by_the_share_of_time(self) -> None:
        assert found(loop_lag_p99_seconds=0.002, loop_late_share=0.25).verdict == "loop"

    def test_a_loop_that_hangs_and_rings_no_timer_is_seen_by_the_gauge(self) -> None:
        assert (
            found(loop_lag_p99_seconds=None, loop_late_share=0.0, loop_stalled_seconds=4.0).verdict == "loop"
        )

    def test_a_busy_thread_beside_an_idle_loop_is_not_what_requests_wait_for(self) -> None:
        bottleneck = found(cpu_share=1.0, downstream_share=0.9, downstream_call_seconds=0.2)
        assert bottleneck.verdict == "downstream"
        assert "other threads use it" in suspect(bottleneck, "cpu").against[0]

    def test_one_request_at_a_time_can_use_a_core_up_and_leave_the_loop_on_time(self) -> None:
        assert found(cpu_share=0.95, in_flight=1.0, loop_lag_p99_seconds=0.01).verdict == "cpu"

    def test_calls_look_slow_to_a_late_loop(self) -> None:
        facts = {"loop_lag_p99_seconds": 0.2, "loop_late_share": 0.3, "downstream_share": 0.9}
        assert found(**facts, downstream_call_seconds=0.05).verdict == "loop"

    def test_a_call_much_longer_than_the_lag_is_slow_itself(self) -> None:
        bottleneck = found(loop_lag_p99_seconds=0.08, downstream_share=0.9, downstream_call_seconds=5.0)
        assert suspect(bottleneck, "downstream").strength == 1.0

    def test_the_callees_own_spans_acquit_it_or_convict_it(self) -> None:
        late = {"loop_lag_p99_seconds": 0.2, "downstream_share": 0.9, "downstream_call_seconds": 0.05}
        assert suspect(found(**late, callee_share=0.9), "downstream").strength == 1.0
        acquitted = suspect(found(downstream_share=0.9, callee_share=0.1), "downstream")
        assert acquitted.strength < 0.5
        assert "10 %" in acquitted.against[0]

    def test_a_full_limit_in_front_of_a_slow_downstream_is_its_echo(self) -> None:
        bottleneck = found(limit_use=1.0, queue_share=0.4, downstream_share=0.6)
        assert bottleneck.verdict == "downstream"
        assert "because they are slow" in suspect(bottleneck, "lock").against[-1]

    def test_waiting_for_the_interpreters_lock_is_not_waiting_for_a_lock(self) -> None:
        assert found(cpu_share=1.0, loop_lag_p99_seconds=0.2, lock_waiters=9.0).verdict == "cpu"

    def test_a_pause_of_the_collector_is_no_blocking_call(self) -> None:
        bottleneck = found(loop_late_share=0.3, gc_share=0.25, cpu_share=0.7)
        assert suspect(bottleneck, "loop").strength < 0.5
        assert any("garbage collector" in said for said in suspect(bottleneck, "cpu").evidence)

    def test_two_causes_alike_are_not_decided_between(self) -> None:
        bottleneck = found(io_waiters=8.0, downstream_share=0.9)
        assert bottleneck.verdict == "inconclusive"
        assert "end one of them" in bottleneck.reason


class TestWhatIsNotKnown:
    def test_is_missing_and_never_zero(self) -> None:
        bottleneck = find_bottleneck(Measured())
        assert (bottleneck.verdict, bottleneck.suspects) == ("inconclusive", ())
        assert len(bottleneck.missing) == 5
        assert "LoopLag(registry)" in " ".join(bottleneck.missing)

    def test_a_busy_processor_beside_slow_calls_is_not_decided_without_the_loops_lag(self) -> None:
        bottleneck = found(
            cpu_share=0.95,
            downstream_share=0.9,
            loop_lag_p99_seconds=None,
            loop_late_share=None,
            loop_stalled_seconds=None,
            loop_blocked_share=None,
        )
        assert {each.cause for each in bottleneck.suspects[:2]} == {"cpu", "downstream"}
        assert any("loop lag" in said for said in bottleneck.missing)

    @pytest.mark.parametrize(
        ("facts", "said"),
        [
            ({"seconds": 600.0}, "hide a burst"),
            ({"processes": 4}, "ask each"),
            ({"requests_ended": 0.0}, "no request ended"),
            ({"loop_lag_p99_seconds": 0.5}, "clients see more"),
        ],
    )
    def test_what_a_mean_hides_is_said(self, facts: dict[str, object], said: str) -> None:
        assert any(said in caveat for caveat in found(**facts).caveats)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
    def test_a_number_that_is_none_is_refused(self, value: float) -> None:
        with pytest.raises(InvalidInput, match="cpu_share"):
            Measured(cpu_share=value)

    @given(
        st.fixed_dictionaries(
            {
                name: st.none() | st.floats(0, 1e12)
                for name in Measured.__struct_fields__
                if name not in ("downstream", "processes")
            }
        )
    )
    def test_any_facts_get_a_verdict_and_strengths_from_zero_to_one(
        self, facts: dict[str, float | None]
    ) -> None:
        bottleneck = find_bottleneck(Measured(**facts))
        assert all(0.0 <= each.strength <= 1.0 and each.evidence for each in bottleneck.suspects)
        strengths = [each.strength for each in bottleneck.suspects]
        assert strengths == sorted(strengths, reverse=True)
        if bottleneck.verdict != "inconclusive":
            assert bottleneck.verdict == bottleneck.suspects[0].cause
