"""Reading traces from files that anyone may have written, and counting what caches did with them."""

from __future__ import annotations

import gzip
from collections import OrderedDict
from pathlib import Path

import pytest

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
