"""Facts from two pages of metrics, and from traces; and pages that are none."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.diagnosis import Measured, RecordedSpan, measured_between, measured_in_spans
from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.telemetry import MetricRegistry
from fairlead.telemetry.prometheus import render
from fairlead.telemetry.scrape import Scrape


class TestAPage:
    def test_is_read_back_as_it_was_rendered(self) -> None:
        registry = MetricRegistry()
        family = registry.counter("odd_total", "Odd.", labels=("route", "who"))
        family.labels(route='a "quoted" \\ {}', who="line\nbreak,and=comma").add(3)
        family.labels(route="", who="x").add(4)
        registry.gauge("away", "NaN when scraped.").track(lambda: 1 / 0)
        page = Scrape(render(registry))
        assert page.by("odd_total", "route") == {'a "quoted" \\ {}': 3.0, "": 4.0}
        assert page.by("odd_total", "who") == {"line\nbreak,and=comma": 3.0, "x": 4.0}
        assert page.total("away") is None

    @given(st.text(), st.floats(min_value=0, allow_nan=False, allow_infinity=False))
    def test_holds_any_label_and_number(self, label: str, value: float) -> None:
        registry = MetricRegistry()
        registry.gauge("g", "G.", labels=("name",)).labels(name=label).set(value)
        page = Scrape(render(registry))
        assert page.total("g") == value
        if len(label) <= 200 and label.isprintable():
            assert page.by("g", "name") == {label: value}

    @pytest.mark.parametrize(
        "text", ["", "# only a comment\n", "<html>502</html>", 'x_total{route="/fe', 'x{a="1" b} 2', "x one"]
    )
    def test_that_is_none_is_refused(self, text: str) -> None:
        with pytest.raises(BrokenDocument, match="page of metrics"):
            Scrape(text)

    def test_may_carry_time_stamps(self) -> None:
        assert Scrape("a_total 5 1700000000000\nb +Inf\n").total("a_total") == 5.0


def page(**values: float) -> str:
    return "".join(f"{name} {value}\n" for name, value in values.items())


class TestTwoScrapes:
    def test_give_shares_of_the_time_between_them(self) -> None:
        before = page(
            process_cpu_seconds_total=10.0,
            http_server_request_duration_seconds_count=100,
            http_server_request_duration_seconds_sum=20,
            http_server_active_requests=1,
        )
        after = page(
            process_cpu_seconds_total=12.0,
            http_server_request_duration_seconds_count=300,
            http_server_request_duration_seconds_sum=60,
            http_server_active_requests=3,
        )
        found = measured_between(before, after, seconds=4.0)
        assert (found.cpu_share, found.requests_ended, found.request_seconds) == (0.5, 200, 0.2)
        assert found.in_flight == 10.0
        assert measured_between(before, after, seconds=4.0, quota=0.5).cpu_share == 1.0
        assert measured_between(before, after, seconds=4.0, quota=8.0).cpu_share == 0.5

    def test_leave_unknown_what_is_on_neither(self) -> None:
        found = measured_between("a 1\n", "a 1\n", seconds=1.0)
        assert found == Measured(seconds=1.0, processes=1)

    def test_of_a_process_that_was_restarted_are_refused(self) -> None:
        with pytest.raises(InvalidInput, match="restarted"):
            measured_between(
                page(process_start_time_seconds=100.0), page(process_start_time_seconds=160.0), seconds=60.0
            )
        with pytest.raises(InvalidInput, match="restarted"):
            measured_between(
                page(process_cpu_seconds_total=9.0), page(process_cpu_seconds_total=1.0), seconds=60.0
            )

    def test_see_requests_that_hang_in_the_gauge_though_none_ended(self) -> None:
        before = page(
            http_server_request_duration_seconds_count=5, http_server_request_duration_seconds_sum=1.0
        )
        both = page(http_server_active_requests=40, fairlead_policy_call_duration_seconds_sum=7.0)
        flying = 'fairlead_policy_in_flight{policy="prices"} 36\n'
        found = measured_between(before + both + flying, before + both + flying, seconds=5.0)
        assert (found.in_flight, found.request_seconds, found.downstream_share) == (40.0, None, 0.9)

    def test_name_the_heaviest_downstream_databases_included(self) -> None:
        head = page(
            http_server_request_duration_seconds_count=10, http_server_request_duration_seconds_sum=10.0
        )
        calls = "".join(
            f'fairlead_policy_call_duration_seconds_sum{{policy="{name}"}} {total}\n'
            f'fairlead_policy_call_duration_seconds_count{{policy="{name}"}} 10\n'
            for name, total in (("prices", 1.0), ("labels", 2.0))
        )
        queries = (
            'db_client_query_duration_seconds_sum{database="main"} 4.0\n'
            'db_client_query_duration_seconds_count{database="main"} 8\n'
        )
        found = measured_between("x 1\n", head + calls + queries, seconds=1.0)
        assert (found.downstream, found.downstream_call_seconds) == ("database main", 0.5)
        assert found.downstream_share == pytest.approx(0.7)

    def test_find_the_p99_of_what_came_between_them_only(self) -> None:
        registry = MetricRegistry()
        lag = registry.histogram("event_loop_lag_seconds", "Lag.", smallest=0.001)
        for _ in range(1_000):
            lag.observe(5.0)
        before = render(registry)
        for _ in range(100):
            lag.observe(0.002)
        found = measured_between(before, render(registry), seconds=10.0)
        assert found.loop_lag_p99_seconds is not None
        assert found.loop_lag_p99_seconds <= 0.003
        assert math.isclose(found.loop_late_share or 0.0, 0.02, rel_tol=1e-6)

    def test_of_several_workers_are_their_mean(self) -> None:
        workers = 'fairlead_workers{state="answered"} 4\n'
        found = measured_between(
            page(process_cpu_seconds_total=0.0), page(process_cpu_seconds_total=8.0) + workers, seconds=4.0
        )
        assert (found.processes, found.cpu_share) == (4, 0.5)

    def test_give_the_fullest_limit_and_ignore_one_without_a_bound(self) -> None:
        after = (
            'fairlead_limit_in_flight{limit="a"} 9\nfairlead_limit_allowed{limit="a"} 10\n'
            'fairlead_policy_in_flight{policy="b"} 9\nfairlead_policy_limit{policy="b"} +Inf\n'
        )
        assert measured_between("x 1\n", after, seconds=1.0).limit_use == 0.9


def span(name: str, start: float, end: float, parent: str = "", kind: str = "internal") -> RecordedSpan:
    return RecordedSpan(
        trace_id="t",
        span_id=name,
        parent_id=parent,
        name=name,
        kind=kind,
        start_seconds=start,
        end_seconds=end,
    )


class TestTraces:
    def test_tell_own_time_from_calls_and_whose_time_the_calls_are(self) -> None:
        found = measured_in_spans(
            [
                [
                    span("GET /feed", 0.0, 1.0, kind="server"),
                    span("call labels", 0.1, 0.9, "GET /feed", "client"),
                    span("labels answers", 0.2, 0.6, "call labels", "server"),
                    span("labels asks its database", 0.3, 0.5, "labels answers", "client"),
                ]
            ]
        )
        assert found.downstream == "call labels"
        assert found.downstream_share == pytest.approx(0.8)
        assert found.callee_share == pytest.approx(0.5)
        assert found.request_seconds == pytest.approx(1.0)

    def test_without_a_span_that_says_it_is_a_call_know_nothing_of_downstreams(self) -> None:
        found = measured_in_spans([[span("GET /feed", 0.0, 1.0), span("labels", 0.1, 0.9, "GET /feed")]])
        assert (found.downstream_share, found.callee_share, found.downstream) == (None, None, None)

    def test_fill_what_metrics_lack_and_overrule_nothing(self) -> None:
        found = Measured(downstream_share=0.2).filled(Measured(downstream_share=0.9, callee_share=0.5))
        assert (found.downstream_share, found.callee_share) == (0.2, 0.5)
