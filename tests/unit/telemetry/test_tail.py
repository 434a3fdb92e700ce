"""A folder that is followed while it is written, rotated, compacted and deleted: each event once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fairlead.clock import ManualClock
from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.telemetry import EventTail
from fairlead.telemetry import tail as tail_module
from fairlead.telemetry.event import Exposure, encode_event
from fairlead.telemetry.identity import Numbering
from fairlead.telemetry.jsonl import JsonLinesSegments
from fairlead.telemetry.parquet import compact

AT = 1_750_000_000.0


class Process:
    """One process that writes into the folder, with ids of its own."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.segments = JsonLinesSegments(folder, clock=ManualClock(utc=AT), **settings)
        self._ids = Numbering()

    def line(self, unit: object) -> bytes:
        exposure = Exposure(
            at_utc_seconds=AT, flag="feed", variant="treatment", targeting_key=str(unit), reason="SPLIT"
        )
        return self._ids.stamp(encode_event(exposure))

    def write(self, *units: object) -> None:
        left = [self.line(unit) for unit in units]
        while left:
            left = left[self.segments.write(left) :]


def units(tail: EventTail) -> list[str]:
    return [event.targeting_key for event in tail.read()]  # type: ignore[attr-defined]


def test_each_event_is_read_once_as_it_comes(tmp_path: Path):
    process, tail = Process(tmp_path), EventTail(tmp_path)
    assert units(tail) == []
    process.write(1, 2)
    assert units(tail) == ["1", "2"]
    assert units(tail) == []
    process.write(3)
    assert units(tail) == ["3"]


def test_a_folder_that_is_not_there_yet_has_no_events(tmp_path: Path):
    tail = EventTail(tmp_path / "later")
    assert units(tail) == []
    Process(tmp_path / "later").write(1)
    assert units(tail) == ["1"]


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInput, match=r"file: cannot be read \(Not a directory\)"):
        units(EventTail(tmp_path / "file"))


def test_rotation_loses_nothing_and_doubles_nothing(tmp_path: Path):
    process, tail = Process(tmp_path, max_bytes=300), EventTail(tmp_path)
    found = []
    for turn in range(10):
        process.write(*range(turn * 5, turn * 5 + 5))
        found += units(tail)
    assert found == [str(n) for n in range(50)]
    assert len(list(tmp_path.glob("*.jsonl"))) > 10


def test_several_processes_keep_their_own_order(tmp_path: Path):
    one, two, tail = Process(tmp_path, prefix="a"), Process(tmp_path, prefix="b"), EventTail(tmp_path)
    two.write("b1")
    one.write("a1", "a2")
    two.write("b2")
    assert units(tail) == ["a1", "a2", "b1", "b2"]


def test_a_line_is_read_when_it_is_whole(tmp_path: Path):
    process, tail = Process(tmp_path), EventTail(tmp_path)
    process.write(1)
    (segment,) = tmp_path.glob("*.jsonl")
    line = process.line(2) + b"\n"
    for end in (1, len(line) // 2, len(line) - 1):
        with segment.open("ab") as file:
            file.write(line[:end])
        assert units(tail) == (["1"] if end == 1 else [])
        os.truncate(segment, segment.stat().st_size - end)
    with segment.open("ab") as file:
        file.write(line)
    assert units(tail) == ["2"]
    assert tail.malformed == 0


def test_an_event_that_was_delivered_twice_is_read_once(tmp_path: Path):
    process, tail = Process(tmp_path), EventTail(tmp_path)
    line = process.line(1)
    process.segments.write([line])
    process.segments.close()
    process.segments.write([line, process.line(2)])
    assert units(tail) == ["1", "2"]


def test_lines_that_are_no_events_are_counted_and_harm_no_other(tmp_path: Path):
    process, tail = Process(tmp_path), EventTail(tmp_path)
    bad = [b"", b"{}", b"\xff\xfe", b"[" * 5_000, b'{"event":"of_tomorrow","at_utc_seconds":1}', b"null"]
    process.segments.write([*bad, process.line(1), b"x\rx", process.line(2)])
    assert units(tail) == ["1", "2"]
    assert tail.malformed == 7


def test_a_line_beyond_all_bounds_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tail_module, "_AT_ONCE", 1_000)
    process, tail = Process(tmp_path), EventTail(tmp_path)
    process.segments.write([process.line(1), b"x" * 2_500, process.line(2)])
    assert units(tail) == ["1", "2"]
    assert 1 <= tail.malformed <= 4
    process.write(*range(3, 40))
    assert units(tail) == [str(n) for n in range(3, 40)]


