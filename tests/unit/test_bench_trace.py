"""Reading traces from files that anyone may have written, and counting what caches did with them."""

from __future__ import annotations

import gzip
import json
from collections import OrderedDict
from pathlib import Path

import pytest

from bench.cache import main
from bench.trace import Request, drawn, read, replay
from fairlead.errors import InvalidInput


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_line_of_an_arc_trace_stands_for_its_blocks_one_after_another(tmp_path: Path) -> None:
    trace = written(tmp_path / "P1.lis", "10 3 0 0\n\n7 1 0 1\n")
    assert [request.key for request in read(trace)] == [10, 11, 12, 7]


def test_a_table_of_time_key_and_size_is_read_with_or_without_a_heading(tmp_path: Path) -> None:
    rows = "0.5,a,100\n1.5,b,20\n1.0,a\n"
    expected = [Request("a", 0.5, 100), Request("b", 1.5, 20), Request("a", 1.5, 1)]
    assert list(read(written(tmp_path / "t.csv", rows))) == expected
    assert list(read(written(tmp_path / "h.csv", "time,key,size\r\n" + rows))) == expected


def test_a_compressed_trace_is_read_alike(tmp_path: Path) -> None:
    path = tmp_path / "P1.lis.gz"
    with gzip.open(path, "wt") as file:
        file.write("1 2 0 0\n")
    assert [request.key for request in read(path)] == [1, 2]


def test_an_empty_trace_has_no_requests(tmp_path: Path) -> None:
    assert list(read(written(tmp_path / "t.lis", ""))) == []
    assert replay([], [10])[0].hit_ratio == 0.0


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("t.lis", "1 1 0 0\nfoo 1\n", 2),
        ("t.lis", "1\n", 1),
        ("t.lis", "1 0\n", 1),
        ("t.lis", "1 99999999999\n", 1),
        ("t.lis", "-5 1\n", 1),
        ("t.lis", "9" * 30 + " 1\n", 1),
        ("t.lis", "1" * 5000, 1),
        ("t.csv", "0,a,1\nnan,b,1\n", 2),
        ("t.csv", "0,a,1\ninf,b,1\n", 2),
        ("t.csv", "0,a,1\n1,,1\n", 2),
        ("t.csv", "0,a,1\n1,b,-1\n", 2),
        ("t.csv", "0,a,1\n1,b,1,1\n", 2),
        ("t.csv", "0,a,1\ntime,key,size\n", 2),
    ],
)
def test_a_line_that_is_no_request_is_named_by_its_number(
    tmp_path: Path, name: str, text: str, line: int
) -> None:
    with pytest.raises(InvalidInput, match=rf"{name}:{line}: "):
        list(read(written(tmp_path / name, text)))


def test_what_is_no_trace_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not a trace"):
        list(read(written(tmp_path / "t.parquet", "")))
    with pytest.raises(InvalidInput, match="cannot be read"):
        list(read(tmp_path / "absent.csv"))
    (tmp_path / "torn.csv.gz").write_bytes(gzip.compress(b"0,a,1\n" * 1000)[:30])
    with pytest.raises(InvalidInput, match="cannot be read"):
        list(read(tmp_path / "torn.csv.gz"))


def test_every_lru_agrees_with_a_dict_in_order_of_use() -> None:
    requests = list(drawn(5_000, keys=500, alpha=0.9, rate=100.0, seed=1))
    model: OrderedDict[object, None] = OrderedDict()
    hits = 0
    for request in requests:
        hits += request.key in model
        model[request.key] = None
        model.move_to_end(request.key)
        if len(model) > 50:
            model.popitem(last=False)
    found = {each.name: each.hits for each in replay(requests, [50])}
    assert found["fairlead LRU"] == found["cachetools LRUCache"] == found["cachebox LRUCache"] == hits
    assert found["fairlead tiny_lfu"] > hits


def test_a_ttl_counts_on_the_clock_of_the_trace() -> None:
    requests = [Request("a", 0.0), Request("a", 4.9), Request("a", 5.0), Request("a", 9.9)]
    assert {each.name: each.hits for each in replay(requests, [10], ttl=5.0)} == {
        "fairlead LRU": 2,
        "fairlead tiny_lfu": 2,
        "cachetools TTLCache": 2,
    }


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_a_damaged_archive_is_refused_wherever_the_damage_is(tmp_path: Path, share: float) -> None:
    packed = bytearray(gzip.compress("".join(f"{i},{i},1\n" for i in range(5_000)).encode()))
    packed[int(len(packed) * share)] ^= 0xFF
    (tmp_path / "damaged.csv.gz").write_bytes(packed)
    with pytest.raises(InvalidInput, match=r"damaged\.csv\.gz"):
        list(read(tmp_path / "damaged.csv.gz"))


def test_a_table_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    assert list(read(written(tmp_path / "b.csv", "\ufeff0,a,1\n"))) == [Request("a", 0.0, 1)]
    assert list(read(written(tmp_path / "h.csv", "\ufefftime,key,size\n0,a,1\n"))) == [Request("a", 0.0, 1)]


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("0,caf\u00e9,1\n".encode("latin-1"))
    with pytest.raises(InvalidInput, match="cannot be read"):
        list(read(tmp_path / "latin.csv"))


def test_without_a_ttl_no_answer_gets_too_old_however_large_the_times_are() -> None:
    # Times in nanoseconds, read as seconds: years pass between two requests.
    requests = [Request("a", 0.0), Request("a", 1e15), Request("a", 1e18)]
    assert {each.hits for each in replay(requests, [10])} == {2}


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main([*arguments, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("spelled", [["--requests=2"], ["--requests", "2"]])
def test_the_first_requests_of_a_file_are_replayed_if_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spelled: list[str]
) -> None:
    trace = written(tmp_path / "t.csv", "0,a,1\n1,a,1\n2,a,1\n")
    found = report(capsys, "--trace", str(trace), "--entries", "10", *spelled)
    assert {arm["requests"] for arm in found["arms"]} == {2}
    assert {arm["hit_ratio"] for arm in found["arms"]} == {0.5}


def test_a_whole_file_is_replayed_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = written(tmp_path / "t.lis", "1 3 0 0\n1 3 0 1\n")
    found = report(capsys, "--trace", str(trace), "--entries", "10")
    assert {(arm["requests"], arm["hits"]) for arm in found["arms"]} == {(6, 3)}
    assert {"cpu", "python", "commit", "date"} <= set(found["machine"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rate", "0"],
        ["--rate", "nan"],
        ["--keys", "0"],
        ["--alpha", "nan"],
        ["--requests", "0"],
        ["--requests", "-1"],
        ["--entries", "0"],
        ["--ttl", "nan"],
        ["--ttl", "-1"],
        ["--seed", "-1"],
    ],
)
def test_a_setting_out_of_its_bounds_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["--requests", "10", "--keys", "10", "--entries", "10", *arguments]) == 2
    assert arguments[0].removeprefix("--") in capsys.readouterr().err


def test_an_arc_trace_has_no_clock_for_a_ttl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = written(tmp_path / "t.lis", "1 3 0 0\n")
    assert main(["--trace", str(trace), "--ttl", "5"]) == 2
    assert "ARC" in capsys.readouterr().err


def test_an_empty_trace_is_said_to_be_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--trace", str(written(tmp_path / "t.csv", "")), "--entries", "10"]) == 2
    assert "no requests" in capsys.readouterr().err
