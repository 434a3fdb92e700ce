"""The file that a run leaves behind: written whole, read with suspicion."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from fairlead.errors import BrokenDocument, InvalidInput, NoSpace
from fairlead.trial import Settings
from fairlead.trial import result as result_module
from fairlead.trial.conclude import conclude
from fairlead.trial.result import Figure, Result, hash_evidence, read_result, write_atomically, write_result


@pytest.fixture
def result(paper: SimpleNamespace, tmp_path: Path) -> Result:
    return conclude(paper.system(targets=[paper.target()]), Settings(), paper.complete(), tmp_path)


def test_result_comes_back_as_it_was_written(result: Result, tmp_path: Path):
    write_result(result, tmp_path / "result.json")
    assert read_result(tmp_path / "result.json") == result


def test_json_holds_no_nan_and_no_infinity(result: Result, tmp_path: Path):
    write_result(result, tmp_path / "result.json")
    text = (tmp_path / "result.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert '"schema": "fairlead.trial.result/1"' in text


@pytest.mark.parametrize("field", ["value", "low", "high"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_figure_that_is_no_number_is_refused(field: str, number: float):
    numbers = {"value": 1.0, "low": 0.5, "high": 1.5} | {field: number}
    with pytest.raises(InvalidInput, match=f"{field} is"):
        Figure(metric="m", arm="a", phase="p", n=1, **numbers)


def test_figure_without_a_value_says_why():
    with pytest.raises(InvalidInput, match="caveat"):
        Figure(metric="m", arm="a", phase="p", value=None, n=0)
    assert Figure(metric="m", arm="a", phase="p", value=None, n=0, caveat="no data").value is None


def test_figure_is_found_by_metric_arm_and_phase(result: Result):
    found = result.figure("latency_p99", "treatment", "calm")
    assert found is not None
    assert (found.metric, found.arm, found.phase) == ("latency_p99", "treatment", "calm")
    assert result.figure("latency_p99", "treatment", "nowhere") is None


def refused(path: Path) -> str:
    with pytest.raises(BrokenDocument) as caught:
        read_result(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[1, 2]",
        b'{"schema": "fairlead.trial.result/1"}',
        b'{"schema": ',
        b"\xff\xfe\x00",
        b'{"id": "\xff"}',
        b'{"unknown": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 200_000,
    ],
    ids=["empty", "null", "list", "bare", "cut", "binary", "no utf-8", "deep in a field", "deep"],
)
def test_file_that_is_no_result_is_refused_in_one_line(tmp_path: Path, content: bytes):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    refused(path)


def test_result_of_another_schema_is_refused_by_name(result: Result, tmp_path: Path):
    path = tmp_path / "result.json"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(result, schema="fairlead.trial.result/9")))
    message = refused(path)
    assert "'fairlead.trial.result/9'" in message
    assert "'fairlead.trial.result/1'" in message


def test_missing_file_and_folder_are_refused(tmp_path: Path):
    assert "No such file" in refused(tmp_path / "nothing.json")
    refused(tmp_path)


def test_oversized_file_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "result.json"
    with path.open("wb") as file:
        file.truncate(result_module.MAX_RESULT_BYTES + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("was read"))
    assert "larger than" in refused(path)


def test_named_pipe_in_the_place_of_a_result_does_not_hang_the_reader(tmp_path: Path):
    path = tmp_path / "result.json"
    os.mkfifo(path)
    assert "regular file" in refused(path)


def test_device_without_end_is_refused():
    assert "regular file" in refused(Path("/dev/zero"))


def test_write_replaces_the_old_file_and_leaves_no_other(tmp_path: Path):
    path = tmp_path / "result.json"
    path.write_bytes(b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def failing(number: int) -> Callable[[int], None]:
    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    return fsync


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_full_disk_leaves_the_old_file_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    path = tmp_path / "result.json"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(NoSpace, match=r"result\.json.*choose another --out"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_that_is_gone_is_told_by_name(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"gone/result\.json: No such file"):
        write_atomically(tmp_path / "gone" / "result.json", b"new")


def test_evidence_is_named_sized_and_hashed(tmp_path: Path):
    (tmp_path / "events" / "load").mkdir(parents=True)
    (tmp_path / "events" / "load" / "a.jsonl").write_bytes(b"abc")
    (tmp_path / "events" / "load" / "a.txt").write_bytes(b"not asked for")
    (tmp_path / "flags.json").write_bytes(b"")
    found = hash_evidence(tmp_path, ["events/**/*.jsonl", "flags.json", "missing.json"])
    assert [(each.path, each.bytes, each.sha256[:8]) for each in found] == [
        ("events/load/a.jsonl", 3, "ba7816bf"),
        ("flags.json", 0, "e3b0c442"),
    ]
