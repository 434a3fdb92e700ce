"""What a command writes is there whole, or the old file still is."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from fairlead.cli.output_file import write_output
from fairlead.errors import InvalidInput


def test_a_reader_who_holds_the_old_file_reads_it_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("old " * 1000)
    with open(path) as reader:
        assert reader.read(4) == "old "
        write_output(path, "new")
        assert reader.read() == "old " * 999
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["rules.yaml"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InvalidInput, match="Input/output error"):
        write_output(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["rules.yaml"]


def test_a_link_and_the_permissions_stay(tmp_path: Path) -> None:
    real, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    write_output(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert real.stat().st_mode & 0o777 == 0o640


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_output(pipe, "new")
    reader.join(5)
    assert read == ["new"]


def test_a_folder_that_is_not_there_is_named_with_the_option(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="choose another --html"):
        write_output(tmp_path / "gone" / "page.html", "new", option="--html")
