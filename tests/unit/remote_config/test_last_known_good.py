from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from fairlead.errors import BrokenDocument, InvalidInput, NoSpace
from fairlead_systems.remote_config.last_known_good import (
    LastKnownGood,
    read_last_known_good,
    write_last_known_good,
)
from fairlead_systems.remote_config.table import Entry

KEPT = LastKnownGood(version=7, at_utc_seconds=1.5, entries=(Entry("all", "", "theme", '"dark"'),))


def test_what_is_written_is_read_back(tmp_path: Path):
    path = tmp_path / "kept.json"
    write_last_known_good(path, KEPT)
    assert read_last_known_good(path) == KEPT
    assert os.listdir(tmp_path) == ["kept.json"]


def test_no_file_is_none(tmp_path: Path):
    assert read_last_known_good(tmp_path / "kept.json") is None


def test_any_byte_that_changed_is_noticed(tmp_path: Path):
    path = tmp_path / "kept.json"
    write_last_known_good(path, KEPT)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(BrokenDocument):
            read_last_known_good(path)


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_file_that_is_something_else_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "kept.json"
    path.write_bytes(content)
    with pytest.raises(BrokenDocument, match=r"kept\.json"):
        read_last_known_good(path)


def test_file_of_another_schema_is_refused(tmp_path: Path):
    path = tmp_path / "kept.json"
    write_last_known_good(path, KEPT)
    document = json.loads(path.read_text())
    document["schema"] = "remote_config.last_known_good/2"
    path.write_text(json.dumps(document))
    with pytest.raises(BrokenDocument, match="this version reads"):
        read_last_known_good(path)


def test_folder_in_its_place_is_refused_when_read_and_when_written(tmp_path: Path):
    with pytest.raises(BrokenDocument):
        read_last_known_good(tmp_path)
    (tmp_path / "kept.json").mkdir()
    (tmp_path / "kept.json" / "file").touch()
    with pytest.raises(NoSpace):
        write_last_known_good(tmp_path / "kept.json", KEPT)
    assert os.listdir(tmp_path) == ["kept.json"]


def test_disk_that_is_full_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "kept.json"
    write_last_known_good(path, KEPT)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpace, match="the old file stands"):
        write_last_known_good(path, LastKnownGood(version=8, at_utc_seconds=2.0, entries=()))
    assert read_last_known_good(path) == KEPT
    assert os.listdir(tmp_path) == ["kept.json"]


def test_file_and_folder_are_flushed_before_it_counts_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    flushed = []
    real = os.fsync

    def noted(handle: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{handle}"))
        real(handle)

    monkeypatch.setattr(os, "fsync", noted)
    write_last_known_good(tmp_path / "kept.json", KEPT)
    assert len(flushed) == 2
    assert Path(flushed[0]).parent == tmp_path
    assert Path(flushed[1]) == tmp_path


def test_more_than_a_file_should_hold_is_refused(tmp_path: Path):
    many = tuple(Entry("segment", "s", "theme", '"' + "x" * 4_000 + '"') for _ in range(5_000))
    with pytest.raises(InvalidInput, match="at most"):
        write_last_known_good(
            tmp_path / "kept.json", LastKnownGood(version=1, at_utc_seconds=0.0, entries=many)
        )
