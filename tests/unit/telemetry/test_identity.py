"""Every line has one id, and what was seen once is not taken for new."""

from __future__ import annotations

import random
import re

import pytest

from fairlead.errors import InvalidInput
from fairlead.telemetry import Exposure, SeenEvents, decode_event, encode_event, event_id
from fairlead.telemetry.identity import Numbering

SHOWN = Exposure(at_utc_seconds=1.0, flag="f", variant="on", targeting_key="u", reason="SPLIT")


def test_a_stamped_line_is_the_same_event_with_an_id_that_no_other_line_has() -> None:
    one, other = Numbering(), Numbering()
    lines = [numbering.stamp(encode_event(SHOWN)) for numbering in (one, other) for _ in range(3)]
    assert all(decode_event(line) == SHOWN for line in lines)
    ids = [event_id(line) for line in lines]
    assert len(set(ids)) == 6
    assert all(re.fullmatch(r"[0-9a-f]{16}-[123]", each) for each in ids)


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"\xff", b"[]", b'{"event":"exposure"}', b'{"event_id":7}', b'{"a":{"event_id":"x-1"}}'],
)
def test_a_line_without_an_id_of_its_own_has_the_empty_one(line: bytes) -> None:
    assert event_id(line) == ""


def test_lines_without_an_id_are_always_new() -> None:
    seen = SeenEvents()
    assert [seen.add(""), seen.add("")] == [True, True]


def test_each_id_is_new_once_in_whatever_order_they_come() -> None:
    rng = random.Random(7)
    ids = [f"{source}-{number}" for source in ("a", "b") for number in range(1, 500)] * 2
    rng.shuffle(ids)
    seen = SeenEvents()
    assert sum(seen.add(each) for each in ids) == 998
    assert not any(seen.add(each) for each in ids)


def test_a_source_without_gaps_takes_the_memory_of_one_range() -> None:
    seen = SeenEvents()
    for number in [*range(1, 1_000), *range(2_000, 3_000), *range(1_999, 999, -1)]:
        assert seen.add(f"a-{number}")
    [ranges] = seen._sources.values()
    assert (ranges._firsts, ranges._lasts) == ([1], [2_999])


@pytest.mark.parametrize(
    "foreign", ["x", "a-", "-1", "a-01", "a-٣", "a-1x", "a-" + "9" * 400, "a--1", "a-+1"]
)
def test_ids_of_another_form_are_compared_as_they_are(foreign: str) -> None:
    seen = SeenEvents()
    assert seen.add("a-1")
    assert seen.add("a-3")
    assert seen.add(foreign)
    assert not seen.add(foreign)


def test_the_source_longest_unheard_of_is_forgotten_beyond_the_bound() -> None:
    seen = SeenEvents(most_sources=2)
    for each in ("a-1", "b-1", "a-2", "c-1"):
        assert seen.add(each)
    assert not seen.add("a-1")
    assert seen.add("b-1"), "forgotten: it counts as new again"
    with pytest.raises(InvalidInput, match="most_sources"):
        SeenEvents(most_sources=0)
