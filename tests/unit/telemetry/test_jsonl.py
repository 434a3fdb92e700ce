"""Segments rotate, survive being cut, and are read back with everything that is wrong in them counted."""

from __future__ import annotations

import errno
import os
import stat
from math import inf
from pathlib import Path
from typing import Any

import pytest

from fairlead.clock import ManualClock
from fairlead.errors import BrokenDocument, InvalidInput, NoSpace
from fairlead.telemetry import (
    Exposure,
    JsonLinesSegments,
    ReadReport,
    UnknownEvent,
    encode_event,
    read_events,
)
from fairlead.telemetry.identity import Numbering
from fairlead.telemetry.jsonl import is_finished


def line(number: int) -> bytes:
    key = f"{number:06d}"
    return encode_event(
        Exposure(at_utc_seconds=float(number), flag="f", variant="on", targeting_key=key, reason="SPLIT")
    )


def keys(directory: Path, report: ReadReport | None = None) -> list[int]:
    events = read_events(directory, report=report)
    return [int(event.targeting_key) for event in events if isinstance(event, Exposure)]


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.jsonl"))


def test_what_is_written_is_read_back_in_order(tmp_path: Path) -> None:
    writer = JsonLinesSegments(tmp_path / "events")
    assert writer.write([line(1), line(2)]) == 2
    assert writer.write([line(3)]) == 1
    writer.close()
    assert keys(tmp_path / "events") == [1, 2, 3]


def test_nothing_is_created_before_the_first_write_and_closing_is_idempotent(tmp_path: Path) -> None:
    writer = JsonLinesSegments(tmp_path)
    writer.close()
    writer.close()
    assert segments(tmp_path) == []


def test_only_the_owner_may_read_the_events(tmp_path: Path) -> None:
    writer = JsonLinesSegments(tmp_path / "events")
    writer.write([line(1)])
    writer.close()
    assert stat.S_IMODE((tmp_path / "events").stat().st_mode) == 0o700
    assert stat.S_IMODE(segments(tmp_path / "events")[0].stat().st_mode) == 0o600


