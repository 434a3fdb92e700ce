from __future__ import annotations

import os
from pathlib import Path

import pytest

from fairlead.clock import ManualClock
from fairlead.errors import BrokenDocument, InvalidInput, OlderDocument
from fairlead.flags import EvaluationContext, FlagDelivery, FlagFile, FlagSet, write_flag_file
from tests.unit.flags.documents import BROKEN, EMPTY, document


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "flags.json"
    write_flag_file(path, document("slow", version=1))
    return path


class Watched:
    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.file = FlagFile(path)
        self.delivery = FlagDelivery(FlagSet.parse(EMPTY), self.file, clock=self.clock)

    def look(self, after: float = 0.2) -> str:
        self.clock.advance(after)
        self.file.look(self.delivery)
        return self.delivery.flags.string("feed", EvaluationContext(), "none")


def test_a_file_that_is_replaced_answers_at_the_next_look(path: Path):
    watched = Watched(path)
    assert watched.look() == "slow"
    assert watched.delivery.status.source == "file"
    write_flag_file(path, document("fast", version=2))
    assert watched.look() == "fast"


def test_a_file_that_stands_still_is_confirmed_without_being_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    watched = Watched(path)
    watched.look()
    watched.look(2.1)
    monkeypatch.setattr("fairlead.flags.watched_file.read_flag_file", None)
    watched.look(100.0)
    assert watched.delivery.status.age_seconds == 0.0


def test_a_second_write_within_the_grain_of_the_file_systems_time_is_seen(path: Path):
    watched = Watched(path)
    watched.look()
    about = path.stat()
    with path.open("r+b") as file:
        file.write(document("fast", version=1))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    watched.file._seen = tuple(  # as if the kernel's clock had not ticked
        getattr(path.stat(), name) for name in ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
    )
    assert watched.look() == "fast"


def test_a_file_half_written_or_broken_leaves_the_last_good_document(path: Path):
    watched = Watched(path)
    watched.look()
    for harm in (document("fast")[:40], BROKEN, b""):
        path.write_bytes(harm)
        assert watched.look() == "slow"
        refused = watched.delivery.status.refused
        assert str(path) in watched.delivery.status.error
        assert watched.look() == "slow"
        assert watched.look(3.0) == "slow"
        assert watched.delivery.status.refused == refused, "one refusal a document"
        assert watched.delivery.status.error, "for as long as it stands there"
    path.write_bytes(document("fast", version=2))
    assert watched.look() == "fast"
    assert watched.delivery.status.error == ""


def test_a_file_that_is_gone_is_an_error_until_it_is_back(path: Path):
    watched = Watched(path)
    watched.look()
    watched.look(2.1)
    aside = path.rename(path.with_name("aside"))
    assert watched.look() == "slow"
    assert "cannot be read" in watched.delivery.status.error
    aside.rename(path)
    assert watched.look() == "slow"
    assert watched.delivery.status.error == ""


def test_a_link_that_is_turned_is_followed_as_mounted_configurations_need(tmp_path: Path):
    for name, value in (("one", "slow"), ("two", "fast")):
        (tmp_path / name).mkdir()
        write_flag_file(tmp_path / name / "flags.json", document(value))
    (tmp_path / "data").symlink_to("one")
    watched = Watched(tmp_path / "data" / "flags.json")
    assert watched.look() == "slow"
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").replace(tmp_path / "data")
    assert watched.look() == "fast"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_hangs_nothing_and_leaves_nothing_open(make, tmp_path: Path):
    make(tmp_path / "flags.json")
    before = os.listdir("/proc/self/fd")
    watched = Watched(tmp_path / "flags.json")
    assert watched.look() == "none"
    assert "not a regular file" in watched.delivery.status.error
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_source_that_served_another_delivery_brings_the_file_to_the_next_one(path: Path):
    watched = Watched(path)
    watched.look()
    watched.look(2.1)
    watched.delivery = FlagDelivery(FlagSet.parse(EMPTY), watched.file, clock=watched.clock)
    assert watched.look() == "slow"


def test_an_older_file_is_not_gone_back_to(path: Path):
    watched = Watched(path)
    write_flag_file(path, document("fast", version=2))
    assert watched.look() == "fast"
    path.write_bytes(document("slow", version=1))
    assert watched.look() == "fast"
    assert "version 1 is older than version 2" in watched.delivery.status.error


@pytest.mark.parametrize("data", [BROKEN, b"{", b"x" * 1_048_577], ids=["variant", "cut", "huge"])
def test_the_writer_refuses_what_no_reader_would_take(data: bytes, path: Path):
    before = path.read_bytes()
    with pytest.raises(BrokenDocument, match=r"flags\.json"):
        write_flag_file(path, data)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["flags.json"]


def test_the_writer_refuses_an_older_document_and_replaces_a_broken_one(path: Path):
    with pytest.raises(OlderDocument, match="no version is older than version 1"):
        write_flag_file(path, document())
    path.write_bytes(b"{")
    assert write_flag_file(path, document()).source == str(path)


def test_the_writer_keeps_the_mode_and_a_link(path: Path, tmp_path: Path):
    path.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(path)
    write_flag_file(link, document("fast", version=2))
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.read_bytes() == document("fast", version=2)


def test_a_writer_that_cannot_write_says_so_and_leaves_nothing(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(BrokenDocument, match="cannot be written"):
        write_flag_file(tmp_path / "no such folder" / "flags.json", document())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BrokenDocument, match="No space left"):
        write_flag_file(path, document("fast", version=2))
    assert path.read_bytes() == document("slow", version=1)
    assert [each.name for each in path.parent.iterdir()] == ["flags.json"]


@pytest.mark.parametrize("every", [0.0, float("nan"), 1e9], ids=str)
def test_a_pause_outside_its_bounds_is_refused(every: float):
    with pytest.raises(InvalidInput, match=r"FlagFile\.every"):
        FlagFile("flags.json", every=every)
