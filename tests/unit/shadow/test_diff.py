"""In which fields two answers differ."""

from __future__ import annotations

import dataclasses
import datetime
import enum
from collections.abc import Iterator

import msgspec
import pytest

from fairlead.errors import InvalidInput
from fairlead.shadow import FieldDiff, RawJson, Tolerance


def differing(control: object, other: object, **rules: object) -> set[str]:
    return set(FieldDiff(**rules).differences(control, other).fields)


@pytest.mark.parametrize(
    ("control", "other", "fields"),
    [
        pytest.param({"a": 1}, {"a": 1}, set(), id="equal"),
        pytest.param({"a": 1}, {"a": 2}, {"a"}, id="a value"),
        pytest.param({"a": 1}, {"b": 1}, {"a", "b"}, id="missing on either side"),
        pytest.param({"a": None}, {}, {"a"}, id="null is not missing"),
        pytest.param({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, {"a.b.c"}, id="nested"),
        pytest.param(
            {"items": [{"s": 1}, {"s": 2}]}, {"items": [{"s": 1}, {"s": 3}]}, {"items[].s"}, id="index"
        ),
        pytest.param({"items": [1, 2]}, {"items": [1, 2, 3]}, {"items[]"}, id="a longer list"),
        pytest.param([1], [2], {"[]"}, id="a list as the whole"),
        pytest.param(1, 2, {"answer"}, id="a value as the whole"),
        pytest.param({"17": 1}, {"17": 2}, {"{}"}, id="a key that is no name"),
        pytest.param({"ann@example.com": 1}, {}, {"{}"}, id="an address as a key"),
        pytest.param({1: "a"}, {1: "b"}, {"{}"}, id="a number as a key"),
        pytest.param({"a": 1}, {"a": 1.0}, set(), id="a number is a number"),
        pytest.param({"a": True}, {"a": 1}, {"a"}, id="true is not one"),
        pytest.param({"a": float("nan")}, {"a": float("nan")}, set(), id="nan"),
        pytest.param({"a": 10**400}, {"a": 10**400 + 1}, {"a"}, id="a number that no float holds"),
        pytest.param({"a": 1}, {"a": "1"}, {"a"}, id="another type"),
        pytest.param({"a": []}, {"a": {}}, {"a"}, id="a list is no object"),
        pytest.param([(1, 2)], [[1, 2]], set(), id="a tuple is a list"),
        pytest.param({"a": {1, 2}}, {"a": {2, 3}}, {"a[]"}, id="sets"),
    ],
)
def test_fields_that_differ_are_named(control: object, other: object, fields: set[str]):
    assert differing(control, other) == fields


def test_numbers_within_their_tolerance_are_equal():
    rules = {"tolerances": {"s": Tolerance(relative=0.01), "t[]": Tolerance(absolute=1.0)}}
    assert differing({"s": 100, "t": [5.0]}, {"s": 100.9, "t": [6.0]}, **rules) == set()
    assert differing({"s": 100, "t": [5.0]}, {"s": 101.1, "t": [6.1]}, **rules) == {"s", "t[]"}
    assert differing({"s": 10**400}, {"s": 10**400 + 1}, **rules) == {"s"}


def test_ignored_fields_are_not_looked_at_with_all_below_them():
    control = {"debug": {"host": "a"}, "x": {"at": 1, "y": [{"at": 2}]}, "items": [1]}
    other = {"debug": {"host": "b", "more": 1}, "x": {"at": 3, "y": [{"at": 4}]}, "items": [1, 2]}
    assert differing(control, other, ignored=("debug", "*.at", "items[]")) == set()


def test_a_list_in_another_order_is_equal_where_order_says_nothing():
    control = {"items": [{"id": 1, "s": 1}, {"id": 2, "s": 2}], "tags": ["a", "b", "a"]}
    other = {"items": [{"id": 2, "s": 2}, {"id": 1, "s": 5}], "tags": ["b", "a", "a"]}
    assert differing(control, other, unordered={"items": "id", "tags": ""}) == {"items[].s"}
    assert differing({"tags": ["a", "a"]}, {"tags": ["a"]}, unordered={"tags": ""}) == {"tags[]"}
    assert differing({"items": [{"s": 1}]}, {"items": [{"s": 2}]}, unordered={"items": "id"}) == {"items[].s"}


def test_keys_that_look_like_names_may_be_declared_as_data():
    assert differing({"scores": {"ann": 1}}, {"scores": {"bob": 1}}, maps=("scores",)) == {"scores{}"}


def test_structs_data_classes_enums_and_dates_are_compared_by_what_they_hold():
    class Page(msgspec.Struct):
        title: str
        at: datetime.date

    @dataclasses.dataclass
    class Row:
        state: enum.Enum

    class State(enum.Enum):
        ON = 1
        OFF = 2

    day = datetime.date(2026, 1, 1)
    assert differing(Page("a", day), Page("b", day)) == {"title"}
    assert differing(Row(State.ON), Row(State.OFF)) == {"state"}
    assert differing(Page("a", day), {"title": "a", "at": day}) == set()


def test_equal_bytes_of_json_are_equal_without_being_read():
    broken = b'{"a": '
    assert differing(RawJson(broken), RawJson(bytes(broken))) == set()
    assert differing({"body": RawJson(broken)}, {"body": RawJson(b"{}")}) == {"body"}
    assert differing({"body": RawJson(b'{"a":[1]}')}, {"body": RawJson(b'{ "a":[2]}')}) == {"body.a[]"}


def test_json_as_python_writes_it_is_compared_by_field():
    assert differing(RawJson(b'{"a":NaN,"b":1e400,"c":1}'), RawJson(b'{"a":NaN,"b":1e400,"c":2}')) == {"c"}
    assert differing(RawJson(b'{"a":NaN}'), RawJson(b'{"a":1}')) == {"a"}
    assert differing(RawJson(b"\xef\xbb\xbf{}"), RawJson(b"{}")) == {"answer"}
    assert differing(RawJson("{}".encode("utf-16")), RawJson(b"{}")) == {"answer"}


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b'"\\ud800"'])
def test_hostile_json_is_a_difference_and_no_crash(data: bytes):
    assert differing(RawJson(data), RawJson(b"1")) == {"answer"}


