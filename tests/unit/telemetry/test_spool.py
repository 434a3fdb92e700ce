"""What a spool accepts is handed on in order, once its target is back, and not before it is on disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fairlead.errors import InvalidInput, NoSpace
from fairlead.telemetry import (
    BufferedSink,
    DeadLetterFile,
    Exposure,
    JsonLinesSegments,
    MetricRegistry,
    Spool,
    encode_event,
    read_dead_letters,
    read_events,
)
from fairlead.telemetry.backlog import Backlog, abandoned
from fairlead.telemetry.prometheus import render


class Target:
    """Takes lines, or fails as it is told to."""

    def __init__(self, most: int = 10_000) -> None:
        self.most = most
        self.lines: list[bytes] = []
        self.down: Exception | None = None
        self.poison = b""
        self.tried = threading.Event()
        self.closed = 0

    def write(self, lines: Sequence[bytes]) -> int:
        self.tried.set()
        if self.down is not None:
            raise self.down
        if lines[0] == self.poison:
            raise InvalidInput("cannot be taken, ever")
        taken = list(lines[: self.most])
        if self.poison in taken:
            taken = taken[: taken.index(self.poison)]
        self.lines.extend(taken)
        return len(taken)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairlead.telemetry.spool._FIRST_PAUSE", 0.001)
    monkeypatch.setattr("fairlead.telemetry.spool._LONGEST_PAUSE", 0.002)
    monkeypatch.setattr("fairlead.telemetry.spool._GRACE", 0.01)


def lines(first: int, count: int) -> list[bytes]:
    return [b'{"n":%d}' % number for number in range(first, first + count)]


def spooled(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.jsonl"))


def test_lines_are_handed_on_in_order_and_nothing_is_left_behind(tmp_path: Path) -> None:
    target = Target(most=7)
    spool = Spool(tmp_path / "spool", to=target)
    for first in range(0, 1_000, 100):
        assert spool.write(lines(first, 100)) == 100
    assert spool.drain()
    assert target.lines == lines(0, 1_000)
    assert (spool.stats.forwarded, spool.stats.failures) == (1_000, 0)
    spool.close()
    assert target.closed == 1
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_target_that_is_down_costs_nothing_but_time(tmp_path: Path) -> None:
    target = Target()
    target.down = ConnectionError("refused")
    spool = Spool(tmp_path, to=target)
    spool.write(lines(0, 10))
    assert target.tried.wait(10.0)
    spool.write(lines(10, 10))
    assert not spool.drain(timeout=0.01)
    assert isinstance(spool.failure, ConnectionError)
    assert spool.stats.backlog_bytes > 0
    target.down = None
    assert spool.drain()
    assert target.lines == lines(0, 20)
    assert spool.stats.failures > 0
    assert spool.failure is None
    spool.close()


def test_what_could_not_be_handed_on_waits_for_the_next_process(tmp_path: Path) -> None:
    target = Target(most=5)
    first = Spool(tmp_path, to=target, batch=5, drain_timeout=0.0)
    first.write(lines(0, 5))
    assert first.drain()
    target.down = ConnectionError("refused")
    first.write(lines(5, 5))
    first.close()
    assert len(spooled(tmp_path)) == 1
    target.down = None
    second = Spool(tmp_path, to=target)
    second.write(lines(10, 1))
    assert second.drain()
    assert sorted(target.lines) == sorted(lines(0, 11)), "from the cursor on, and none twice"
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_a_backlog_whose_process_lives_is_left_to_it(tmp_path: Path) -> None:
    away = Target()
    away.down = ConnectionError("refused")
    living = Spool(tmp_path, to=away)
    living.write(lines(0, 3))
    target = Target()
    with_it = Spool(tmp_path, to=target)
    assert with_it.drain()
    with_it.close()
    assert target.lines == []
    away.down = None
    assert living.drain()
    assert away.lines == lines(0, 3)
    living.close()


def test_a_full_spool_refuses_the_newest_and_keeps_what_it_has(tmp_path: Path) -> None:
    target = Target()
    target.down = ConnectionError("the broker is away")
    spool = Spool(tmp_path, to=target, max_bytes=65_536)
    line = b'{"n":"' + b"x" * 992 + b'"}'
    assert target.lines == []
    assert spool.write([line] * 100) == 8, "as much as a segment takes"
    while spool.write([line] * 100):
        if spool.stats.backlog_bytes + 1_001 > 65_536:
            break
    assert target.tried.wait(10.0)
    with pytest.raises(NoSpace, match="holds its 65536 bytes, so the newest events are lost"):
        spool.write([line])
    target.down = None
    assert spool.drain()
    assert target.lines == [line] * 65
    assert spool.write([line]) == 1, "room was made"
    spool.close()


def test_a_line_that_is_refused_for_good_goes_aside_and_the_others_go_on(tmp_path: Path) -> None:
    target = Target()
    target.poison = b'{"n":3}'
    letters = DeadLetterFile(tmp_path / "refused")
    spool = Spool(tmp_path / "spool", to=target, dead_letters=letters)
    spool.write(lines(0, 6))
    assert spool.drain()
    spool.close()
    assert target.lines == [*lines(0, 3), *lines(4, 2)]
    assert (spool.stats.refused, spool.stats.forwarded) == (1, 5)
    [letter] = read_dead_letters(letters.path)
    assert (letter.line, letter.reason) == (b'{"n":3}', "cannot be taken, ever")


def test_a_target_that_hangs_holds_up_neither_write_nor_close(tmp_path: Path) -> None:
    entered, release = threading.Event(), threading.Event()

    class Hanging(Target):
        def write(self, lines: Sequence[bytes]) -> int:
            entered.set()
            release.wait()
            return super().write(lines)

    target = Hanging()
    spool = Spool(tmp_path, to=target, drain_timeout=0.0)
    spool.write(lines(0, 1))
    assert entered.wait(10.0)
    assert spool.write(lines(1, 1)) == 1
    spool.close()
    assert target.closed == 0, "a writer must not be closed under a thread that is inside it"
    assert len(spooled(tmp_path)) == 1
    left = spool._thread
    assert left is not None
    release.set()
    left.join(10.0)
    assert target.closed == 1
    assert spool.write(lines(2, 1)) == 1
    assert spool.drain()
    spool.close()
    assert sorted(target.lines) == lines(0, 3), "what the first thread left was taken over by the second"


def test_behind_a_sink_every_event_arrives_and_the_counts_agree(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", to=JsonLinesSegments(tmp_path / "events"))
    with BufferedSink(spool, flush_interval=0.001) as sink:
        for number in range(2_000):
            sink.emit(
                Exposure(at_utc_seconds=number, flag="f", variant="on", targeting_key="u", reason="SPLIT")
            )
    assert sink.stats.written == 2_000
    assert [event.at_utc_seconds for event in read_events(tmp_path / "events")] == list(range(2_000))
    assert spool.stats.forwarded == 2_000


def test_the_counts_are_shown_to_a_scraper(tmp_path: Path) -> None:
    registry = MetricRegistry()
    spool = Spool(tmp_path, to=Target())
    spool.export(registry, name="audit")
    spool.write(lines(0, 4))
    assert spool.drain()
    shown = render(registry)
    assert 'fairlead_spool_total{spool="audit",what="forwarded"} 4.0\n' in shown
    assert 'fairlead_spool_total{spool="audit",what="refused"} 0.0\n' in shown
    assert 'fairlead_spool_backlog_bytes{spool="audit"} 32.0\n' in shown
    spool.close()


@pytest.mark.parametrize(
    "settings",
    [{"max_bytes": 1_000}, {"batch": 0}, {"drain_timeout": float("nan")}, {"fsync": "yes"}],
    ids=str,
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(settings))):
        Spool(tmp_path, to=Target(), **settings)


def test_a_spool_that_was_never_used_closes_its_target_without_a_thread(tmp_path: Path) -> None:
    target = Target()
    before = threading.active_count()
    spool = Spool(tmp_path, to=target)
    spool.close()
    assert (target.closed, threading.active_count()) == (1, before)
    with pytest.raises(InvalidInput, match="cannot be used as a directory"):
        Spool(Path(__file__) / "below", to=target)


def backlog(directory: Path, *segments: bytes) -> Backlog:
    made = Backlog.created(directory, "20260102T030405Z")
    for number, data in enumerate(segments, 1):
        # Stamps that fall: the wall clock was set back.
        (made.directory / f"spool-2026010{9 - number}T000000Z-1-{number:06d}.jsonl").write_bytes(data)
    return made


def test_a_torn_last_line_is_skipped_and_counted_and_segments_follow_their_numbers(tmp_path: Path) -> None:
    found = backlog(tmp_path, b"a\nb\nto", b"c\n")
    assert found.read(1) == [b"a"]
    assert found.read(5) == [b"a", b"b"], "the same again until it is marked"
    found.advance(1)
    assert found.read(5) == [b"b"]
    found.advance(1)
    assert found.read(5) == [b"c"]
    assert found.truncated == 1
    found.advance(1)
    assert found.read(5) == []
    assert found.is_empty()
    found.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cursor", [b"", b"garbage", b"1 2\n", b"%020d %s\n" % (1, b"x" * 20)])
def test_a_cursor_that_cannot_be_read_means_the_beginning(tmp_path: Path, cursor: bytes) -> None:
    found = backlog(tmp_path, b"a\nb\n")
    assert found.read(1) == [b"a"]
    found.advance(1)
    found.close()
    (found.directory / "cursor").write_bytes(cursor)
    [again] = abandoned(tmp_path, set(), 16)
    assert again.read(9) == [b"a", b"b"]
    again.close()


def test_a_segment_that_was_handed_on_and_not_yet_deleted_is_not_handed_on_again(tmp_path: Path) -> None:
    found = backlog(tmp_path, b"a\n", b"b\n")
    os.pwrite(found._cursor, b"%020d %020d\n" % (2, 0), 0)
    found.close()
    [again] = abandoned(tmp_path, set(), 16)
    assert again.read(9) == [b"b"]
    again.close()


def test_lines_longer_than_a_chunk_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairlead.telemetry.backlog._CHUNK", 4)
    found = backlog(tmp_path, b"abcdefgh\nij\n")
    assert found.read(1) == [b"abcdefgh"]
    found.advance(1)
    assert found.read(9) == [b"ij"]
    found.close()


def test_only_what_is_a_backlog_and_free_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    (tmp_path / "a folder").mkdir()
    held = backlog(tmp_path, b"a\n")
    assert abandoned(tmp_path, set(), 16) == []
    held.close()
    [taken] = abandoned(tmp_path, set(), 16)
    assert abandoned(tmp_path, set(), 16) == []
    taken.close()


def test_encoded_events_pass_through_unchanged(tmp_path: Path) -> None:
    target = Target()
    line = encode_event(
        Exposure(at_utc_seconds=1.0, flag="ü\n", variant="on", targeting_key="u", reason="SPLIT")
    )
    spool = Spool(tmp_path, to=target)
    spool.write([line])
    assert spool.drain()
    spool.close()
    assert target.lines == [line]


def test_more_abandoned_backlogs_than_are_taken_over_at_once_are_handed_on_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairlead.telemetry.spool._MOST_TAKEN_OVER", 2)
    for number in range(7):
        backlog(tmp_path, b'{"n":%d}\n' % number).close()
    target = Target()
    spool = Spool(tmp_path, to=target)
    assert spool.drain()
    spool.close()
    assert sorted(target.lines) == lines(0, 7)
    assert list(tmp_path.iterdir()) == []


def test_an_abandoned_backlog_that_cannot_be_read_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = backlog(tmp_path, b"a\n").directory
    good = backlog(tmp_path, b"b\n")
    for each in (broken, good.directory):
        assert each.exists()
    good.close()
    real = Backlog.read

    def read(self: Backlog, most: int) -> list[bytes]:
        if self.directory == broken:
            raise OSError("input/output error")
        return real(self, most)

    monkeypatch.setattr(Backlog, "read", read)
    target = Target()
    spool = Spool(tmp_path, to=target)
    spool.write([b"c"])
    assert spool.drain()
    assert sorted(target.lines) == [b"b", b"c"]
    spool.close()
    assert broken.exists()


def test_lines_are_kept_when_no_thread_can_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    target = Target()
    spool = Spool(tmp_path, to=target)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert spool.write(lines(0, 3)) == 3
        assert str(spool.failure) == "can't start new thread"
    assert spool.write(lines(3, 1)) == 1
    assert spool.drain()
    assert target.lines == lines(0, 4)
    spool.close()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        spool.write(lines(4, 1))
        spool.close()
    assert spool.drain(), "what could not be handed on is free for whoever comes next"
    assert target.lines == lines(0, 5)
    spool.close()
