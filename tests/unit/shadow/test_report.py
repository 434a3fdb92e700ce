"""Counts by field that add up over processes and over recorded events."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fairlead.errors import InvalidInput
from fairlead.shadow import FieldCounts, FieldExample, ShadowReport, ShadowTally
from fairlead.telemetry import ShadowCompared, decode_event, encode_event


def compared(outcome: str = "different", **fields: Any) -> ShadowCompared:
    return ShadowCompared(
        **{
            "at_utc_seconds": 1.0,
            "mirror": "feed",
            "outcome": outcome,
            "control_seconds": 0.01,
            "candidate_seconds": 0.02,
            **fields,
        }
    )


def test_a_request_falls_to_one_of_four_places_by_field():
    tally = ShadowTally("feed")
    tally.add(compared(again=True, differing=["a", "b"], differing_again=["b", "c"], again_seconds=0.03))
    tally.add(compared(differing=["a"]))
    tally.add(compared("same", again=True))
    report = tally.report()
    assert (report.compared, report.compared_twice) == (3, 2)
    assert report.fields == {
        "a": FieldCounts(differed=2, only_candidate=1),
        "b": FieldCounts(differed=1, both=1),
        "c": FieldCounts(only_again=1),
    }
    assert report.discordant() == {"a": (0, 1), "c": (1, 0)}


def test_what_could_not_be_compared_whole_counts_for_no_field():
    tally = ShadowTally("feed")
    for outcome in ("cut", "unreadable"):
        tally.add(compared(outcome, again=True, differing=["a"], differing_again=["b"]))
    report = tally.report()
    assert report.outcomes == {"cut": 1, "unreadable": 1}
    assert (report.compared, report.fields, report.seconds) == (0, {}, {})


def test_a_candidate_without_an_answer_differs_and_has_no_time():
    tally = ShadowTally("feed")
    tally.add(compared("failed", differing=["error"], candidate_seconds=None, error="KeyError", again=True))
    report = tally.report()
    assert report.discordant() == {"error": (0, 1)}
    assert report.seconds == {}


def test_fields_are_bounded_and_the_rest_is_counted():
    tally = ShadowTally("feed", fields=2)
    tally.add(compared(differing=["a", "b", "c", "d"]))
    report = tally.report()
    assert len(report.fields) == 2
    assert report.untracked == 2
    assert not tally.wants_example("unknown")


def test_a_difference_in_a_field_that_is_not_tracked_counts_once_and_in_the_same_fields_everywhere():
    event = compared(again=True, differing=["d", "c", "b"], differing_again=["a", "d"], unnamed=2)
    tally = ShadowTally("feed", fields=2)
    tally.add(event)
    assert set(tally.report().fields) == {"a", "b"}
    assert tally.report().untracked == 4
    whole = ShadowTally("feed")
    whole.add(event)
    merged = ShadowTally("feed", fields=2)
    merged.merge(whole.report())
    assert merged.report().untracked == 4


@pytest.mark.parametrize("bound", [{"fields": 0}, {"fields": 10_001}, {"examples": -1}, {"examples": 21}])
def test_bounds_of_a_tally_that_are_none_are_refused(bound: dict[str, int]):
    with pytest.raises(InvalidInput, match=f"ShadowTally.{next(iter(bound))}"):
        ShadowTally("feed", **bound)


def test_reports_of_processes_add_up_to_that_of_one():
    events = [
        compared(again=n % 2 == 0, differing=["a"] * (n % 3 == 0), differing_again=["a", "b"][: n % 3])
        for n in range(30)
    ]
    whole, parts = ShadowTally("feed"), [ShadowTally("feed"), ShadowTally("feed")]
    for n, event in enumerate(events):
        whole.add(event)
        parts[n % 2].add(event)
        whole.drop("full")
        parts[n % 2].drop("full")
    parts[0].example("a", FieldExample(request_id="r", control="1", candidate="2"))
    merged = ShadowTally("feed")
    for part in parts:
        # As one process sends it to another.
        merged.merge(msgspec.json.decode(msgspec.json.encode(part.report()), type=ShadowReport))
    assert msgspec.structs.replace(merged.report(), examples={}, seconds={}) == msgspec.structs.replace(
        whole.report(), seconds={}
    )
    assert merged.report().seconds["candidate"].buckets == whole.report().seconds["candidate"].buckets
    assert merged.report().examples["a"][0].candidate == "2"


def test_recorded_events_give_the_report_again():
    events = [compared(again=True, differing=["a"]), compared("same", again=True)]
    read = [decode_event(encode_event(event)) for event in events]
    report = ShadowTally.of(read)
    assert report.mirror == "feed"
    assert report.discordant() == {"a": (0, 1)}
    with pytest.raises(InvalidInput, match="no comparison"):
        ShadowTally.of([])


def test_comparisons_of_another_mirror_are_refused():
    tally = ShadowTally("feed")
    with pytest.raises(InvalidInput, match="'search'"):
        tally.add(compared(mirror="search"))
    with pytest.raises(InvalidInput, match="'search'"):
        tally.merge(ShadowReport(mirror="search"))


def test_a_failing_candidate_is_a_failure_and_a_different_one_is_not():
    assert compared("failed").failed()
    assert compared("timeout").failed()
    assert not compared("different").failed()