def test_a_segment_never_passes_its_size_and_no_line_is_split_between_two(tmp_path: Path) -> None:
    size = len(line(0)) + 1
    writer = JsonLinesSegments(tmp_path, max_bytes=3 * size + 1, clock=ManualClock())
    waiting = [line(number) for number in range(10)]
    while waiting:
        waiting = waiting[writer.write(waiting) :]
    writer.close()
    assert [path.stat().st_size // size for path in segments(tmp_path)] == [3, 3, 3, 1]
    assert keys(tmp_path) == list(range(10))


def test_a_line_longer_than_a_segment_gets_one_of_its_own(tmp_path: Path) -> None:
    writer = JsonLinesSegments(tmp_path, max_bytes=10)
    assert writer.write([line(1), line(2)]) == 1
    assert writer.write([line(2)]) == 1
    writer.close()
    assert len(segments(tmp_path)) == 2


def test_a_segment_that_is_old_enough_is_followed_by_a_new_one(tmp_path: Path) -> None:
    clock = ManualClock()
    writer = JsonLinesSegments(tmp_path, max_age=60.0, clock=clock)
    writer.write([line(1)])
    clock.advance(59.9)
    writer.write([line(2)])
    clock.advance(0.1)
    writer.write([line(3)])
    writer.close()
    assert len(segments(tmp_path)) == 2
    assert keys(tmp_path) == [1, 2, 3]


def test_names_sort_by_the_time_their_segment_began(tmp_path: Path) -> None:
    clock = ManualClock(utc=1_767_323_045.5)
    writer = JsonLinesSegments(tmp_path, max_bytes=1, prefix="feed", clock=clock)
    for number in range(12):
        writer.write([line(number)])
        clock.advance(7.0)
    writer.close()
    assert keys(tmp_path) == list(range(12))
    assert segments(tmp_path)[0].name == f"feed-20260102T030405.500000Z-{os.getpid()}-000001.jsonl"


def test_a_name_that_is_taken_is_skipped_and_never_overwritten(tmp_path: Path) -> None:
    clock = ManualClock()
    first, second = JsonLinesSegments(tmp_path, clock=clock), JsonLinesSegments(tmp_path, clock=clock)
    first.write([line(1)])
    second.write([line(2)])
    first.write([line(3)])
    first.close()
    second.close()
    assert sorted(keys(tmp_path)) == [1, 2, 3]
    assert len(segments(tmp_path)) == 2


@pytest.mark.parametrize(("fsync", "expected"), [("never", 0), ("rotate", 1), ("batch", 3)])
def test_fsync_follows_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Any, expected: int
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    writer = JsonLinesSegments(tmp_path, fsync=fsync)
    writer.write([line(1)])
    writer.write([line(2)])
    writer.close()
    assert len(synced) == expected


def full_after(room: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes os.write behave as a disk with `room` bytes left: a short write first, then the error."""
    real = os.write
    left = [room]

    def write(file: int, data: memoryview) -> int:
        if left[0] <= 0:
            raise OSError(code, os.strerror(code))
        taken = real(file, data[: left[0]])
        left[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", write)


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "quota"), (errno.EFBIG, "file-size limit")],
)
def test_a_full_disk_names_the_file_and_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    full_after(0, code, monkeypatch)
    writer = JsonLinesSegments(tmp_path)
    with pytest.raises(NoSpace, match=words) as caught:
        writer.write([line(1)])
    assert str(segments(tmp_path)[0]) in str(caught.value)
    assert "make room" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_disk_that_fills_mid_line_keeps_every_whole_line_and_cuts_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(line(0)) + 1
    full_after(2 * size + 20, errno.ENOSPC, monkeypatch)
    writer = JsonLinesSegments(tmp_path)
    assert writer.write([line(1), line(2), line(3)]) == 2
    with pytest.raises(NoSpace):
        writer.write([line(3)])
    monkeypatch.undo()
    assert writer.write([line(4)]) == 1  # room was made
    writer.close()
    report = ReadReport()
    assert keys(tmp_path, report) == [1, 2, 4]
    assert (report.truncated, report.malformed) == (0, 0)


def test_a_cut_line_that_cannot_be_removed_ends_its_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int, length: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    size = len(line(0)) + 1
    full_after(size + 20, errno.ENOSPC, monkeypatch)
    monkeypatch.setattr(os, "ftruncate", refuse)
    writer = JsonLinesSegments(tmp_path, clock=ManualClock())
    assert writer.write([line(1), line(2)]) == 1
    monkeypatch.undo()
    writer.write([line(3)])
    writer.close()
    report = ReadReport()
    assert keys(tmp_path, report) == [1, 3]
    assert (report.truncated, report.malformed, report.segments) == (1, 0, 2)


def test_a_cut_segment_that_was_ended_is_not_synced_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int, length: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    full_after(len(line(0)) + 20, errno.ENOSPC, monkeypatch)
    monkeypatch.setattr(os, "ftruncate", refuse)
    writer = JsonLinesSegments(tmp_path, fsync="batch")
    assert writer.write([line(1), line(2)]) == 1


def test_a_directory_that_is_a_file_is_refused_with_its_name(tmp_path: Path) -> None:
    taken = tmp_path / "events"
    taken.write_text("")
    with pytest.raises(InvalidInput, match="events: cannot be used as a directory"):
        JsonLinesSegments(taken)


@pytest.mark.parametrize("prefix", ["", "../evil", "a/b", "a-b", ".hidden", "x" * 65, "a\n", "ä"])
def test_a_prefix_that_could_leave_the_directory_is_refused(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(InvalidInput, match="prefix = "):
        JsonLinesSegments(tmp_path, prefix=prefix)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_bytes": 0},
        {"max_bytes": True},
        {"max_bytes": 1.5},
        {"max_age": 0.0},
        {"max_age": float("nan")},
        {"fsync": "yes"},
    ],
    ids=str,
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=f"{next(iter(settings))} = "):
        JsonLinesSegments(tmp_path, **settings)


def test_a_last_line_cut_by_a_crash_is_tolerated_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(line(1) + b"\n" + line(2)[:30])
    (tmp_path / "b.jsonl").write_bytes(line(3) + b"\n")
    report = ReadReport()
    assert keys(tmp_path, report) == [1, 3]
    assert (report.events, report.truncated, report.malformed) == (2, 1, 0)
    assert keys(tmp_path) == [1, 3], "without a report it is no error either"


def test_a_last_line_that_lacks_only_its_end_is_an_event(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(line(1) + b"\n" + line(2))
    report = ReadReport()
    assert keys(tmp_path, report) == [1, 2]
    assert report.truncated == 0


def test_lines_that_are_no_events_are_counted_with_file_line_and_reason(tmp_path: Path) -> None:
    unknown = b'{"event":"page_painted","at_utc_seconds":1}'
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([line(1), b"{broken", unknown, b"", line(2), b""]))
    report = ReadReport()
    assert keys(tmp_path, report) == [1, 2]
    assert (report.events, report.malformed, report.unknown, report.truncated) == (2, 2, 1, 0)
    assert report.problems[0].startswith(f"{tmp_path}/a.jsonl:2: not an event: ")
    assert report.problems[1].startswith(f"{tmp_path}/a.jsonl:3: event 'page_painted'")


def test_without_a_report_the_first_bad_line_raises_and_names_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(line(1) + b"\n{broken\n")
    events = read_events(tmp_path)
    next(events)
    with pytest.raises(BrokenDocument, match=r"a\.jsonl:2: not an event"):
        next(events)
    (tmp_path / "a.jsonl").write_bytes(b'{"event":"page_painted"}\n')
    with pytest.raises(UnknownEvent, match=r"a\.jsonl:1: "):
        list(read_events(tmp_path))


def test_a_report_keeps_few_problems_however_many_there_are(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"x\n" * 1_000)
    report = ReadReport()
    assert keys(tmp_path, report) == []
    assert report.malformed == 1_000
    assert len(report.problems) == 10


def test_a_line_without_end_cannot_fill_memory_and_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairlead.telemetry.jsonl._LONGEST_LINE", 256)
    (tmp_path / "a.jsonl").write_bytes(b"x" * 5_000 + b"\n" + line(7) + b"\n")
    report = ReadReport()
    assert keys(tmp_path, report) == [7]
    assert report.malformed == 1


def test_a_single_segment_can_be_read_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(line(1) + b"\n")
    (tmp_path / "b.jsonl").write_bytes(line(2) + b"\n")
    assert [event.at_utc_seconds for event in read_events(tmp_path / "b.jsonl")] == [2.0]


def test_a_path_that_does_not_exist_is_refused_before_iteration(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such file or directory"):
        read_events(tmp_path / "missing")


def test_an_event_that_was_delivered_twice_is_read_once_and_counted(tmp_path: Path) -> None:
    numbering = Numbering()
    one, other = numbering.stamp(line(1)), numbering.stamp(line(2))
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([one, other, one, b""]))
    (tmp_path / "b.jsonl").write_bytes(b"\n".join([other, line(3), line(3), b""]))
    report = ReadReport()
    assert keys(tmp_path, report) == [1, 2, 3, 3], "lines without an id are each their own"
    assert (report.events, report.duplicates) == (4, 2)
    assert keys(tmp_path) == [1, 2, 3, 3]


def test_an_idle_segment_is_ended_at_its_age(tmp_path: Path) -> None:
    clock = ManualClock()
    writer = JsonLinesSegments(tmp_path, max_age=60.0, clock=clock)
    assert writer.tend() == inf
    writer.write([line(1)])
    clock.advance(59.0)
    assert writer.tend() == pytest.approx(1.0)
    assert writer.current == segments(tmp_path)[0]
    clock.advance(1.0)
    assert writer.tend() == inf
    assert writer.current is None
    writer.write([line(2)])
    writer.close()
    assert len(segments(tmp_path)) == 2


def test_a_segment_is_finished_once_its_writer_let_go_of_it(tmp_path: Path) -> None:
    writer = JsonLinesSegments(tmp_path)
    writer.write([line(1)])
    [segment] = segments(tmp_path)
    assert not is_finished(segment)
    writer.close()
    assert is_finished(segment)


def test_a_segment_that_is_empty_or_gone_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    assert not is_finished(tmp_path / "a.jsonl")
    assert not is_finished(tmp_path / "b.jsonl")


def test_a_segment_that_a_forked_child_still_has_open_is_finished_when_its_writer_ends_it(
    tmp_path: Path,
) -> None:
    writer = JsonLinesSegments(tmp_path)
    writer.write([line(1)])
    assert writer._file is not None
    inherited = os.dup(writer._file)  # what a fork leaves in the child
    writer.close()
    try:
        assert is_finished(segments(tmp_path)[0])
    finally:
        os.close(inherited)