def test_a_walk_ends_at_its_bounds_and_says_so():
    deep_a: object = 1
    deep_b: object = 2
    for _ in range(50):
        deep_a, deep_b = {"a": deep_a}, {"a": deep_b}
    assert FieldDiff(depth=10).differences(deep_a, deep_b).cut
    assert not FieldDiff(depth=60).differences(deep_a, deep_b).cut
    many_a, many_b = {f"k{n}": 1 for n in range(5_000)}, {f"j{n}": 1 for n in range(5_000)}
    found = FieldDiff(nodes=1_000).differences(many_a, many_b)
    assert found.cut
    assert len(found.fields) <= 1_000
    many = [[n] for n in range(100_000)]
    assert FieldDiff(nodes=1_000).differences(many, [[-n] for n in range(100_000)]).cut
    unordered = FieldDiff(nodes=1_000, unordered={"": ""})
    assert unordered.differences(many, [[-n] for n in range(100_000)]).cut


def test_a_value_that_holds_itself_ends_the_walk():
    a: dict[str, object] = {}
    a["a"] = a
    b: dict[str, object] = {}
    b["a"] = {"a": b}
    assert FieldDiff().differences(a, b).cut


def test_values_that_cannot_be_compared_are_refused():
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise ValueError("the truth of an array is ambiguous")

        __hash__ = None

    with pytest.raises(InvalidInput, match="cannot be compared: ValueError"):
        FieldDiff().differences({"a": Odd()}, {"a": Odd()})


def test_the_work_is_done_in_steps():
    steps = FieldDiff().steps([[n] for n in range(2_000)], [[n] for n in range(2_000)])
    assert sum(1 for _ in steps) >= 10


def test_one_wide_answer_is_no_long_step():
    taken = 0

    class Wide(dict[str, int]):
        def __iter__(self) -> Iterator[str]:
            nonlocal taken
            for key in super().__iter__():
                taken += 1
                yield key

    wide = Wide.fromkeys([f"k{n}" for n in range(4_000)], 1)
    steps = FieldDiff().steps(wide, dict.fromkeys(wide, 2))
    taken = 0
    next(steps)
    assert taken <= 250


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"ignored": "body.at"}, "one string"),
        ({"maps": "body"}, "one string"),
        ({"tolerances": {"a": 0.1}}, "pass Tolerance"),
        ({"depth": 0}, "depth"),
        ({"nodes": True}, "nodes"),
    ],
)
def test_rules_that_are_none_are_refused(rules: dict[str, object], message: str):
    with pytest.raises(InvalidInput, match=message):
        FieldDiff(**rules)


@pytest.mark.parametrize("bad", [{"relative": 2.0}, {"relative": float("nan")}, {"absolute": -1.0}])
def test_tolerances_that_are_none_are_refused(bad: dict[str, float]):
    with pytest.raises(InvalidInput, match="Tolerance"):
        Tolerance(**bad)
