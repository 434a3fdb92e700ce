"""The folder of a run."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fairlead.errors import InvalidInput
from fairlead.trial.run import make_run_directory


def test_folder_is_named_after_moment_system_and_seed(tmp_path: Path):
    directory = make_run_directory(tmp_path / "new" / "runs", "home_feed", 7)
    assert directory.is_dir()
    assert re.fullmatch(r"\d{8}-\d{6}-home_feed-seed7", directory.name)


def test_runs_that_begin_at_once_get_folders_of_their_own(tmp_path: Path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: make_run_directory(tmp_path / "runs", "home_feed", 1), range(24)))
    assert len(set(made)) == 24
    assert sorted(made) == sorted((tmp_path / "runs").iterdir())


def test_out_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "taken").write_text("mine")
    for out in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(InvalidInput, match=f"--out {out}: ") as caught:
            make_run_directory(out, "home_feed", 1)
        assert "choose" in str(caught.value)
    assert (tmp_path / "taken").read_text() == "mine"


def test_out_that_is_a_broken_link_is_refused(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "deep")
    with pytest.raises(InvalidInput, match="--out "):
        make_run_directory(tmp_path / "link", "home_feed", 1)


def test_out_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: object, mode: int = 0o777) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(
        os, "mkdir", refuse
    )  # root may write anywhere, so the mode of a folder proves nothing
    with pytest.raises(InvalidInput, match="Permission denied; choose a folder that can be written"):
        make_run_directory(tmp_path / "locked", "home_feed", 1)


def test_name_too_long_for_the_file_system_is_refused(tmp_path: Path):
    with pytest.raises(InvalidInput, match="File name too long"):
        make_run_directory(tmp_path / ("x" * 300), "home_feed", 1)