def test_a_segment_that_is_deleted_ends_nothing(tmp_path: Path):
    one, two, tail = Process(tmp_path, prefix="a"), Process(tmp_path, prefix="b"), EventTail(tmp_path)
    one.write(1)
    two.write(2)
    reading = tail.read()
    assert next(reading).targeting_key == "1"  # type: ignore[attr-defined]
    for segment in tmp_path.glob("*.jsonl"):
        segment.unlink()
    assert list(reading) == []
    Process(tmp_path, prefix="c").write(3)
    assert units(tail) == ["3"]


def test_one_segment_that_cannot_be_read_hides_no_other_and_is_told(tmp_path: Path):
    one, two, tail = Process(tmp_path, prefix="a"), Process(tmp_path, prefix="c"), EventTail(tmp_path)
    one.write(1)
    two.write(2)
    (tmp_path / "b.jsonl").mkdir()
    found = []
    with pytest.raises(InvalidInput, match=r"b\.jsonl: cannot be read"):
        found.extend(event.targeting_key for event in tail.read())  # type: ignore[attr-defined]
    assert found == ["1", "2"]
    (tmp_path / "b.jsonl").rmdir()
    one.write(3)
    assert units(tail) == ["3"]


def test_what_was_compacted_before_the_first_look_is_read_first(tmp_path: Path):
    process = Process(tmp_path)
    process.write(1, 2)
    process.segments.close()
    compact(tmp_path)
    process.write(3)
    tail = EventTail(tmp_path)
    assert units(tail) == ["1", "2", "3"]
    assert units(tail) == []


def test_a_compaction_between_two_looks_takes_no_event_away_and_brings_none_back(tmp_path: Path):
    process, tail = Process(tmp_path), EventTail(tmp_path)
    process.write(1)
    assert units(tail) == ["1"]
    process.write(2)  # behind what was read of it
    process.segments.close()
    process.write(3)  # a segment that comes and goes unseen
    process.segments.close()
    compact(tmp_path)
    process.write(4)
    assert sorted(units(tail)) == ["2", "3", "4"]
    process.segments.close()
    compact(tmp_path)  # merged with the file of that day
    process.write(5)
    assert units(tail) == ["5"]


def test_a_compaction_while_it_is_read_takes_no_event_away(tmp_path: Path):
    one, two, tail = Process(tmp_path, prefix="a"), Process(tmp_path, prefix="b"), EventTail(tmp_path)
    one.write(1)
    two.write(2)
    reading = tail.read()
    found = [next(reading)]
    one.segments.close()
    two.segments.close()
    compact(tmp_path)
    found += reading
    assert [event.targeting_key for event in found] == ["1", "2"]  # type: ignore[attr-defined]
    assert units(tail) == []


def test_a_segment_that_a_killed_compaction_left_behind_is_not_read_twice(tmp_path: Path):
    process = Process(tmp_path)
    process.write(1)
    process.segments.close()
    (segment,) = tmp_path.glob("*.jsonl")
    kept = segment.read_bytes()
    compact(tmp_path)
    segment.write_bytes(kept)
    assert units(EventTail(tmp_path)) == ["1"]


def test_a_compacted_file_that_is_broken_is_told_each_time_and_hides_no_other(tmp_path: Path):
    process, tail = Process(tmp_path), EventTail(tmp_path)
    process.write(1)
    process.segments.close()
    compact(tmp_path)
    (file,) = tmp_path.glob("*.parquet")
    whole = file.read_bytes()
    file.write_bytes(b"not a file of events")
    process.write(2)
    found = []
    for _ in range(2):
        with pytest.raises(BrokenDocument, match=r"\.parquet"):
            found.extend(event.targeting_key for event in tail.read())  # type: ignore[attr-defined]
    assert found == ["2"]
    file.write_bytes(whole)
    assert units(tail) == ["1"]


def test_a_catalogue_that_cannot_be_read_is_told(tmp_path: Path):
    Process(tmp_path).write(1)
    (tmp_path / "catalogue.json").write_text("{")
    with pytest.raises(BrokenDocument, match="catalogue"):
        units(EventTail(tmp_path))
    (tmp_path / "catalogue.json").unlink()
    (tmp_path / "catalogue.json").mkdir()
    with pytest.raises(InvalidInput, match="cannot be read"):
        units(EventTail(tmp_path))
