"""The pages of metrics that a run keeps: read back as written, and refused when they are none."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from fairlead.errors import BrokenDocument, NoSpace
from fairlead.trial import Settings
from fairlead.trial.pages import MetricsPage, read_pages, write_pages


def page(at: float, arm: str = "control", phase: str = "normal") -> MetricsPage:
    return MetricsPage(arm=arm, cycle=0, phase=phase, at_utc_seconds=at, text="a_total 1\n")


def test_pages_of_several_turns_come_back_in_the_order_of_time(tmp_path: Path):
    write_pages(tmp_path, [page(3.0), None, page(4.0)])
    write_pages(tmp_path, [page(1.0, "treatment")])
    assert [each.at_utc_seconds for each in read_pages(tmp_path)] == [1.0, 3.0, 4.0]


def test_service_without_metrics_leaves_no_file(tmp_path: Path):
    write_pages(tmp_path, [None, None])
    assert read_pages(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "data",
    [
        b"no gzip",
        gzip.compress(b"{}\n", mtime=0),
        gzip.compress(b"[" * 100, mtime=0),
        gzip.compress(b"x", mtime=0)[:-4],
    ],
)
def test_broken_file_is_named(tmp_path: Path, data: bytes):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "control-0.jsonl.gz").write_bytes(data)
    with pytest.raises(BrokenDocument, match=r"control-0\.jsonl\.gz: cannot be read"):
        read_pages(tmp_path)


def test_folder_that_cannot_be_written_is_told_as_such(tmp_path: Path):
    (tmp_path / "metrics").write_text("a file in the way")
    with pytest.raises(NoSpace, match="another --out"):
        write_pages(tmp_path, [page(1.0)])


def test_command_repeats_the_settings_and_shows_no_password():
    settings = Settings(seed=3, quick=True, rate=40.0, ablate=("hedge",), redis="redis://me:secret@h:6379/1")
    assert " ".join(settings.command("home_feed")) == (
        "fairlead try home_feed --seed 3 --quick --rate 40 --ablate hedge --redis redis://h:6379/1"
    )
    assert Settings().command("x") == ("fairlead", "try", "x", "--seed", "1")
