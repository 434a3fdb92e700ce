"""What is no event is put aside with its reason, within a bound, and comes back as it was."""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.telemetry import (
    BufferedSink,
    DeadLetterFile,
    Event,
    Exposure,
    Internal,
    ReadReport,
    TokenVault,
    decode_event,
    encode_event,
    read_dead_letters,
    read_events,
)

SHOWN = Exposure(at_utc_seconds=1.0, flag="f", variant="on", targeting_key="u", reason="SPLIT")


class ListWriter:
    """Keeps the lines it is given."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def write(self, lines: Sequence[bytes]) -> int:
        self.lines.extend(lines)
        return len(lines)

    def close(self) -> None:
        pass


class Unregistered(Event, frozen=True, kw_only=True):
    note: Internal[str]


@pytest.fixture
def letters(tmp_path: Path) -> DeadLetterFile:
    return DeadLetterFile(tmp_path / "dead" / "letters.jsonl")


@pytest.mark.parametrize("line", [b"", b"{}", b"\xff\x00", "ü\n\u2028".encode(), b"x" * 1000])
def test_a_line_comes_back_byte_for_byte(letters: DeadLetterFile, line: bytes) -> None:
    letters.put(line, reason="broken", source="here")
    [letter] = read_dead_letters(letters.path)
    assert (letter.line, letter.reason, letter.source) == (line, "broken", "here")
    assert letters.kept == 1
    assert letters.path.stat().st_mode & 0o777 == 0o600


def test_of_a_huge_line_the_beginning_is_kept_and_the_rest_counted(letters: DeadLetterFile) -> None:
    letters.put(b"x" * (2**20 + 7), reason="r" * 10_000, source="here")
    [letter] = read_dead_letters(letters.path)
    assert (len(letter.line), letter.cut_bytes, len(letter.reason)) == (2**20, 7, 500)


def test_beyond_the_bound_letters_are_counted_and_the_file_stays_readable(tmp_path: Path) -> None:
    letters = DeadLetterFile(tmp_path / "letters.jsonl", max_bytes=500)
    for _ in range(20):
        letters.put(b"{}", reason="r", source="s")
    assert letters.kept + letters.lost == 20
    assert letters.kept == len(list(read_dead_letters(letters.path))) > 0
    assert letters.path.stat().st_size <= 500
    assert isinstance(letters.failure, OSError)


def test_a_directory_in_its_place_loses_letters_and_never_raises(tmp_path: Path) -> None:
    letters = DeadLetterFile(tmp_path)
    letters.put(b"{}", reason="r", source="s")
    assert (letters.kept, letters.lost) == (0, 1)


def test_letters_of_many_threads_do_not_mix(letters: DeadLetterFile) -> None:
    def put(name: str) -> None:
        for number in range(50):
            letters.put(f"{name}-{number}".encode() * 50, reason="r", source=name)

    threads = [threading.Thread(target=put, args=(f"t{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(read_dead_letters(letters.path))) == 200


def test_a_letter_cut_by_a_crash_is_left_out_and_another_broken_one_is_an_error(
    letters: DeadLetterFile,
) -> None:
    letters.put(b"{}", reason="r", source="s")
    with letters.path.open("ab") as file:
        file.write(b'{"at_utc')
    assert len(list(read_dead_letters(letters.path))) == 1
    with letters.path.open("ab") as file:
        file.write(b"\n")
    with pytest.raises(BrokenDocument, match=":2: not a dead letter"):
        list(read_dead_letters(letters.path))
    with pytest.raises(InvalidInput, match="no such file"):
        list(read_dead_letters(letters.path.parent / "none"))


def test_an_event_that_no_reader_could_take_back_is_put_aside_when_it_is_written(
    letters: DeadLetterFile,
) -> None:
    writer = ListWriter()
    wrong = [
        Unregistered(at_utc_seconds=1.0, note="n"),
        Exposure(at_utc_seconds=float("nan"), flag="f", variant="v", targeting_key="u", reason="r"),
        Exposure(at_utc_seconds=1.0, flag=7, variant="v", targeting_key="u", reason="r"),  # type: ignore[arg-type]
        Exposure(at_utc_seconds=1.0, flag=object(), variant="v", targeting_key="u", reason="r"),  # type: ignore[arg-type]
        Exposure(at_utc_seconds=1.0, flag="f" * 100_000, variant="v", targeting_key="u", reason="r"),
    ]
    with BufferedSink(writer, dead_letters=letters) as sink:
        for event in wrong:
            sink.emit(event)
        sink.emit(SHOWN)
    assert [decode_event(line) for line in writer.lines] == [SHOWN]
    assert (sink.stats.written, sink.stats.lost) == (1, 5)
    reasons = [letter.reason for letter in read_dead_letters(letters.path)]
    assert [reason.split(":")[0] for reason in reasons] == [
        "UnknownEvent", "BrokenDocument", "BrokenDocument", "TypeError", "InvalidInput"
    ]  # fmt: skip


def test_an_event_whose_value_cannot_even_be_shown_does_not_stop_the_others(letters: DeadLetterFile) -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    writer = ListWriter()
    with BufferedSink(writer, dead_letters=letters) as sink:
        sink.emit(Exposure(at_utc_seconds=1.0, flag=Hostile(), variant="v", targeting_key="u", reason="r"))  # type: ignore[arg-type]
        sink.emit(SHOWN)
    assert [decode_event(line) for line in writer.lines] == [SHOWN]
    assert [letter.line for letter in read_dead_letters(letters.path)] == [b"Exposure"]


def test_a_reader_puts_aside_what_is_no_event_and_goes_on(tmp_path: Path, letters: DeadLetterFile) -> None:
    segment = tmp_path / "events.jsonl"
    segment.write_bytes(
        encode_event(SHOWN) + b'\n{"event":"page_painted"}\n\xff\n' + encode_event(SHOWN) + b"\n"
    )
    report = ReadReport()
    assert list(read_events(segment, report=report, dead_letters=letters)) == [SHOWN, SHOWN]
    assert (report.unknown, report.malformed) == (1, 1)
    assert [(letter.source, letter.line) for letter in read_dead_letters(letters.path)] == [
        (f"{segment}:2", b'{"event":"page_painted"}'),
        (f"{segment}:3", b"\xff"),
    ]


def test_a_letter_that_a_crash_cut_is_taken_off_before_the_next(tmp_path: Path) -> None:
    letters = DeadLetterFile(tmp_path / "letters")
    letters.put(b"first", reason="r", source="s")
    with letters.path.open("ab") as file:
        file.write(b'{"at_utc_se')
    letters.put(b"second", reason="r", source="s")
    assert [letter.text for letter in read_dead_letters(letters.path)] == ["first", "second"]


def test_a_reason_that_is_no_utf8_is_kept_escaped(tmp_path: Path) -> None:
    letters = DeadLetterFile(tmp_path / "letters")
    letters.put(b"x", reason="\ud800", source="\udcff:1")
    [letter] = read_dead_letters(letters.path)
    assert (letter.reason, letter.source) == ("\\ud800", "\\udcff:1")


def test_a_forked_child_is_not_held_up_by_a_letter_that_the_parent_was_writing(tmp_path: Path) -> None:
    letters, vault = DeadLetterFile(tmp_path / "letters"), TokenVault(tmp_path / "vault")
    with letters._lock, vault._lock:
        child = os.fork()
        if not child:
            signal.alarm(5)
            letters.put(b"x", reason="r", source="s")
            vault.put("token", "value")
            os._exit(0 if (letters.kept, vault.lost) == (1, 0) else 1)
    assert os.waitpid(child, 0)[1] == 0
    vault.close()


def test_a_letter_that_a_full_disk_cut_short_is_taken_back_and_counted(tmp_path: Path) -> None:
    child = os.fork()
    letters = DeadLetterFile(tmp_path / "letters")
    if not child:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        for _ in range(3):
            letters.put(b"x" * 100, reason="r", source="s")
        os._exit(0 if (letters.kept, letters.lost) == (1, 2) else 1)
    assert os.waitpid(child, 0)[1] == 0
    letters.put(b"later", reason="r", source="s")
    assert [letter.text for letter in read_dead_letters(letters.path)] == ["x" * 100, "later"]
