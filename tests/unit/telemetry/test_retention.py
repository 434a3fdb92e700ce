"""What is over a bound goes, oldest first, and what is pinned stays."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from fairlead.clock import ManualClock
from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.telemetry import JsonLinesSegments, pin, pins, retain, unpin
from fairlead.telemetry.catalogue import read_catalogue

NOW = 1_767_571_200.0
CLOCK = ManualClock(utc=NOW)


def segment(directory: Path, name: str, *, age: float, size: int = 100) -> Path:
    path = directory / f"events-{name}-1-000001.jsonl"
    path.write_bytes(b"x" * (size - 1) + b"\n")
    os.utime(path, (NOW - age, NOW - age))
    return path


def left(directory: Path) -> list[str]:
    return sorted(path.name.split("-")[1] for path in directory.glob("*.jsonl"))


def test_what_is_too_old_is_deleted(tmp_path: Path) -> None:
    for name, age in (("a", 300.0), ("b", 200.0), ("c", 100.0)):
        segment(tmp_path, name, age=age)
    report = retain(tmp_path, max_age=200.0, clock=CLOCK)
    assert left(tmp_path) == ["b", "c"]
    assert [name.split("-")[1] for name in report.deleted] == ["a"]
    assert (report.deleted_bytes, report.kept_bytes, report.spared) == (100, 200, ())


def test_the_oldest_go_until_the_rest_fits(tmp_path: Path) -> None:
    for name, age in (("a", 100.0), ("b", 300.0), ("c", 200.0)):
        segment(tmp_path, name, age=age)
    assert retain(tmp_path, max_bytes=250, clock=CLOCK).kept_bytes == 200
    assert left(tmp_path) == ["a", "c"]
    assert retain(tmp_path, max_bytes=0, clock=CLOCK).kept_bytes == 0


def test_without_a_bound_nothing_goes(tmp_path: Path) -> None:
    segment(tmp_path, "a", age=1e9)
    assert retain(tmp_path, clock=CLOCK).deleted == ()


def test_what_is_pinned_is_spared_and_the_next_oldest_goes_in_its_place(tmp_path: Path) -> None:
    kept = segment(tmp_path, "a", age=300.0)
    segment(tmp_path, "b", age=200.0)
    segment(tmp_path, "c", age=100.0)
    made = pin(kept, reason="evidence-7", clock=CLOCK)
    assert made.sha256 == hashlib.sha256(kept.read_bytes()).hexdigest()
    report = retain(tmp_path, max_bytes=200, clock=CLOCK)
    assert left(tmp_path) == ["a", "c"]
    assert report.spared == (kept.name,)
    unpin(kept, reason="evidence-7")
    retain(tmp_path, max_bytes=100, clock=CLOCK)
    assert left(tmp_path) == ["c"]


def test_a_file_is_kept_for_as_long_as_any_reason_is_left(tmp_path: Path) -> None:
    kept = segment(tmp_path, "a", age=300.0)
    assert pin(kept, reason="one", clock=CLOCK) == pin(kept, reason="one", clock=CLOCK)
    pin(kept, reason="two", clock=CLOCK)
    assert [each.reason for each in pins(tmp_path)] == ["one", "two"]
    unpin(kept, reason="one")
    unpin(kept, reason="one")
    retain(tmp_path, max_age=0.0, clock=CLOCK)
    assert kept.exists()
    unpin(kept, reason="two")
    retain(tmp_path, max_age=0.0, clock=CLOCK)
    assert not kept.exists()


def test_a_segment_that_is_being_written_counts_and_stays(tmp_path: Path) -> None:
    writer = JsonLinesSegments(tmp_path, clock=CLOCK)
    writer.write([b"x" * 99])
    report = retain(tmp_path, max_age=0.0, max_bytes=0, clock=CLOCK)
    assert (report.deleted, report.kept_bytes) == ((), 100)
    writer.write([b"y"])
    writer.close()


def test_only_a_finished_file_that_is_there_can_be_pinned(tmp_path: Path) -> None:
    writer = JsonLinesSegments(tmp_path, clock=CLOCK)
    writer.write([b"x"])
    assert writer.current is not None
    with pytest.raises(InvalidInput, match="still being written"):
        pin(writer.current, reason="r")
    writer.close()
    for path in (tmp_path / "missing.jsonl", tmp_path / "no" / "folder.jsonl"):
        with pytest.raises(InvalidInput, match="nothing to pin"):
            pin(path, reason="r")
        unpin(path, reason="r")
    with pytest.raises(InvalidInput, match="needs a reason"):
        pin(tmp_path / "x", reason="")


def test_the_age_of_a_compacted_file_is_that_of_its_day_and_it_leaves_the_catalogue_first(
    tmp_path: Path,
) -> None:
    old, new = "exposure-2026-01-01-000001.parquet", "exposure-2026-01-04-000002.parquet"
    for name in (old, new):
        (tmp_path / name).write_bytes(b"x" * 100)
    (tmp_path / "catalogue.json").write_text(f'{{"number":2,"files":["{old}","{new}"]}}')
    report = retain(tmp_path, max_age=86_400.0, clock=CLOCK)
    assert report.deleted == (old,)
    assert read_catalogue(tmp_path).files == [new]
    assert not (tmp_path / old).exists()


@pytest.mark.parametrize("content", [b"", b"{", b'[{"file":"a"}]', b"\xff"])
def test_pins_that_cannot_be_read_stop_every_deletion(tmp_path: Path, content: bytes) -> None:
    path = segment(tmp_path, "a", age=300.0)
    (tmp_path / "pins.json").write_bytes(content)
    with pytest.raises(BrokenDocument, match="not a list of pins"):
        retain(tmp_path, max_age=0.0, clock=CLOCK)
    assert path.exists()


@pytest.mark.parametrize("bounds", [{"max_age": -1.0}, {"max_age": float("nan")}, {"max_bytes": -1}], ids=str)
def test_a_bound_that_makes_no_sense_is_refused_by_name(tmp_path: Path, bounds: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(bounds))):
        retain(tmp_path, **bounds)
    with pytest.raises(InvalidInput, match="no such directory"):
        retain(tmp_path / "missing")
