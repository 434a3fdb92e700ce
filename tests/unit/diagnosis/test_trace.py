"""Of a trace: what its duration is made of, what was asked again and again, and what waited without need."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.diagnosis import (
    RecordedSpan,
    critical_path,
    read_spans,
    repeated_calls,
    waterfalls,
)
from fairlead.errors import BrokenDocument, InvalidInput


def span(name: str, start: float, end: float, parent: str = "", span_id: str = "") -> RecordedSpan:
    return RecordedSpan(
        trace_id="t",
        span_id=span_id or name,
        parent_id=parent,
        name=name,
        start_seconds=start,
        end_seconds=end,
    )


def path(*spans: RecordedSpan) -> list[tuple[str, float]]:
    return [(step.span.name, round(step.seconds, 9)) for step in critical_path(spans)]


class TestTheCriticalPath:
    def test_of_a_root_alone_is_its_own_work(self) -> None:
        assert path(span("request", 1.0, 4.0)) == [("request", 3.0)]

    def test_goes_through_the_child_that_ends_last_and_leaves_out_what_it_hides(self) -> None:
        assert path(
            span("request", 0.0, 10.0),
            span("long", 1.0, 8.0, "request"),
            span("hidden", 2.0, 6.0, "request"),
            span("query", 3.0, 7.0, "long"),
        ) == [("request", 1.0), ("long", 2.0), ("query", 4.0), ("long", 1.0), ("request", 2.0)]

    def test_goes_through_one_child_after_the_other(self) -> None:
        found = path(span("r", 0, 10), span("a", 1, 4, "r"), span("b", 4, 9, "r"))
        assert found == [("r", 1.0), ("a", 3.0), ("b", 5.0), ("r", 1.0)]

    def test_counts_of_overlapping_children_the_later_one_from_its_start(self) -> None:
        assert path(span("r", 0, 10), span("a", 0, 6, "r"), span("b", 4, 10, "r")) == [("a", 4.0), ("b", 6.0)]

    def test_stops_at_the_parents_end_when_a_child_goes_on(self) -> None:
        assert path(span("r", 0, 5), span("background", 2, 60, "r")) == [("r", 2.0), ("background", 3.0)]
        assert path(span("r", 0, 5), span("afterwards", 7, 9, "r")) == [("r", 5.0)]

    def test_begins_at_the_parents_start_when_a_clock_says_that_a_child_began_before(self) -> None:
        assert path(span("r", 5, 9), span("skewed", 2, 8, "r")) == [("skewed", 3.0), ("r", 1.0)]

    def test_is_of_the_longest_root_when_parents_are_missing(self) -> None:
        assert path(span("short", 0, 1), span("orphan", 0, 5, "not here")) == [("orphan", 5.0)]

    def test_of_a_thousand_nested_spans_does_not_exhaust_the_stack(self) -> None:
        nested = [span(f"s{i}", 0, 1, f"s{i - 1}" if i else "") for i in range(5_000)]
        assert path(*nested) == [("s4999", 1.0)]

    @given(
        st.lists(
            st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(-1, 12)), min_size=1, max_size=13
        )
    )
    def test_adds_up_to_the_roots_duration_whatever_the_spans(
        self, drawn: list[tuple[int, int, int]]
    ) -> None:
        spans = [
            span(f"s{i}", min(a, b), max(a, b), f"s{parent}" if 0 <= parent < i else "")
            for i, (a, b, parent) in enumerate(drawn)
        ]
        steps = critical_path(spans)
        roots = [each for each in spans if not each.parent_id]
        assert sum(step.seconds for step in steps) == max(root.seconds for root in roots)
        assert all(step.seconds > 0 for step in steps)


class TestRepeatedCalls:
    def test_a_query_for_each_row_is_found_with_its_cost(self) -> None:
        rows = [span("SELECT author", i, i + 0.5, "r", f"q{i}") for i in range(6)]
        [found] = repeated_calls([span("r", 0, 10), span("SELECT posts", 0, 0.1, "r"), *rows])
        assert (found.name, found.count, found.seconds, found.sequential) == ("SELECT author", 6, 3.0, True)
        assert found.parent.name == "r"

    def test_calls_side_by_side_cost_what_they_cover(self) -> None:
        rows = [span("q", 0, 2, "r", f"q{i}") for i in range(5)]
        [found] = repeated_calls([span("r", 0, 10), *rows])
        assert (found.seconds, found.sequential) == (2.0, False)

    def test_calls_of_different_parents_are_not_one_finding(self) -> None:
        spans = [span("r", 0, 9), *(span(f"p{i}", i, i + 1, "r") for i in range(6))]
        spans += [span("q", i, i + 1, f"p{i}", f"q{i}") for i in range(6)]
        assert repeated_calls(spans) == []

    def test_a_span_that_came_twice_counts_once(self) -> None:
        rows = [span("q", i, i + 1, "r", f"q{i}") for i in range(4)]
        assert repeated_calls([span("r", 0, 9), *rows, *rows], at_least=5) == []

    @pytest.mark.parametrize("at_least", [1, 0, -1, True, 2.5])
    def test_a_bound_that_is_none_is_refused(self, at_least: int) -> None:
        with pytest.raises(InvalidInput, match="at_least"):
            repeated_calls([span("r", 0, 1)], at_least=at_least)


class TestWaterfalls:
    def test_calls_that_never_overlap_are_one_with_what_it_costs(self) -> None:
        spans = [
            span("r", 0, 1),
            *(span(n, s, s + 0.2, "r") for n, s in (("a", 0.0), ("b", 0.25), ("c", 0.5))),
        ]
        [found] = waterfalls(spans)
        assert [call.name for call in found.calls] == ["a", "b", "c"]
        assert found.seconds == pytest.approx(0.6)
        assert found.saved_seconds == pytest.approx(0.4)

    def test_calls_side_by_side_are_none(self) -> None:
        assert waterfalls([span("r", 0, 1), span("a", 0, 0.5, "r"), span("b", 0.1, 0.6, "r")]) == []

    def test_a_group_that_runs_side_by_side_ends_one_chain_and_begins_another(self) -> None:
        spans = [
            span("r", 0, 9), span("a", 0, 1, "r"), span("b", 1, 2, "r"), span("c", 2, 3, "r"),
            span("d", 2.5, 4, "r"), span("e", 4, 5, "r"), span("f", 5, 6, "r"),
        ]  # fmt: skip
        assert [[call.name for call in found.calls] for found in waterfalls(spans)] == [
            ["a", "b"],
            ["e", "f"],
        ]

    def test_a_saving_too_small_for_a_line_is_left_out(self) -> None:
        spans = [span("r", 0, 1), span("a", 0, 0.001, "r"), span("b", 0.002, 0.5, "r")]
        assert waterfalls(spans) == []
        assert len(waterfalls(spans, saving=0.0)) == 1
        with pytest.raises(InvalidInput, match="saving"):
            waterfalls(spans, saving=float("nan"))


@pytest.mark.parametrize("question", [critical_path, repeated_calls, waterfalls])
def test_what_is_no_trace_is_refused(question) -> None:
    with pytest.raises(InvalidInput, match="no spans"):
        question([])
    for start, end in ((1.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))):
        with pytest.raises(InvalidInput, match=r"span 'x' \('x'\) runs from"):
            question([span("x", start, end)])
    with pytest.raises(InvalidInput, match="circle"):
        question([span("a", 0, 1, "b"), span("b", 0, 1, "a")])


def otlp(**fields: object) -> str:
    one = {
        "traceId": "0af7", "spanId": "b7ad", "name": "GET /feed", "startTimeUnixNano": "1795000000000000000",
        "endTimeUnixNano": "1795000000123456789", **fields,
    }  # fmt: skip
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [one]}]}]})


class TestOtlpJson:
    def test_is_read_with_times_attributes_links_and_status(self, tmp_path: Path) -> None:
        file = tmp_path / "traces.json"
        file.write_text(
            otlp(
                parentSpanId="cafe",
                status={"code": 2},
                links=[{"traceId": "1", "spanId": "feed"}],
                attributes=[
                    {"key": "http.route", "value": {"stringValue": "/feed/{user}"}},
                    {"key": "n", "value": {"intValue": "7"}},
                    {"key": "list", "value": {"arrayValue": {}}},
                    {"key": "ok", "value": {"boolValue": False}},
                ],
            )
            + "\n\n"
        )
        [found] = read_spans(file)["0af7"]
        assert (found.name, found.parent_id, found.failed, found.links) == (
            "GET /feed",
            "cafe",
            True,
            ("feed",),
        )
        assert found.seconds == pytest.approx(0.123456789, abs=1e-6)
        assert found.attributes == {"http.route": "/feed/{user}", "n": 7, "ok": False}

    @pytest.mark.parametrize(
        "line",
        [
            "{",
            "[]",
            otlp(startTimeUnixNano="noon"),
            '{"resourceSpans":[{"scopeSpans":[{"spans":[{}]}]}]}',
            "\xff",
        ],
    )
    def test_that_is_broken_is_named_by_its_line(self, line: str, tmp_path: Path) -> None:
        file = tmp_path / "traces.json"
        file.write_bytes(otlp().encode() + b"\n" + line.encode("latin-1") + b"\n")
        with pytest.raises(BrokenDocument, match=r"traces\.json:2: not a trace"):
            read_spans(file)

    def test_that_is_not_there_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="no such file"):
            read_spans(tmp_path / "none")


@pytest.mark.parametrize(
    ("kind", "said"),
    [(3, "client"), ("SPAN_KIND_SERVER", "server"), (0, ""), (99, ""), ("SPAN_KIND_NEW", "")],
)
def test_kind_of_a_span_is_read_as_number_or_name(kind: int | str, said: str, tmp_path: Path) -> None:
    (tmp_path / "traces.jsonl").write_text(otlp(kind=kind) + "\n", encoding="utf-8")
    [[found]] = read_spans(tmp_path / "traces.jsonl").values()
    assert found.kind == said
